"""What a host that has prepared the user's loop goes on doing around it: batches are moved, ends of epochs are told.

`mine()` is called after `accelerator.prepare()` or `fabric.setup_dataloaders()`. The loaders that these return fetch
for themselves, Accelerate's one batch ahead; here they are taken apart into the DataLoader inside, which is mined, and
what is left of them: where batches go, who counts accumulation, and that samplers are told which epoch begins. A loop
of one's own has none of this, and neither package is imported for it.
"""

import copy
import sys
from abc import ABC, abstractmethod
from typing import Any, final

import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from infer2train.batches import to_device
from infer2train.loader.ranks import Ranks
from infer2train.machine.device import device_of

FABRIC = ("lightning.fabric.wrappers", "lightning_fabric.wrappers")
"""Where Fabric's wrappers stand, by the package that was installed."""
KEPT = (
    *("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "generator"),
    *("prefetch_factor", "persistent_workers", "pin_memory_device", "in_order"),
)
"""What a DataLoader has besides its data and their order."""


class Surroundings(ABC):
    """Around the iteration of a mined loader; called by it alone, `begin` and `end` once an iteration."""

    tells_epochs: bool = False
    """Whether samplers and data set are told which epoch begins."""
    accumulation_steps: int = 1
    """Draws of a step, as far as the host knows it."""

    @abstractmethod
    def begin(self) -> None:
        """An epoch begins or goes on."""

    @abstractmethod
    def placed(self, batch: Any, is_last: bool) -> Any:
        """The batch as it is handed out; is_last: of the epoch."""

    @abstractmethod
    def end(self) -> None:
        """The epoch is over or broken off. May be called twice."""


@final
class OwnLoop(Surroundings):
    """A loop of the user's own; Accelerate's, once its model is prepared.

    Args:
        model: what is trained.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._device = model, device_of(model)
        self._host: Accelerate | None = Accelerate(self._device) if _is_prepared(model) else None
        self.accumulation_steps = 1 if self._host is None else self._host.accumulation_steps

    def begin(self) -> None:
        if (now := device_of(self._model)) != self._device:
            raise ValueError(
                "mine() needs the model where it is trained, since an oracle is built there: got one on "
                f"{self._device} that is on {now} now; call mine() after accelerator.prepare(), or after model.to(): "
                "model, optimizer, loader = accelerator.prepare(model, optimizer, loader), "
                "then loader = infer2train.mine(loader, model, optimizer, …)"
            )
        if self._host is None and _is_prepared(self._model):
            self._host = Accelerate(self._device)
        if self._host is not None:
            self._host.begin()

    def placed(self, batch: Any, is_last: bool) -> Any:
        return batch if self._host is None else self._host.placed(batch, is_last)

    def end(self) -> None:
        if self._host is not None:
            self._host.end()


@final
class Accelerate(Surroundings):
    """Accelerate's: its accumulation must step at the end of an epoch, which a loader that is iterated tells it.

    Args:
        device: where batches go; None for nowhere.
        non_blocking: whether the copy is waited for.
        tells_epochs: see above.
    """

    remainder = -1
    """Read by `gather_for_metrics`: samples that were added to fill up the last batch. None are."""

    def __init__(self, device: torch.device | None, non_blocking: bool = False, *, tells_epochs: bool = False) -> None:
        from accelerate.state import GradientState

        self._state = GradientState()
        self._device, self._non_blocking, self.tells_epochs = device, non_blocking, tells_epochs
        self.accumulation_steps = self._state.num_steps
        self.end_of_dataloader = False
        """Read by `accumulate()`."""

    def begin(self) -> None:
        self.end_of_dataloader = False
        self._state._add_dataloader(self)

    def placed(self, batch: Any, is_last: bool) -> Any:
        self.end_of_dataloader = is_last
        return batch if self._device is None else to_device(batch, self._device, self._non_blocking)

    def end(self) -> None:
        self._state._remove_dataloader(self)


@final
class Fabric(Surroundings):
    """Fabric's.

    Args:
        device: where batches go; None for nowhere.
    """

    tells_epochs = True

    def __init__(self, device: torch.device | None) -> None:
        self._device = device

    def begin(self) -> None:
        pass

    def placed(self, batch: Any, is_last: bool) -> Any:
        return batch if self._device is None else to_device(batch, self._device)

    def end(self) -> None:
        pass


def taken_apart(loader: Any) -> tuple[Any, Surroundings | None]:
    """The DataLoader inside of a loader that a host has prepared, and what the host does around it; None: nothing yet.

    Raises:
        ValueError: it skips batches, or reads or divides them for several ranks in a way that draws cannot.
    """
    if is_fabrics(loader, "_FabricDataLoader"):
        return loader._dataloader, Fabric(loader.device)
    if "accelerate.data_loader" not in sys.modules:
        return loader, None
    from accelerate.data_loader import DataLoaderDispatcher, DataLoaderShard, SkipBatchSampler, SkipDataLoader

    is_skipping = isinstance(loader, DataLoader) and isinstance(loader.batch_sampler, SkipBatchSampler)
    if is_skipping or isinstance(loader, SkipDataLoader):
        raise ValueError(
            "a mined loader skips nothing: got skip_first_batches(), which would skip those of every epoch; mine the "
            "loader as it was, and resume by loader.load_state_dict(state)"
        )
    if not isinstance(loader, DataLoaderShard | DataLoaderDispatcher):
        return loader, None
    if isinstance(loader, DataLoaderDispatcher) and (world := Ranks.here().world) > 1:
        raise ValueError(
            "every rank reads what it scores and trains on by itself: got a loader prepared with dispatch_batches=True "
            f"for {world} ranks, where the first reads for all; pass dispatch_batches=False"
        )
    device = loader.device if isinstance(loader, DataLoaderShard) else loader.state.device
    return _in_own_order(loader.base_dataloader), Accelerate(device, loader._non_blocking, tells_epochs=True)


def with_all_batches(dataloader: "DataLoader[Any]") -> "DataLoader[Any]":
    """With the batches of all ranks, where Accelerate deals them out: draws are global, and divided by us.

    Raises:
        ValueError: each batch is divided among the ranks.
    """
    from accelerate.data_loader import BatchSamplerShard

    dealt: Any = dataloader.batch_sampler
    if not isinstance(dealt, BatchSamplerShard) or dealt.num_processes == 1:  # one: a rank's own, which stays as it is
        return dataloader
    if dealt.split_batches:
        raise ValueError(
            "the batch size of a mined loader is what one rank trains on: got split_batches=True with batches of "
            f"{dealt.batch_size} for {dealt.num_processes} ranks; leave it out, and pass "
            f"batch_size={dealt.batch_size // dealt.num_processes}"
        )
    # To deal batches out, it has put a generator into a random sampler without one.
    return _rebuilt(dataloader, dealt.batch_sampler, RandomSampler)


def is_fabrics(thing: Any, kind: str) -> bool:
    """Whether Fabric has wrapped a thing in a class of its own of that name."""
    return any(isinstance(thing, getattr(sys.modules[name], kind)) for name in FABRIC if name in sys.modules)


def tell_epoch(dataloader: "DataLoader[Any]", epoch: int) -> None:
    """Tell whatever of a loader wants to know which epoch begins: its samplers, and its data set."""
    parts = (
        *(dataloader.batch_sampler, getattr(dataloader.batch_sampler, "sampler", None)),
        *(dataloader.sampler, dataloader.dataset),
    )
    for tell in {id(part): tell for part in parts if callable(tell := getattr(part, "set_epoch", None))}.values():
        tell(epoch)


def _is_prepared(model: nn.Module) -> bool:
    return "accelerate" in sys.modules and getattr(model, "_is_accelerate_prepared", False)


def _in_own_order(dataloader: "DataLoader[Any]") -> "DataLoader[Any]":
    """With the batches and the random sampler that the user had, where Accelerate has put others in their place."""
    from accelerate.data_loader import SeedableRandomSampler

    whole = with_all_batches(dataloader)
    # mine() gives each epoch its seed; a counter inside a sampler would not be where a resumed run is.
    if isinstance(getattr(whole.batch_sampler, "sampler", None), SeedableRandomSampler):
        return _rebuilt(whole, whole.batch_sampler, SeedableRandomSampler)
    return whole


def _rebuilt(dataloader: "DataLoader[Any]", batch_sampler: Any, kind: type[RandomSampler]) -> "DataLoader[Any]":
    """The same over a batch sampler, whose random sampler of a kind gets no generator but that of the DataLoader."""
    theirs = getattr(batch_sampler, "sampler", None)
    if type(theirs) is kind:
        batch_sampler = copy.copy(batch_sampler)
        batch_sampler.sampler = RandomSampler(
            theirs.data_source,
            replacement=theirs.replacement,
            num_samples=theirs._num_samples,
            generator=dataloader.generator,
        )
    kept = {name: getattr(dataloader, name) for name in KEPT}
    return DataLoader(dataloader.dataset, batch_sampler=batch_sampler, **kept)
