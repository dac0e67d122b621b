"""What CUDA graphs record must ask nothing of the device.

Shown on torch's `meta` device, which every machine has: its tensors have no values, so whoever asks for one fails. Most
of its operations take the host's tensors too, so it does not show that everything stays on the device.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from infer2train.oracle import snapshot as snapshots
from infer2train.oracle.snapshot import snapshot
from infer2train.pool.inline import InlinePool
from infer2train.training import device_work
from infer2train.training.config import from_plain
from infer2train.training.device_tables import EpochTables
from infer2train.training.device_work import ScoringWork, TrainingWork
from infer2train.training.regimes import regime_defaults
from infer2train.training.setup import Run, prepare
from infer2train.training.ways import images_on_device
from infer2train.views.image_views import ImageViews

BATCH = 8
CASES: dict[str, dict[str, Any]] = {
    "baseline": {"method": "baseline"},
    "batch-augment": {"method": "batch-augment"},
    "max": {"method": "nm-augment"},
    "max-smoothed": {"method": "nm-augment", "label_smoothing": 0.1, "nesterov": True},
    "proportional": {"method": "nm-augment-soft"},
    "quantile-of-margins": {"method": "nm-augment", "pick": "quantile", "score": "margin"},
    "gradient-norm": {"method": "nm-augment", "score": "gradient-norm-bound"},
    "uniform": {"method": "nm-augment", "pick": "uniform"},
    "self-distill": {"method": "self-distill", "distill_weight": 0.1},
}


class NoAutocast(torch.autocast):
    """`meta` has none."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: Any) -> None:
        pass


@contextmanager
def nothing_fused(*_: Any) -> Iterator[None]:
    """`meta` has no fused kernel that takes the learning rate as a tensor; its number will do here."""
    yield


def run_on_meta(name: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run whose weights and images are on `meta`; its oracle has been refreshed once."""
    monkeypatch.setattr(torch, "autocast", NoAutocast)
    monkeypatch.setattr(device_work, "settings_on_device", nothing_fused)
    for check in ("_is_finite", "_are_finite"):  # a refresh may ask, a step may not
        monkeypatch.setattr(snapshots, check, lambda _: True)
    settings = {"view": "pad-crop-flip", "batch_size": BATCH, "limit": 40, "gamma": 3, "oracle_chunk": 7}
    settings |= {"threads": 1, "device": "meta", **CASES[name]}
    run = prepare(from_plain({**regime_defaults("digits", str(settings["method"])), **settings}), progress=False)
    assert isinstance(run.loader.pool, InlinePool)
    if run.loader.pool.engine is not None:
        run.loader.pool.engine.refresh(snapshot(run.model, 0))
    return run


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", CASES)
def test_a_step_asks_nothing_of_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_on_meta(name, monkeypatch)
    plan, pool, source = run.loader.plan, run.loader.pool, run.training_images
    assert isinstance(source, ImageViews)
    assert isinstance(pool, InlinePool)
    images, targets = images_on_device(run).to("meta"), source.targets.to("meta")
    tables = EpochTables(plan, images, targets, source.view, num_draws=5, batch_size=BATCH)
    tables.fill(0, 0, 1.0, list(np.arange(40).reshape(5, BATCH)))
    if pool.engine is not None:
        scoring = ScoringWork(plan, pool, tables)
        scoring.row.fill_(2)
        scoring()
    is_distilled = plan.method.loss == "distillation"
    TrainingWork(run, tables)(is_whole=plan.method.pick == "all", is_distilled=is_distilled)
    found = {"loss", "penalty", "wrong"} | ({"logits", "log_probabilities"} if is_distilled else set())
    found |= {"scores"} if plan.method.score is not None and plan.method.has_oracle else set()
    for name in found:
        assert tables.found(name).is_meta, name
