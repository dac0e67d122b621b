"""Any map-style data set at an address: its own random transforms, made repeatable.

Second in the way of the data, after `addresses`, where `views` has no vectorised form of what a data set does. The
global random states that transforms draw from (`random`, NumPy's legacy one, torch's on the CPU, Albumentations' own)
are set from the address's seed, the sample is read, and the states are put back. One thread a process. It costs one
read of a sample for each of its views, unless the transform is given apart. A transform that draws from a generator
of its own cannot be replayed, and batches that a collate function mixes cannot be scored; `trial` finds them out at
construction.
"""

import os
import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch.utils.data import IterableDataset

from infer2train.addresses import Addresses, Purpose, words
from infer2train.pipeline import ViewWorkers
from infer2train.source import Itemwise
from infer2train.trial import try_out

FourWords = tuple[int, int, int, int]
"""Seeds of 32 bits for `random`, NumPy, torch and Albumentations."""

RANDOM_STATE = threading.RLock()
"""Whoever sets the process's global generators for a while holds it: an oracle's second thread reads samples to
calibrate on while the first one reads candidates."""
# A process that is forked while another thread holds it would wait for that thread for ever.
if hasattr(os, "register_at_fork"):  # not on Windows, where nothing is forked
    os.register_at_fork(
        before=RANDOM_STATE.acquire, after_in_parent=RANDOM_STATE.release, after_in_child=RANDOM_STATE.release
    )

_VIEW, _LOADING = 0, 1
"""What the generators are seeded for: the slots of Purpose.PARAMETER."""

_MOST_TRANSFORMS = 1000
"""Containers with more items hold samples, where no transform need be looked for."""


