"""A model as a graph of its inputs *and its weights*, with a site wherever a tensor is put into integers.

torch.export gives the operations; weights become inputs of the graph, so whatever is compiled from it can be given new
weights, and no converter folds a weight into something that a later refresh would not find. The sites are found once:

- the weight of every convolution and linear layer whose weight is a tensor of the model,
- the tensor that such a layer reads, as all its readers see it (a skip connection beside a convolution too),
- what a convolution gives, unless it reaches such a site through ReLU alone.

The last are the "intermediate results" of the paper's section 4: with them additions and convolutions run on integers
throughout. What a linear layer gives stays real, so logits are not rounded to 256 levels.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from infer2train.batches import batch_size, map_tensors, tensors_of
from infer2train.quantization.fold import untyped

aten = torch.ops.aten
CONVOLUTIONS = (aten.conv1d, aten.conv2d, aten.conv3d)
LINEAR = (aten.linear,)
OTHER_LAYERS = (aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d, aten.convolution)
"""Layers that stay real: no engine runs them in integers from a graph with weights per output channel."""

Kind = Literal["weight", "input", "output"]
Act = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Site:
    """A tensor that is put into integers.

    Args:
        name: the weight's name, and `/input` or `/output` behind it for what the layer reads and gives; the second
            tensor that a shared layer reads is `/input.1`.
        kind: weight, input or output.
        batch_dim: the dimension that counts samples; None for a weight.
        flattened: where samples and their rows (tokens, say) were made one dimension: how many rows of other samples
            lie between two of one, and how many of one lie together. The samples are then dimension `batch_dim` of the
            tensor with its first dimension taken apart into (flattened[0], samples, flattened[1]).
    """

    name: str
    kind: Kind
    batch_dim: int | None = None
    flattened: tuple[int, int] | None = None


@dataclass(frozen=True)
class Layer:
    """One call of a convolution or linear layer.

    Args:
        name: as in the model.
        weight: name of its weight; None where the weight is computed.
        sites: numbers of the sites of its input and weight; None where it stays real.
    """

    name: str
    weight: str | None
    sites: tuple[int, int] | None


class GraphError(ValueError):
    """The model cannot be made into a graph."""


class _AtSite(nn.Module):
    """Does what the caller of `WeightGraph.run` wants done there."""

    act: Act | None = None

    def forward(self, x: Tensor) -> Tensor:
        return x if self.act is None else self.act(x)


class WeightGraph:
    """The graph of a model without weights of its own.

    Args:
        model: in evaluation mode, batch-norms folded as far as they can be; it is not kept.
        example: a pytree of inputs, at least two rows. Shapes but for the number of rows are fixed by it.

    Raises:
        GraphError: torch.export cannot follow the model's `forward`.

    Example:
        >>> graph = WeightGraph(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval(), torch.ones(2, 4))
        >>> [site.name for site in graph.sites]
        ['0.weight/input', '0.weight', '2.weight/input', '2.weight']
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        own = dict(model.named_parameters()) | dict(model.named_buffers())
        kept = model.state_dict()
        counter = "num_batches_tracked"  # of batch-norms; nothing reads it in evaluation mode
        tensors = {n: t.detach() for n, t in own.items() if n in kept and not n.endswith(counter)}
        self.example = map_tensors(torch.clone, canonical(example))
        self._module = _exported(_Lifted(model, tuple(tensors)), tuple(tensors.values()), self.example, type(model))
        finder = _SiteFinder(self._module, tuple(tensors), _layer_names(model))
        finder.find()
        self.names, self.sites, self.layers = tuple(tensors), tuple(finder.sites), tuple(finder.layers)
        self.shapes = [(tuple(tensor.shape), tensor.dtype) for tensor in tensors.values()]
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            copies = tuple(tensor.clone() for tensor in tensors.values())
            outputs = self._module(copies, map_tensors(torch.clone, self.example))
            self._leaves, self._structure = pytree.tree_flatten(outputs)
            self._writes = not all(map(_same, copies, tensors.values()))
            self.takes_any_rows = self._takes_other_rows(copies)

    def tensors(self, published: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The graph's weights and buffers in their order, from a mapping by name."""
        return tuple(published[name] for name in self.names)

    def run(self, tensors: Sequence[Tensor], inputs: Any, acts: Mapping[int, Act] | None = None) -> Any:
        """The model's outputs, with `acts` done at the sites of those numbers.

        Args:
            tensors: from `tensors()`.
            inputs: a pytree such as the example.
            acts: site -> what becomes of the tensor there. Default: nothing, at any.
        """
        for number in range(len(self.sites)):
            self._at(number).act = (acts or {}).get(number)
        try:
            # The caller may stand inside the trainer's autocast.
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=False):
                # A forward that counts its calls in a buffer must not count in a record.
                own = tuple(tensor.clone() for tensor in tensors) if self._writes else tuple(tensors)
                return self._module(own, self.canonical(inputs))
        finally:
            for number in range(len(self.sites)):
                self._at(number).act = None

    def marked(self) -> nn.Module:
        """(tensors, marks, inputs) -> flat outputs, every site a product with a mark, [1], of the same number.

        A mark is an input that a converter carries along by name, so that whoever lowers the converted graph finds
        every site as a product with it, and puts the quantisation there.
        """
        return _Marked(self)

    def canonical(self, inputs: Any) -> Any:
        """The inputs as a plain pytree, in the order of the example.

        Raises:
            ValueError: they have another structure, or other shapes behind the rows.
        """
        if _looks_as(inputs, self.example):  # one tensor: the usual case, in the hot path
            return inputs
        inputs = canonical(inputs)
        if isinstance(self.example, dict) and isinstance(inputs, dict) and self.example.keys() == inputs.keys():
            inputs = {name: inputs[name] for name in self.example}
        got, wanted = ([(tuple(t.shape[1:]), t.dtype) for t in tensors_of(tree)] for tree in (inputs, self.example))
        if got != wanted or pytree.tree_structure(inputs) != pytree.tree_structure(self.example):
            raise ValueError(
                f"inputs must look as those that the engine was built with, but for the number of rows: got "
                f"{_described(inputs)} instead of {_described(self.example)}; build a new engine for another size"
            )
        return inputs

    def outputs_from(self, tensors: Sequence[Tensor]) -> Any:
        """The model's pytree of outputs from its tensors in order."""
        fresh = iter(tensors)
        leaves = [next(fresh) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        return pytree.tree_unflatten(leaves, self._structure)

    def _at(self, number: int) -> _AtSite:
        module = getattr(self._module, f"site_{number}")
        assert isinstance(module, _AtSite)
        return module

    def _takes_other_rows(self, tensors: tuple[Tensor, ...]) -> bool:
        """Whether a batch may have any number of rows, or only the example's."""
        try:
            self._module(tensors, map_tensors(lambda t: t[:-1].clone(), self.example))
        except Exception:  # a shape that was baked in fails in whatever operation meets it first
            return False
        return True


def canonical(inputs: Any) -> Any:
    """Inputs as torch.export takes them: a mapping of any type as a dictionary, a list as a tuple."""
    if isinstance(inputs, Mapping):
        return dict(inputs)
    return tuple(inputs) if isinstance(inputs, list) else inputs


class _Lifted(nn.Module):
    """(tensors, inputs) -> outputs: the model as a function of its weights."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self._model = (model,)  # not as a submodule, whose weights would become constants
        self._names = names

    def forward(self, tensors: tuple[Tensor, ...], inputs: Any) -> Any:
        state = dict(zip(self._names, tensors, strict=True))
        if isinstance(inputs, dict):
            return torch.func.functional_call(self._model[0], state, (), inputs)
        return torch.func.functional_call(self._model[0], state, inputs if isinstance(inputs, tuple) else (inputs,))


class _Marked(nn.Module):
    def __init__(self, graph: WeightGraph) -> None:
        super().__init__()
        self._weight_graph = graph

    def forward(self, tensors: tuple[Tensor, ...], marks: tuple[Tensor, ...], inputs: Any) -> Any:
        acts = {number: (lambda x, mark=mark: x * mark) for number, mark in enumerate(marks)}
        return tuple(tensors_of(self._weight_graph.run(tensors, inputs, acts)))


def export(module: nn.Module, arguments: tuple[Any, ...], rows: Any) -> torch.export.ExportedProgram:
    """torch.export, for arguments of which the last counts samples in its first dimensions.

    Args:
        module: traced without jaxtyping's checks and without attention's fused kernels, which nothing else runs.
        arguments: example arguments.
        rows: what of the arguments has a free number of rows; the last one as a pytree.
    """
    free = map_tensors(lambda tensor: {0: torch.export.Dim.AUTO}, rows)  # type: ignore[arg-type,return-value]
    fixed = tuple(map_tensors(lambda tensor: None, argument) for argument in arguments[:-1])  # type: ignore[arg-type,return-value]
    with (
        warnings.catch_warnings(),
        untyped(),
        torch.autocast("cpu", torch.bfloat16, enabled=False),
        _no_fused_attention(),
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
    ):
        warnings.simplefilter("ignore")
        return torch.export.export(module, arguments, dynamic_shapes=(*fixed, free), strict=False)


def _exported(module: nn.Module, tensors: tuple[Tensor, ...], example: Any, kind: type) -> fx.GraphModule:
    if batch_size(example) < 2:
        raise GraphError(f"an example must have at least two rows: got {batch_size(example)}; pass a larger batch")
    try:
        exported = export(module, (tensors, example), example)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about torch
            if any(_is_in_place(node) for node in exported.graph.nodes):
                exported = exported.run_decompositions({})  # no decompositions: only without operations in place
            return exported.module(check_guards=False)
    except Exception as error:  # torch.export raises whatever the user's forward and its own passes raise
        reason = str(error).strip().splitlines()
        raise GraphError(
            f"torch.export must be able to follow {kind.__name__}.forward: got {type(error).__name__}: "
            f"{reason[0] if reason else ''}; use oracle='torch:fp32' or 'torch:bf16', which run the model as it is, or "
            "take control flow that depends on the data out of forward"
        ) from error


def _is_in_place(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


@contextmanager
def _no_fused_attention() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _SiteFinder:
    """Puts sites into a graph, in place.

    Args:
        module: of an exported `_Lifted`.
        names: of its tensors, which are its first inputs.
        layer_names: of the layer that has a weight, by the weight's name.
    """

    def __init__(self, module: fx.GraphModule, names: tuple[str, ...], layer_names: Mapping[str, str]) -> None:
        self._layer_names = layer_names
        self._module, self._graph = module, module.graph
        self._inputs = [node for node in self._graph.nodes if node.op == "placeholder"]
        self._held = dict(zip(self._inputs, names, strict=False))
        self._number: dict[fx.Node, int] = {}
        self._weights: dict[fx.Node, fx.Node] = {}
        self.sites: list[Site] = []
        self.layers: list[Layer] = []

    def find(self) -> None:
        for node in list(self._graph.nodes):
            if _kind(node) is aten.dropout and node.args[2] is False:  # the identity
                node.replace_all_uses_with(node.args[0])
                self._graph.erase_node(node)
        calls = [node for node in self._graph.nodes if _kind(node) in (*CONVOLUTIONS, *LINEAR, *OTHER_LAYERS)]
        quantised = [node for node in calls if self._read(node)]
        for node in quantised:
            if _kind(node) in CONVOLUTIONS:
                self._give(node)
        self._graph.lint()
        self._module.recompile()

    def _read(self, node: fx.Node) -> bool:
        """Sites for what a layer reads. False where it stays real."""
        source, weight = node.args[0], node.args[1]
        assert isinstance(source, fx.Node)
        held = self._held.get(weight) if isinstance(weight, fx.Node) else None
        if held is None or _kind(node) in OTHER_LAYERS:
            self.layers.append(Layer(self._layer_of(held or self._source_of(weight)), held, None))
            return False
        assert isinstance(weight, fx.Node)
        if source not in self._number:
            source = self._add(source, f"{held}/input", "input", list(source.users))
        if weight not in self._weights:
            self._weights[weight] = self._add(weight, held, "weight", [])
        node.replace_input_with(weight, self._weights[weight])
        self.layers.append(
            Layer(self._layer_of(held), held, (self._number[source], self._number[self._weights[weight]]))
        )
        return True

    def _give(self, node: fx.Node) -> None:
        """A site for what a convolution gives, behind its ReLU if there is one, where it does not reach one anyway."""
        users = list(node.users)
        source = users[0] if len(users) == 1 and _kind(users[0]) is aten.relu else node
        readers = list(source.users)
        if all(reader in self._number for reader in readers) or any(reader.op == "output" for reader in readers):
            return
        held = next(self._held[weight] for weight, site in self._weights.items() if site is node.args[1])
        self._add(source, f"{held}/output", "output", readers)

    def _add(self, source: fx.Node, name: str, kind: Kind, readers: list[fx.Node]) -> fx.Node:
        number = len(self.sites)
        taken = sum(site.name == name or site.name.startswith(f"{name}.") for site in self.sites)
        dim, flattened = (None, None) if kind == "weight" else _batch_dim(source)
        self.sites.append(Site(f"{name}.{taken}" if taken else name, kind, dim, flattened))
        self._module.add_submodule(f"site_{number}", _AtSite())
        with self._graph.inserting_after(self._inputs[-1] if source.op == "placeholder" else source):
            node = self._graph.call_module(f"site_{number}", (source,))
        for reader in readers:
            reader.replace_input_with(source, node)
        self._number[node] = number
        return node

    def _layer_of(self, weight: str) -> str:
        layer, parametrised, _ = weight.partition(".parametrizations.")
        return self._layer_names.get(weight) or (layer if parametrised else weight.rpartition(".")[0])

    def _source_of(self, node: Any) -> str:
        """The tensor of the model that a computed weight is computed from, or the first of them; else nothing."""
        waiting = [node]
        while waiting:
            found = waiting.pop(0)
            if found in self._held:
                return str(self._held[found])
            waiting += found.all_input_nodes if isinstance(found, fx.Node) else []
        return ""


def _layer_names(model: nn.Module) -> dict[str, str]:
    """For each weight, under its first name, the layer that has it: the linear one where an embedding shares it."""
    first = {id(tensor): name for name, tensor in model.named_parameters()}
    return {
        first[id(module.weight)]: name
        for name, module in reversed(list(model.named_modules()))
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear) and id(module.weight) in first
    }


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or bool(a.isnan().any())


def _kind(node: fx.Node) -> Any:
    """The operation without its overload, `aten.relu` of `aten.relu.default`; None where it is none."""
    return getattr(node.target, "overloadpacket", None) if node.op == "call_function" else None


def _batch_dim(node: fx.Node) -> tuple[int, tuple[int, int] | None]:
    """The dimension that counts samples, and how they lie where they were flattened together with others.

    It is the dimension whose size is the free one of the export. Where there is none, the tensor is followed back to
    where it was flattened; a tensor of which nothing is known has its samples first.
    """
    found: Any = node
    while isinstance(found, fx.Node) and "val" in found.meta and isinstance(found.meta["val"], Tensor):
        shape = found.meta["val"].shape
        for dim, size in enumerate(shape):
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                if found is node:
                    return dim, None
                apart = _product(shape[:dim])
                together = _hint(node.meta["val"].shape[0]) // (apart * _hint(size))
                return 1, (apart, max(1, together))
        found = found.args[0] if found.args else None
    return 0, None


def _product(sizes: Sequence[Any]) -> int:
    return math.prod(_hint(size) for size in sizes)


def _hint(size: Any) -> int:
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


def _looks_as(inputs: Any, example: Any) -> bool:
    is_tensor = isinstance(inputs, Tensor) and isinstance(example, Tensor)
    return is_tensor and inputs.dtype == example.dtype and inputs.shape[1:] == example.shape[1:]


def _described(inputs: Any) -> str:
    def one(tensor: Tensor) -> str:
        return f"[n, {', '.join(map(str, tensor.shape[1:]))}] {str(tensor.dtype).removeprefix('torch.')}"

    if isinstance(inputs, dict):
        return ", ".join(f"{name}: {_described(part)}" for name, part in inputs.items())
    return " and ".join(one(tensor) for tensor in tensors_of(inputs)) or type(inputs).__name__
