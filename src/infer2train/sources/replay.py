"""Any map-style data set at an address: its own random transforms, made repeatable.

Second in the way of the data, after `addresses`, where `views` has no vectorised form of what a data set does. The
global random states that transforms draw from (`random`, NumPy's legacy one, torch's on the CPU, Albumentations' own)
are set from the address's seed, the sample is read, and the states are put back. One thread a process. It costs one
read of a sample for each of its views, unless the transform is given apart. A transform that draws from a generator
of its own cannot be replayed, and batches that a collate function mixes cannot be scored; `trial` finds them out at
construction.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Int64
from torch.utils.data import IterableDataset

from infer2train.draws.addresses import Addresses
from infer2train.draws.randomness import LOADING, VIEW, FourWords, four_words, seed_global, state_kept
from infer2train.sources.albumentations import seed_transforms, transforms_in, transforms_kept
from infer2train.sources.pipeline import ViewWorkers
from infer2train.sources.source import Itemwise
from infer2train.sources.trial import try_out


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
        >>> import random
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
                "give it __getitem__ and __len__, or have mine() read it window by window"
            )
        self._dataset, self._ids = dataset, ids
        self._collate_fn = collate_fn
        self._transform = transform
        self._albumentations = transforms_in([dataset, transform, collate_fn])
        if check and len(self.ids) > 0:
            try_out(self, workers, with_batches=not may_mix)

    @property
    def dataset(self) -> Any:
        return self._dataset

    @property
    def ids(self) -> Int64[np.ndarray, " n"]:
        return super().ids if self._ids is None else self._ids

    @property
    def moves_random_state(self) -> bool:
        return True

    @property
    def has_transform(self) -> bool:
        """Whether the random transform is apart from the data set."""
        return self._transform is not None

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
            self._seed(four_words(np.array([seed]), VIEW)[0])
            try:
                return self._collate_fn(items)
            except Exception as error:
                error.add_note(f"while collating {len(items)} samples: an oracle's batches are of any size")
                raise

    @contextmanager
    def _state_kept(self) -> Iterator[None]:
        with state_kept(), transforms_kept(self._albumentations):
            yield

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # A function travels by its name, and the transform that it names is another object in another process.
        self._albumentations = transforms_in([self._dataset, self._transform, self._collate_fn])

    def _items(self, addresses: Addresses) -> list[Any]:
        """The samples under their seeds, in order. Leaves the generators moved."""
        views = four_words(addresses.seeds, VIEW)
        loadings = four_words(addresses.ids, LOADING)
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

    def _seed(self, four: FourWords) -> None:
        seed_global(four)
        seed_transforms(self._albumentations, four[3])


def _transformed(item: Any, transform: Callable[[Any], Any]) -> Any:
    """The item with its first element transformed, if it is a tuple or a list, else transformed as a whole."""
    if not isinstance(item, tuple | list):
        return transform(item)
    parts = [transform(item[0]), *item[1:]]
    named = isinstance(item, tuple) and type(item) is not tuple
    return type(item)(*parts) if named else type(item)(parts)
