"""Candidates as addresses: (sample id, seed), and the counter-based randomness that every seed comes from.

First in the way of the data: the sampler's ids become addresses here, and nothing random happens anywhere else. A
number is a pure function of (run seed, purpose, epoch, draw, slot, view): no hidden state, so any draw can be made
again, in another process, on another device, after a crash. What a view does with its seed is `views`' and `replay`'s
business.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, unique
from typing import Any

import numpy as np
from jaxtyping import Int64

MASK32 = 0xFFFFFFFF
SEED_BITS = 63
"""Seeds are non-negative int64, which NumPy, torch, JSON and safetensors all hold exactly."""

# Random123's constants (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10

_EPOCH_BITS, _PURPOSE_BITS = 24, 8


@unique
class Purpose(IntEnum):
    """What a random number is for. Two purposes never share a counter, so they never share a number.

    The values are part of every run's meaning: append, never renumber.
    """

    VIEW = 1
    """The seed of a candidate's view, at (epoch, draw, slot, view)."""
    ORDER = 2
    """The state in which the user's sampler is asked for an epoch's ids."""
    CANDIDATE = 3
    """Which id of the epoch a slot of nm-sample draws, with replacement."""
    PICK = 4
    """The uniform number behind a proportional pick, one a slot."""
    FILL = 5
    """The sort key of a candidate among those that fill a batch unmined."""
    CLASSES = 6
    """The sort key of a class when a balance has a remainder to hand out."""
    MINED_SLOTS = 7
    """The sort key of a slot when a ramp mines only some of them."""
    TRAINING_ERROR = 8
    """Random views on which the training error is measured."""
    PROBE = 9
    """The fixed views on which replayability and fidelity are checked."""
    CALIBRATION = 10
    """The views on which activation ranges are measured."""
    SUBSET = 11
    """Which samples `--limit` keeps."""
    VALIDATION = 12
    """Which training samples `--validation-split` holds back."""
    WEIGHTS = 13
    """The initial weights of a model."""
    PARAMETER = 14
    """A parameter of one view, keyed by the view's own seed; the slot numbers the parameter."""
    UNIFORM_SCORE = 15
    """The score of a control that picks at random."""
    LABEL_NOISE = 16
    """Which training samples `--label-noise` gives another label, and which."""
    PRUNE = 17
    """The uniform number by which a sample of a batch is left out, one a slot."""
    IRREDUCIBLE = 18
    """The view of each sample on which its irreducible loss is measured."""
    HOLDOUT = 19
    """Which training samples `--holdout` keeps for the irreducible model."""
    RANK = 20
    """The seed of a rank whose draws are its own, at (slot: its number)."""
    INPUT = 21
    """The seed of an input that a model makes training data of, at (epoch, draw, slot)."""
    COPY = 22
    """How a copy of a training image differs from it under `--copies`."""


@dataclass(frozen=True)
class Addresses:
    """A list of candidates: which sample, seen under which seed. A few kilobytes for a whole draw.

    Args:
        ids: sample ids, as the user's sampler gives them.
        seeds: one seed a candidate, in [0, 2^63).

    Example:
        >>> here = Addresses(np.array([3, 3]), np.array([7, 8]))   # one sample, two views
        >>> len(here), here[1:].seeds.tolist()
        (2, [8])
    """

    ids: Int64[np.ndarray, " n"]
    seeds: Int64[np.ndarray, " n"]

    def __post_init__(self) -> None:
        assert self.ids.ndim == 1, self.ids.shape
        assert self.ids.shape == self.seeds.shape, (self.ids.shape, self.seeds.shape)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> "Addresses":
        """The candidates at a slice, a mask or an array of indices."""
        return Addresses(self.ids[index], self.seeds[index])

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.ids.tolist(), self.seeds.tolist(), strict=True)


