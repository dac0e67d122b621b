"""Data sets of the fuzz: what an item is (forms), and what its augmentation draws from (randomness)."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

CLASSES, SIZE, VOCABULARY = 3, 16, 32
"""Classes, numbers of a sample, and words: as many at least as there are samples."""

RANDOMNESS: dict[str, Callable[[int], Any]] = {
    "none": lambda n: np.zeros(n),
    "random": lambda n: [random.gauss(0, 1) for _ in range(n)],
    "numpy": lambda n: np.random.normal(size=n),
    "torch": lambda n: torch.randn(n).numpy(),
    "all": lambda n: np.random.normal(size=n) * random.random() + torch.randn(n).numpy(),
}
"""What `__getitem__` draws n numbers from."""


class Sample(NamedTuple):
    """A named item."""

    x: Tensor
    y: int


@dataclass(frozen=True, kw_only=True)
class Form:
    """What an item of a data set looks like."""

    item: Callable[[Tensor, int], Any]
    """Numbers (the first names the sample) and class -> item."""
    split: Callable[[Any], tuple[Any, Any]] | None = None
    """What `mine(split=)` must be told; None where the documented rule does."""
    takes: str = "tensor"
    """How a model is given the inputs."""
    targets: str = "class"
    """What kind of targets: class, number, hot (several classes) or self."""
    words: bool = False
    """Whether a sample is a text, of any length."""
    has_none: bool = False
    """Whether default_collate cannot batch it."""


FORMS: dict[str, Form] = {
    "pair": Form(item=lambda x, y: (x, y)),
    "two inputs": Form(item=lambda x, y: ((x[:8], x[8:]), y), takes="two"),
    "mapping": Form(item=lambda x, y: {"x": x, "labels": y}, takes="keyword"),
    "named tuple": Form(item=Sample),
    "weighted": Form(item=lambda x, y: (x, y, 0.5 + y), split=lambda batch: (batch[0], batch[1])),
    "strings": Form(item=lambda x, y: (x, f"class {y}", y), split=lambda batch: (batch[0], batch[2])),
    "nothing": Form(item=lambda x, y: [x, None, y], split=lambda batch: (batch[0], batch[2]), has_none=True),
    "number": Form(item=lambda x, y: (x, float(y) + 0.25), targets="number"),
    "several classes": Form(item=lambda x, y: (x, (torch.arange(CLASSES) <= y).float()), targets="hot"),
    "lone": Form(item=lambda x, y: x, split=lambda batch: (batch, batch), targets="self"),
    "text": Form(item=lambda x, y: {"tokens": x, "labels": y}, takes="tokens", words=True),
}


class Samples(Dataset[Any]):
    """Samples of a form."""

    def __init__(self, form: str, randomness: str, n: int, in_place: bool) -> None:
        generator = np.random.default_rng(n)
        self.form, self.n = FORMS[form], n
        self.jitter = Jitter(randomness) if in_place else None
        self.labels = generator.choice(CLASSES, size=n, p=[0.5, 0.3, 0.2])
        self.numbers = generator.normal(size=(n, SIZE)).astype(np.float32)
        self.lengths = generator.integers(3, 8, size=n)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Any:
        if self.form.words:
            x = torch.from_numpy(np.abs(self.numbers[index] * 100).astype(np.int64) % VOCABULARY)[: self.lengths[index]]
            x[0] = index
        else:
            x = torch.from_numpy(self.numbers[index].copy())
            x[0] = index / VOCABULARY
        return self.form.item(x if self.jitter is None else self.jitter(x), int(self.labels[index]))


class Jitter:
    """A random transform of an item, or of its inputs: everything but the first number, which names the sample."""

    def __init__(self, randomness: str) -> None:
        self.amounts = RANDOMNESS[randomness]

    def __call__(self, part: Any) -> Any:
        if isinstance(part, dict):
            return {name: self(value) if name in ("x", "tokens") else value for name, value in part.items()}
        if isinstance(part, tuple):
            return tuple(self(value) for value in part)
        moved, amounts = part.clone(), torch.as_tensor(np.asarray(self.amounts(len(part) - 1)), dtype=torch.float32)
        if part.is_floating_point():
            moved[1:] += amounts
            return moved
        moved[1:] = (moved[1:] + (4 * amounts).long()) % VOCABULARY
        return moved[: -1 if amounts[0] > 0 else None]


def ids_of(form: Form, batch: Any) -> list[int]:
    """The samples in a batch, from what is in it."""
    if form.words:
        batch = batch["tokens"], batch["mask"]
        return [int(row[mask.bool()][0]) for row, mask in zip(*batch, strict=True)]
    first = batch["x"] if isinstance(batch, dict) else batch
    while not isinstance(first, Tensor):
        first = first[0]
    return [int(number) for number in first[:, 0] * VOCABULARY]
