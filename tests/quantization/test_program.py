"""A quantised program means what a slow reference in NumPy says, and more bits come closer to the model."""

import copy
import functools
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conformance.networks import NETWORKS, experienced
from infer2train.batches import call_model, tensors_of
from infer2train.oracle.quantization.affine import affine_of_range
from infer2train.oracle.quantization.graph import WeightGraph
from infer2train.oracle.quantization.program import (
    SMALLEST_CHANNEL,
    Program,
    Simulation,
    deviation,
    specify,
)
from infer2train.oracle.quantization.ranges import measure_ranges
from infer2train.oracle.quantization.schemes import LONG_TAILS, SCHEMES, Scheme, get_scheme

WEIGHT, SITES = "0.weight", {"0.weight/input", "0.weight/output", "4.weight/input"}


def small() -> tuple[nn.Sequential, Tensor]:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AvgPool2d(6), nn.Flatten(), nn.Linear(4, 5))
    return model.eval(), torch.randn(6, 3, 8, 8, generator=generator)


def specified(model: nn.Module, x: Any, bits: int = 8, scheme: str = "default") -> tuple[WeightGraph, Program]:
    graph = WeightGraph(model, x)
    tensors = graph.tensors(model.state_dict())
    ranges = measure_ranges(graph, tensors, x, get_scheme(scheme).percentile)
    return graph, specify(graph, tensors, ranges, bits, scheme)


def by_site(graph: WeightGraph, program: Program) -> dict[str, Any]:
    return {site.name: affine for site, affine in zip(graph.sites, program.affines, strict=True)}


