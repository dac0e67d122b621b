"""What an arm costs: an epoch of every arm, timed one after another in one sitting, and the devices that it occupies.

The runs themselves cannot say it: they are trained side by side, in several sittings, on more than one machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from infer2train.machine.cores import named_cores
from infer2train.pool.catalogue import pool_of
from infer2train.reporting.runs import read_run
from infer2train.studies.reproduce.plan import as_long_as
from infer2train.training.config import RunConfig
from infer2train.training.folder import is_finished
from infer2train.training.loop import train

TIMED_EPOCHS = 2
"""Epochs of a run that is timed; the last one counts."""
NO_TRAINING = ("evaluation", "checkpoint", "total")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one arm.

    Args:
        devices: cores of trainer and oracle, or the one GPU.
        wall: of its whole training, without evaluations and checkpoints (seconds).
    """

    devices: int
    wall: float

    @property
    def device_seconds(self) -> float:
        """All its devices, for its whole training."""
        return self.devices * self.wall


def devices(config: RunConfig) -> int:
    """Devices that a run occupies: cores of trainer and oracle, or the one GPU."""
    if config.device != "cpu":
        return 1
    has_own = pool_of(config).runs_beside
    oracles = len(named_cores(config.oracle_cores)) if has_own and config.oracle_cores else config.oracle_workers
    return (config.threads or 1) + (oracles if has_own else 0)


def epoch_seconds(config: RunConfig, folder: Path, *, quiet: bool = False) -> float:
    """Wall-clock of an epoch of a run, without evaluations and checkpoints (seconds); what was timed is kept.

    Of a method with a ramp it is an epoch of the mean share of mined batches.

    Args:
        config: of the run.
        folder: of the short run that is timed; a finished one is not timed again.
        quiet: show no progress.
    """
    if not is_finished(folder):
        short = replace(as_long_as(config, TIMED_EPOCHS), train_error_samples=0, evaluate_every=TIMED_EPOCHS)
        train(short, folder, resume=folder.exists(), quiet=quiet, title=f"timing {folder.name}", report=False)
    parts = read_run(folder).epochs[-1]["seconds"]
    return float(sum(value for name, value in parts.items() if name not in NO_TRAINING))


def costs(runs: Mapping[str, RunConfig], folder: Path, *, quiet: bool = False) -> dict[str, Cost]:
    """Time every arm.

    Args:
        runs: a run of each arm, by name.
        folder: of the short runs.
        quiet: show no progress.
    """
    return {
        name: Cost(devices=devices(config), wall=config.epochs * epoch_seconds(config, folder / name, quiet=quiet))
        for name, config in runs.items()
    }
