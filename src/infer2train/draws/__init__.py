"""What a draw is, and what is decided about it: pure functions of settings, counters, scores and keys.

`addresses` names candidates, `mining` says what is wanted, `versions` which weights may score, `methods` what is
offered and picked (`selection`, by `scores`), `draw` is the record of it all. Nothing here reads data or runs a model.
"""
