"""How many multiply-adds an operation of an exported graph makes: what the share of a model in integers is counted in.

Counted by torch, for the example's rows: convolutions, linear layers, products of matrices, attention, recurrent
layers. Everything else (norms, activations, additions) is left out, as is usual.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten
CONVOLUTIONS = (aten.conv1d, aten.conv2d, aten.conv3d)
TRANSPOSED = (aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)
PRODUCTS = (aten.matmul, aten.mm, aten.bmm, aten.mv, aten.dot, aten.einsum, aten.scaled_dot_product_attention)
SUMS = (aten.addmm, aten.baddbmm, aten.addbmm, aten.addmv)
"""Products that are added to their first argument."""
RECURRENT = (aten.lstm, aten.gru, aten.rnn_tanh, aten.rnn_relu)
CELLS = (aten.lstm_cell, aten.gru_cell, aten.rnn_tanh_cell, aten.rnn_relu_cell)
COUNTED = {*CONVOLUTIONS, *TRANSPOSED, aten.convolution, aten.linear, *PRODUCTS, *SUMS, *RECURRENT, *CELLS}
UNKNOWN_TO_TORCH = {
    aten.mv: lambda matrix, vector, **_: 2 * math.prod(matrix),
    aten.addmv: lambda added, matrix, vector, **_: 2 * math.prod(matrix),
    aten.dot: lambda a, b, **_: 2 * math.prod(a),
    aten.addbmm: lambda added, a, b, **_: 2 * math.prod(a) * b[-1],
}
"""Operation -> shapes of what it is given -> floating-point operations, where torch counts none."""


def multiply_adds(node: fx.Node) -> int:
    """Of one operation, for as many rows as the example had; 0 where it multiplies no matrices."""
    if kind(node) not in COUNTED:
        return 0
    assert callable(node.target)
    arguments, named = map_arg((node.args, node.kwargs), _without_data)
    with FlopCounterMode(display=False, custom_mapping=UNKNOWN_TO_TORCH) as counter:
        node.target(*arguments, **named)
    return int(counter.get_total_flops()) // 2


def kind(node: fx.Node) -> Any:
    """The operation without its overload, `aten.relu` of `aten.relu.default`; None where it is none."""
    return getattr(node.target, "overloadpacket", None) if node.op == "call_function" else None


def weights_of(node: fx.Node) -> list[fx.Node]:
    """The matrices of a recurrent layer or cell, in the order in which it is given them."""
    lists = [argument if isinstance(argument, list | tuple) else [argument] for argument in node.args[1:]]
    tensors = [part for given in lists for part in given if isinstance(part, fx.Node)]
    return [part for part in tensors if isinstance(part.meta.get("val"), Tensor) and _is_matrix(part.meta["val"].shape)]


def hint(size: Any) -> int:
    """A size as a number: the free number of rows is the example's."""
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


def _is_matrix(shape: Sequence[Any]) -> bool:
    """Of a weight: a state has as many rows as there are samples."""
    return len(shape) == 2 and not any(isinstance(size, torch.SymInt) for size in shape)


def _without_data(node: fx.Node) -> Any:
    """What a node gives, for the example's rows; in one precision, which autocast would have seen to."""
    found = node.meta["val"]
    if not isinstance(found, Tensor):
        return hint(found)
    return torch.empty([hint(size) for size in found.shape], device="meta")
