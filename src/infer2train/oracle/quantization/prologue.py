"""What of a graph follows from its weights alone: weights that a layer computes before it uses them.

Weight and spectral normalisation, standardised weights, pruning masks, a matrix that is stored the other way round:
torch does that part in float32, once a refresh, and its results are ordinary weights of the rest of the graph, which
are put into integers like any other.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from infer2train.batches import as_float32
from infer2train.oracle.quantization.operations import Operations
from infer2train.oracle.quantization.products import CONVOLUTIONS, kind

aten = torch.ops.aten
CPU = torch.device("cpu")


class Prologue:
    """Computes the tensors of a graph from those of the model.

    Args:
        kept: numbers of the model's tensors that the graph reads itself.
        operations: (some of the model's tensors) -> computed tensors; None where there are none.
        read: numbers of those.
        device: where they are computed.
    """

    def __init__(
        self,
        kept: Iterable[int],
        operations: Operations | None = None,
        read: Iterable[int] = (),
        device: torch.device = CPU,
    ) -> None:
        self._kept, self._operations, self._read, self._device = tuple(kept), operations, tuple(read), device

    def to(self, device: torch.device) -> "Prologue":
        """The same on a device."""
        return Prologue(self._kept, self._operations and self._operations.to(device), self._read, device)

    def __call__(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The graph's tensors: the kept ones themselves, and behind them the computed ones."""
        kept = tuple(tensors[number] for number in self._kept)
        if self._operations is None:
            return kept
        real = as_float32([tensors[number].to(self._device) for number in self._read])
        # The caller may stand inside the trainer's autocast.
        with torch.no_grad(), torch.autocast(self._device.type, torch.bfloat16, enabled=False):
            return (*kept, *self._operations(*real))


def take_out(
    module: fx.GraphModule, names: Sequence[str], layer_of: Callable[[str], str]
) -> tuple[Prologue, tuple[str, ...]]:
    """Take the computed weights and biases of layers out of a graph, in place, and make them its tensors.

    Args:
        module: of an exported function (tensors, inputs) -> outputs.
        names: of its tensors, which are its first inputs.
        layer_of: name of a tensor -> the layer that has it.

    Returns:
        What computes them, and the names of the tensors that the graph has now: a computed one is called as if its
        layer had it (`0.weight`), and what nothing else reads is gone.
    """
    graph = module.graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"][: len(names)]
    known = _from_weights_alone(graph, inputs)
    for node in list(graph.nodes):
        _make_linear(graph, node, known)
    wanted = _computed(graph, known - {*inputs})
    if not wanted:
        return Prologue(range(len(names))), tuple(names)
    part, read = _copied(graph, list(wanted))
    operations = Operations(fx.GraphModule(module, part))
    held = dict(zip(inputs, names, strict=True))
    owners = {node: layer_of(source_of([node], held)) for node in wanted}
    _make_inputs(graph, inputs[-1], list(wanted))
    kept = [number for number, node in enumerate(inputs) if node.users or node not in read]
    found = [names[number] for number in kept]
    for node, role in wanted.items():
        found.append(_free(f"{owners[node]}.{role}".lstrip("."), found))
    for number in {*range(len(inputs))} - {*kept}:
        graph.erase_node(inputs[number])
    return Prologue(kept, operations, [number for number, node in enumerate(inputs) if node in read]), tuple(found)


def source_of(nodes: Sequence[fx.Node], held: Mapping[fx.Node, str]) -> str:
    """The nearest tensor of the model that nodes are computed from; nothing where there is none."""
    return next((held[found] for found in _behind(nodes) if found in held), "")


def _from_weights_alone(graph: fx.Graph, inputs: Sequence[fx.Node]) -> set[fx.Node]:
    """Tensors and constants that nothing writes to, and what is computed of them alone and without chance."""
    written = {node.args[0] for node in graph.nodes if writes(node)}
    known = {*inputs} - written
    for node in graph.nodes:
        computed = node.op == "call_function" and not writes(node) and not _draws(node)
        if node.op == "get_attr" or (computed and {*node.all_input_nodes} <= known):
            known.add(node)
    return known


def _make_linear(graph: fx.Graph, node: fx.Node, known: set[fx.Node]) -> None:
    """A product with a matrix of weights becomes the linear layer that it is."""
    if kind(node) not in (aten.matmul, aten.mm, aten.addmm) or node.kwargs:
        return
    *bias, read, matrix = node.args
    is_layer = matrix in known and read not in known and _dimensions(matrix) == 2
    if not is_layer or any(part not in known or _dimensions(part) != 1 for part in bias):
        return
    assert isinstance(matrix, fx.Node)
    with graph.inserting_before(node):
        weight = graph.call_function(aten.t.default, (matrix,))
        layer = graph.call_function(aten.linear.default, (read, weight, *bias))
    weight.meta["val"], layer.meta["val"] = matrix.meta["val"].t(), node.meta["val"]
    known.add(weight)
    node.replace_all_uses_with(layer)
    graph.erase_node(node)


def _computed(graph: fx.Graph, known: set[fx.Node]) -> dict[fx.Node, str]:
    """The weights and biases that layers read and that are among these nodes, and what they are to a layer."""
    found: dict[fx.Node, str] = {}
    for node in graph.nodes:
        if kind(node) in (*CONVOLUTIONS, aten.linear) and node.args[0] not in known:
            for argument, role in zip(node.args[1:], ("weight", "bias"), strict=False):
                if argument in known and isinstance(argument, fx.Node):
                    found.setdefault(argument, role)
    return found


def _copied(graph: fx.Graph, wanted: list[fx.Node]) -> tuple[fx.Graph, set[fx.Node]]:
    """A graph (tensors it reads) -> wanted, and what it copied."""
    needed, part = {*_behind(wanted)}, fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in needed:
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(tuple(copies[node] for node in wanted))
    return part, needed


def _make_inputs(graph: fx.Graph, last: fx.Node, wanted: Sequence[fx.Node]) -> None:
    """What was computed becomes inputs of the graph, behind the last of its tensors."""
    for number, node in enumerate(wanted):
        with graph.inserting_after(last):
            last = graph.placeholder(f"computed_{number}")
        last.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(last)
    graph.eliminate_dead_code()


def _behind(nodes: Sequence[fx.Node]) -> dict[fx.Node, None]:
    """The nodes and all that they are computed from, the nearest first."""
    found: dict[fx.Node, None] = {}
    waiting = [*nodes]
    while waiting:
        node = waiting.pop(0)
        if node not in found:
            found[node] = None
            waiting += node.all_input_nodes
    return found


def _free(name: str, taken: Sequence[str]) -> str:
    """The name, or with the first number behind it that makes it one of its own."""
    numbered = (f"{name}_{number}" for number in range(1, len(taken) + 2))
    return name if name not in taken else next(other for other in numbered if other not in taken)


def writes(node: fx.Node) -> bool:
    """Whether an operation is in place."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _draws(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def _dimensions(node: Any) -> int:
    found: Mapping[str, Any] = node.meta if isinstance(node, fx.Node) else {}
    return found["val"].ndim if isinstance(found.get("val"), Tensor) else -1
