"""The affine scheme against its definition, torch's fake quantisation and the paper's printed formula."""

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from infer2train.oracle.quantization.affine import BITS, Affine, affine_of_range, symmetric

ROUNDING = 1.02
"""Half a step and a little: at 16 bits x / S is exact in float32 to about a hundredth of a step."""

reals = st.floats(-1e4, 1e4, width=32)
ranges = st.tuples(reals, reals).map(lambda ends: (min(ends), max(ends)))
parts = st.lists(st.floats(0, 1), min_size=1, max_size=8)
widths = st.sampled_from(BITS)


def inside(low: float, high: float, where: list[float]) -> Tensor:
    """Numbers of the range widened to hold 0, and 0 itself."""
    low, high = min(low, 0.0), max(high, 0.0)
    return torch.tensor([0.0, low, high, *(low + part * (high - low) for part in where)]).clamp(low, high)


def steps(got: Tensor, expected: Tensor, scale: Tensor) -> float:
    return float(((got.double() - expected.double()) / scale.double()).abs().max())


@given(ranges, parts, widths)
def test_inside_the_range_a_round_trip_loses_at_most_half_a_step(
    ends: tuple[float, float], where: list[float], bits: int
) -> None:
    affine, x = affine_of_range(*ends, bits), inside(*ends, where)
    assert steps(affine.dequantize(affine.quantize(x)), x, affine.scale) <= 0.5 * ROUNDING


@given(ranges, parts, widths)
def test_zero_is_exact_and_integers_stay_within_their_width(
    ends: tuple[float, float], where: list[float], bits: int
) -> None:
    affine = affine_of_range(*ends, bits)
    assert (affine.low, affine.high) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    q = affine.quantize(torch.cat([inside(*ends, where), torch.tensor([-1e30, 1e30])]))
    assert q.dtype == torch.int32
    assert affine.low <= int(q.min()) <= int(q.max()) <= affine.high
    assert int(q[0]) == int(affine.zero_point)
    assert float(affine.dequantize(q)[0]) == float(affine.fake(torch.zeros(()))) == 0.0


@given(ranges, widths)
def test_the_scale_is_the_widened_range_over_the_number_of_steps(ends: tuple[float, float], bits: int) -> None:
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    affine = affine_of_range(*ends, bits)
    if high - low > 1e-30:
        assert float(affine.scale) == pytest.approx((high - low) / (2**bits - 1), rel=1e-6)
        exact = -(2 ** (bits - 1)) - low / float(affine.scale)
        assert abs(int(affine.zero_point) - exact) <= 0.5 * ROUNDING


@given(ranges, widths, st.floats(0.6, 1e6))
def test_outside_the_range_numbers_saturate(ends: tuple[float, float], bits: int, beyond_steps: float) -> None:
    affine = affine_of_range(*ends, bits)
    least, greatest = affine.limits()
    x = torch.stack([least - beyond_steps * affine.scale, greatest + beyond_steps * affine.scale])
    assert affine.quantize(x).tolist() == [affine.low, affine.high]
    assert torch.equal(affine.fake(x), torch.stack([least, greatest]))
    assert torch.equal(affine.clip(x), torch.stack([least, greatest]))


@given(ranges, st.lists(reals, min_size=2, max_size=20), widths)
def test_quantisation_is_monotone(ends: tuple[float, float], numbers: list[float], bits: int) -> None:
    q = affine_of_range(*ends, bits).quantize(torch.tensor(sorted(numbers)))
    assert bool((q.diff() >= 0).all())


@given(ranges, st.lists(reals, min_size=1, max_size=20), widths, st.booleans())
def test_fake_is_dequantize_after_quantize_bit_for_bit(
    ends: tuple[float, float], numbers: list[float], bits: int, around_zero: bool
) -> None:
    affine, x = (symmetric if around_zero else affine_of_range)(*ends, bits), torch.tensor(numbers)
    before = x.clone()
    assert torch.equal(affine.fake(x), affine.dequantize(affine.quantize(x)))
    assert torch.equal(affine.fake(affine.fake(x)), affine.fake(x)), "what is rounded already stays"
    assert torch.equal(x, before)


@pytest.mark.parametrize("bits", BITS)
def test_every_integer_comes_back_from_its_number(bits: int) -> None:
    for affine in (affine_of_range(-0.3, 1.7, bits), symmetric(-0.3, 1.7, bits)):
        q = torch.arange(affine.low, affine.high + 1, dtype=torch.int32)
        x = affine.dequantize(q)
        assert torch.equal(affine.quantize(x), q)
        least, greatest = affine.limits()
        assert (float(x[0]), float(x[-1])) == (float(least), float(greatest))


