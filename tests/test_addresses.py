"""The randomness behind every address: known answers, one result everywhere, and statistics."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from infer2train.draws.addresses import (
    Addresses,
    Purpose,
    as_uniform,
    check_seed,
    integers,
    philox4x32,
    seeds,
    uniforms,
    words,
)

MASK = 0xFFFFFFFF
KNOWN_ANSWERS = [  # Random123, tests/kat_vectors, philox4x32 with 10 rounds
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((MASK,) * 4, (MASK,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
@pytest.mark.parametrize("as_array", [lambda w: np.array([w]), lambda w: torch.tensor([w])], ids=["numpy", "torch"])
def test_known_answers(counter, key, expected, as_array) -> None:
    got = philox4x32(tuple(map(as_array, counter)), tuple(map(as_array, key)))
    assert tuple(int(word[0]) for word in got) == expected


def test_place_decides_counter_and_key() -> None:
    """Words at a place, against the function written out: what is where in the counter must never change."""
    got = words(5 + (7 << 32), Purpose.PICK, epoch=3, draw=11, slot=13, view=17)
    assert tuple(map(int, got)) == philox_of_ints((11, 13, 17, (3 << 8) | 4), (5, 7))


def philox_of_ints(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """The published algorithm on Python's unbounded integers."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        high, low = divmod(0xD2511F53 * a, 1 << 32)
        high2, low2 = divmod(0xCD9E8D57 * c, 1 << 32)
        a, b, c, d = high2 ^ b ^ k, low2, high ^ d ^ m, low
        k, m = (k + 0x9E3779B9) % (1 << 32), (m + 0xBB67AE85) % (1 << 32)
    return a, b, c, d


LARGE = st.integers(0, MASK)


