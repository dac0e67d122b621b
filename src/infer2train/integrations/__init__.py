"""Mining in the training frameworks that people have: each module is one of them, and imports it."""
