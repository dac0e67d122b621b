"""Ranges are of each sample, then the mean; against a slow reference from hooks of the float model."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from conformance.networks import TextEncoder, experienced, tokens
from infer2train.oracle.quantization import ranges
from infer2train.oracle.quantization.graph import WeightGraph
from infer2train.oracle.quantization.ranges import measure_ranges

Extremes = Callable[[np.ndarray], tuple[float, float]]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 5))
    ).eval()


def samples(rows: int = 7) -> Tensor:
    """Each with a spread and a middle of its own, so that a batch's extremes are not the mean of its samples'."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 3, 10, 10, generator=generator)
    return x * torch.linspace(0.1, 3, rows).view(-1, 1, 1, 1) + torch.randn(rows, 1, 1, 1, generator=generator)


def activations(model: nn.Sequential, inputs: Tensor) -> dict[str, np.ndarray]:
    """By site, from hooks: what the layers read, and what the second convolution gives to the pooling."""
    seen: dict[str, np.ndarray] = {}
    for name in ("0", "2", "5"):
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: seen.update({f"{name}.weight/input": args[0].numpy()})
        )
    model[2].register_forward_hook(lambda module, args, output: seen.update({"2.weight/output": output.numpy()}))
    with torch.no_grad():
        model(inputs)
    return seen


def reference(seen: dict[str, np.ndarray], extremes: Extremes) -> dict[str, list[float]]:
    return {name: list(np.mean([extremes(sample) for sample in x], axis=0)) for name, x in seen.items()}


def assert_ranges(got: dict[str, Tensor], expected: dict[str, list[float]]) -> None:
    assert got.keys() == expected.keys()
    for name, ends in expected.items():
        assert got[name].tolist() == pytest.approx(ends, rel=1e-5, abs=1e-6), name
        assert got[name].dtype == torch.float32


def test_the_extremes_of_each_sample_are_averaged_over_samples() -> None:
    model, x = network(), samples()
    graph = WeightGraph(model, x[:2])
    got = measure_ranges(graph, graph.tensors(model.state_dict()), x)
    assert_ranges(got, reference(activations(model, x), lambda sample: (sample.min(), sample.max())))
    low, high = got["0.weight/input"].tolist()
    assert float(x.min()) < low - 1, "not the batch's extremes"
    assert high + 1 < float(x.max())


@pytest.mark.parametrize("tails", [0.5, 1.0, 100.0])
def test_tails_widen_a_range_by_deviations_and_never_beyond_what_was_seen(tails: float) -> None:
    model, x = network(), samples()
    x[3] *= 5
    graph = WeightGraph(model, x[:2])
    low, high = measure_ranges(graph, graph.tensors(model.state_dict()), x, tails=tails)["0.weight/input"].tolist()
    least, greatest = x.flatten(1).numpy().min(1), x.flatten(1).numpy().max(1)
    assert low == pytest.approx(max(least.mean() - tails * least.std(), least.min()), rel=1e-5)
    assert high == pytest.approx(min(greatest.mean() + tails * greatest.std(), greatest.max()), rel=1e-5)


def test_a_percentile_cuts_off_both_ends_of_each_sample() -> None:
    model, x = network(), samples()
    x.view(7, -1)[:, 5], x.view(7, -1)[:, 17] = 100.0, -100.0
    graph = WeightGraph(model, x[:2])
    tensors = graph.tensors(model.state_dict())
    got = measure_ranges(graph, tensors, x, percentile=99)["0.weight/input"]
    numbers = np.sort(x.flatten(1).numpy(), axis=1)  # of 300 a sample; a hundredth of them are 3
    assert got.tolist() == pytest.approx([numbers[:, 3].mean(), numbers[:, 296].mean()], rel=1e-5)
    assert measure_ranges(graph, tensors, x)["0.weight/input"].tolist() == [-100, 100]


@pytest.mark.parametrize(("size", "rank"), [(300, 300), (1000, 999), (2000, 1998), (10_000, 9990), (3072, 3069)])
def test_the_nearest_rank_is_that_of_the_exact_number(size: int, rank: int) -> None:
    rows = torch.arange(1.0, size + 1)[None]
    assert ranges._percentile(rows, 99.9).tolist() == [rank]