@given(st.integers(0, (1 << 63) - 1), st.sampled_from(Purpose), st.integers(0, (1 << 24) - 1), LARGE, LARGE, LARGE)
def test_numpy_torch_and_scalars_agree(seed, purpose, epoch, draw, slot, view) -> None:
    place = {"epoch": epoch, "draw": draw, "slot": slot, "view": view}
    expected = philox_of_ints((draw, slot, view, epoch << 8 | purpose), (seed & MASK, seed >> 32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for form in (int, np.int64, np.array, lambda x: np.array([x]), torch.tensor, lambda x: torch.tensor([x])):
            got = words(form(seed), purpose, **{name: form(value) for name, value in place.items()})
            assert tuple(int(word.item()) for word in got) == expected


def test_derived_numbers_agree_bit_for_bit() -> None:
    slots = np.arange(5000)
    for function in (seeds, uniforms, lambda *a, **k: integers(1000, *a, **k)):
        in_numpy = function(9, Purpose.VIEW, draw=2, slot=slots)
        in_torch = function(9, Purpose.VIEW, draw=2, slot=torch.from_numpy(slots))
        assert in_torch.numpy().dtype == in_numpy.dtype
        assert in_torch.numpy().tobytes() == in_numpy.tobytes()
        alone = [function(9, Purpose.VIEW, draw=2, slot=i) for i in range(20)]
        assert [x.item() for x in alone] == in_numpy[:20].tolist()


def test_places_broadcast() -> None:
    grid = seeds(0, Purpose.VIEW, slot=np.arange(3)[:, None], view=np.arange(4))
    assert grid.shape == (3, 4)
    assert grid[2, 1] == seeds(0, Purpose.VIEW, slot=2, view=1)
    assert np.shape(seeds(0, Purpose.VIEW)) == ()


def test_no_seed_is_given_twice() -> None:
    """Adjacent draws, slots, views, epochs, purposes and run seeds: not one of 622,080 numbers is shared."""
    runs, epochs, draws = np.arange(3), np.arange(4), np.arange(3)
    grid = np.ix_(runs, epochs, draws, np.arange(96), np.arange(12))
    everything = [
        seeds(grid[0], purpose, epoch=grid[1], draw=grid[2], slot=grid[3], view=grid[4]).ravel() for purpose in Purpose
    ]
    total = np.concatenate(everything)
    assert len(total) == 3 * 4 * 3 * 96 * 12 * len(Purpose)
    assert len(np.unique(total)) == len(total)
    assert total.min() >= 0


def test_seeds_are_uniform_in_63_bits() -> None:
    drawn = seeds(1, Purpose.VIEW, slot=np.arange(50_000))
    assert stats.kstest(drawn / 2.0**63, "uniform").pvalue > 0.001
    bits = (drawn[:, None] >> np.arange(63)) & 1
    ones = bits.sum(axis=0)
    z = (ones - 25_000) / np.sqrt(50_000 / 4)
    assert np.abs(z).max() < 4.5, "every bit is a fair coin"
    together = np.corrcoef(bits.T) - np.eye(63)
    assert np.abs(together).max() < 5.5 / np.sqrt(50_000), "and independent of the others"


@pytest.mark.parametrize("axis", ["epoch", "draw", "slot", "view", "seed"])
@pytest.mark.parametrize("purpose", [Purpose.VIEW, Purpose.PARAMETER])
def test_words_are_uniform_and_serially_independent(axis: str, purpose: Purpose) -> None:
    place = {"seed": 0, axis: np.arange(20_000)}
    for word in words(place.pop("seed"), purpose, **place):
        u = as_uniform(word)
        assert stats.kstest(u, "uniform").pvalue > 0.001
        assert stats.chisquare(np.bincount(word & 0xFF, minlength=256)).pvalue > 0.001, "the low byte"
        assert stats.chisquare(np.bincount(word >> 24, minlength=256)).pvalue > 0.001, "the high byte"
        for lag in (1, 2, 3, 10, 64):
            correlation = np.corrcoef(u[:-lag], u[lag:])[0, 1]
            assert abs(correlation) < 4.5 / np.sqrt(len(u) - lag), f"lag {lag}"


def test_the_four_words_and_neighbouring_purposes_are_independent() -> None:
    columns = [
        as_uniform(word)
        for purpose in (Purpose.VIEW, Purpose.ORDER, Purpose.CANDIDATE)
        for word in words(0, purpose, slot=np.arange(20_000))
    ]
    assert np.abs(np.corrcoef(columns) - np.eye(12)).max() < 4.5 / np.sqrt(20_000)
    pairs = [np.histogram2d(a, b, bins=16, range=[[0, 1]] * 2)[0] for a, b in pairwise(columns)]
    assert all(stats.chisquare(pair.ravel()).pvalue > 0.0005 for pair in pairs)


@pytest.mark.parametrize("high", [1, 2, 3, 10, 81, 50_000, 1 << 31])
def test_integers_are_uniform_in_their_range(high: int) -> None:
    drawn = integers(high, 2, Purpose.CANDIDATE, slot=np.arange(20_000))
    assert drawn.min() >= 0
    assert drawn.max() < high
    bins = min(high, 50)
    if high > 1:
        expected = np.diff([-(-k * high // bins) for k in range(bins + 1)]) / high * len(drawn)
        assert stats.chisquare(np.bincount(drawn * bins // high, minlength=bins), expected).pvalue > 0.001


def test_uniforms_are_exact_in_float32_and_below_one() -> None:
    lowest, highest = as_uniform(np.array([0, MASK]))
    assert (lowest, highest) == (0.0, 1.0 - 2.0**-24)
    drawn = uniforms(0, Purpose.PICK, slot=np.arange(1000))
    assert drawn.dtype == np.float32
    assert np.array_equal(drawn.astype(np.float64) * 2.0**24 % 1, np.zeros(1000))


def test_purposes_keep_their_numbers() -> None:
    """A renumbered purpose gives every stored run other candidates."""
    first = "VIEW ORDER CANDIDATE PICK FILL CLASSES MINED_SLOTS TRAINING_ERROR PROBE CALIBRATION SUBSET VALIDATION"
    names = f"{first} WEIGHTS PARAMETER UNIFORM_SCORE".split()
    assert [Purpose[name].value for name in names] == list(range(1, 16))
    assert max(Purpose) < 1 << 8, "the counter gives a purpose eight bits"


def test_addresses_are_cut_like_arrays() -> None:
    here = Addresses(np.array([3, 3, 5]), np.array([7, 8, 9]))
    assert list(here) == [(3, 7), (3, 8), (5, 9)]
    assert all(type(number) is int for pair in here for number in pair), "a data set is given a plain int"
    assert list(here[1:]) == [(3, 8), (5, 9)]
    assert list(here[np.array([2, 0])]) == [(5, 9), (3, 7)]
    assert list(here[here.ids == 3]) == [(3, 7), (3, 8)]


@pytest.mark.parametrize("seed", [0, 1, (1 << 63) - 1])
def test_seeds_of_63_bits_are_taken(seed: int) -> None:
    assert check_seed(seed) == seed


@pytest.mark.parametrize("seed", [-1, 1 << 63])
def test_other_seeds_are_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=rf"seed must be in \[0, 2\^63\): got {seed}"):
        check_seed(seed)


@pytest.mark.gpu
def test_the_gpu_agrees_bit_for_bit() -> None:
    slots = torch.arange(5000)
    for here, there in zip(words(9, Purpose.VIEW, slot=slots), words(9, Purpose.VIEW, slot=slots.cuda()), strict=True):
        assert torch.equal(here, there.cpu())
