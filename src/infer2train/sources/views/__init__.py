"""Vectorised random transforms of images in memory: what a whole batch of addresses looks like, at once."""
