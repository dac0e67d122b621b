"""What was measured where: differences from a baseline of equal steps, and which of them is most like a training.

`evidence.yaml` beside this file has one entry for each comparison in docs/results. A report names the one nearest to
its run; `infer2train advise` shows all of them and says what follows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import yaml

from infer2train.settings import changed

FAR = 4.0
"""A training whose error on random training views is this many times another's is not like it."""
FLOOR = 0.1
"""Errors on training views below this are as good as none (%)."""
NOISY = 0.05
"""Part of the labels that are wrong, from which a training is compared with noisy ones (0 to 1)."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One measured comparison with the baseline of equal steps."""

    method: str
    trained: str
    """Data, model, length."""
    view_error: float
    """The baseline's own error on random training views at its end (%)."""
    label_noise: float = 0.0
    """Part of the labels that were wrong (0 to 1)."""
    difference: float
    """In test error, method minus baseline (points)."""
    low: float
    high: float
    """95 % interval of it."""
    seeds: int
    on_equal_hardware: float | None = None
    """Method minus a baseline that trained on all devices for all of the time (points); None where none did."""
    page: str

    @property
    def where(self) -> str:
        """Data, model, length and, where some were, how many labels were wrong."""
        return f"{self.trained}, {self.label_noise:.0%} of the labels wrong" if self.label_noise else self.trained

    @property
    def verdict(self) -> str:
        """What the interval says."""
        if self.high < 0:
            return "helps"
        return "hurts" if self.low > 0 else "no difference seen"


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """How far a baseline has come."""

    view_error: float
    """On random training views (%)."""
    label_noise: float
    progress: float = 1.0
    """Part of the training that is over (0 to 1)."""
    name: str = "the baseline given"
    method: str = "baseline"

    def __post_init__(self) -> None:
        if not 0 <= self.view_error <= 100:
            raise ValueError(f"view_error must be from 0 to 100: got {self.view_error}; give it in %")
        if not 0 <= self.label_noise <= 1:
            raise ValueError(
                f"label_noise must be from 0 to 1: got {self.label_noise}; give the part of the labels that are "
                "thought to be wrong, not %"
            )


def evidence() -> list[Evidence]:
    """All that was measured."""
    plain = yaml.safe_load(resources.files(__package__).joinpath("evidence.yaml").read_text(encoding="utf-8"))
    return [changed(Evidence, None, entry) for entry in plain]


def distance(baseline: Fitted, measured: Evidence) -> float:
    """How many times one's error on training views is the other's, or its part of wrong labels, whichever is more (at
    least 1); infinite where only one has wrong labels."""
    if (baseline.label_noise >= NOISY) != (measured.label_noise >= NOISY):
        return math.inf
    figures = [(baseline.view_error, measured.view_error, FLOOR), (baseline.label_noise, measured.label_noise, NOISY)]
    levels = [sorted((max(ours, floor), max(theirs, floor))) for ours, theirs, floor in figures]
    return max(more / less for less, more in levels)


def nearest(baseline: Fitted, measured: Sequence[Evidence]) -> list[tuple[Evidence, float]]:
    """Of each method the comparison that is most like this training, and its distance; the most helpful first.

    And the one most like it that says something else, where that is not far either.
    """
    pairs = [(entry, away) for entry in measured if math.isfinite(away := distance(baseline, entry))]
    found = []
    for method in dict.fromkeys(entry.method for entry, _ in pairs):
        near = sorted((pair for pair in pairs if pair[0].method == method), key=lambda pair: pair[1])
        others = [pair for pair in near if pair[0].verdict != near[0][0].verdict and pair[1] <= FAR]
        found += [near[0], *others[:1]]
    return sorted(found, key=lambda pair: pair[0].difference)