@given(ranges, st.lists(reals, min_size=1, max_size=20), widths)
def test_clip_holds_to_the_limits_and_rounds_nothing(
    ends: tuple[float, float], numbers: list[float], bits: int
) -> None:
    affine, x = affine_of_range(*ends, bits), torch.tensor(numbers)
    least, greatest = (float(limit) for limit in affine.limits())
    assert affine.clip(x).tolist() == [min(max(number, least), greatest) for number in x.tolist()]
    assert torch.equal(affine.fake(affine.clip(x)), affine.fake(x))


@given(st.lists(ranges, min_size=1, max_size=4), parts, widths, st.booleans())
def test_each_channel_is_a_tensor_of_its_own(
    channels: list[tuple[float, float]], where: list[float], bits: int, around_zero: bool
) -> None:
    make = symmetric if around_zero else affine_of_range
    lows, highs = (torch.tensor(ends) for ends in zip(*channels, strict=True))
    affine = make(lows, highs, bits)
    x = torch.stack([inside(*ends, where) for ends in channels])[:, :, None] * torch.tensor([1.0, 1.5])
    q = affine.quantize(x)
    for channel, ends in enumerate(channels):
        own = make(*ends, bits)
        assert affine.scale[channel] == own.scale
        assert affine.zero_point[channel] == own.zero_point
        assert torch.equal(q[channel], own.quantize(x[channel]))
        assert torch.equal(affine.dequantize(q)[channel], own.dequantize(q[channel]))
        assert torch.equal(affine.fake(x)[channel], own.fake(x[channel]))
        assert torch.equal(affine.clip(x)[channel], own.clip(x[channel]))
        assert [limit[channel] for limit in affine.limits()] == list(own.limits())


@given(ranges, widths, st.lists(st.tuples(st.floats(-0.2, 1.2), st.floats(-0.45, 0.45)), min_size=1, max_size=20))
def test_torch_says_the_same_away_from_ties(
    ends: tuple[float, float], bits: int, places: list[tuple[float, float]]
) -> None:
    affine = affine_of_range(*ends, bits)
    numbers = [round(affine.low + part * (affine.high - affine.low)) + off for part, off in places]
    x = ((torch.tensor(numbers, dtype=torch.float64) - affine.zero_point) * affine.scale.double()).float()
    assert torch.equal(affine.fake(x), torchs(affine, x))


@given(ranges, widths, st.lists(st.integers(-70000, 70000), min_size=1, max_size=20))
def test_at_ties_torch_is_at_most_one_step_away(ends: tuple[float, float], bits: int, places: list[int]) -> None:
    affine = affine_of_range(*ends, bits)
    x = (torch.tensor(places) + 0.5) * affine.scale
    assert steps(affine.fake(x), torchs(affine, x), affine.scale) <= ROUNDING


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("make", [affine_of_range, symmetric])
def test_torch_says_the_same_of_channels(make: Callable[..., Affine], bits: int) -> None:
    weight = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(bits)) * torch.logspace(-4, 2, 6).view(
        6, 1, 1, 1
    )
    rows = weight.flatten(1)
    affine = make(rows.amin(1), rows.amax(1), bits)
    expected = torch.fake_quantize_per_channel_affine(
        weight, affine.scale, affine.zero_point, 0, affine.low, affine.high
    )
    place = (weight / affine.scale.view(6, 1, 1, 1)).double()
    tied = ((place - place.floor()) - 0.5).abs() < 0.02
    assert float(tied.double().mean()) < 0.1
    assert torch.equal(affine.fake(weight)[~tied], expected[~tied])
    assert steps(affine.fake(weight), expected, affine.scale.view(6, 1, 1, 1)) <= ROUNDING


def torchs(affine: Affine, x: Tensor) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(x, affine.scale, affine.zero_point, affine.low, affine.high)


def test_halves_go_to_the_even_integer() -> None:
    affine = Affine(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), -128, 127)
    assert affine.quantize(torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5])).tolist() == [-2, 0, 0, 2, 2]


