"""Whether a collate function makes the same of a sample whatever it is batched with.

A candidate is batched twice: with other candidates for the oracle, which scores it, and with what was picked for the
trainer. What is scored is what is trained on only if both batches hold the same rows for it. A function that mixes
samples (MixUp, CutMix), draws, sorts, drops or repeats is found out by batching the same samples again and again.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infer2train.batches import map_tensors, tensors_of
from infer2train.sources.bits import are_same, difference

MOST_TRIES = 40
"""Times that the samples are batched: what is done to one batch in ten is missed by one construction in a hundred."""
FEWEST_TRIES = 6
COPIED_BYTES = 1 << 30
"""Samples so large that they would be copied to more than this are batched less often."""
_DEEPEST = 6
"""Objects inside objects inside a batch that are looked into."""

Collate = Callable[[list[Any], int], Any]
"""Samples, and the number of the try, by which the generators are set -> batch."""

Rows = Any
"""A tensor, an array or a list."""
Window = tuple[slice, ...]
"""A part of a tensor, by its place in each dimension."""

REMEDY = (
    "or pass score_collate=, a collate function that does not, such as default_collate: the oracle then scores samples "
    "by it, and collate_fn makes the batches that are trained on"
)
MIXED = (
    "a collate_fn must make the same of a sample whatever it is batched with, since the oracle scores candidates in "
    "other batches than the trainer's: got another {path} for a sample in another batch. Likely causes: MixUp, CutMix, "
    "noise, a crop or statistics of the whole batch. Do that after the loader, in the training loop "
    "(x, y = mixup(x, y)), " + REMEDY
)
REORDERED = (
    "a collate_fn must keep samples in their order, by which scores are matched with candidates: got the rows of "
    "{path} in another one. Likely causes: it sorts by length, or shuffles. Do that after the loader, in the training "
    "loop, " + REMEDY
)
RECOUNTED = (
    "a collate_fn must give one row for each sample: got {rows} in {path} for {samples} samples. Likely causes: it "
    "drops samples that are None, or repeats some. Make the DataLoader of a torch.utils.data.Subset of the samples "
    "that can be read, " + REMEDY
)


@dataclass(frozen=True)
class Collated:
    """What batching the same samples again and again has shown.

    Args:
        fault: why the batches cannot be scored, in words; None where they can.
        rows: by its path, each part of a batch that has one row for each sample.
    """

    fault: str | None
    rows: Mapping[str, Rows]


def try_collate(items: Sequence[Any], collate: Collate) -> Collated:
    """Batch these samples whole, in parts and in other orders, and compare row by row.

    Rows may be padded, before or behind, as long as the longest of their batch. What has no row for each sample (a sum
    over the batch) is not compared.

    Args:
        items: at least six samples.
        collate: called with copies.

    Example:
        >>> try_collate(range(8), lambda items, _: torch.tensor(items)).fault is None
        True
    """
    compact = [map_tensors(Tensor.clone, item) for item in items]  # one may be a view of the whole data
    reference: dict[str, Rows] = {}
    for number, groups in enumerate(_groupings(len(items), _num_tries(compact))):
        parts = [dict(_parts(collate(_copied([compact[i] for i in group]), number))) for group in groups]
        if number == 0:
            whole = reference = parts[0]
            continue
        if number == 1:
            reference = _with_rows(whole, groups, parts)
            if not reference and (fault := _recounted(whole, groups, parts)):
                return Collated(fault, {})
        for path, expected in reference.items():
            if (fault := _fault(path, expected, groups, [part.get(path, ()) for part in parts])) is not None:
                return Collated(fault, reference)
    return Collated(None, reference)


def _num_tries(items: list[Any]) -> int:
    copied = sum(tensor.nbytes for tensor in tensors_of(items))
    return max(FEWEST_TRIES, min(MOST_TRIES, COPIED_BYTES // max(1, copied)))


def _groupings(n: int, tries: int) -> Iterator[list[list[int]]]:
    """Ways to batch n samples: whole, in two parts, reversed, then by turns whole and in parts in any order."""
    cut = n // 2 + 1
    yield [list(range(n))]
    yield [list(range(cut)), list(range(cut, n))]
    yield [list(range(n))[::-1]]
    for number in range(3, tries):
        order = np.random.default_rng(number).permutation(n).tolist()
        yield [order] if number % 2 else [order[:cut], order[cut:]]


def _copied(items: list[Any]) -> list[Any]:
    try:
        return copy.deepcopy(items)
    except Exception:  # of the samples' own; such samples are not changed in place by many
        return items


def _parts(batch: Any, path: str = "batch", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Everything in a batch that has a length, by its path; a list before what it holds."""
    if isinstance(batch, Tensor | np.ndarray):
        if batch.ndim:
            yield path, batch
        return
    named: list[tuple[str, Any]] = []
    if isinstance(batch, Mapping):
        named = [(f"{path}[{key!r}]", part) for key, part in batch.items()]
    elif isinstance(batch, tuple | list):
        yield path, batch
        named = [(f"{path}[{i}]", part) for i, part in enumerate(batch)]
    elif depth < _DEEPEST and not isinstance(batch, type):
        named = [(f"{path}.{name}", part) for name, part in getattr(batch, "__dict__", {}).items()]
    for name, part in named:
        yield from _parts(part, name, depth + 1)


