"""The ranks of a run: which of several training processes this one is, and what it exchanges with the others.

Between the loader and `torch.distributed`. Every rank does the same in the same order and calls the same methods here;
what crosses is tensors, never objects, so nothing is unpickled. A process that trains alone is the only rank of its
run, and exchanges nothing.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, distributed


class Ranks:
    """This process among those that train together.

    Args:
        rank: its number, counted from 0.
        world: how many there are.

    Example:
        >>> Ranks().own(3).tolist()
        [0, 1, 2]
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

    @classmethod
    def here(cls) -> "Ranks":
        """Those of the process group that this process has joined."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether it writes what is written once for all."""
        return self.rank == 0

    def own(self, count: int, group: int = 1) -> Int64[np.ndarray, " n"]:
        """Which of `count` things are this rank's, ascending, where groups of so many in a row are dealt out in turn.

        Example:
            >>> Ranks().own(5, group=2).tolist()
            [0, 1, 2, 3, 4]
        """
        return self.owned(self.rank, count, group)

    def owned(self, rank: int, count: int, group: int = 1) -> Int64[np.ndarray, " n"]:
        """Which are another rank's."""
        places = np.arange(count)
        mine: Int64[np.ndarray, " n"] = places[(places // group) % self.world == rank]
        return mine

    # Exchange: every rank calls the same, in the same order

    def of_all(self, values: Int64[np.ndarray, " n"], longest: int | None = None) -> list[Int64[np.ndarray, " _"]]:
        """What every rank has here, by rank.

        Args:
            values: of this one.
            longest: how many there are at most on any rank, where all know that; shorter ones are then filled up.
        """
        if self.world == 1:
            return [values]
        sizes = None
        if longest is None:
            sizes = [int(size[0]) for size in self.of_all(np.array([len(values)]), longest=1)]
            longest = max(sizes)
        row = torch.zeros(longest, dtype=torch.int64)
        row[: len(values)] = torch.from_numpy(values)
        rows = [torch.empty_like(row) for _ in range(self.world)]
        with self._together():
            distributed.all_gather(rows, row, group=self._for_cpu)
        found = [row.numpy() for row in rows]
        return found if sizes is None else [row[:size] for row, size in zip(found, sizes, strict=True)]

    def texts_of_all(self, text: str) -> list[str]:
        """As `of_all`, of texts."""
        if self.world == 1:
            return [text]
        letters = self.of_all(np.frombuffer(text.encode(), np.uint8).astype(np.int64))
        return [found.astype(np.uint8).tobytes().decode() for found in letters]

    def do_all(self, flag: bool) -> bool:
        """Whether something holds on every rank."""
        return flag if self.world == 1 else all(bool(found[0]) for found in self.of_all(np.array([int(flag)]), 1))

    def take_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Write what rank 0 has in these tensors into those of every other rank."""
        if self.world == 1:
            return
        with self._together():
            sent = []
            for tensor in filter(torch.numel, tensors):
                whole = tensor.contiguous()
                group = self._for_cpu if tensor.device.type == "cpu" else None
                plain = whole.view(-1).view(torch.uint8)  # any type of number, bit by bit
                sent.append((tensor, whole, distributed.broadcast(plain, src=0, group=group, async_op=True)))
            for tensor, whole, work in sent:
                if work is not None:
                    work.wait()
                if whole is not tensor:
                    tensor.copy_(whole)

    def require_same(self, what: Mapping[str, object], remedy: str) -> None:
        """Refuse ranks that are about to do different things.

        Args:
            what: that must be the same on every rank, by name.
            remedy: what to do where it is not.

        Raises:
            ValueError: it is not, on every rank alike.
        """
        everyone = [text.split("\n") for text in self.texts_of_all("\n".join(map(repr, what.values())))]
        for rank, theirs in enumerate(everyone):
            pairs = zip(what, everyone[0], theirs, strict=True)
            differ = [
                f"{name} {first} on rank 0, {other} on rank {rank}" for name, first, other in pairs if first != other
            ]
            if differ:
                raise ValueError(f"all ranks of a run must do the same: got {'; '.join(differ)}; {remedy}")

    def require_joined(self) -> None:
        """Refuse a process group that was joined, or left, since.

        Raises:
            ValueError: it has another size now.
        """
        world = Ranks.here().world
        if world != self.world:
            raise ValueError(
                f"ranks that train together must have joined before mine() is called: got {self.world} then and "
                f"{world} now; call torch.distributed.init_process_group() first"
            )

    @cached_property
    def _for_cpu(self) -> "distributed.ProcessGroup | None":
        """The run's own group, whose timeout holds, where it takes tensors of the CPU; else one of Gloo beside it."""
        return None if "cpu:" in distributed.get_backend_config() else distributed.new_group(backend="gloo")

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Within, ranks wait for each other."""
        try:
            yield
        except RuntimeError as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            raise RuntimeError(
                f"every rank must be there, and at the same draw: rank {self.rank} of {self.world} waited for the "
                f"others in vain ({reason}); one of them has ended, whose own error says why, or left the loop at "
                "another draw. Start all of them again, from the last checkpoint"
            ) from error
