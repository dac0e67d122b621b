"""Data sets by name: images of folders and of the Hugging Face hub, decoded once or on demand."""