def _with_rows(whole: Mapping[str, Any], groups: list[list[int]], parts: list[dict[str, Any]]) -> dict[str, Rows]:
    """Of the whole batch, what has one row for each sample there and in both parts; of nested lists the outermost."""
    samples = sum(map(len, groups))
    found: dict[str, Rows] = {}
    for path, part in whole.items():
        in_parts = all(len(made.get(path, ())) == len(group) for group, made in zip(groups, parts, strict=True))
        is_inside = any(path.startswith((f"{outer}[", f"{outer}.")) for outer in found)
        if len(part) == samples and in_parts and not is_inside:
            found[path] = part
    return found


def _recounted(whole: Mapping[str, Any], groups: list[list[int]], parts: list[dict[str, Any]]) -> str | None:
    """What to say of batches without any row for each sample; None where they have nothing to do with the number."""
    for path, part in whole.items():
        lengths = {len(made.get(path, ())) for made in parts}
        if lengths != {len(part)}:
            return RECOUNTED.format(rows=len(part), path=path, samples=sum(map(len, groups)))
    return None


def _fault(path: str, expected: Rows, groups: list[list[int]], parts: list[Rows]) -> str | None:
    """What is wrong with the rows of one part of the batches; None where they are the expected ones."""
    rows: list[Any] = [None] * len(expected)
    for group, part in zip(groups, parts, strict=True):
        if len(part) != len(group):
            return RECOUNTED.format(rows=len(part), path=path, samples=len(group))
        for place, item in enumerate(group):
            rows[item] = part[place]
    if all(map(_is_alike, expected, rows)):
        return None
    return (REORDERED if _is_reordered(expected, rows) else MIXED).format(path=path)


def _is_reordered(expected: Rows, rows: list[Any]) -> bool:
    """Whether these are the expected rows in another order."""
    left = list(rows)
    for row in expected:
        place = next((i for i, other in enumerate(left) if _is_alike(row, other)), None)
        if place is None:
            return False
        del left[place]
    return True


def _is_alike(first: Any, second: Any) -> bool:
    return difference(first, second, are_same=_is_same_but_for_padding) is None


def _is_same_but_for_padding(first: Any, second: Any) -> bool:
    """Whether two leaves hold the same, at the beginning or at the end, and are constant elsewhere."""
    if are_same(first, second):
        return True
    if isinstance(first, np.ndarray) and first.dtype.kind in "biufc":
        first, second = torch.from_numpy(first.copy()), torch.from_numpy(second.copy())
    if not isinstance(first, Tensor) or first.ndim != second.ndim or first.shape == second.shape:
        return False
    for in_first, in_second in windows(first, second):
        if are_same(first[in_first], second[in_second]):
            return _is_constant_outside(first, in_first) and _is_constant_outside(second, in_second)
    return False


def windows(first: Tensor, second: Tensor) -> Iterator[tuple[Window, Window]]:
    """Where two tensors of as many dimensions hold the same if padding alone makes them differ: (first's, second's).

    At the beginning of every dimension, as padding behind leaves it; then at the end, as padding in front does.
    """
    sizes = list(map(min, first.shape, second.shape))
    leading = tuple(slice(0, size) for size in sizes)
    yield leading, leading
    in_first, in_second = (
        tuple(slice(whole - size, None) for whole, size in zip(tensor.shape, sizes, strict=True))
        for tensor in (first, second)
    )
    yield in_first, in_second


def _is_constant_outside(tensor: Tensor, window: Window) -> bool:
    outside = torch.ones(tensor.shape, dtype=torch.bool, device=tensor.device)
    outside[window] = False
    values = tensor[outside]
    return bool((values == values[:1]).all()) or bool(values.isnan().all())
