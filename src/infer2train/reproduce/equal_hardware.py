"""How long a baseline may train when it is given all devices of a hybrid machine, for the hybrid's wall-clock.

An oracle has to beat what its device could have done instead: train. On a CPU the baseline gets the oracle's cores as
threads, on a GPU that trainer and oracle share it gets the time.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

from infer2train.config import RunConfig
from infer2train.methods import METHODS
from infer2train.pool.cores import named_cores
from infer2train.reporting.runs import Run, read_run
from infer2train.training.loop import train

TIMED_EPOCHS = 2
"""Epochs of the run that is timed; the last one counts."""
NO_TRAINING = ("evaluation", "checkpoint", "total")


def devices(config: RunConfig) -> int:
    """Devices that a run occupies: cores of trainer and oracle, or the one GPU."""
    if config.device != "cpu":
        return 1
    has_own = config.pool == "process" and METHODS[config.method].asks_the_pool
    oracles = len(named_cores(config.oracle_cores)) if has_own and config.oracle_cores else config.oracle_workers
    return (config.threads or 1) + (oracles if has_own else 0)


def epoch_seconds(run: Run, first_epoch: int = 0) -> float:
    """Mean wall-clock of an epoch of a run, without evaluations and checkpoints (seconds)."""
    rows = [row["seconds"] for row in run.epochs if row["epoch"] >= first_epoch]
    return float(mean(sum(value for name, value in parts.items() if name not in NO_TRAINING) for parts in rows))


def with_all_devices(baseline: RunConfig, hybrids: Sequence[Run], hybrid: RunConfig, timing: Path) -> RunConfig:
    """The baseline on all devices of a hybrid, as long as the hybrid took; its learning rate falls in that time.

    Args:
        baseline: the run of the arm, as if it had the baseline's devices and length.
        hybrids: finished runs, whose wall-clock counts.
        hybrid: their configuration.
        timing: folder of a short run on all devices that is timed, once.

    Returns:
        The same run with more threads, and with epochs and drops of the learning rate that fill the hybrid's time.
    """
    wide = replace(baseline, threads=devices(hybrid)) if baseline.device == "cpu" else baseline
    short = replace(wide, epochs=TIMED_EPOCHS, train_error_samples=0, evaluate_every=TIMED_EPOCHS)
    train(short, timing, resume=timing.exists(), quiet=True, report=False)
    ours = epoch_seconds(read_run(timing), TIMED_EPOCHS - 1)
    theirs = mean(epoch_seconds(run) for run in hybrids)
    epochs = max(1, round(baseline.epochs * theirs / ours))
    drops = tuple(round(drop * epochs / baseline.epochs) for drop in baseline.lr_drops)
    return replace(wide, epochs=epochs, lr_drops=drops)
