"""What an experiment consists of: arms that are trained over seeds, and sweeps in which a setting is chosen before.

Plain data, free of torch. `experiments` has the paper's, `plan` makes runs of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from infer2train.training.config import RunConfig

ORACLE_8_BIT = "8-bit"
"""An oracle by what it shall be; `plan` names the engine that is it on the device at hand."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train, over all seeds of an experiment.

    Args:
        name: of its runs' folders; arms of different experiments with one name are the same runs.
        settings: fields of `RunConfig` that differ from the scale's regime.
        against: name of the arm that it is compared with; None for one that stands for itself.
        paper: what the paper found, in its own words or figures.
        winner_of: the sweep whose winner's settings it has besides its own.
        wall_clock_of: the arm whose devices and wall-clock it is given: its length follows from theirs.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    against: str | None = "baseline"
    paper: str = ""
    winner_of: str | None = None
    wall_clock_of: str | None = None

    @property
    def method(self) -> str:
        """Of its runs, as far as its own settings say."""
        return str(self.settings.get("method", RunConfig.method))


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A setting that is chosen on held-out training images, never on the test set.

    Args:
        name: what is chosen.
        candidates: one arm for each value; that of the lowest mean error over seeds wins, the first of equals.
    """

    name: str
    candidates: tuple[Arm, ...]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A figure or table.

    Args:
        title: the question that it answers.
        regime: of `training.regimes`; `plan.SCALES` says how each scale changes it.
        arms: in the order of the table; the first is the baseline of the figure.
        sweeps: what is chosen first.
        curves: whether the error curves are drawn.
        source: where in the paper.
    """

    title: str
    regime: str
    arms: tuple[Arm, ...]
    sweeps: tuple[Sweep, ...] = ()
    curves: bool = True
    source: str
