"""How long a baseline may train when it is given all devices of a hybrid machine, for the hybrid's wall-clock.

An oracle has to beat what its device could have done instead: train. On a CPU the baseline gets the oracle's cores as
threads, on a GPU that trainer and oracle share it gets the time.
"""

from dataclasses import replace
from pathlib import Path

from infer2train.studies.reproduce.costs import devices, epoch_seconds
from infer2train.studies.reproduce.plan import as_long_as
from infer2train.training.config import RunConfig


def with_all_devices(baseline: RunConfig, hybrid: RunConfig, timing: Path, *, quiet: bool = False) -> RunConfig:
    """The baseline on all devices of a hybrid, as long as the hybrid takes; its learning rate falls in that time.

    Args:
        baseline: the run of the arm, as if it had the baseline's devices and length.
        hybrid: the run whose devices and wall-clock it gets.
        timing: folder of two short runs that are timed one after the other, once.
        quiet: show no progress.

    Returns:
        The same run with more threads, and with epochs and drops of the learning rate that fill the hybrid's time.
    """
    wide = replace(baseline, threads=devices(hybrid)) if baseline.device == "cpu" else baseline
    theirs = hybrid.epochs * epoch_seconds(hybrid, timing / "hybrid", quiet=quiet)
    ours = epoch_seconds(wide, timing / "baseline", quiet=quiet)
    return as_long_as(wide, max(1, round(theirs / ours)))
