"""γ of this machine: candidates scored in the time in which one example is trained on. Measured, not assumed."""
