"""Arms to runs: the scale's settings, the arm's own, the seed; and which engine an 8-bit oracle is here."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from infer2train.draws.methods.table import METHODS
from infer2train.oracle.catalogue import resolve_engine
from infer2train.settings import unknown
from infer2train.studies.reproduce.arms import ORACLE_8_BIT, Arm
from infer2train.studies.reproduce.experiments import CIFAR, IMAGENET
from infer2train.training.config import RunConfig, from_plain
from infer2train.training.regimes import regime_defaults

PAPER_EPOCHS = 90
"""Of every training in the paper; ramps that are given by a rate are scaled to other lengths."""

SCALES: dict[str, dict[str, dict[str, Any]]] = {
    "full": {CIFAR: {}, IMAGENET: {"train_error_samples": 10_000}},
    "mini": {
        CIFAR: {
            "model": "resnet20",
            "limit": 5000,
            "epochs": 60,
            "lr_drops": (54,),
            "update_every": 50,
            "train_error_samples": 1000,
            "evaluate_every": 5,
        },
        IMAGENET: {
            "image_size": None,
            "crop_size": 64,
            "epochs": 30,
            "lr_drops": (10, 20, 27),
            "train_error_samples": 2000,
        },
    },
}
"""What each scale changes in a regime: `full` is the paper's, `mini` fits two cores (CIFAR-10) or one GPU (64 × 64)."""
VARIANTS: dict[str, dict[str, Any]] = {
    "clean": {},
    "noisy": {"label_noise": 0.1},
    "long-tailed": {"imbalance": 10.0},
}
"""What is done to the training labels."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What all runs of an experiment have in common.

    Args:
        regime: of the experiment.
        scale: an entry of `SCALES`.
        variant: an entry of `VARIANTS`.
        seeds: how many, from 0.
        held_out: training images on which sweeps are decided.
        sweep_seeds: seeds of a sweep's candidates, where `seeds` is not fewer: a choice is no claim.
        common: settings of the machine and the data: `data`, `device`, `threads`, `pool` …

    Raises:
        ValueError: there is no such scale or variant.
    """

    regime: str
    scale: str = "mini"
    variant: str = "clean"
    seeds: int = 5
    held_out: int = 5000
    sweep_seeds: int = 3
    common: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise unknown("scale", self.scale, SCALES)
        if self.variant not in VARIANTS:
            raise unknown("variant", self.variant, VARIANTS)

    def runs(self, arms: tuple[Arm, ...], **changes: Any) -> dict[tuple[str, int], RunConfig]:
        """The runs of some arms, seed by seed, so that a sitting that is cut short has whole pairs."""
        return {(arm.name, seed): self.run(arm, seed, **changes) for seed in range(self.seeds) for arm in arms}

    def sweep_runs(self, candidates: tuple[Arm, ...]) -> dict[tuple[str, int], RunConfig]:
        """The runs of a sweep's candidates: without the held-out images, over fewer seeds."""
        return replace(self, seeds=min(self.seeds, self.sweep_seeds)).runs(candidates, validation_split=self.held_out)

    def run(self, arm: Arm, seed: int, **changes: Any) -> RunConfig:
        """The run of one arm with one seed."""
        regime = regime_defaults(self.regime, arm.method)
        settings = {**regime, **SCALES[self.scale].get(self.regime, {}), **VARIANTS[self.variant], **self.common}
        settings |= {**arm.settings, **changes, "seed": seed}
        if arm.settings.get("ramp_rate"):
            settings["ramp_rate"] = arm.settings["ramp_rate"] * PAPER_EPOCHS / settings["epochs"]
        if settings["oracle"] == ORACLE_8_BIT:
            settings["oracle"] = oracle_of_8_bits(str(settings["device"]))
        if not METHODS[arm.method].has_oracle:
            settings["pool"] = "inline"  # a control without an oracle has no processes for one
        return from_plain({name: list(v) if isinstance(v, tuple) else v for name, v in settings.items()})


def as_long_as(config: RunConfig, epochs: int) -> RunConfig:
    """The run over more epochs or fewer: its learning rate and its ramp take their course in that time."""
    longer = epochs / config.epochs
    return replace(
        config,
        epochs=epochs,
        lr_drops=tuple(round(drop * longer) for drop in config.lr_drops),
        warmup_epochs=config.warmup_epochs * longer,
        ramp_rate=None if config.ramp_rate is None else config.ramp_rate / longer,
    )


def oracle_of_8_bits(device: str) -> str:
    """The 8-bit oracle of a machine: the fastest int8 engine of its CPU; on a GPU, which has none, its simulation.

    Raises:
        ValueError: no int8 engine is installed; it says how to install one.
    """
    return resolve_engine("int8") if device == "cpu" else f"simulated:b8@{device}"
