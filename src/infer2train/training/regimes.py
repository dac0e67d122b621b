"""Named runs: the paper's regimes and one that a laptop trains in seconds. Each is complete: data, model, optimiser.

A regime is the defaults that a command line then changes. What the paper sets for one method only (nm-sample's ramp and
balance) stands apart, so that it does not leak into the others.
"""

from dataclasses import dataclass, field
from typing import Any

from infer2train.settings import as_plain, unknown
from infer2train.training.config import as_long_as, from_plain


@dataclass(frozen=True, kw_only=True)
class Regime:
    """A named run."""

    settings: dict[str, Any]
    """Fields of `RunConfig`."""
    by_method: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Fields that only this method has."""
    source: str


_PAPER_SAMPLES = {"balance": "uniform", "ramp_rate": 0.01}

REGIMES: dict[str, Regime] = {
    "digits": Regime(
        settings={
            "data": "digits",
            "model": "resnet8",
            "view": "shift-rotate",
            "epochs": 40,
            "batch_size": 40,
            "lr": 0.05,
            "lr_drops": (32,),
            "update_every": 10,
            "oracle_chunk": 200,
            "train_error_samples": 200,
            "checkpoint_every": 1000,
        },
        source="ours: scikit-learn's digits, 200 for training; small enough for a laptop",
    ),
    "cifar10-resnet44": Regime(
        settings={
            "data": "cifar10",
            "model": "resnet44",
            "view": "pad-crop-flip",
            "epochs": 90,
            "batch_size": 64,
            "lr": 0.1,
            "lr_drops": (81,),
        },
        by_method={"nm-sample": _PAPER_SAMPLES, "random-sample": _PAPER_SAMPLES},
        source="paper, section 5.1; He et al. 2015",
    ),
    "imagenet-resnet50": Regime(
        settings={
            "data": "imagenet",
            "model": "imagenet-resnet50",
            "view": "random-resized-crop-flip",
            "image_size": 256,
            "crop_size": 224,
            "epochs": 90,
            "batch_size": 256,
            "lr": 0.1,
            "lr_reference_batch": 256,
            "warmup_epochs": 5.0,
            "lr_drops": (30, 60, 80),
            "mine_every": 2,
        },
        by_method={"nm-sample": _PAPER_SAMPLES, "random-sample": _PAPER_SAMPLES},
        source="paper, section 5.2; Goyal et al. 2017 (arXiv 1706.02677)",
    ),
}


def regime_defaults(name: str, method: str, *, epochs: int | None = None) -> dict[str, Any]:
    """Every field of a run in this regime with this method, as a flat mapping.

    Args:
        name: of the regime.
        method: of the run.
        epochs: its length; what the regime does by epochs takes its course in that time. Default: the regime's.

    Raises:
        ValueError: no such regime.

    Example:
        >>> regime_defaults("cifar10-resnet44", "baseline", epochs=30)["lr_drops"]
        [27]
    """
    if name not in REGIMES:
        raise unknown("regime", name, REGIMES)
    regime = REGIMES[name]
    settings = {**regime.settings, **regime.by_method.get(method, {}), "regime": name, "method": method}
    run = from_plain(settings)
    return as_plain(run if epochs is None else as_long_as(run, epochs))
