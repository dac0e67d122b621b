"""Inputs that a model makes training data of: from seeds alone, and together with their seeds.

Beside `replay`, which reads data sets; what a seed decides here is latent noise, or what is drawn from a model's
outputs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int64
from torch.utils.data import default_collate

from infer2train.draws.addresses import Addresses
from infer2train.draws.randomness import VIEW, four_words, seed_global, state_kept
from infer2train.sources.source import Around, Source


class FromSeeds(Source):
    """Inputs without a data set: each is made of its seed.

    Args:
        function: seed -> one input. The global generators of `random`, NumPy and torch follow the seed meanwhile.
        count: inputs in an epoch.

    Example:
        >>> source = FromSeeds(lambda seed: torch.randn(2), count=8)
        >>> source.batch(addresses).shape
        torch.Size([3, 2])
    """

    def __init__(self, function: Callable[[int], Any], count: int) -> None:
        self._function, self._count = function, count

    @property
    def moves_random_state(self) -> bool:
        return True

    def __len__(self) -> int:
        return self._count

    def batch(self, addresses: Addresses) -> Any:
        items = []
        with state_kept():
            for seed, four in zip(addresses.seeds.tolist(), four_words(addresses.seeds, VIEW), strict=True):
                seed_global(four)
                items.append(self._function(seed))
        return default_collate(items)


class WithSeeds(Around):
    """Another source, each of whose batches comes with the seeds of its inputs."""

    def batch(self, addresses: Addresses) -> tuple[Any, Int64[np.ndarray, " n"]]:
        return self._source.batch(addresses), addresses.seeds
