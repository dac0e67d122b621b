"""How many multiply-adds an operation of an exported graph makes: what the share of a model in integers is counted in.

Counted from shapes, for the example's rows: convolutions, linear layers, products of matrices, attention, recurrent
layers. Everything else (norms, activations, additions) is left out, as is usual.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
CONVOLUTIONS = (aten.conv1d, aten.conv2d, aten.conv3d)
TRANSPOSED = (aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)
PRODUCTS = (aten.matmul, aten.mm, aten.bmm, aten.mv, aten.dot)
SUMS = (aten.addmm, aten.baddbmm, aten.addbmm, aten.addmv)
"""Products that are added to their first argument."""
RECURRENT = (aten.lstm, aten.gru, aten.rnn_tanh, aten.rnn_relu)
CELLS = (aten.lstm_cell, aten.gru_cell, aten.rnn_tanh_cell, aten.rnn_relu_cell)


def multiply_adds(node: fx.Node) -> int:
    """Of one operation, for as many rows as the example had; 0 where it multiplies no matrices."""
    count = _COUNTS.get(kind(node))
    return 0 if count is None else count(node)


def kind(node: fx.Node) -> Any:
    """The operation without its overload, `aten.relu` of `aten.relu.default`; None where it is none."""
    return getattr(node.target, "overloadpacket", None) if node.op == "call_function" else None


def weights_of(node: fx.Node) -> list[fx.Node]:
    """The matrices of a recurrent layer or cell, in the order in which it is given them."""
    lists = [argument if isinstance(argument, list | tuple) else [argument] for argument in node.args[1:]]
    tensors = [part for given in lists for part in given if isinstance(part, fx.Node)]
    return [part for part in tensors if isinstance(part.meta.get("val"), Tensor) and _is_matrix(part.meta["val"].shape)]


def sizes(node: Any) -> list[int]:
    """The shape of what an operation gives, for the example's rows."""
    return [hint(size) for size in node.meta["val"].shape]


def hint(size: Any) -> int:
    """A size as a number: the free number of rows is the example's."""
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


def _is_matrix(shape: Sequence[Any]) -> bool:
    """Of a weight: a state has as many rows as there are samples."""
    return len(shape) == 2 and not any(isinstance(size, torch.SymInt) for size in shape)


def _layer(node: fx.Node) -> int:
    """A convolution or linear layer: each output is a sum over one channel of the weight."""
    return math.prod(sizes(node)) * math.prod(sizes(node.args[1])[1:])


def _transposed(node: fx.Node) -> int:
    """Each input goes into as many outputs."""
    return math.prod(sizes(node.args[0])) * math.prod(sizes(node.args[1])[1:])


def _convolution(node: fx.Node) -> int:
    return _transposed(node) if node.args[6] else _layer(node)


def _product(node: fx.Node) -> int:
    return math.prod(sizes(node)) * sizes(node.args[0])[-1]


def _sum_of_products(node: fx.Node) -> int:
    batches = sizes(node.args[1])[0] if kind(node) is aten.addbmm else 1
    return math.prod(sizes(node)) * sizes(node.args[1])[-1] * batches


def _einsum(node: fx.Node) -> int:
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    read, arrow, given = equation.partition("->")
    kept = given if arrow else [letter for letter in read if read.count(letter) == 1]
    summed: dict[str, int] = {}
    assert isinstance(operands, Sequence)
    for letters, operand in zip(read.split(","), operands, strict=True):
        before, _, behind = letters.partition("...")
        shape = sizes(operand)
        named = [*zip(before, shape, strict=False), *zip(reversed(behind), reversed(shape), strict=False)]
        summed |= {letter: size for letter, size in named if letter not in kept}
    return math.prod(sizes(node)) * math.prod(summed.values())


def _attention(node: fx.Node) -> int:
    query, key, value = (sizes(part) for part in node.args[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _recurrent(node: fx.Node) -> int:
    """Every weight is multiplied with once a row and step."""
    read = sizes(node.args[0])
    return math.prod(read[:-1]) * sum(math.prod(sizes(weight)) for weight in weights_of(node))


_COUNTS: dict[Any, Callable[[fx.Node], int]] = {
    **dict.fromkeys((*CONVOLUTIONS, aten.linear), _layer),
    **dict.fromkeys(TRANSPOSED, _transposed),
    aten.convolution: _convolution,
    **dict.fromkeys(PRODUCTS, _product),
    **dict.fromkeys(SUMS, _sum_of_products),
    aten.einsum: _einsum,
    aten.scaled_dot_product_attention: _attention,
    **dict.fromkeys((*RECURRENT, *CELLS), _recurrent),
}
