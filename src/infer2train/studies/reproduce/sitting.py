"""What is trained of an experiment in one sitting, and where: arms to runs, at a scale, on the machine at hand."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from infer2train.draws.methods.table import METHODS
from infer2train.oracle.engines import resolve_engine
from infer2train.settings import unknown
from infer2train.studies.reproduce.experiments import Arm, Experiment, load
from infer2train.training.config import RunConfig, as_long_as, from_plain
from infer2train.training.regimes import regime_defaults

PAPER_EPOCHS = 90
"""Of every training in the paper; ramps that are given by a rate are scaled to other lengths."""
ORACLE_8_BIT = "8-bit"
"""An oracle by what it shall be: the fastest int8 engine of a CPU; on a GPU, which has none, its simulation."""
SCALES, VARIANTS = load("scales").values()


@dataclass(frozen=True, kw_only=True)
class Sitting:
    """An experiment at a scale, and how much of it is trained with what.

    Raises:
        ValueError: there is no such scale or variant.
    """

    experiment: Experiment
    folder: Path
    """Of the scale and variant: `runs`, which its experiments share, and a folder for each experiment."""
    scale: str = "mini"
    variant: str = "clean"
    seeds: int = 5
    """How many, from 0."""
    held_out: int = 5000
    """Training images on which sweeps are decided."""
    sweep_seeds: int = 3
    """Seeds of a sweep's candidates, where `seeds` is not fewer: a choice is no claim."""
    common: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the machine and the data: `data`, `device`, `threads`, `pool` …"""
    archive: Path | None = None
    """Finished runs are taken from it and put into it, see `archive`."""
    jobs: int = 1
    """Runs trained side by side, in processes."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self) -> None:
        for kind, name, known in (("scale", self.scale, SCALES), ("variant", self.variant, VARIANTS)):
            if name not in known:
                raise unknown(kind, name, known)

    @property
    def results(self) -> Path:
        """The experiment's own folder."""
        return self.folder / self.experiment.name

    def run_folder(self, arm: str, seed: int) -> Path:
        """Of one run."""
        return self.folder / "runs" / f"{arm}-seed{seed}"

    def run(self, arm: Arm, **changes: Any) -> RunConfig:
        """The run of one arm with seed 0.

        Raises:
            ValueError: its oracle shall have 8 bits, and no int8 engine is installed.
        """
        regime, method = self.experiment.regime, str(arm.settings.get("method", RunConfig.method))
        scale = SCALES[self.scale]
        settings = regime_defaults(regime, method) | scale.get(regime, {}) | scale.get(self.experiment.name, {})
        settings |= {**VARIANTS[self.variant], **self.common, **arm.settings, **changes}
        if arm.settings.get("ramp_rate"):
            settings["ramp_rate"] = arm.settings["ramp_rate"] * PAPER_EPOCHS / settings["epochs"]
        if settings["oracle"] == ORACLE_8_BIT:
            device = settings["device"]
            settings["oracle"] = resolve_engine("int8") if device == "cpu" else f"simulated:b8@{device}"
        if not METHODS[method].has_oracle:
            settings["pool"] = "inline"  # a control without an oracle has no processes for one
        run = from_plain(settings)
        return run if arm.length == 1 else as_long_as(run, round(arm.length * run.epochs))

    def sweep_runs(self, candidates: Iterable[Arm]) -> dict[tuple[str, int], RunConfig]:
        """The runs of a sweep's candidates: without the held-out images, over fewer seeds."""
        configs = {f"held-out-{arm.name}": self.run(arm, validation_split=self.held_out) for arm in candidates}
        return over_seeds(configs, min(self.seeds, self.sweep_seeds))


def over_seeds(configs: Mapping[str, RunConfig], seeds: int) -> dict[tuple[str, int], RunConfig]:
    """The runs of some arms, seed by seed, so that a sitting that is cut short has whole pairs."""
    return {(name, seed): replace(config, seed=seed) for seed in range(seeds) for name, config in configs.items()}
