"""Samplers and collate functions of the fuzz."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from fuzzed.data import Form


class Growing(Sampler[int]):
    """A curriculum: three samples more each time that it is asked."""

    def __init__(self, n: int) -> None:
        self.n, self.times = n, 0

    def __len__(self) -> int:
        return min(self.n, self.n // 2 + 3 * self.times)

    def __iter__(self) -> Iterator[int]:
        length = len(self)
        self.times += 1
        return iter(range(length))


class Global(Sampler[int]):
    """Shuffles by `random` and by NumPy's legacy generator."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        ids = np.random.permutation(self.n).tolist()
        random.shuffle(ids)
        return iter(ids)


class Unequal(Sampler[list[int]]):
    """Batches of 1, 2, … samples."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[list[int]]:
        ids, size = torch.randperm(self.n).tolist(), 1
        while ids:
            yield ids[:size]
            ids, size = ids[size:], size + 1


class Recording:
    """Remembers what it gave, each time that it was asked."""

    asked: list[list[Any]]

    def __iter__(self) -> Iterator[Any]:
        self.asked.append(given := [])
        for ids in super().__iter__():  # type: ignore[misc]
            given.append(ids)
            yield ids


def recording(sampler: Sampler[Any]) -> Any:
    """The same sampler, a `Recording` too."""
    kind: type[Any] = type(type(sampler).__name__, (Recording, type(sampler)), {})
    same = kind.__new__(kind)
    vars(same).update(vars(sampler), asked=[])
    return same


SAMPLERS: dict[str, Callable[[Any], Sampler[Any] | None]] = {
    "sequential": lambda data: SequentialSampler(data),
    "shuffle": lambda data: None,
    "shuffle, own generator": lambda data: RandomSampler(data, generator=torch.Generator().manual_seed(1)),
    "with replacement": lambda data: RandomSampler(data, replacement=True, num_samples=len(data) - 1),
    "subset": lambda data: SubsetRandomSampler(range(2, len(data) - 1)),
    "weighted": lambda data: WeightedRandomSampler([1.0 + (i % 3) for i in range(len(data))], len(data)),
    "growing": lambda data: Growing(len(data)),
    "global": lambda data: Global(len(data)),
    "unequal batches": lambda data: Unequal(len(data)),
}
"""Name -> sampler over a data set; None where the DataLoader makes it."""


def by_hand(items: list[Any]) -> Any:
    """Stacks, keeps None."""
    first = items[0]
    if isinstance(first, Tensor):
        return torch.stack(items)
    if isinstance(first, dict):
        return {name: by_hand([item[name] for item in items]) for name in first}
    if isinstance(first, tuple) and type(first) is not tuple:
        return type(first)(*map(by_hand, zip(*items, strict=True)))
    if isinstance(first, tuple | list):
        return type(first)(map(by_hand, zip(*items, strict=True)))
    return None if first is None else list(items) if isinstance(first, str) else torch.tensor(items)


def with_extras(items: list[Any]) -> dict[str, Any]:
    """The batch beside entries about all of it."""
    return {"batch": by_hand(items), "count": torch.tensor(len(items)), "names": "of a batch"}


def padded(items: list[Any]) -> dict[str, Tensor]:
    """Texts as long as the longest of them, zeros behind."""
    return _padded(items, lambda row, room: torch.cat([row, row.new_zeros(room)]))


def padded_before(items: list[Any]) -> dict[str, Tensor]:
    """Texts as long as the longest of them, zeros before."""
    return _padded(items, lambda row, room: torch.cat([row.new_zeros(room), row]))


def padded_to_8(items: list[Any]) -> dict[str, Tensor]:
    """Texts of one length whatever the batch."""
    return {name: rows[:-1] for name, rows in padded([*items, {"tokens": torch.zeros(8).long(), "labels": 0}]).items()}


def _padded(items: list[Any], pad: Callable[[Tensor, int], Tensor]) -> dict[str, Tensor]:
    rows = [item["tokens"] for item in items]
    longest = max(map(len, rows))
    return {
        "tokens": torch.stack([pad(row, longest - len(row)) for row in rows]),
        "mask": torch.stack([pad(torch.ones_like(row), longest - len(row)) for row in rows]),
        "labels": torch.tensor([item["labels"] for item in items]),
    }


def mixing(items: list[Any]) -> Any:
    """MixUp with the neighbour."""
    return _numbers(by_hand(items), lambda x: 0.7 * x + 0.3 * x.roll(1, 0))


def drawing(items: list[Any]) -> Any:
    """Adds noise to the batch."""
    return _numbers(by_hand(items), lambda x: x + 0.1 * torch.randn_like(x))


def centred(items: list[Any]) -> Any:
    """Subtracts the mean of the batch."""
    return _numbers(by_hand(items), lambda x: x - x.mean(0))


def ordered(items: list[Any]) -> Any:
    """Sorted by the samples' numbers, as texts are by length."""
    return by_hand(sorted(items, key=lambda item: str(item)))


def dropping(items: list[Any]) -> Any:
    """Leaves the last one out where there are several."""
    return by_hand(items[:-1] or items)


def _numbers(batch: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The batch with its inputs changed; they come first."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, dict):
        return {name: function(value) if name == "x" else value for name, value in batch.items()}
    first = _numbers(batch[0], function)
    parts = [first, *batch[1:]]
    return type(batch)(parts) if type(batch) in (tuple, list) else type(batch)(*parts)


COLLATES: dict[str, Callable[[list[Any]], Any]] = {
    "default": default_collate,
    "by hand": by_hand,
    "with extras": with_extras,
    "padded": padded,
    "padded before": padded_before,
    "padded to 8": padded_to_8,
}
"""What keeps a sample's rows whatever it is batched with."""

CHANGING: dict[str, Callable[[list[Any]], Any]] = {
    "mixing": mixing,
    "drawing": drawing,
    "centred": centred,
    "ordered": ordered,
    "dropping": dropping,
}
"""What does not, and so cannot be scored."""


def collates_for(form: Form) -> list[str]:
    """The functions that can batch items of this form."""
    if form.words:
        return ["padded", "padded before", "padded to 8"]
    return ["by hand", "with extras"] if form.has_none else ["default", "by hand", "with extras"]
