"""Mining with Accelerate."""
