"""What a run is at a step, on a disk that may fail."""
