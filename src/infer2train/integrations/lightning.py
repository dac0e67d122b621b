"""Mining with Lightning."""
