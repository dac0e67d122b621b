"""The order of an epoch: the ids that the user's own sampler gives, as a pure function of (run seed, epoch).

Samplers draw from torch's global state, from a generator of their own, or from `random` or NumPy. All of these are set
from the epoch's address while the sampler is asked, and put back after. The whole epoch is asked at once (eight bytes a
sample), so that a resumed epoch goes on in the very same order.
"""

import hashlib
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch.utils.data import DataLoader

from infer2train.draws.addresses import Purpose, seeds
from infer2train.draws.randomness import seeded

Batches = list[Int64[np.ndarray, " _"]]


def epoch_batches(dataloader: "DataLoader[Any]", seed: int, epoch: int) -> Batches:
    """The ids of every batch of an epoch, from the user's batch sampler.

    Raises:
        ValueError: the sampler gives something else than integers, or no batch at all.
    """
    state = int(seeds(seed, Purpose.ORDER, epoch=epoch))
    generators = _generators(dataloader)
    kept = [generator.get_state() for generator in generators]
    assert dataloader.batch_sampler is not None
    try:
        with seeded(state):
            for generator in generators:
                generator.manual_seed(state)
            batches = [_as_ids(batch) for batch in dataloader.batch_sampler]
    finally:
        for generator, before in zip(generators, kept, strict=True):
            generator.set_state(before)
    if not batches:
        raise ValueError(
            f"an epoch needs at least one batch: got none from {len(dataloader.dataset)} samples "  # type: ignore[arg-type]
            f"at batch_size={dataloader.batch_size}; lower the batch size or turn drop_last off"
        )
    return batches


def readable_ids(dataloader: "DataLoader[Any]") -> Int64[np.ndarray, " n"]:
    """The ids that a run may read, ascending, without asking the sampler: it may count how often it is asked.

    All ids of the data set, or those that a sampler over a part of it names (`indices`, as `SubsetRandomSampler` has
    them).
    """
    samplers = (dataloader.sampler, getattr(dataloader.batch_sampler, "sampler", None))
    named = next((found for s in samplers if (found := getattr(s, "indices", None)) is not None), None)
    return np.arange(len(dataloader.dataset)) if named is None else np.unique(_as_ids(named))  # type: ignore[arg-type]


def usual_batch_size(dataloader: "DataLoader[Any]") -> int | None:
    """Samples in a batch, where the loader or its batch sampler says so."""
    return dataloader.batch_size or getattr(dataloader.batch_sampler, "batch_size", None)


class OwnOrder:
    """A batch sampler that belongs to a mined loader: all of its attributes, but no batches.

    Another loader built on it (Accelerate's `skip_first_batches` does so) would train on unmined batches, silently.
    """

    def __init__(self, batch_sampler: Any) -> None:
        self._batch_sampler = batch_sampler

    def __len__(self) -> int:
        return len(self._batch_sampler)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch_sampler, name)

    def __iter__(self) -> Any:
        raise RuntimeError(
            "the batches of a mined loader are made by itself: got another loader built on its batch_sampler (to skip "
            "batches, for example), which would not mine; iterate the mined loader, and resume it by "
            "loader.load_state_dict(state)"
        )


def fingerprint(batches: Batches) -> str:
    """A digest of an epoch's order, by which a resumed run knows that its sampler gives the same again."""
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(batch.tobytes() + b"|")
    return digest.hexdigest()


def _generators(dataloader: "DataLoader[Any]") -> list[torch.Generator]:
    samplers = (
        dataloader,
        dataloader.sampler,
        dataloader.batch_sampler,
        getattr(dataloader.batch_sampler, "sampler", None),
    )
    found = {id(g): g for s in samplers if isinstance(g := getattr(s, "generator", None), torch.Generator)}
    return list(found.values())


def _as_ids(batch: Any) -> Int64[np.ndarray, " b"]:
    ids = np.asarray(batch)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"a sampler must give integer sample ids: got {batch!r:.80}; number the samples 0 … n − 1")
    return ids.astype(np.int64)
