"""The paper's figures and tables, and whether it pays: each experiment is a YAML file beside this one.

An experiment has arms that are trained over seeds, and sweeps in which a setting is chosen before. What its runs are at
a scale is said in `sitting`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import yaml

from infer2train.settings import changed


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train, over all seeds of an experiment."""

    name: str
    """Of its runs' folders; arms of different experiments with one name are the same runs."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `RunConfig` that differ from the scale's regime."""
    against: str | None = None
    """The arm that it is compared with: the first one, unless the file says another, or null for none."""
    also_against: Sequence[str] = ()
    """Others that it is compared with: what the same hardware or a shorter training gives instead."""
    paper: str = ""
    """What the paper found, in its own words or figures."""
    winner_of: str | None = None
    """The sweep whose winner's settings it has besides its own."""
    wall_clock_of: str | None = None
    """The arm whose devices and wall-clock it is given: its length follows from theirs."""
    length: float = 1.0
    """Its epochs, as a part of the scale's: what makes the steps equal where an arm has more images than others."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A figure or table."""

    name: str
    title: str
    """The question that it answers."""
    source: str
    """Where in the paper."""
    regime: str
    """Of `training.regimes`; `scales.yaml` says how each scale changes it."""
    arms: tuple[Arm, ...]
    """In the order of the table; the first is the baseline of the figure."""
    sweeps: Mapping[str, tuple[Arm, ...]] = field(default_factory=dict)
    """What is chosen first, on held-out training images: the candidates, by the name of the choice."""
    curves: bool = True
    """Whether the error curves are drawn."""


def experiment(name: str, plain: Mapping[str, Any]) -> Experiment:
    """An experiment as its file has it.

    Raises:
        ValueError: there is no such field; it names the nearest.
    """
    sweeps = {choice: _arms(candidates, None) for choice, candidates in plain.get("sweeps", {}).items()}
    arms = _arms(plain["arms"], next(iter(plain["arms"])))
    found: Experiment = changed(Experiment, None, {**plain, "name": name, "arms": arms, "sweeps": sweeps})
    return found


def _arms(plain: Mapping[str, Any], first: str | None) -> tuple[Arm, ...]:
    return tuple(
        changed(Arm, None, {"name": name, "against": None if name == first else first, **entry})
        for name, entry in plain.items()
    )


def load(name: str) -> Any:
    """What a YAML file of this package holds."""
    safe = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # six times as fast, which --help is glad of; both read alike
    return yaml.load(resources.files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8"), safe)


EXPERIMENTS = {
    name: experiment(name, load(name))
    for name in ("fig1", "fig2", "fig3", "table", "precision", "pays", "learnable", "by-heart", "map")
}
"""By name, which is that of the file."""