def philox4x32(counter: tuple[Any, Any, Any, Any], key: tuple[Any, Any]) -> tuple[Any, Any, Any, Any]:
    """Philox-4x32-10: four random 32-bit words for each 128-bit counter under a 64-bit key.

    Written with operators that int64 arrays of NumPy and of torch share, so both run this very code and agree bit for
    bit on every device. A product of two 32-bit words wraps in int64, which keeps its 64 bits; masking the arithmetic
    shift gives the high word.

    Args:
        counter: four words in [0, 2^32), int64 arrays or tensors of one broadcast shape.
        key: two words in [0, 2^32), likewise.

    Returns:
        Four words in [0, 2^32), int64.

    Source: Salmon et al., SC 2011; the known answers of Random123 are in the tests.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c1, c2, c3 = (
            ((p1 >> 32) & MASK32) ^ c1 ^ k0,
            p1 & MASK32,
            ((p0 >> 32) & MASK32) ^ c3 ^ k1,
            p0 & MASK32,
        )
        k0, k1 = (k0 + _WEYL_0) & MASK32, (k1 + _WEYL_1) & MASK32
    return c0, c1, c2, c3


def words(seed: Any, purpose: Purpose, *, epoch: Any = 0, draw: Any = 0, slot: Any = 0, view: Any = 0) -> Any:
    """Four independent random 32-bit words for each place in a run.

    Every argument but `purpose` is an integer, a NumPy int64 array or a torch int64 tensor; they broadcast. With a
    tensor among them the result is tensors on its device, else NumPy arrays.

    Args:
        seed: the run's seed, or a view's own, in [0, 2^63).
        purpose: what the numbers are for.
        epoch: counted from 0, below 2^24.
        draw: counted from 0 over the whole run, below 2^32.
        slot: place in the draw, below 2^32.
        view: which view of the slot, below 2^32.

    Returns:
        Four arrays of int64 in [0, 2^32).
    """
    import torch

    arguments = (seed, epoch, draw, slot, view)
    device = next((a.device for a in arguments if isinstance(a, torch.Tensor)), None)
    if device is None:
        arrays = np.broadcast_arrays(*(np.asarray(a, dtype=np.int64) for a in arguments))
        # NumPy turns what it computes from 0-d arrays into scalars, which warn where arrays wrap around.
        seed, epoch, draw, slot, view = (np.atleast_1d(array) for array in arrays)
    else:
        seed, epoch, draw, slot, view = torch.broadcast_tensors(  # type: ignore[no-untyped-call]  # torch has no types for it
            *(torch.as_tensor(a, dtype=torch.int64, device=device) for a in arguments)
        )
    counter = (draw & MASK32, slot & MASK32, view & MASK32, (epoch << _PURPOSE_BITS) | int(purpose))
    random = philox4x32(counter, (seed & MASK32, seed >> 32))
    return random if device is not None else tuple(word.reshape(arrays[0].shape) for word in random)


def seeds(seed: Any, purpose: Purpose, *, epoch: Any = 0, draw: Any = 0, slot: Any = 0, view: Any = 0) -> Any:
    """Seeds in [0, 2^63), one for each place; arguments as for `words`.

    Example:
        >>> seeds(0, Purpose.VIEW, draw=5, slot=np.arange(2)).shape
        (2,)
    """
    w0, w1, _, _ = words(seed, purpose, epoch=epoch, draw=draw, slot=slot, view=view)
    return ((w1 & 0x7FFFFFFF) << 32) | w0


def integers(
    high: int, seed: Any, purpose: Purpose, *, epoch: Any = 0, draw: Any = 0, slot: Any = 0, view: Any = 0
) -> Any:
    """Integers uniform in [0, high), high at most 2^31 (bias below high / 2^32); arguments as for `words`."""
    assert 0 < high <= 1 << 31, high
    w0, _, _, _ = words(seed, purpose, epoch=epoch, draw=draw, slot=slot, view=view)
    return (w0 * high) >> 32


def uniforms(seed: Any, purpose: Purpose, *, epoch: Any = 0, draw: Any = 0, slot: Any = 0, view: Any = 0) -> Any:
    """Numbers uniform in [0, 1), multiples of 2^-24 and so exact in float32; arguments as for `words`."""
    w0, _, _, _ = words(seed, purpose, epoch=epoch, draw=draw, slot=slot, view=view)
    return as_uniform(w0)


def as_uniform(word: Any) -> Any:
    """A 32-bit word as a float32 in [0, 1): its upper 24 bits."""
    upper = word >> 8
    if isinstance(upper, np.ndarray | np.generic):
        return upper.astype(np.float32) * np.float32(2.0**-24)
    return upper.float() * 2.0**-24


def check_seed(seed: int) -> int:
    """The seed itself, if it is one.

    Raises:
        ValueError: it is negative or has more than 63 bits.
    """
    if not 0 <= seed < 1 << SEED_BITS:
        raise ValueError(f"seed must be in [0, 2^63): got {seed}; use a non-negative integer such as 0")
    return seed
