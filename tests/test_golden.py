"""25 steps of every method against losses and picks written down earlier: a refactoring leaves them as they are.

Where a change of meaning is intended, write them anew, look at the difference, and say in CHANGELOG.md what changed:

    INFER2TRAIN_WRITE_GOLDEN=1 pytest tests/test_golden.py

Data, views and weights come from NumPy alone, so that other versions of torch give the same up to rounding. The first
draws, scored by version 0, are compared address by address; a later pick may turn on the last bit of a loss.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from infer2train import mine
from infer2train.draws.methods.table import METHODS

GOLDEN = Path(__file__).parent / "golden"
STEPS, UPDATE_EVERY, EXACT_DRAWS = 25, 10, 9
CLASSES, SIZE, SAMPLES = 10, 8, 48
TOLERANCE = 1e-3
"""Relative, of each loss."""


class Strokes(Dataset[Any]):
    """Blurred strokes, one pattern a class, shifted, faded and noisy in each view: as digits are."""

    def __init__(self) -> None:
        generator = np.random.default_rng(2024)
        patterns = generator.normal(size=(CLASSES, SIZE + 2, SIZE + 2))
        smooth = (patterns[:, 2:] + patterns[:, 1:-1] + patterns[:, :-2])[:, :, 1:-1]
        self.labels = generator.permutation(np.arange(SAMPLES) % CLASSES)
        self.images = smooth[self.labels] + 0.3 * generator.normal(size=(SAMPLES, SIZE, SIZE))

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        rows, columns = np.random.randint(-1, 2, size=2)
        image = np.roll(self.images[index], (rows, columns), axis=(0, 1)) * np.random.uniform(0.6, 1.4)
        noisy = image + 0.2 * np.random.normal(size=(SIZE, SIZE))
        return torch.from_numpy(noisy[None].astype(np.float32)), int(self.labels[index])


def tiny() -> nn.Module:
    """A convolution with batch-norm and a classifier, with weights from NumPy."""
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 16, CLASSES),
    )
    generator = np.random.default_rng(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                values = generator.normal(size=tuple(parameter.shape)) / np.sqrt(parameter[0].numel())
                parameter.copy_(torch.from_numpy(values))
        model[-1].bias.zero_()  # type: ignore[union-attr, operator]
    return model


def traced(method: str) -> dict[str, Any]:
    """The loss of every step, and the addresses of the first draws as `id:seed`."""
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader = mine(
        DataLoader(Strokes(), batch_size=16, shuffle=True),
        model,
        optimizer,
        method=method,
        gamma=4,
        update_every=UPDATE_EVERY,
        ramp_rate=0.25 if METHODS[method].schedule.needs_length else None,
        epochs=2 if method == "infobatch" else None,
        irreducible=np.linspace(0, 1, SAMPLES, dtype=np.float32) if METHODS[method].needs_irreducible else None,
        trust=0.7 if METHODS[method].pick == "trusted" else None,
        distill_weight=0.5,
        seed=1,
    )
    losses: list[float] = []
    picked: list[str] = []
    while len(losses) < STEPS:
        for x, y in loader:
            outputs = model(x)
            loss = F.cross_entropy(outputs, y) + loader.penalty(outputs)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            assert loader.last is not None
            losses.append(loss.item())
            picked.append(" ".join(f"{sample_id}:{seed}" for sample_id, seed in loader.last.addresses))
    return {"losses": losses[:STEPS], "picked": picked[:EXACT_DRAWS]}


@pytest.mark.parametrize("method", METHODS)
def test_losses_and_picks_are_those_written_down(method: str) -> None:
    file, trace = GOLDEN / f"{method}.json", traced(method)
    if os.environ.get("INFER2TRAIN_WRITE_GOLDEN") == "1":
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(json.dumps(trace, indent=1) + "\n", "utf-8")
        pytest.skip(f"written: {file.name}")
    golden = json.loads(file.read_text("utf-8"))
    assert trace["picked"] == golden["picked"]
    np.testing.assert_allclose(trace["losses"], golden["losses"], rtol=TOLERANCE)


def test_the_traces_tell_the_methods_apart() -> None:
    losses = {method: json.loads((GOLDEN / f"{method}.json").read_text("utf-8"))["losses"] for method in METHODS}
    for first in METHODS:
        for second in METHODS:
            if first < second:
                apart = np.abs(np.divide(losses[first], losses[second]) - 1)
                assert (apart > 10 * TOLERANCE).mean() > 0.5, f"{first} and {second} look the same"
