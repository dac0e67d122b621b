"""Where the tensors of a graph are put into integers. Found once, in a graph that torch.export made:

- the weight of every convolution and linear layer whose weight is a tensor of the model,
- the tensor that such a layer reads, as all its readers see it (a skip connection beside a convolution too),
- what a convolution gives, unless it reaches such a site through ReLU alone.

The last are the "intermediate results" of the paper's section 4: with them additions and convolutions run on integers
throughout. What a linear layer gives stays real, so logits are not rounded to 256 levels.
"""

import math
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from infer2train.oracle.quantization.operations import at_site
from infer2train.oracle.quantization.products import (
    CELLS,
    CONVOLUTIONS,
    RECURRENT,
    TRANSPOSED,
    hint,
    kind,
    multiply_adds,
    weights_of,
)
from infer2train.oracle.quantization.prologue import source_of

aten = torch.ops.aten
LINEAR = (aten.linear,)
ACTIVATIONS = (aten.silu, aten.hardswish, aten.mish, aten.gelu, aten.elu, aten.leaky_relu)
"""Functions of single numbers that are bent: rounding what they are given costs them more than what they give."""
GATES = (aten.sigmoid, aten.hardsigmoid, aten.tanh)
OTHER_LAYERS = (*TRANSPOSED, aten.convolution, *RECURRENT, *CELLS)
"""Layers that stay real: no engine runs them in integers from a graph with weights per output channel."""

Role = Literal["weight", "input", "output"]


@dataclass(frozen=True)
class Site:
    """A tensor that is put into integers.

    Args:
        name: the weight's name, and `/input` or `/output` behind it for what the layer reads and gives; the second
            tensor that a shared layer reads is `/input.1`.
        kind: weight, input or output.
        batch_dim: the dimension that counts samples; None for a weight, and for what follows from weights alone.
        flattened: where samples and their rows (tokens, say) were made one dimension: how many rows of other samples
            lie between two of one, and how many of one lie together; -1 for the one that changes with the inputs'
            size. The samples are then dimension `batch_dim` of the tensor with its first dimension taken apart into
            (flattened[0], samples, flattened[1]).
    """

    name: str
    kind: Role
    batch_dim: int | None = None
    flattened: tuple[int, int] | None = None


@dataclass(frozen=True)
class Layer:
    """One call of a convolution, linear or recurrent layer.

    Args:
        name: as in the model.
        weight: name of its weight; None where it has several, or where it is computed from the data.
        sites: numbers of the sites of its input and weight; None where it stays real.
        bias: name of its bias; None where it has none, or where it is computed from the data.
        multiply_adds: how many it makes, for the example's rows.
    """

    name: str
    weight: str | None
    sites: tuple[int, int] | None
    bias: str | None = None
    multiply_adds: int = 0


class SiteFinder:
    """Puts sites into a graph, in place.

    Args:
        graph: of an exported function (tensors, inputs) -> outputs.
        names: of its tensors, which are its first inputs.
        layer_of: name of a tensor -> the layer that has it.
        fuses: whether what a convolution gives is rounded behind its activation, whichever that is; else behind ReLU
            only, and before any other.

    Attributes:
        sites: all of them, by number.
        layers: every call of a layer, in the order of the graph.
        has_long_tails: whether a convolution's activation is one of `ACTIVATIONS`.
        other_products: multiply-adds of products that are no layers: of two activations, as in attention.
    """

    def __init__(
        self, graph: fx.Graph, names: tuple[str, ...], layer_of: Callable[[str], str], fuses: bool = True
    ) -> None:
        self._graph, self._layer_of = graph, layer_of
        self._rounded_behind = (aten.relu, *ACTIVATIONS) if fuses else (aten.relu,)
        self._kept_real = GATES if fuses else ()
        self._inputs = [node for node in self._graph.nodes if node.op == "placeholder"]
        self._held = dict(zip(self._inputs, names, strict=False))
        # Other sizes may be free too, so what counts samples is told by its symbol.
        given = [node.meta.get("val") for node in self._inputs[len(names) :]]
        self._rows = {_symbol(value.shape[0]) for value in given if isinstance(value, Tensor)} - {None}
        self._number: dict[fx.Node, int] = {}
        self._weights: dict[fx.Node, fx.Node] = {}
        self.sites: list[Site] = []
        self.layers: list[Layer] = []
        self.has_long_tails = False
        self.other_products = 0

    def find(self) -> None:
        for node in list(self._graph.nodes):
            if kind(node) is aten.dropout and node.args[2] is False:  # the identity
                node.replace_all_uses_with(node.args[0])
                self._graph.erase_node(node)
        calls = [node for node in self._graph.nodes if kind(node) in (*CONVOLUTIONS, *LINEAR, *OTHER_LAYERS)]
        counts = {node: multiply_adds(node) for node in _inside(self._graph)}
        self.other_products = sum(counts.values()) - sum(counts[node] for node in calls)
        quantised = [node for node in calls if self._read(node, counts[node])]
        for node in quantised:
            if kind(node) in CONVOLUTIONS:
                self._give(node)
        self._graph.lint()

    def _read(self, node: fx.Node, products: int) -> bool:
        """Sites for what a layer of so many multiply-adds reads. False where it stays real."""
        source = node.args[0]
        is_recurrent = kind(node) in (*RECURRENT, *CELLS)
        weights: list[Any] = weights_of(node)[:1] if is_recurrent else [node.args[1]]
        assert isinstance(source, fx.Node)
        held = next(map(self._held.get, weights), None)
        is_vector = held is not None and weights[0].meta["val"].ndim < 2  # F.linear takes one, and gives no channels
        if held is None or is_vector or kind(node) in OTHER_LAYERS:
            own = None if is_recurrent else held
            name = self._layer_of(source_of(weights, self._held))
            self.layers.append(Layer(name, own, None, multiply_adds=products))
            return False
        (weight,) = weights
        if source not in self._number:
            source = self._add(source, f"{held}/input", "input", list(source.users))
        if weight not in self._weights:
            self._weights[weight] = self._add(weight, held, "weight", [])
        node.replace_input_with(weight, self._weights[weight])
        sites = self._number[source], self._number[self._weights[weight]]
        bias = node.args[2] if len(node.args) > 2 else None
        own_bias = self._held.get(bias) if isinstance(bias, fx.Node) else None
        self.layers.append(Layer(self._layer_of(held), held, sites, own_bias, products))
        return True

    def _give(self, node: fx.Node) -> None:
        """A site for what a convolution gives, behind its activation if there is one, where it reaches none anyway."""
        self.has_long_tails |= any(kind(reader) in ACTIVATIONS for reader in node.users)
        follows = kind(next(iter(node.users))) if len(node.users) == 1 else None
        source = next(iter(node.users)) if follows in self._rounded_behind else node
        readers = list(source.users)
        if (
            follows in self._kept_real
            or all(reader in self._number for reader in readers)
            or any(reader.op == "output" for reader in readers)
        ):
            return
        held = next(self._held[weight] for weight, site in self._weights.items() if site is node.args[1])
        self._add(source, f"{held}/output", "output", readers)

    def _add(self, source: fx.Node, name: str, kind: Role, readers: list[fx.Node]) -> fx.Node:
        number = len(self.sites)
        taken = sum(site.name == name or site.name.startswith(f"{name}.") for site in self.sites)
        dim, flattened = (None, None) if kind == "weight" else _batch_dim(source, self._rows)
        self.sites.append(Site(f"{name}.{taken}" if taken else name, kind, dim, flattened))
        with self._graph.inserting_after(self._inputs[-1] if source.op == "placeholder" else source):
            node = self._graph.call_function(at_site, (source, number))
        node.meta["val"] = source.meta.get("val")  # of the same shape: what reads it is followed back through it
        for reader in readers:
            reader.replace_input_with(source, node)
        self._number[node] = number
        return node


