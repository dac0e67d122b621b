"""The order of an epoch: the ids that the user's own sampler gives, as a pure function of (run seed, epoch).

Samplers draw from torch's global state, from a generator of their own, or from `random` or NumPy. All of these are set
from the epoch's address while the sampler is asked, and put back after. The whole epoch is asked at once (eight bytes a
sample), so that a resumed epoch goes on in the very same order. Of several ranks each asks its own sampler, and the
batches of all are joined to global ones.
"""

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from numbers import Integral
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, WeightedRandomSampler

from infer2train.draws.addresses import Purpose, seeds
from infer2train.draws.randomness import seeded
from infer2train.loader.ranks import Ranks

Batches = list[Int64[np.ndarray, " _"]]
TOO_LONG = 2
"""Times that an epoch may have as many batches as the loader says: beyond, a loop that counts them is what ends it."""
LONGEST_EPOCH = 100
"""Times that an epoch whose length nobody says may have as many ids as there are samples: beyond, it has no end."""


def epoch_batches(dataloader: "DataLoader[Any]", seed: int, epoch: int) -> Batches:
    """The ids of every batch of an epoch, from the user's batch sampler.

    Raises:
        ValueError: the sampler gives something else than integers, no batch at all, or no end.
    """
    state = int(seeds(seed, Purpose.ORDER, epoch=epoch))
    generators = _generators(dataloader)
    kept = [generator.get_state() for generator in generators]
    assert dataloader.batch_sampler is not None
    try:
        with seeded(state):
            for generator in generators:
                generator.manual_seed(state)
            batches = _whole_epoch(dataloader)
    finally:
        for generator, before in zip(generators, kept, strict=True):
            generator.set_state(before)
    if not batches:
        raise ValueError(
            f"an epoch needs at least one batch: got none from {len(dataloader.dataset)} samples "  # type: ignore[arg-type]
            f"at batch_size={dataloader.batch_size}; lower the batch size or turn drop_last off"
        )
    return batches


def _whole_epoch(dataloader: "DataLoader[Any]") -> Batches:
    """What the batch sampler gives, to its end, or to that of the loader where the sampler has none."""
    assert dataloader.batch_sampler is not None
    samples, length = len(dataloader.dataset), _length_of(dataloader)  # type: ignore[arg-type]
    most = LONGEST_EPOCH * samples if length is None else math.inf
    batches, ids = Batches(), 0
    for batch in dataloader.batch_sampler:
        batches.append(_as_ids(batch))
        ids += len(batches[-1])
        if length is not None and len(batches) > TOO_LONG * length:
            if hasattr(dataloader.batch_sampler, "__len__"):  # or it is the loader that ends it
                warnings.warn(
                    f"the batch sampler says that an epoch has {length} batches and gives more than "
                    f"{TOO_LONG * length}: the others are left out; have its __len__ say how many there are",
                    RuntimeWarning,
                    stacklevel=8,
                )
            return batches[:length]
        if ids > most:
            raise ValueError(
                f"an epoch must end: got more than {most} ids of {samples} samples from a sampler without a length; "
                "give it one, or an end (itertools.islice(ids, n) in its __iter__), and loop over epochs"
            )
    return batches


def _length_of(dataloader: "DataLoader[Any]") -> int | None:
    """Batches in an epoch of the user's, where its batch sampler says so."""
    try:
        return len(dataloader)
    except (TypeError, NotImplementedError):
        return None


def global_batches(dataloader: "DataLoader[Any]", batches: Batches, ranks: Ranks) -> Batches:
    """An epoch of all ranks: the ids of each draw that they make together.

    Ranks whose samplers give the same go through it together, W batches in a draw, as one rank of W times the batch
    size would. Where a sampler gives each rank another part, as `DistributedSampler` does in turn, a draw is one batch
    of each, id by id in turn, which undoes it. A draw has at least one id for each rank: a shorter one repeats its own.

    Args:
        dataloader: the user's.
        batches: of this rank, from `epoch_batches`.
        ranks: of the run.
    """
    if ranks.world == 1:
        return batches
    if len(set(ranks.texts_of_all(fingerprint(batches)))) == 1:
        joined = _in_a_row(batches, ranks.world, whole=_drops_last(dataloader))
    else:
        sizes = ranks.of_all(np.array([len(batch) for batch in batches]))
        ids = ranks.of_all(np.concatenate(batches))
        parts = [np.split(own, size.cumsum()[:-1]) for own, size in zip(ids, sizes, strict=True)]
        joined = [in_turn(of_draw) for of_draw in zip_longest(*parts, fillvalue=ids[0][:0])]
    if not joined:
        raise ValueError(
            f"an epoch needs one batch for each rank: got {len(batches)} for {ranks.world} ranks; lower the batch "
            "size or turn drop_last off"
        )
    return [batch if len(batch) >= ranks.world else np.resize(batch, ranks.world) for batch in joined]


def in_turn(parts: Sequence[Int64[np.ndarray, " _"]]) -> Int64[np.ndarray, " n"]:
    """One of each part after the other, as long as there are any.

    Example:
        >>> in_turn([np.array([1, 3, 5]), np.array([2, 4])]).tolist()
        [1, 2, 3, 4, 5]
    """
    places = np.concatenate([np.arange(len(part)) for part in parts])
    return np.concatenate(parts)[places.argsort(kind="stable")]


