"""The draws of an epoch as a data set and a DataLoader, which the Trainer reads where it would have read batches.

The loop fetches all draws of a step before it trains on them, and skips places where it resumes: no draw is made for
those.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from infer2train.draws.draw import Draw
from infer2train.loader.loader import MinedLoader


class Draws(Dataset[Any]):
    """The draws of a mined loader by their places in an epoch; only ever read one after the other.

    Args:
        loader: makes them.
        micro: how many the Trainer fetches before it trains on them.
        set_epoch: tells the Trainer's own sampler which epoch begins; None where it asks for no such thing.
    """

    def __init__(self, loader: MinedLoader, micro: int, set_epoch: Callable[[int], None] | None) -> None:
        self.loader, self._set_epoch = loader, set_epoch
        self.trained_on: Draw | None = None
        """The draw of the training step under way."""
        self._fetched: deque[Draw] = deque(maxlen=micro)
        self._batches: Iterator[Any] = iter(())
        self._place, self._start = 0, 0

    def __len__(self) -> int:
        """Samples, as the Trainer counts them for its speed."""
        return len(self.loader.dataset)

    def __getitem__(self, place: int) -> Any:
        if place != self._place:
            raise ValueError(
                f"a resumed epoch goes on where it was saved: got draw {place} of the epoch, the state is before draw "
                f"{self._place}; resume with the batch size and gradient_accumulation_steps of the checkpoint"
            )
        self.loader.journal.go_on()
        batch = next(self._batches)
        self._place += 1
        assert self.loader.last is not None
        self._fetched.append(self.loader.last)
        return batch

    def set_epoch(self, epoch: int) -> None:
        """Tell the Trainer's sampler which epoch begins."""
        if self._set_epoch is not None:
            self._set_epoch(epoch)

    def begin_epoch(self) -> None:
        """Begin an epoch, or go on where a resumed one was."""
        self._batches = iter(self.loader)
        self._place, self._start = self._start, 0
        self._fetched.clear()

    def resume(self, state: Mapping[str, Any]) -> None:
        """Have the next epoch go on from a loader's state."""
        self.loader.load_state_dict(state)
        self._start = state["position"]
        self.set_epoch(self.loader.epoch)  # what skips places for the Trainer hides that the sampler has epochs

    @contextmanager
    def training(self) -> Iterator[None]:
        """Within, a training step on the oldest draw that was fetched."""
        self.trained_on = self._fetched.popleft() if self._fetched else None
        try:
            yield
        finally:
            self.trained_on = None

    def step_done(self) -> None:
        """Acknowledge a step."""
        self.loader.step_done()
        if self._place == len(self.loader):  # the Trainer asks for no draw after the last: what it saves is an end
            next(self._batches, None)


class Places:
    """Where the draws of an epoch stand in it, one by one: a host that resumes skips these, and no draw is made."""

    def __init__(self, draws: Draws) -> None:
        self._draws = draws
        self.set_epoch = draws.set_epoch

    def __len__(self) -> int:
        return len(self._draws.loader)

    def __iter__(self) -> Iterator[list[int]]:
        self._draws.begin_epoch()
        return ([place] for place in range(len(self)))


class DrawLoader(DataLoader[Any]):
    """What the training loop iterates."""

    def __init__(self, draws: Draws) -> None:
        super().__init__(
            draws,
            batch_sampler=Places(draws),
            collate_fn=_only,
            generator=torch.Generator(),  # so that beginning an epoch does not move the user's random state
        )
        self.set_epoch = draws.set_epoch


def _only(batches: list[Any]) -> Any:
    return batches[0]
