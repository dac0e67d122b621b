"""Mining with the Hugging Face Trainer."""
