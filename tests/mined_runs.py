"""What users of `mine()` have, small: data sets with their augmentation inside, networks, training loops.

Data sets stand at module level, since DataLoader workers get them by name where they are spawned.
"""

import copy
import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from infer2train.draws.draw import Draw
from infer2train.loader.loader import MinedLoader

CLASSES, SIZE = 3, 6


class Jittered(Dataset[Any]):
    """Labelled images whose `__getitem__` draws from `random`, NumPy's legacy generator and torch's."""

    def __init__(self, n: int = 24) -> None:
        generator = np.random.default_rng(0)
        self.labels = np.arange(n) % CLASSES
        centres = generator.normal(size=(CLASSES, SIZE, SIZE))
        self.images = (centres[self.labels] + 0.5 * generator.normal(size=(n, SIZE, SIZE))).astype(np.float32)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        shifted = np.roll(self.images[index], random.randrange(3), axis=1)
        scaled = shifted * np.float32(np.random.uniform(0.5, 1.5))
        return torch.from_numpy(scaled)[None] + 0.3 * torch.randn(1, SIZE, SIZE), int(self.labels[index])


class Named(Jittered):
    """The same as dictionaries, two inputs and `labels`, as text and Hugging Face data sets give them."""

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]
        image, label = super().__getitem__(index)
        return {"image": image, "gain": torch.tensor(random.uniform(0.5, 1.5)), "labels": label}


class Annotated(Jittered):
    """The same with annotations of any number a sample, as detection data sets give them."""

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        image, label = super().__getitem__(index)
        return image, {"label": torch.tensor(label), "boxes": torch.rand(1 + index % 3, 4)}


class Plain(Jittered):
    """The same without augmentation, for `mine(..., transform=)`."""

    reads = 0

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.reads += 1
        return torch.from_numpy(self.images[index])[None], int(self.labels[index])


class Measured(Jittered):
    """The same with a float target."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        image, label = super().__getitem__(index)
        return image, image.mean() + label


class Uniform(Dataset[Any]):
    """(number, class): the number is all that a view is, uniform in [0, 1). For `Monotone`."""

    def __init__(self, labels: Any) -> None:
        self.labels = np.asarray(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = int(self.labels[index])
        return torch.tensor([random.random(), float(label)]), label


class Monotone(nn.Module):
    """Its cross entropy on `Uniform` is log(1 + (k − 1)·e^(w·x)): the larger the number x, the harder the view."""

    def __init__(self, classes: int = 2, weight: float = 3.0) -> None:
        super().__init__()
        self.classes = classes
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, inputs: Tensor) -> Tensor:
        number, label = inputs[:, 0], inputs[:, 1].long()
        return -(self.weight * number)[:, None] * F.one_hot(label, self.classes)


class Gained(nn.Module):
    """Takes keyword arguments, gives a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, image: Tensor, gain: Tensor) -> dict[str, Tensor]:
        return {"logits": self.network(image * gain[:, None, None, None])}


def network(seed: int = 0, *, norm: bool = False, dropout: float = 0.0, outputs: int = CLASSES) -> nn.Module:
    """A small network, with weights of that seed; batch-norm and dropout where asked for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(4 * SIZE * SIZE, outputs),
        )


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def jittered(n: int = 24, batch_size: int = 4, **options: Any) -> "DataLoader[Any]":
    """An ordinary shuffled loader of `Jittered`."""
    return DataLoader(Jittered(n), **{"batch_size": batch_size, "shuffle": True, **options})


def draws(loader: MinedLoader, model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Draw]:
    """One epoch of the loop that users have; tells of each draw after its step."""
    for x, y in loader:
        outputs = model(x)
        loss = F.cross_entropy(outputs, y) + loader.penalty(outputs)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert loader.last is not None
        yield loader.last


def one_ahead(batches: Iterable[Any]) -> Iterator[Any]:
    """As Accelerate's loaders do: fetch the next batch before handing out this one."""
    iterator = iter(batches)
    current = next(iterator)
    for following in iterator:
        yield current
        current = following
    yield current


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of weights and buffers."""
    return copy.deepcopy(model.state_dict())


def equal(first: Any, second: Any) -> bool:
    """Whether two pytrees of tensors and plain values are of the same types and bits."""
    if type(first) is not type(second):
        return False
    if isinstance(first, Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, tuple | list):
        return len(first) == len(second) and all(map(equal, first, second))
    return bool(first == second)
