"""Methods: what each does with an oracle. `table` shows them all at a glance."""
