"""Multiply-adds, counted by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infer2train.oracle.quantization.graph import WeightGraph

ROWS = 3


class Does(nn.Module):
    def __init__(self, function: object, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.layer, self._function = layer or nn.Linear(1, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self._function(self.layer, x)  # type: ignore[operator,no-any-return]


def graph_of(model: nn.Module, *shape: int) -> WeightGraph:
    return WeightGraph(model.eval(), torch.randn(ROWS, *shape))


@pytest.mark.parametrize(
    ("layer", "shape", "count"),
    [
        (nn.Conv2d(3, 8, 3, stride=2, padding=1), (3, 8, 6), 8 * 4 * 3 * 3 * 9),
        (nn.Conv2d(4, 8, 3, groups=4), (4, 6, 6), 8 * 4 * 4 * 9),
        (nn.Conv1d(3, 5, 2), (3, 7), 5 * 6 * 3 * 2),
        (nn.ConvTranspose2d(3, 6, 2, stride=2), (3, 4, 4), 3 * 16 * 6 * 4),
        (nn.Linear(7, 5), (7,), 35),
        (nn.Linear(7, 5), (4, 7), 4 * 35),
    ],
)
def test_layers(layer: nn.Module, shape: tuple[int, ...], count: int) -> None:
    graph = graph_of(nn.Sequential(layer), *shape)
    assert [(found.name, found.multiply_adds) for found in graph.layers] == [("0", ROWS * count)]
    assert graph.other_products == 0


@pytest.mark.parametrize(
    ("layer", "count"),
    [
        (nn.LSTM(4, 5, 2, batch_first=True), 7 * (20 * 4 + 20 * 5 + 20 * 5 + 20 * 5)),
        (nn.GRU(4, 5, batch_first=True, bidirectional=True), 7 * 2 * (15 * 4 + 15 * 5)),
        (nn.RNN(4, 5, batch_first=True), 7 * (5 * 4 + 5 * 5)),
    ],
)
def test_recurrent_layers_are_listed_by_their_name_and_stay_real(layer: nn.Module, count: int) -> None:
    def run(own: nn.Module, x: Tensor) -> Tensor:
        return own(x)[0]  # type: ignore[no-any-return]

    graph = graph_of(Does(run, layer), 7, 4)
    (found,) = graph.layers
    assert (found.name, found.weight, found.sites) == ("layer", None, None)
    assert found.multiply_adds == ROWS * count


def test_a_cell_is_a_layer_as_well() -> None:
    graph = graph_of(Does(lambda own, x: own(x), nn.GRUCell(4, 5)), 4)
    assert [(layer.name, layer.multiply_adds) for layer in graph.layers] == [("layer", ROWS * (15 * 4 + 15 * 5))]


@pytest.mark.parametrize(
    ("function", "count"),
    [
        (lambda _, x: x @ x.transpose(1, 2), 6 * 6 * 4),
        (lambda _, x: torch.bmm(x, x.transpose(1, 2)), 6 * 6 * 4),
        (lambda _, x: torch.baddbmm(x[:, :, :1], x, x.transpose(1, 2)), 6 * 6 * 4),
        (lambda _, x: torch.addbmm(x[0, :, :1], x, x.transpose(1, 2)), 6 * 6 * 4),
        (lambda _, x: x @ x[0, 0], 6 * 4),
        (lambda _, x: torch.addmv(x[:, 0, 0], x.flatten(1), x[0].flatten()), 6 * 4),
        (lambda _, x: torch.einsum("bij,bkj->bik", x, x), 6 * 6 * 4),
        (lambda _, x: torch.einsum("...ij,...kj->...ik", x, x), 6 * 6 * 4),
        (lambda _, x: F.scaled_dot_product_attention(x, x, x), 2 * 6 * 6 * 4),
        (lambda _, x: x * x, 0),
    ],
)
def test_products_of_activations_are_counted_and_are_no_layers(function: object, count: int) -> None:
    graph = graph_of(Does(function), 6, 4)
    assert graph.layers == ()
    assert graph.other_products == ROWS * count


def test_products_inside_an_autocast_are_counted() -> None:
    class Inside(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                y = super().forward(x)
            return super().forward(x) + y.float()

    graph = graph_of(Inside(4, 5), 4)
    assert [layer.multiply_adds for layer in graph.layers] == [ROWS * 20]
    assert graph.other_products == ROWS * 20
