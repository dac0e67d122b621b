"""What hosts and loops read of a loader, as it is in the DataLoader that a mined one was made from."""

from typing import Any

from torch.utils.data import DataLoader

from infer2train.loader.order import OwnOrder
from infer2train.loader.surroundings import tell_epoch

PASSED_ON = (
    *("dataset", "batch_size", "sampler", "drop_last", "num_workers", "collate_fn", "pin_memory", "timeout"),
    *("worker_init_fn", "multiprocessing_context", "generator", "prefetch_factor", "persistent_workers"),
    *("pin_memory_device", "in_order"),
)


class LikeDataLoader:
    """Looks like another loader to whoever does not iterate it.

    Args:
        dataloader: the user's.
        has_copies: whether its data set is read in other processes, which have copies of it.
    """

    def __init__(self, dataloader: "DataLoader[Any]", *, has_copies: bool) -> None:
        self._dataloader, self._has_copies = dataloader, has_copies

    def __getattr__(self, name: str) -> Any:
        if name in PASSED_ON:
            return getattr(self._dataloader, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def batch_sampler(self) -> OwnOrder:
        """The user's, to be asked for anything but batches."""
        return OwnOrder(self._dataloader.batch_sampler)

    def set_epoch(self, epoch: int) -> None:
        """Tell samplers and data set, if they want to know, which epoch begins: what hosts do, and loops of one's own.

        Raises:
            ValueError: the data set wants to know, and oracles read copies of it in other processes.
        """
        if self._has_copies and callable(getattr(self.dataset, "set_epoch", None)):
            raise ValueError(
                "a data set that is told the epoch must be read in this process, since oracles elsewhere have copies "
                f"of it: got set_epoch() of {type(self.dataset).__name__}; pass pool='inline' to mine()"
            )
        tell_epoch(self._dataloader, epoch)