def rounded(x: np.ndarray, low: float, high: float, bits: int) -> np.ndarray:
    """The affine scheme in float64, written again."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (2**bits - 1)
    zero_point = np.rint(-(2 ** (bits - 1)) - low / scale)
    q = np.clip(np.rint(x / scale) + zero_point, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return (q - zero_point) * scale


def rounded_channels(weight: np.ndarray, bits: int) -> np.ndarray:
    scales = [np.abs(channel).max() / (2 ** (bits - 1) - 1) for channel in weight]
    return np.stack([np.rint(channel / scale) * scale for channel, scale in zip(weight, scales, strict=True)])


def of_samples(x: np.ndarray) -> tuple[float, float]:
    rows = x.reshape(len(x), -1)
    return rows.min(1).mean(), rows.max(1).mean()


def reference(model: nn.Sequential, x: Tensor, bits: int, per_channel: bool, rounds_hidden: bool) -> np.ndarray:
    """The quantised two-layer network with ranges of its own float activations, all in float64."""
    conv, linear = copy.deepcopy(model[0]).double(), copy.deepcopy(model[4]).double()
    floats = x.double(), conv(x.double()).relu(), F.avg_pool2d(conv(x.double()).relu(), 6).flatten(1)
    ranges = [of_samples(t.detach().numpy()) for t in floats]

    def of_weight(weight: Tensor) -> Tensor:
        w = weight.detach().numpy()
        return torch.from_numpy(rounded_channels(w, bits) if per_channel else rounded(w, w.min(), w.max(), bits))

    def of_activation(t: Tensor, number: int) -> Tensor:
        return torch.from_numpy(rounded(t.detach().numpy(), *ranges[number], bits))

    hidden = F.conv2d(of_activation(x.double(), 0), of_weight(conv.weight), conv.bias).relu()
    hidden = of_activation(hidden, 1) if rounds_hidden else hidden
    pooled = of_activation(F.avg_pool2d(hidden, 6).flatten(1), 2)
    return F.linear(pooled, of_weight(linear.weight), linear.bias).detach().numpy()


@pytest.mark.parametrize("scheme", ["default", "paper"])
@pytest.mark.parametrize("bits", [3, 8, 16])
def test_a_simulation_is_what_the_slow_reference_computes(bits: int, scheme: str) -> None:
    model, x = small()
    graph, program = specified(model, x, bits, scheme)
    assert {site.name for site in graph.sites if site.kind != "weight"} == SITES
    (got,) = Simulation(graph, program)(x)
    expected = reference(model, x, bits, per_channel=scheme == "default", rounds_hidden=True)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-5)
    again = Simulation(graph, program)(x)
    assert torch.equal(got, again[0])


def test_a_clipped_site_is_held_to_its_range_and_not_rounded() -> None:
    model, x = small()
    graph, program = specified(model, x, 3)
    number = [site.name for site in graph.sites].index("0.weight/output")
    affine = program.affines[number]
    (got,) = Simulation(graph, program, clipped=[number])(x)
    acts = [affine.fake for affine in program.affines]
    acts[number] = lambda t: t.clamp(*map(float, affine.limits()))
    assert torch.equal(got, graph.run(program.tensors, x, dict(enumerate(acts))))
    assert not torch.allclose(got, Simulation(graph, program)(x)[0], atol=1e-3)
    affines = list(program.affines)
    affines[number] = affine_of_range(-1e3, 1e3, 3)  # holds nothing back
    (unheld,) = Simulation(graph, Program(program.tensors, tuple(affines)), clipped=[number])(x)
    expected = reference(model, x, 3, per_channel=True, rounds_hidden=False)
    np.testing.assert_allclose(unheld.numpy(), expected, rtol=1e-4, atol=1e-5)


@functools.cache
def network(name: str) -> tuple[WeightGraph, tuple[Tensor, ...], Any, list[Tensor]]:
    build, inputs = NETWORKS[name]
    torch.manual_seed(0)
    model = experienced(build(), inputs()).eval()
    graph = WeightGraph(model, inputs())
    with torch.no_grad():
        return graph, graph.tensors(model.state_dict()), inputs(), tensors_of(call_model(model, inputs()))


def covering(graph: WeightGraph, tensors: tuple[Tensor, ...], inputs: Any) -> dict[str, Tensor]:
    """The extremes over all samples, which no activation leaves."""
    found: dict[str, Tensor] = {}

    def watch(x: Tensor, name: str) -> Tensor:
        found[name] = torch.stack([x.min(), x.max()])
        return x

    graph.run(tensors, inputs, {n: functools.partial(watch, name=site.name) for n, site in enumerate(graph.sites)})
    return found


def error(got: list[Tensor], wanted: list[Tensor]) -> float:
    """Root mean square, relative to the spread between rows."""
    return max(
        float((g - w).square().mean().sqrt() / (w - w.mean(0)).square().mean().sqrt())
        for g, w in zip(got, wanted, strict=True)
    )


@pytest.mark.parametrize("scheme", ["default", "paper"])
@pytest.mark.parametrize("name", ["depthwise", "vit"])
def test_more_bits_come_closer_to_the_model(name: str, scheme: str) -> None:
    graph, tensors, inputs, wanted = network(name)
    ranges = covering(graph, tensors, inputs)
    errors = [
        error(Simulation(graph, specify(graph, tensors, ranges, b, scheme))(inputs), wanted) for b in (2, 4, 8, 16)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.2
    assert errors[3] < 1e-3


def test_weights_have_a_scale_for_each_channel_or_one_as_the_scheme_says() -> None:
    model, x = small()
    weight = model[0].weight.detach()
    per_channel = by_site(*specified(model, x, 8, "default"))[WEIGHT]
    torch.testing.assert_close(per_channel.scale, weight.flatten(1).abs().amax(1) / 127)
    assert per_channel.zero_point.tolist() == [0] * 4
    assert (per_channel.low, per_channel.high) == (-127, 127)
    whole = by_site(*specified(model, x, 8, "paper"))[WEIGHT]
    assert float(whole.scale) == pytest.approx(float(weight.max() - weight.min()) / 255)
    assert whole.quantize(torch.stack([weight.min(), weight.max()])).tolist() == [-128, 127]


def test_activations_have_one_scale_of_their_range_and_the_whole_width() -> None:
    model, x = small()
    graph = WeightGraph(model, x)
    tensors = graph.tensors(model.state_dict())
    ranges = measure_ranges(graph, tensors, x)
    for scheme in SCHEMES:
        affines = by_site(graph, specify(graph, tensors, ranges, 4, scheme))
        for name, (low, high) in ranges.items():
            expected = affine_of_range(low, high, 4)
            assert affines[name].scale == expected.scale
            assert affines[name].zero_point == expected.zero_point
            assert (affines[name].low, affines[name].high) == (-8, 7)


def test_the_schemes_are_those_that_are_documented() -> None:
    assert get_scheme("default") == Scheme(per_channel=True, percentile=None, tails=None)
    assert [get_scheme(name).tails for name in ("paper", "percentile", "tails")] == [0, 0, LONG_TAILS]
    assert (get_scheme("paper").per_channel, get_scheme("paper").percentile) == (False, None)
    assert (get_scheme("percentile").per_channel, get_scheme("percentile").percentile) == (True, 99.9)
    assert "arXiv 2004.09602" in get_scheme("percentile").source


def test_the_percentile_scheme_spends_its_steps_on_what_is_not_an_outlier() -> None:
    model = nn.Linear(4000, 2).eval()
    x = torch.randn(4, 4000, generator=torch.Generator().manual_seed(0))
    x[:, 7] = 1000.0
    (extremes, cut) = (
        by_site(*specified(model, x, 8, scheme))["weight/input"].scale for scheme in ("default", "percentile")
    )
    assert float(cut) < float(extremes) / 100


@pytest.mark.parametrize(("name", "near"), [("defualt", "default"), ("Paper", "paper"), ("percentiles", "percentile")])
def test_an_unknown_scheme_names_the_nearest(name: str, near: str) -> None:
    message = (
        f"unknown quantisation scheme '{name}': there is default, paper, percentile, tails; did you mean '{near}'?"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        get_scheme(name)
    graph, tensors, inputs, _ = network("depthwise")
    with pytest.raises(ValueError, match=re.escape(message)):
        specify(graph, tensors, covering(graph, tensors, inputs), scheme=name)


def test_missing_ranges_are_refused_by_name_with_the_remedy() -> None:
    graph, tensors, inputs, _ = network("depthwise")
    ranges = covering(graph, tensors, inputs)
    del ranges["pointwise.0.weight/input"]
    message = "got none of pointwise.0.weight/input; publish it through a pool, or call engine.calibrated(record)"
    with pytest.raises(ValueError, match=re.escape(message)):
        specify(graph, tensors, ranges)
    with pytest.raises(ValueError, match="a record needs the range of every activation: got none of "):
        specify(graph, tensors, {})


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_ranges_and_weights_that_are_not_finite_are_refused(bad: float) -> None:
    graph, tensors, inputs, _ = network("depthwise")
    ranges = covering(graph, tensors, inputs)
    with pytest.raises(ValueError, match="a range must be finite"):
        specify(graph, tensors, ranges | {"classifier.weight/input": torch.tensor([0.0, bad])})
    poisoned = [tensor.clone() for tensor in tensors]
    poisoned[graph.names.index("stem.0.weight")].view(-1)[5] = bad
    for scheme in SCHEMES:
        with pytest.raises(ValueError, match="a range must be finite"):
            specify(graph, poisoned, ranges, scheme=scheme)


def test_other_widths_are_refused() -> None:
    graph, tensors, inputs, _ = network("depthwise")
    with pytest.raises(ValueError, match=r"bits must be one of .*: got 12; "):
        specify(graph, tensors, covering(graph, tensors, inputs), bits=12)


@pytest.mark.parametrize("bits", [2, 8, 16])
def test_a_dead_channel_keeps_a_usable_scale(bits: int) -> None:
    model, x = small()
    with torch.no_grad():
        model[0].weight[1] = 0.0
        model[0].weight[2] = 1e-20
    graph, program = specified(model, x, bits)
    affine = by_site(graph, program)[WEIGHT]
    greatest = float(model[0].weight.detach().abs().max())
    assert affine.scale[1:3].tolist() == pytest.approx([greatest * SMALLEST_CHANNEL / (2 ** (bits - 1) - 1)] * 2)
    weight = affine.fake(model[0].weight.detach())
    assert not weight[1:3].any()
    read = by_site(graph, program)["0.weight/input"]
    bias = model[0].bias.detach() / (affine.scale * read.scale)
    assert bits > 8 or float(bias.abs().max()) < 2**31, (
        "a bias of some tenths is an int32 in steps of S_weight · S_input"
    )
    assert all(bool(t.isfinite().all()) for t in Simulation(graph, program)(x))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_weight_of_zeros_gives_the_bias(scheme: str) -> None:
    model, x = small()
    with torch.no_grad():
        model[4].weight.zero_()
    (got,) = Simulation(*specified(model, x, 8, scheme))(x)
    assert torch.equal(got, model[4].bias.detach().expand(6, 5))


def test_a_simulation_changes_neither_the_program_nor_the_graph() -> None:
    graph, tensors, inputs, wanted = network("vit")
    program = specify(graph, tensors, covering(graph, tensors, inputs))
    kept = [tensor.clone() for tensor in program.tensors]
    low = Simulation(graph, specify(graph, tensors, covering(graph, tensors, inputs), bits=2))
    first = Simulation(graph, program)
    expected = first(inputs)
    low(inputs)
    assert all(map(torch.equal, first(inputs), expected)), "two simulations of one graph do not disturb each other"
    assert all(map(torch.equal, tensors_of(graph.run(tensors, inputs)), wanted))
    assert all(map(torch.equal, kept, program.tensors))


def test_deviation_counts_the_steps_of_the_expected_range() -> None:
    expected = torch.tensor([-100.0, 0.0, 155.0])
    assert deviation([expected], [expected]) == 0.0
    assert deviation([expected + torch.tensor([0.0, -2.5, 1.0])], [expected]) == pytest.approx(2.5)
    assert deviation([expected + 15], [expected], bits=4) == pytest.approx(15 / 17)
    assert deviation([torch.tensor([7.0])], [torch.tensor([5.1])]) == pytest.approx(1.9 * 255 / 5.1), (
        "widened to hold 0"
    )
    assert deviation([torch.tensor([0.5])], [torch.tensor([0.0])]) == 0.5, "a constant zero has steps of one"


def test_deviation_is_that_of_the_worst_output() -> None:
    a, b = torch.tensor([0.0, 255.0]), torch.tensor([0.0, 2.55])
    assert deviation([a + 1, b + 0.05], [a, b]) == pytest.approx(5, rel=1e-4)
    assert deviation([a + 7, b], [a, b]) == pytest.approx(7)
    assert deviation([], []) == 0.0


def test_outputs_that_are_not_real_numbers_must_be_the_same() -> None:
    classes, logits = torch.tensor([1, 2]), torch.tensor([0.0, 255.0])
    assert deviation([classes, logits + 1], [classes, logits]) == pytest.approx(1)
    assert deviation([classes.flip(0), logits], [classes, logits]) == torch.inf
    assert deviation([classes > 1], [classes < 1]) == torch.inf


def test_nan_counts_as_infinite() -> None:
    expected = torch.tensor([0.0, 255.0])
    assert deviation([torch.tensor([0.0, torch.nan])], [expected]) == torch.inf
    assert deviation([torch.tensor([torch.inf, 255.0])], [expected]) > 1e30


@pytest.mark.parametrize("mask", [-1e9, -torch.inf])
def test_masked_columns_do_not_widen_the_steps_of_the_others(mask: float) -> None:
    logits = torch.tensor([[0.0, mask, 3.0], [255.0, mask, 3.0]])
    off = torch.tensor([[5.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert deviation([logits + off], [logits]) == pytest.approx(5)
    assert deviation([logits], [logits]) == 0.0
    assert deviation([logits.where(logits != mask, 0.0)], [logits]) > 200, "a mask must be there"
    alternating = torch.tensor([[0.0, -torch.inf], [-torch.inf, 255.0]])
    assert deviation([alternating + 5], [alternating]) == pytest.approx(5)
    assert deviation([alternating.flip(0)], [alternating]) == torch.inf


def test_as_many_outputs_are_compared_as_there_are() -> None:
    with pytest.raises(ValueError, match="zip"):
        deviation([torch.zeros(2)], [torch.zeros(2), torch.zeros(2)])


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_biases_are_what_integers_add_where_integers_are_computed_with(bits: int) -> None:
    model, x = small()
    graph, program = specified(model, x, bits)
    affines, before = by_site(graph, program), graph.tensors(model.state_dict())
    for name, weight in (("0.bias", "0.weight"), ("4.bias", "4.weight")):
        real, found = before[graph.names.index(name)], program.tensors[graph.names.index(name)]
        if bits != 8:
            assert torch.equal(found, real)
            continue
        scale = affines[f"{weight}/input"].scale.double() * affines[weight].scale.double()
        steps = found.double() / scale
        assert torch.allclose(steps, steps.round(), atol=1e-3), "a bias is a whole multiple of S·S"
        assert not torch.equal(found, real)
        assert bool(((found - real).abs() <= 0.5001 * scale).all())
