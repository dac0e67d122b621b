"""Our own training loop, a user of `mine()` like any other, and the paper's regimes by name."""
