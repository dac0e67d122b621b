"""Weights that a layer computes are computed once a refresh, and are then weights like any other."""

import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as older_spectral_norm
from torch.nn.utils import weight_norm as older_weight_norm

from infer2train.oracle.quantization.graph import WeightGraph

X = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Standardised(nn.Conv2d):
    """Weight standardisation, with a gain, as NFNets have it."""

    def __init__(self, c_in: int, c_out: int, size: int) -> None:
        super().__init__(c_in, c_out, size)
        self.gain = nn.Parameter(torch.full((c_out, 1, 1, 1), 1.5))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        weight = (self.weight - mean) * torch.rsqrt(variance + 1e-4) * self.gain
        return F.conv2d(x, weight, self.bias)


class OtherWay(nn.Module):
    """A linear layer whose matrix is stored as GPT-2 has it."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(c_in, c_out)), nn.Parameter(torch.randn(c_out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


def pruned(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", amount=0.5)  # type: ignore[no-any-return,no-untyped-call]


KINDS: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "weight_norm": lambda: (
        parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
        parametrizations.weight_norm(nn.Linear(144, 5)),
    ),
    "older_weight_norm": lambda: (older_weight_norm(nn.Conv2d(3, 4, 3)), older_weight_norm(nn.Linear(144, 5))),
    "spectral_norm": lambda: (
        parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)),
        parametrizations.spectral_norm(nn.Linear(144, 5)),
    ),
    "older_spectral_norm": lambda: (older_spectral_norm(nn.Conv2d(3, 4, 3)), older_spectral_norm(nn.Linear(144, 5))),
    "standardised": lambda: (Standardised(3, 4, 3), nn.Linear(144, 5)),
    "pruned": lambda: (pruned(nn.Conv2d(3, 4, 3)), pruned(nn.Linear(144, 5))),
    "other_way": lambda: (nn.Conv2d(3, 4, 3), OtherWay(144, 5)),
}


def network(kind: str, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    first, last = KINDS[kind]()
    model = nn.Sequential(first, nn.ReLU(), nn.Flatten(), last)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_layers_with_computed_weights_are_quantised_like_any_other(kind: str) -> None:
    graph = WeightGraph(network(kind), X)
    assert [(layer.name, layer.weight) for layer in graph.layers] == [("0", "0.weight"), ("3", "3.weight")]
    assert all(layer.sites is not None for layer in graph.layers)
    roles = ["0.weight/input", "0.weight", "3.weight/input", "3.weight", "0.weight/output"]
    assert [site.name for site in graph.sites] == roles


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_computes_what_the_model_does_with_any_weights(kind: str) -> None:
    graph = WeightGraph(network(kind), X)
    for each in (graph, pickle.loads(pickle.dumps(graph)), graph.to(torch.device("cpu"))):
        for seed in (0, 1):
            model = network(kind, seed)
            with torch.no_grad():
                wanted = model(X)
            tensors = each.tensors(model.state_dict())
            assert [(tuple(t.shape), t.dtype) for t in tensors] == each.shapes
            torch.testing.assert_close(each.run(tensors, X), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_computed_weight_is_what_the_layer_computes(kind: str) -> None:
    graph, model = WeightGraph(network(kind), X), network(kind, 1)
    by_name = dict(zip(graph.names, graph.tensors(model.state_dict()), strict=True))
    with torch.no_grad():
        columns = model[3](torch.eye(144)) - model[3](torch.zeros(1, 144))
    torch.testing.assert_close(by_name["3.weight"], columns.t(), rtol=1e-4, atol=1e-4)


def test_what_only_the_computation_reads_is_no_tensor_of_the_graph() -> None:
    graph = WeightGraph(network("weight_norm"), X)
    assert set(graph.names) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    plain = WeightGraph(nn.Sequential(nn.Linear(8, 3)).eval(), X)
    assert plain.names == ("0.weight", "0.bias")


class Chunked(nn.Module):
    """Two layers from one matrix, which is looked up in as well."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(12, 4))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.table.split([4, 8])
        return F.linear(F.linear(x, first), second) + self.table.sum()


def test_names_are_their_own_and_a_tensor_that_is_read_elsewhere_stays() -> None:
    model, x = Chunked().eval(), torch.randn(6, 4)
    graph = WeightGraph(model, x)
    assert graph.names == ("table", "weight", "weight_1")
    with torch.no_grad():
        torch.testing.assert_close(graph.run(graph.tensors(model.state_dict()), x), model(x))


class OfTheData(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * x.mean(), self.bias)


class Drawn(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + torch.randn_like(self.weight), self.bias)


@pytest.mark.parametrize("layer", [OfTheData, Drawn])
def test_a_weight_of_the_data_or_of_chance_is_computed_at_every_call_and_stays_real(layer: type[nn.Linear]) -> None:
    model, x = layer(4, 3).eval(), torch.randn(6, 4)
    graph = WeightGraph(model, x)
    assert graph.names == ("weight", "bias")
    assert [(found.weight, found.sites) for found in graph.layers] == [(None, None)]
    tensors = graph.tensors(model.state_dict())
    other = torch.randn(6, 4)
    same = torch.equal(graph.run(tensors, other), graph.run(tensors, other))
    assert same == (layer is OfTheData)