def test_the_papers_printed_formula_loses_half_the_range_and_ours_does_not() -> None:
    x, t_min, t_max, q_min, q_max = np.array([0.0, 0.5, 1.0]), -1.0, 1.0, -128, 127
    scale = (t_max - t_min) / (q_max - q_min)
    printed = np.floor((x - t_min) / scale) + math.ceil(q_min - t_min / scale)
    assert printed.clip(q_min, q_max).tolist() == [127, 127, 127]
    affine = affine_of_range(t_min, t_max, 8)
    q = affine.quantize(torch.tensor(x).float())
    assert len(set(q.tolist())) == 3
    assert steps(affine.dequantize(q), torch.tensor(x), affine.scale) <= 0.5 * ROUNDING


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("make", [affine_of_range, symmetric])
def test_a_constant_zero_has_scale_one_and_stays_zero(make: Callable[..., Affine], bits: int) -> None:
    for nothing in (0.0, 1e-44):
        affine = make(-nothing, nothing, bits)
        assert (float(affine.scale), int(affine.zero_point)) == (1.0, 0)
        assert affine.fake(torch.tensor([nothing])).tolist() == [0.0]
    mixed = make(torch.tensor([0.0, -2.0]), torch.tensor([0.0, 1.0]), bits)
    assert float(mixed.scale[0]) == 1.0
    assert float(mixed.scale[1]) != 1.0 or bits == 2, "beside another channel too"


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("constant", [-3.0, 1e-6, 7.25])
def test_a_constant_tensor_comes_back(constant: float, bits: int) -> None:
    affine = affine_of_range(constant, constant, bits)
    assert float(affine.fake(torch.tensor(constant))) == pytest.approx(constant, rel=1e-6)


@pytest.mark.parametrize(("low", "high"), [(0.5, 2.0), (-2.0, -0.5)])
def test_a_range_away_from_zero_is_widened_to_hold_it(low: float, high: float) -> None:
    affine = affine_of_range(low, high)
    assert affine.quantize(torch.tensor([min(low, 0.0), max(high, 0.0)])).tolist() == [-128, 127]
    assert float(affine.scale) == pytest.approx(2 / 255)


@given(ranges, widths)
def test_symmetric_has_no_zero_point_and_leaves_the_least_integer_unused(ends: tuple[float, float], bits: int) -> None:
    affine = symmetric(*ends, bits)
    bound = max(map(abs, ends))
    x = torch.tensor([-1e30, -bound, -bound / 3, 0.0, bound / 3, bound, 1e30])
    q = affine.quantize(x)
    assert int(affine.zero_point) == 0
    assert torch.equal(q, -q.flip(0))
    assert int(q[0]) == affine.low == -(2 ** (bits - 1)) + 1
    assert steps(affine.fake(x[1:-1]), x[1:-1], affine.scale) <= 0.5 * ROUNDING
    if bound > 1e-30:
        assert int(q[-2]) == affine.high == 2 ** (bits - 1) - 1, "the whole width is used"


@pytest.mark.parametrize("bits", [-8, 0, 1, 9, 15, 32])
@pytest.mark.parametrize("make", [affine_of_range, symmetric])
def test_other_widths_are_refused(make: Callable[..., Affine], bits: int) -> None:
    message = f"bits must be one of 2, 3, 4, 5, 6, 7, 8, 16: got {bits}; 8 is what int8 devices run"
    with pytest.raises(ValueError, match=re.escape(message)):
        make(-1.0, 1.0, bits)


@pytest.mark.parametrize(("low", "high"), [(-math.inf, 1.0), (-1.0, math.inf), (math.nan, 1.0), (-1.0, math.nan)])
@pytest.mark.parametrize("make", [affine_of_range, symmetric])
def test_ranges_that_are_not_finite_are_refused(make: Callable[..., Affine], low: float, high: float) -> None:
    for ends in [(low, high), (torch.tensor([-1.0, low]), torch.tensor([1.0, high]))]:
        with pytest.raises(ValueError, match=r"a range must be finite: got .*; look for NaN or infinity"):
            make(*ends)


@pytest.mark.parametrize(("low", "high"), [(1.0, -1.0), (3.0, 2.0)])
@pytest.mark.parametrize("make", [affine_of_range, symmetric])
def test_a_range_upside_down_is_refused(make: Callable[..., Affine], low: float, high: float) -> None:
    with pytest.raises(ValueError, match="range"):
        make(low, high)


@pytest.mark.parametrize(("low", "high"), [(math.inf, 1.0), (-1.0, -math.inf)])
def test_an_infinity_on_the_wrong_side_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="a range must be finite"):
        affine_of_range(low, high)


def test_a_finite_range_of_any_size_keeps_zero() -> None:
    assert float(affine_of_range(-3e38, 3e38).fake(torch.zeros(()))) == 0.0
