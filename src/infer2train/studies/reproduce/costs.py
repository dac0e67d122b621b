"""What an arm costs, timed alone, one after another in one sitting; and how long a baseline may train for as much.

The runs themselves cannot say it: they are trained side by side, in several sittings, on more than one machine. An
oracle has to beat what its device could have done instead: train. On a CPU the baseline gets the oracle's cores as
threads, on a GPU that trainer and oracle share it gets the time.
"""

import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from infer2train.draws.methods.table import choices_of
from infer2train.machine.cores import named_cores
from infer2train.observe.runlog import CONFIG, read_config
from infer2train.pool.pools import pool_of
from infer2train.reporting.runs import read_run
from infer2train.settings import as_plain, differences
from infer2train.training.config import RunConfig, as_long_as, from_plain
from infer2train.training.folder import is_finished
from infer2train.training.irreducible import irreducible_losses
from infer2train.training.loop import train
from infer2train.training.setup import resolved

TIMED_EPOCHS = 2
"""Epochs of a run that is timed; the last one counts."""
NO_TRAINING = ("evaluation", "checkpoint", "total")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one arm: its devices, its epochs, and the seconds of one without evaluation and checkpoint."""

    devices: int
    epochs: int
    epoch_seconds: float
    before_seconds: float = 0.0
    """Of what comes before the first: an irreducible model that is trained for it."""

    @property
    def wall(self) -> float:
        """Of the whole training (seconds)."""
        return self.before_seconds + self.epochs * self.epoch_seconds


def devices(config: RunConfig) -> int:
    """Devices that a run occupies: cores of trainer and oracle, or the one GPU."""
    if config.device != "cpu":
        return 1
    has_own = pool_of(config).runs_beside
    oracles = len(named_cores(config.oracle_cores)) if has_own and config.oracle_cores else config.oracle_workers
    return (config.threads or 1) + (oracles if has_own else 0)


def cost(config: RunConfig, folder: Path, quiet: bool) -> Cost:
    """Time a short run in `folder`, unless one of these settings was; of a ramp, at the mean share of mined batches."""
    short = replace(as_long_as(config, TIMED_EPOCHS), train_error_samples=0, evaluate_every=TIMED_EPOCHS)
    if (folder / CONFIG).is_file() and not _is_of(short, folder):
        shutil.rmtree(folder)
    if not is_finished(folder):
        train(short, folder, resume=folder.exists(), quiet=quiet, title=f"timing {folder.name}", report=False)
    parts = read_run(folder).epochs[-1]["seconds"]
    seconds = float(sum(value for name, value in parts.items() if name not in NO_TRAINING))
    needs_more = choices_of(config).needs_irreducible and config.irreducible is None
    before = (
        irreducible_losses(resolved(config), partial(train, resume=True, quiet=quiet)).seconds if needs_more else 0.0
    )
    return Cost(devices=devices(config), epochs=config.epochs, epoch_seconds=seconds, before_seconds=before)


def _is_of(config: RunConfig, folder: Path) -> bool:
    """Whether the run in `folder` has these settings, those of where it is computed among them, for it is timed."""
    stored = as_plain(from_plain(read_config(folder)))
    wanted = as_plain(resolved(config, stored))
    return not differences(stored | {"data_cache": None}, wanted | {"data_cache": None})


def with_all_devices(baseline: RunConfig, hybrid: RunConfig, timing: Path, quiet: bool) -> RunConfig:
    """The baseline on all devices of a hybrid for its wall-clock, timed in two short runs in `timing`."""
    wide = replace(baseline, threads=devices(hybrid)) if baseline.device == "cpu" else baseline
    theirs, ours = cost(hybrid, timing / "hybrid", quiet), cost(wide, timing / "baseline", quiet)
    return as_long_as(wide, max(1, round(theirs.wall / ours.epoch_seconds)))