class Replay(Itemwise):
    """A map-style data set whose random transforms follow the address.

    Every address sets all global generators anew and reads `dataset[id]` with a plain int. The generators are back in
    their state when `batch` returns or raises. CUDA's are never touched.

    Args:
        dataset: anything with `__getitem__` and `__len__`; its items may be anything that `collate_fn` takes.
        collate_fn: makes a batch of a list of items, such as `DataLoader.collate_fn`. What it draws follows the last
            address of the batch.
        transform: the random transform, where `dataset` is un-augmented. Consecutive addresses of one id then read the
            sample once. It gets the item, or the first element of an item that is a tuple or a list, and must not
            change it in place.
        check: read and batch a few addresses several times at construction and compare.
        may_mix: whether `collate_fn` may make something else of a sample in another batch; such batches can be trained
            on, and not be scored.
        workers: how the run reads the data; the check is made in such workers.
        ids: that may be read, ascending. Default: all.

    Raises:
        ValueError: the data set has no ids, or gave something else at the same address when it was read again; or
            `collate_fn` made something else of the same sample in another batch.

    Example:
        >>> from torch.utils.data import default_collate
        >>> source = Replay([1.0, 2.0], default_collate, transform=lambda x: x + random.random())
        >>> here = Addresses(np.array([1, 1]), np.array([7, 8]))
        >>> bool((source.batch(here) == source.batch(here)).all())
        True
    """

    def __init__(
        self,
        dataset: Any,
        collate_fn: Callable[[list[Any]], Any],
        *,
        transform: Callable[[Any], Any] | None = None,
        check: bool = True,
        may_mix: bool = False,
        workers: ViewWorkers = ViewWorkers(),  # noqa: B008 -- frozen
        ids: Int64[np.ndarray, " n"] | None = None,
    ) -> None:
        if isinstance(dataset, IterableDataset):
            raise ValueError(
                "a data set must be map-style, so that a sample can be read again by its id: got an IterableDataset; "
                "give it __getitem__ and __len__"
            )
        self._dataset, self._ids = dataset, ids
        self._collate_fn = collate_fn
        self._transform = transform
        self._albumentations = _find_albumentations([dataset, transform, collate_fn])
        if check and len(self.ids) > 0:
            try_out(self, workers, with_batches=not may_mix)

    @property
    def dataset(self) -> Any:
        return self._dataset

    @property
    def ids(self) -> Int64[np.ndarray, " n"]:
        return super().ids if self._ids is None else self._ids

    def __len__(self) -> int:
        return len(self._dataset)

    def batch(self, addresses: Addresses) -> Any:
        with self._state_kept():
            return self._collate_fn(self._items(addresses))

    def items(self, addresses: Addresses) -> list[Any]:
        with self._state_kept():
            return self._items(addresses)

    def collated(self, items: list[Any], seed: int) -> Any:
        with self._state_kept():
            self._seed(_words(np.array([seed]), _VIEW)[0])
            try:
                return self._collate_fn(items)
            except Exception as error:
                error.add_note(f"while collating {len(items)} samples: an oracle's batches are of any size")
                raise

    def _state_kept(self) -> AbstractContextManager[None]:
        return _state_kept(self._albumentations)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # A function travels by its name, and the transform that it names is another object in another process.
        self._albumentations = _find_albumentations([self._dataset, self._transform, self._collate_fn])

    def _items(self, addresses: Addresses) -> list[Any]:
        """The samples under their seeds, in order. Leaves the generators moved."""
        views = _words(addresses.seeds, _VIEW)
        loadings = _words(addresses.ids, _LOADING)
        items: list[Any] = []
        loaded_id, loaded = None, None
        for (sample_id, seed), view, loading in zip(addresses, views, loadings, strict=True):
            try:
                if self._transform is None:
                    self._seed(view)
                    items.append(self._dataset[sample_id])
                    continue
                if sample_id != loaded_id:
                    self._seed(loading)
                    loaded_id, loaded = sample_id, self._dataset[sample_id]
                self._seed(view)
                items.append(_transformed(loaded, self._transform))
            except Exception as error:
                error.add_note(f"while reading sample {sample_id} under seed {seed}")
                raise
        return items

    def _seed(self, four_words: FourWords) -> None:
        _seed_global(four_words)
        if self._albumentations:
            last = four_words[3]
            for transform in self._albumentations:
                # Not set_random_seed: it gives each transform of a Compose a generator of its own in the same state, so
                # that all those of one probability would fire together.
                transform.set_random_state(np.random.default_rng(last), random.Random(last))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within, the global generators of `random`, NumPy and torch (CPU) follow this seed; after, they are as before.

    Example:
        >>> with seeded(7):
        ...     first = random.random()
        >>> with seeded(7):
        ...     first == random.random()
        True
    """
    with _state_kept(()):
        _seed_global(_words(np.array([seed]), _VIEW)[0])
        yield


def _words(keys: Int64[np.ndarray, " n"], slot: int) -> list[FourWords]:
    """Four random words for each key, as plain ints."""
    return list(zip(*(word.tolist() for word in words(keys, Purpose.PARAMETER, slot=slot)), strict=True))


def _seed_global(four_words: FourWords) -> None:
    """Seed each generator with a word of its own: NumPy's and torch's are one algorithm, and would draw the same."""
    python, legacy, tensor, _ = four_words
    random.seed(python)
    np.random.seed(legacy)
    torch.default_generator.manual_seed(tensor)  # torch.manual_seed would seed CUDA too


@contextmanager
def _state_kept(albumentations: Iterable[Any]) -> Iterator[None]:
    """Put every random state back at the end, also after an exception. One thread after the other."""
    with RANDOM_STATE:
        states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
        parts = [(part, part.random_generator, part.py_random) for part in _all_parts(albumentations)]
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.default_generator.set_state(states[2])
            for part, generator, py_random in parts:
                # Only replaced, never moved, by set_random_state.
                part.random_generator, part.py_random = generator, py_random


def _transformed(item: Any, transform: Callable[[Any], Any]) -> Any:
    """The item with its first element transformed, if it is a tuple or a list, else transformed as a whole."""
    if not isinstance(item, tuple | list):
        return transform(item)
    parts = [transform(item[0]), *item[1:]]
    named = isinstance(item, tuple) and type(item) is not tuple
    return type(item)(*parts) if named else type(item)(parts)


def _find_albumentations(roots: list[Any]) -> list[Any]:
    """The outermost Albumentations transforms that attributes, containers and functions lead to from here."""
    if "albumentations" not in sys.modules:
        return []
    from albumentations.core.composition import BaseCompose
    from albumentations.core.transforms_interface import BasicTransform

    found: list[Any] = []
    seen: dict[int, Any] = {}  # holds what it has seen, so that no id is used again
    waiting = list(roots)
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen[id(thing)] = thing
        if isinstance(thing, BaseCompose | BasicTransform):
            found.append(thing)
        else:
            waiting.extend(_inside(thing))
    return found


def _inside(thing: Any) -> list[Any]:
    """What an object holds that may be, or lead to, a transform."""
    if isinstance(thing, type | ModuleType | np.ndarray | torch.Tensor | str | bytes | int | float):
        return []
    if isinstance(thing, dict | list | tuple | set):
        held = thing.values() if isinstance(thing, dict) else thing
        return list(held) if len(thing) <= _MOST_TRANSFORMS else []
    if isinstance(thing, partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, MethodType):
        return [thing.__self__]
    if isinstance(thing, FunctionType):
        held = [cell.cell_contents for cell in thing.__closure__ or () if not _is_empty(cell)]
        named = [thing.__globals__.get(name) for name in thing.__code__.co_names]
        # A lambda in a script names its transform; whatever else a function names would lead through whole libraries.
        return held + [value for value in named if type(value).__module__.partition(".")[0] == "albumentations"]
    return list(getattr(thing, "__dict__", {}).values())


def _is_empty(cell: CellType) -> bool:
    """Whether a variable of a closure has no value yet."""
    try:
        _ = cell.cell_contents
    except ValueError:
        return True
    return False


def _all_parts(transforms: Iterable[Any]) -> Iterator[Any]:
    """Each of these Albumentations transforms and all that they are composed of."""
    for transform in transforms:
        yield transform
        yield from _all_parts(getattr(transform, "transforms", ()))