def draws_in_epoch(dataloader: "DataLoader[Any]", ranks: Ranks) -> int | None:
    """How many there are, as far as that can be known without asking the sampler. Every rank calls this.

    A sampler that gives each rank another part tells by its `num_replicas` (torch, Lightning) or `num_processes`
    (Accelerate), by other ids than on another rank, or by another length.
    """
    batches = _length_of(dataloader)
    if ranks.world == 1 or isinstance(dataloader.dataset, IterableDataset):
        return batches
    ids = hashlib.sha256(readable_ids(dataloader).tobytes()).hexdigest()
    everywhere = ranks.texts_of_all(f"{-1 if batches is None else batches} {ids}")
    lengths = [int(told.partition(" ")[0]) for told in everywhere]
    if min(lengths) < 0:
        return None
    samplers = _samplers(dataloader)
    is_part = any(getattr(s, name, None) for s in samplers for name in ("num_replicas", "num_processes"))
    if is_part or len(set(everywhere)) > 1:
        return max(lengths)
    return lengths[0] // ranks.world if _drops_last(dataloader) else -(-lengths[0] // ranks.world)


def global_batch_size(dataloader: "DataLoader[Any]", ranks: Ranks) -> int | None:
    """Samples in a draw of all ranks, where the loader or its batch sampler says how many are in a batch."""
    size = usual_batch_size(dataloader)
    return None if size is None else size * ranks.world


def require_same_run(dataloader: "DataLoader[Any]", ranks: Ranks, what: Mapping[str, object]) -> None:
    """Refuse an epoch that ranks would go through differently.

    Args:
        dataloader: the user's.
        ranks: of the run.
        what: must be the same on each, by name, besides the number of samples and the batch size.

    Raises:
        ValueError: something is not.
    """
    ranks.require_joined()
    if ranks.world > 1:
        dataset = dataloader.dataset  # of a stream, each rank has its own
        samples = None if isinstance(dataset, IterableDataset) else len(dataset)  # type: ignore[arg-type]
        data = {"samples": samples, "batch_size": usual_batch_size(dataloader)}
        remedy = "call mine() alike on every rank (oracle='auto' named), load one state on all, and loop alike"
        ranks.require_same({**what, **data}, remedy)


def require_same_global_batch(dataloader: "DataLoader[Any]", ranks: Ranks, world: int, saved: int | None) -> None:
    """Refuse that other ranks go on in another way.

    Args:
        dataloader: the user's.
        ranks: of the run that goes on.
        world: how many there were when its state was saved.
        saved: samples in a draw of all of them, as far as that is known.

    Raises:
        ValueError: a draw has another size now.
    """
    here = global_batch_size(dataloader, ranks)
    if world != ranks.world and saved is not None and here is not None and saved != here:
        raise ValueError(
            f"another number of ranks needs the same global batch, which selection follows: got {saved} samples "
            f"on {world} ranks when it was saved, {here} on {ranks.world} here; pass "
            f"batch_size={saved // ranks.world} if that divides it"
        )


def readable_ids(dataloader: "DataLoader[Any]") -> Int64[np.ndarray, " n"]:
    """The ids that a run may read, ascending, without asking the sampler: it may count how often it is asked.

    All ids of the data set, or those that a sampler over a part of it names (`indices`, as `SubsetRandomSampler` has
    them), or gives any weight (`weights`, as `WeightedRandomSampler`).
    """
    samplers = (dataloader.sampler, getattr(dataloader.batch_sampler, "sampler", None))
    count = len(dataloader.dataset)  # type: ignore[arg-type]
    for sampler in samplers:
        # Of another's `indices` nobody knows what they are: of each class, say.
        named = getattr(sampler, "indices", None)
        named = np.asarray(named if _is_flat(named) else None)
        if named.dtype.kind in "iu" and named.ndim == 1 and len(named) and 0 <= named.min() <= named.max() < count:
            return np.unique(named.astype(np.int64))
        if isinstance(sampler, WeightedRandomSampler):
            return sampler.weights.nonzero().flatten().numpy()
    return np.arange(count)


def _is_flat(indices: Any) -> bool:
    return isinstance(indices, np.ndarray | Tensor | range) or (
        isinstance(indices, list | tuple) and all(isinstance(one, Integral) for one in indices)
    )


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
    places = (dataloader, *_samplers(dataloader))
    found = {id(g): g for s in places if isinstance(g := getattr(s, "generator", None), torch.Generator)}
    return list(found.values())


def _samplers(dataloader: "DataLoader[Any]") -> tuple[Any, ...]:
    batch_sampler = dataloader.batch_sampler
    return dataloader.sampler, batch_sampler, getattr(batch_sampler, "sampler", None)


def _drops_last(dataloader: "DataLoader[Any]") -> bool:
    return bool(getattr(dataloader.batch_sampler, "drop_last", False))


def _in_a_row(batches: Batches, count: int, *, whole: bool) -> Batches:
    """So many batches as one; what is left over at the end too, unless only whole ones are wanted."""
    end = len(batches) // count * count if whole else len(batches)
    return [np.concatenate(batches[start : start + count]) for start in range(0, end, count)]


def _as_ids(batch: Any) -> Int64[np.ndarray, " b"]:
    ids = np.asarray(batch)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"a sampler must give integer sample ids: got {batch!r:.80}; number the samples 0 … n − 1")
    return ids.astype(np.int64)
