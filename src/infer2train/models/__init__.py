"""Networks: the paper's ResNets, pixels as their input, and models built by name."""
