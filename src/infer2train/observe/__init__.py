"""What is measured of a run, and the rows that tell it."""
