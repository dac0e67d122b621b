"""Networks: the paper's ResNets, pixels as their input, and the catalogue that builds models by name."""
