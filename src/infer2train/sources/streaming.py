"""Reading a stream, window by window: the one place where an iterable data set is iterated.

Runs where the user's loader reads: in the trainer's process, or in one worker. What it reads goes into files, which
`window` gives to everybody else. The global generators are set for every item, from the pass and its place in it, so
that a pass gives the same whenever it is begun, and from wherever it is gone on with.
"""

import copy
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from infer2train.draws.addresses import Addresses, Purpose, seeds
from infer2train.draws.randomness import VIEW, four_words, seed_global, state_kept
from infer2train.sources.bits import difference, outline
from infer2train.sources.source import Source
from infer2train.sources.window import HEAD, pass_and_place, window_name, write_items

HEAD_ITEMS = 128
"""At most, kept for engines to calibrate and check themselves on."""
COMPARED = 8
"""Items by which a stream is known again."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Where a window begins, and how to come there again."""

    number: int
    """Of the pass."""
    place: int
    """In it: items before."""
    state: Any
    """Of the data set there; None where it has none."""
    digest: list[Any]
    """Of the next `COMPARED` items."""

    def as_plain(self) -> dict[str, Any]:
        """For a state dict."""
        return asdict(self)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Mark":
        """What `as_plain` gave."""
        return cls(**plain)


@dataclass(frozen=True, kw_only=True)
class Filled:
    """What was read."""

    count: int
    """Items; fewer than asked for where the stream has ended."""
    mark: Mark
    skipped: int
    """Items that were read before these only to come to them."""


class HeadReading(Source):
    """Writes the head, and tries whether the stream begins alike when it begins anew. Its batch is the items' number.

    Args:
        dataset: the stream.
        folder: of the files.
        width: of a window.
        seed: of the run.
    """

    def __init__(self, dataset: Iterable[Any], folder: Path, width: int, seed: int) -> None:
        self._dataset, self._folder, self._width, self._seed = dataset, folder, width, seed

    @property
    def dataset(self) -> Any:
        return self._dataset

    def __len__(self) -> int:
        return 1

    def batch(self, addresses: Addresses) -> int:
        with state_kept():
            items = _Passage(self._dataset, self._seed, 0).take(min(self._width, HEAD_ITEMS))
            again = _Passage(self._dataset, self._seed, 0).take(COMPARED)
        leaf = "number of items" if len(again) < min(COMPARED, len(items)) else difference(items[:COMPARED], again)
        if leaf is not None:
            raise ValueError(
                f"a stream must give the same items whenever it begins anew: got another {leaf} the second time. "
                "Likely causes: it wraps an iterator that is used up, or draws from a generator of its own. Make "
                "__iter__ begin anew, and draw from `random`, np.random or torch's global generator"
            )
        write_items(self._folder / HEAD, items)
        return len(items)


class StreamReading(Source):
    """Reads windows; its batch at the id that a window begins with is what was `Filled`.

    Windows of a pass are asked for in order; any other is come to by the mark, or by reading the pass from its
    beginning.

    Args:
        dataset: the stream.
        folder: of the files.
        width: of a window.
        seed: of the run.
        mark: where a resumed pass goes on.
    """

    def __init__(self, dataset: Iterable[Any], folder: Path, width: int, seed: int, mark: Mark | None = None) -> None:
        self._dataset, self._folder, self._width, self._seed, self._mark = dataset, folder, width, seed, mark
        self._passage: _Passage | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_passage": None}

    @property
    def dataset(self) -> Any:
        return self._dataset

    def __len__(self) -> int:
        return self._width

    def batch(self, addresses: Addresses) -> Filled:
        first = int(addresses.ids[0])
        number, place = pass_and_place(first)
        with state_kept():
            skipped, passage = 0, self._passage
            if passage is None or (passage.number, passage.place) != (number, place):
                skipped, passage = self._come_to(number, place)
            state, digest = passage.state(), list[Any]()
            count = write_items(self._folder / window_name(first), _noted(passage.items(self._width), digest))
        self._passage = passage
        return Filled(count=count, mark=Mark(number=number, place=place, state=state, digest=digest), skipped=skipped)

    def _come_to(self, number: int, place: int) -> "tuple[int, _Passage]":
        """A pass at this place, and how many items were read on the way."""
        mark = self._mark if self._mark is not None and self._mark.number == number else None
        if mark is not None and mark.state is not None and mark.place <= place:
            passage = _Passage(self._dataset, self._seed, number, mark)
            if outline(passage.look(COMPARED)) == mark.digest:  # a state may leave out what a shuffle buffer held
                return place - mark.place, passage.at(place)
        passage = _Passage(self._dataset, self._seed, number)
        if mark is not None and mark.place <= place:
            found = outline(passage.at(mark.place).look(COMPARED))
            if found != mark.digest:
                raise ValueError(
                    f"a resumed pass needs a stream that gives the same again: got others at item {mark.place} of pass "
                    f"{number}; leave the data as it was, and draw from the global state of torch, NumPy or random"
                )
        return place, passage.at(place)


def _noted(items: Iterator[Any], digest: list[Any]) -> Iterator[Any]:
    """The same items; outlines of the first of them are noted on the way."""
    for item in items:
        if len(digest) < COMPARED:
            digest.append(outline(item))
        yield item


class _Passage:
    """One pass of a stream under way. Moves the global generators.

    Args:
        dataset: the stream.
        seed: of the run.
        number: of the pass.
        mark: where it begins; its state is loaded into a copy. Default: at the beginning.
    """

    def __init__(self, dataset: Iterable[Any], seed: int, number: int, mark: Mark | None = None) -> None:
        self.number, self.place = number, 0
        self._dataset, self._seed, self._mark = dataset, seed, mark
        if mark is not None:
            self._dataset, self.place = copy.deepcopy(dataset), mark.place
        for name, argument in (("set_epoch", number), ("load_state_dict", None if mark is None else mark.state)):
            if argument is not None and callable(method := getattr(self._dataset, name, None)):
                method(argument)
        self._held: deque[Any] = deque()
        seed_global(four_words(seeds(seed, Purpose.ORDER, epoch=number, draw=np.array([1])), VIEW)[0])
        self._items = self._seeded(iter(self._dataset))

    def state(self) -> Any:
        """Of the data set here, if it has one."""
        if self._mark is not None and self._mark.place == self.place:
            return self._mark.state
        give = getattr(self._dataset, "state_dict", None)
        can_take = callable(getattr(self._dataset, "load_state_dict", None))
        return give() if callable(give) and can_take and self.place > 0 and not self._held else None

    def take(self, count: int) -> list[Any]:
        """The next items: so many, or as many as there are."""
        return list(self.items(count))

    def items(self, count: int) -> Iterator[Any]:
        """The same, one by one."""
        for _ in range(count):
            if not self.look(1):
                return
            self.place += 1
            yield self._held.popleft()

    def look(self, count: int) -> list[Any]:
        """The next items, which stay."""
        self._held.extend(islice(self._items, max(0, count - len(self._held))))
        return list(islice(self._held, count))

    def at(self, place: int) -> "_Passage":
        """This pass, after the items before a place."""
        for _ in self.items(place - self.place):
            pass
        return self

    def _seeded(self, items: Iterator[Any]) -> Iterator[Any]:
        place = self.place
        while True:
            keys = seeds(self._seed, Purpose.ORDER, epoch=self.number, slot=place + np.arange(256))
            for four in four_words(keys, VIEW):
                seed_global(four)
                try:
                    item = next(items)
                except StopIteration:
                    return
                except Exception as error:
                    error.add_note(f"while reading item {place} of pass {self.number} of the stream")
                    raise
                yield item
                place += 1
