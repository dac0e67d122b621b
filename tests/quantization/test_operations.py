"""The operations of a graph give what the graph gives, and keep nothing longer than it is read."""

import pickle
import weakref

import pytest
import torch
from torch import Tensor, fx

from infer2train.oracle.quantization.operations import Operations, at_site


class Everything(torch.nn.Module):
    """Constants, arguments by name, slices, lists, and several results in a structure."""

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.arange(12.0).view(3, 4))

    def forward(self, x: Tensor, factor: Tensor) -> dict[str, object]:
        y = torch.ops.aten.cat.default([x[:, 1:], x * factor], dim=1)
        return {"all": [y, torch.ops.aten.add.Tensor(x, self.weight, alpha=2)], "last": y[..., -1], "name": "x"}


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("is_pickled", [False, True])
def test_they_give_what_the_graph_gives(is_pickled: bool) -> None:
    module = fx.symbolic_trace(Everything())
    operations = Operations(module)
    if is_pickled:
        operations = pickle.loads(pickle.dumps(operations))
    for x, factor in ((X, torch.tensor(2.0)), (-X, torch.tensor(3.0))):
        got, wanted = operations(x, factor), module(x, factor)
        assert got.keys() == wanted.keys()
        assert all(map(torch.equal, [*got["all"], got["last"]], [*wanted["all"], wanted["last"]]))
        assert got["name"] == "x"


class MadeHere(torch.nn.Module):
    """A constant, a tensor made in the forward, and what torch.export notes of devices in a change of type."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.arange(4.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.float() - self.shift + torch.arange(4, device=x.device)


def test_they_run_on_another_device_than_they_were_exported_on() -> None:
    example = torch.ones(3, 4, dtype=torch.uint8)
    module = torch.export.export(MadeHere(), (example,)).module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    elsewhere = torch.device("meta")
    assert Operations(module).to(elsewhere)(example.to(elsewhere))[0].device == elsewhere
    with pytest.raises(RuntimeError, match="device"):
        Operations(module)(example.to(elsewhere))
    assert torch.equal(Operations(module)(example)[0], MadeHere()(example))


def marked() -> Operations:
    graph = fx.Graph()
    x = graph.placeholder("x")
    first = graph.call_function(at_site, (x, 0))
    doubled = graph.call_function(torch.mul, (first, 2))
    graph.output((graph.call_function(at_site, (doubled, 1)),))
    return Operations(fx.GraphModule(torch.nn.Module(), graph))


def test_acts_are_done_at_the_sites_of_their_numbers() -> None:
    assert torch.equal(marked()(X)[0], 2 * X)
    assert torch.equal(marked()(X, acts={0: lambda x: x + 1})[0], 2 * (X + 1))
    assert torch.equal(marked()(X, acts={1: lambda x: x + 1})[0], 2 * X + 1)


def test_what_is_read_no_more_is_let_go() -> None:
    graph = fx.Graph()
    result = graph.placeholder("x")
    for number in range(6):
        graph.call_function(torch.neg, (result,))  # read by nothing
        result = graph.call_function(at_site, (graph.call_function(torch.add, (result, 1)), number))
    graph.output(result)
    seen: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def watch(x: Tensor) -> Tensor:
        alive.append(sum(found() is not None for found in seen))
        seen.append(weakref.ref(x))
        return x

    Operations(fx.GraphModule(torch.nn.Module(), graph))(X, acts=dict.fromkeys(range(6), watch))
    assert len(alive) == 6
    assert max(alive) <= 1, "two layers' results at a time, as in the model"