def layer_of(layer_names: Mapping[str, str], name: str) -> str:
    """The layer that has a tensor, from what `layer_names` found and the tensor's own name."""
    if name in layer_names:
        return layer_names[name]
    parts = name.split(".")
    return ".".join(parts[: parts.index("parametrizations") if "parametrizations" in parts else -1])


def layer_names(model: nn.Module) -> dict[str, str]:
    """For each weight, under its first name, the layer that has it: the linear one where an embedding shares it."""
    first = {id(tensor): name for name, tensor in model.named_parameters()}
    return {
        first[id(module.weight)]: name
        for name, module in reversed(list(model.named_modules()))
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear) and id(module.weight) in first
    }


def _inside(graph: fx.Graph) -> Iterator[fx.Node]:
    """The operations of a graph and of the graphs in it, such as the inside of a `with torch.autocast(…)`."""
    for node in graph.nodes:
        yield node
        inner = getattr(graph.owning_module, str(node.target), None) if node.op == "get_attr" else None
        if isinstance(inner, fx.GraphModule):
            yield from _inside(inner.graph)


def _batch_dim(node: fx.Node, rows: Collection[Any]) -> tuple[int | None, tuple[int, int] | None]:
    """The dimension that counts samples, and how they lie where they were flattened together with others.

    It is the dimension whose size is that of the inputs' first. Where there is none, the tensor is followed back to
    where it was flattened; one that leads back to no input has no samples in it. Where the inputs' first size is fixed,
    nothing is known of any, and samples are taken to come first.
    """
    for found in _behind(node):
        shape = found.meta["val"].shape
        for dim, size in enumerate(shape):
            if _symbol(size) in rows:
                if found is node:
                    return dim, None
                apart = _product(shape[:dim])
                together = max(1, hint(node.meta["val"].shape[0]) // (apart * hint(size)))
                if any(isinstance(other, torch.SymInt) for other in shape[:dim]):
                    return 1, (-1, together)
                changes = any(isinstance(other, torch.SymInt) for other in shape[dim + 1 :])
                return 1, (apart, -1 if changes else together)
    return (None if rows else 0), None


def _behind(node: fx.Node) -> Iterator[fx.Node]:
    """A node, and those that it is computed from, the nearest first; those that are tensors."""
    waiting, seen = deque([node]), {node}
    while waiting:
        found = waiting.popleft()
        if isinstance(found.meta.get("val"), Tensor):
            yield found
        nearest = [before for before in found.all_input_nodes if before not in seen]
        seen.update(nearest)
        waiting.extend(nearest)


def _symbol(size: Any) -> Any:
    """What a free size is called in the export; None for a size that is fixed, or computed from several."""
    return size.node.expr if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol else None


def _product(sizes: Sequence[Any]) -> int:
    return math.prod(hint(size) for size in sizes)
