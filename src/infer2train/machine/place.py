"""Where a part of the machine's work runs while it is measured: on which cores, with how many threads."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from infer2train.machine.cores import on_cores


@dataclass(frozen=True, kw_only=True)
class Place:
    """Cores and threads that something runs on."""

    cores: tuple[int, ...]
    """None of them leaves the process where it is."""
    num_threads: int

    @contextmanager
    def __call__(self) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(self.num_threads)
        try:
            with on_cores(self.cores):
                yield
        finally:
            torch.set_num_threads(before)
