"""What is found out by running much of the rest: comparisons, the paper's experiments, what a machine can do."""
