"""`mine()` and the loader that it makes: the user's loop on one side, draws, pool and sources on the other."""
