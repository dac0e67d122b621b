"""A model as a graph of its inputs *and its weights*, with a site wherever a tensor is put into integers.

torch.export gives the operations; weights become inputs of the graph, so whatever is compiled from it can be given new
weights, and no converter folds a weight into something that a later refresh would not find.
"""

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.jit import ScriptModule
from torch.utils import _pytree as pytree

from infer2train.batches import as_float32, batch_size, map_tensors, tensors_of
from infer2train.oracle.quantization.fold import untyped
from infer2train.oracle.quantization.lifted import Lifted, state_of
from infer2train.oracle.quantization.operations import Act, Operations
from infer2train.oracle.quantization.prologue import take_out, writes
from infer2train.oracle.quantization.sites import SiteFinder, layer_names, layer_of


class GraphError(ValueError):
    """The model cannot be made into a graph."""


class WeightGraph:
    """The graph of a model without weights of its own. Any number of threads may run it, and it can be pickled.

    Args:
        model: in evaluation mode, batch-norms folded as far as they can be; it is not kept.
        example: a pytree of inputs, at least two rows. Shapes but for the number of rows are fixed by it.
        fuses: where the sites of convolutions stand, see `SiteFinder`.
        others: inputs of other sizes, such as longer and shorter texts: what differs in them stays free.

    Raises:
        GraphError: torch.export cannot follow the model's `forward`, or not at these sizes.

    Example:
        >>> graph = WeightGraph(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval(), torch.ones(2, 4))
        >>> [site.name for site in graph.sites]
        ['0.weight/input', '0.weight', '2.weight/input', '2.weight']
    """

    def __init__(self, model: nn.Module, example: Any, fuses: bool = True, others: Sequence[Any] = ()) -> None:
        tensors = state_of(model)
        self.example = map_tensors(torch.clone, canonical(example))
        self.free = _free_dims(self.example, others)
        lifted = Lifted(model, tuple(tensors))
        module = _exported(lifted, tuple(tensors.values()), self.example, self.free, type(model))
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            copies = tuple(tensor.clone() for tensor in tensors.values())
            self._example_outputs = lifted.outputs(copies, map_tensors(torch.clone, self.example))
            self._writes = not all(map(_same, copies, tensors.values()))
            self.takes_any_rows = _takes_other_rows(module, copies, self.example)
            for other in others:
                _require_same(module, lifted, copies, canonical(other), type(model))
        owner = partial(layer_of, layer_names(model))
        self._prologue, self.names = take_out(module, tuple(tensors), owner)
        self.buffers = frozenset(name for name, _ in model.named_buffers())
        """Those of its tensors that no optimiser changes."""
        finder = SiteFinder(module.graph, self.names, owner, fuses)
        finder.find()
        self.sites, self.layers, self.other_products = tuple(finder.sites), tuple(finder.layers), finder.other_products
        self.has_long_tails = finder.has_long_tails
        self.shapes = [(tuple(tensor.shape), tensor.dtype) for tensor in self._prologue(tuple(tensors.values()))]
        self._sources, self._device = tuple(tensors), torch.device("cpu")
        self._operations = Operations(module)

    def to(self, device: torch.device) -> "WeightGraph":
        """The same graph, to be run on a device."""
        moved = copy.copy(self)
        moved._operations, moved._prologue = self._operations.to(device), self._prologue.to(device)
        moved._device = device
        return moved

    def tensors(self, published: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The graph's weights and buffers in their order, from the model's by name, some of them computed."""
        return self._prologue([published[name] for name in self._sources])

    def run(self, tensors: Sequence[Tensor], inputs: Any, acts: Mapping[int, Act] | None = None) -> Any:
        """The model's outputs, with `acts` done at the sites of those numbers.

        Args:
            tensors: from `tensors()`.
            inputs: a pytree such as the example.
            acts: site -> what becomes of the tensor there. Default: nothing, at any.
        """
        # The caller may stand inside the trainer's autocast.
        with torch.no_grad(), torch.autocast(self._device.type, torch.bfloat16, enabled=False):
            # A forward that counts its calls in a buffer must not count in a record.
            own = tuple(tensor.clone() for tensor in tensors) if self._writes else tuple(tensors)
            return self.outputs_from(self._operations(*own, *pytree.tree_leaves(self.canonical(inputs)), acts=acts))

    def marked(self) -> nn.Module:
        """(tensors, marks, inputs) -> flat outputs, every site a product with a mark, [1], of the same number.

        A mark is an input that a converter carries along by name, so that whoever lowers the converted graph finds
        every site as a product with it, and puts the quantisation there.
        """
        return _Marked(self)

    def exported(self) -> torch.export.ExportedProgram:
        """What a converter is given: `marked`, of any number of rows, by weights, marks and inputs in their order."""
        tensors = tuple(torch.zeros(shape, dtype=dtype) for shape, dtype in self.shapes)
        return export(self.marked(), (tensors, tuple(torch.ones(1) for _ in self.sites), self.example), self.free)

    def canonical(self, inputs: Any) -> Any:
        """The inputs as a plain pytree, in the order of the example.

        Raises:
            ValueError: they have another structure, or other shapes behind the rows where these are not free.
        """
        if _looks_as(inputs, self.example):  # one tensor: the usual case, in the hot path
            return inputs
        inputs = canonical(inputs)
        if isinstance(self.example, dict) and isinstance(inputs, dict) and self.example.keys() == inputs.keys():
            inputs = {name: inputs[name] for name in self.example}
        got, wanted = (self._fixed_sizes(tree) for tree in (inputs, self.example))
        if got != wanted or pytree.tree_structure(inputs) != pytree.tree_structure(self.example):
            raise ValueError(
                f"inputs must look as those that the engine was built with, but for the number of rows: got "
                f"{_described(inputs)} instead of {_described(self.example)}; pad all batches to one size in "
                "collate_fn, or use oracle='torch:fp32' or 'torch:bf16', which take any"
            )
        return inputs

    def _fixed_sizes(self, inputs: Any) -> list[Any]:
        """Of each tensor its kind and the sizes that are fixed, with their dimensions."""
        tensors = tensors_of(inputs)
        free = self.free if len(tensors) == len(self.free) else [frozenset((0,))] * len(tensors)
        return [
            (tensor.dtype, tensor.ndim, [(dim, size) for dim, size in enumerate(tensor.shape) if dim not in dims])
            for tensor, dims in zip(tensors, free, strict=True)
        ]

    def inputs_from(self, tensors: Sequence[Tensor]) -> Any:
        """A pytree such as the example from its tensors in order."""
        return pytree.tree_unflatten(tensors, pytree.tree_structure(self.example))

    def outputs_from(self, tensors: Sequence[Tensor]) -> Any:
        """The model's pytree of outputs from its tensors in order."""
        fresh = iter(tensors)
        return map_tensors(lambda _: next(fresh), self._example_outputs)


def canonical(inputs: Any) -> Any:
    """Inputs as torch.export takes them: mappings as dictionaries, lists as tuples, floats in float32."""
    inputs = as_float32(inputs)
    if isinstance(inputs, Mapping):
        return dict(inputs)
    return tuple(inputs) if isinstance(inputs, list) else inputs


class _Marked(nn.Module):
    def __init__(self, graph: WeightGraph) -> None:
        super().__init__()
        self._weight_graph = graph

    def forward(self, tensors: tuple[Tensor, ...], marks: tuple[Tensor, ...], inputs: Any) -> Any:
        acts = {number: (lambda x, mark=mark: x * mark) for number, mark in enumerate(marks)}
        return tuple(tensors_of(self._weight_graph.run(tensors, inputs, acts)))


def require_python(model: nn.Module) -> None:
    """Refuse what has no `forward` that could be followed.

    Raises:
        GraphError: a part of it is TorchScript.
    """
    scripts = [name or "the model" for name, module in model.named_modules() if isinstance(module, ScriptModule)]
    if scripts:
        raise GraphError(
            f"an engine that converts a model needs its modules in Python: got TorchScript ({scripts[0]}); pass the "
            "nn.Module that it was made of, or use oracle='torch:fp32' or 'torch:bf16', which run it as it is"
        )


def export(
    module: nn.Module, arguments: tuple[Any, ...], free: Sequence[frozenset[int]]
) -> torch.export.ExportedProgram:
    """torch.export, for arguments of which the last, a pytree, has dimensions that stay free.

    Args:
        module: traced without jaxtyping's checks and without attention's fused kernels, which nothing else runs.
        arguments: example arguments.
        free: of each tensor of the last argument, in order.
    """
    dims = iter(free)
    moving = map_tensors(lambda tensor: dict.fromkeys(next(dims), torch.export.Dim.AUTO), arguments[-1])  # type: ignore[arg-type,return-value]  # no tensors, but whatever stands for them
    fixed = tuple(map_tensors(lambda tensor: None, argument) for argument in arguments[:-1])  # type: ignore[arg-type,return-value]  # no tensors, but whatever stands for them
    with (
        warnings.catch_warnings(),
        untyped(),
        torch.autocast("cpu", torch.bfloat16, enabled=False),
        _no_fused_attention(),
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
    ):
        warnings.simplefilter("ignore")
        return torch.export.export(module, arguments, dynamic_shapes=(*fixed, moving), strict=False)


def _free_dims(example: Any, others: Sequence[Any]) -> tuple[frozenset[int], ...]:
    """Of each tensor the dimensions that differ in one of the others, and the first."""
    free = [{0} for _ in tensors_of(example)]
    for other in others:
        for dims, own, its in zip(free, tensors_of(example), tensors_of(canonical(other)), strict=True):
            dims |= {dim for dim, (a, b) in enumerate(zip(own.shape, its.shape, strict=True)) if a != b}
    return tuple(map(frozenset, free))


def _exported(
    module: nn.Module, tensors: tuple[Tensor, ...], example: Any, free: Sequence[frozenset[int]], kind: type
) -> fx.GraphModule:
    if batch_size(example) < 2:
        raise GraphError(f"an example must have at least two rows: got {batch_size(example)}; pass a larger batch")
    try:
        exported = export(module, (tensors, example), free)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about torch
            if any(writes(node) for node in exported.graph.nodes):
                exported = exported.run_decompositions({})  # no decompositions: only without operations in place
            return exported.module(check_guards=False)
    except Exception as error:  # torch.export raises whatever the user's forward and its own passes raise
        reason = str(error).strip().splitlines()
        raise GraphError(
            f"torch.export must be able to follow {kind.__name__}.forward: got {type(error).__name__}: "
            f"{reason[0] if reason else ''}; use oracle='torch:fp32' or 'torch:bf16', which run the model as it is, or "
            "take control flow that depends on the data out of forward"
        ) from error


def _takes_other_rows(module: fx.GraphModule, tensors: tuple[Tensor, ...], example: Any) -> bool:
    """Whether a batch may have any number of rows, or only the example's."""
    try:
        module(tensors, map_tensors(lambda t: t[:-1].clone(), example))
    except Exception:  # a shape that was baked in fails in whatever operation meets it first
        return False
    return True


def _require_same(module: fx.GraphModule, lifted: Lifted, tensors: tuple[Tensor, ...], inputs: Any, kind: type) -> None:
    """That the graph says of inputs of another size what the model does."""
    wanted = lifted(tensors, map_tensors(torch.clone, inputs))
    try:
        got = module(tensors, map_tensors(torch.clone, inputs))
        is_same = all(map(partial(torch.allclose, rtol=1e-3, atol=1e-4, equal_nan=True), got, wanted))
    except Exception:  # a size that was baked in fails in whatever operation meets it first
        is_same = False
    if not is_same:
        raise GraphError(
            f"{kind.__name__}.forward must compute with the sizes that it is given, where batches change theirs: got "
            f"a graph that cannot take {_described(inputs)}; write x.shape[1] where forward has a number, pad all "
            "batches to one size in collate_fn, or use oracle='torch:fp32' or 'torch:bf16'"
        )


@contextmanager
def _no_fused_attention() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or bool(a.isnan().any())


def _looks_as(inputs: Any, example: Any) -> bool:
    is_tensor = isinstance(inputs, Tensor) and isinstance(example, Tensor)
    return is_tensor and inputs.dtype == example.dtype and inputs.shape[1:] == example.shape[1:]


def _described(inputs: Any) -> str:
    def one(tensor: Tensor) -> str:
        return f"[n, {', '.join(map(str, tensor.shape[1:]))}] {str(tensor.dtype).removeprefix('torch.')}"

    if isinstance(inputs, dict):
        return ", ".join(f"{name}: {_described(part)}" for name, part in inputs.items())
    return " and ".join(one(tensor) for tensor in tensors_of(inputs)) or type(inputs).__name__