def test_the_hundredth_percentile_is_the_extremes() -> None:
    model, x = network(), samples()
    graph = WeightGraph(model, x[:2])
    tensors = graph.tensors(model.state_dict())
    whole, extremes = measure_ranges(graph, tensors, x, percentile=100), measure_ranges(graph, tensors, x)
    assert all(torch.equal(whole[name], extremes[name]) for name in extremes)


@given(st.floats(50, 100), st.floats(50, 100))
def test_a_lower_percentile_gives_a_narrower_range(a: float, b: float) -> None:
    narrow, wide = (measure_ranges(*LINEAR, percentile=p)["weight/input"] for p in sorted((a, b)))
    assert wide[0] <= narrow[0] <= narrow[1] <= wide[1]


def _linear() -> tuple[WeightGraph, tuple[Tensor, ...], Tensor]:
    model, x = nn.Linear(37, 2).eval(), torch.randn(3, 37, generator=torch.Generator().manual_seed(0))
    graph = WeightGraph(model, x)
    return graph, graph.tensors(model.state_dict()), x


LINEAR = _linear()


class SequenceFirst(nn.Module):
    """The linear layer reads [length n width]."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.transpose(0, 1)).mean(0)  # type: ignore[no-any-return]


@pytest.mark.parametrize("rows", [2, 5, 6])  # five are as many as there are tokens
def test_samples_are_counted_where_they_stand(rows: int) -> None:
    model = SequenceFirst().eval()
    x = torch.randn(rows, 5, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, rows + 1).view(-1, 1, 1)
    graph = WeightGraph(model, torch.randn(4, 5, 8))
    (site,) = (site for site in graph.sites if site.kind == "input")
    assert (site.name, site.batch_dim) == ("linear.weight/input", 1)
    got = measure_ranges(graph, graph.tensors(model.state_dict()), x)["linear.weight/input"]
    rows_of_x = x.flatten(1)
    assert got.tolist() == pytest.approx([float(rows_of_x.amin(1).mean()), float(rows_of_x.amax(1).mean())], rel=1e-5)


class Flattened(nn.Module):
    """Tokens of all samples as rows of one matrix, as `nn.MultiheadAttention` has them before its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(0, 1)).view(-1, 5, 3).mean(1)  # type: ignore[no-any-return]


def test_samples_whose_tokens_are_rows_of_a_matrix_are_samples_still() -> None:
    model, x = Flattened().eval(), torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0))
    graph = WeightGraph(model, x)
    got = measure_ranges(graph, graph.tensors(model.state_dict()), x)["linear.weight/input"]
    rows = x.flatten(1)
    assert got.tolist() == pytest.approx([float(rows.amin(1).mean()), float(rows.amax(1).mean())], rel=1e-5)


def test_the_same_weights_and_samples_give_the_same_ranges_bit_for_bit() -> None:
    model, inputs = experienced(TextEncoder(), tokens()).eval(), tokens()
    graph = WeightGraph(model, tokens(4))
    tensors = graph.tensors(model.state_dict())
    kept = [tensor.clone() for tensor in (*tensors, *inputs.values())]
    first = measure_ranges(graph, tensors, inputs)
    torch.rand(3)
    second = measure_ranges(graph, tensors, {name: tensor.clone() for name, tensor in inputs.items()})
    assert set(first) == {site.name for site in graph.sites if site.kind != "weight"}
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(map(torch.equal, kept, (*tensors, *inputs.values()))), "nothing that it reads is changed"
    assert all(low < high for low, high in map(Tensor.tolist, first.values()))


def test_other_weights_give_other_ranges_and_nothing_stays_in_the_graph() -> None:
    model, x = network(), samples()
    graph = WeightGraph(model, x[:2])
    tensors = graph.tensors(model.state_dict())
    before, outputs = measure_ranges(graph, tensors, x), graph.run(tensors, x)
    doubled = measure_ranges(graph, tuple(2 * tensor for tensor in tensors), x)
    assert torch.equal(doubled["0.weight/input"], before["0.weight/input"])
    torch.testing.assert_close(doubled["2.weight/input"], 2 * before["2.weight/input"])
    assert torch.equal(graph.run(tensors, x), outputs)
    assert torch.equal(measure_ranges(graph, tensors, x)["5.weight/input"], before["5.weight/input"])
