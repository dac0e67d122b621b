"""The catalogue of data sets: images in memory-mapped arrays, decoded once."""
