"""Batch-norm folding for arbitrary models: planned once, then only arithmetic on each record's tensors.

In evaluation mode a batch-norm behind a convolution or linear layer is an affine map of its output, so it is put into
that layer's weight and bias, and the engine does less. torch.fx finds the pairs; the skeleton keeps the model's own
`forward`, with the batch-norms replaced by the identity, so nothing else of the model is rewritten. What is not surely
foldable keeps its batch-norm: a layer called twice or used elsewhere too, one with hooks or a class of its own, a
transposed convolution, a batch-norm without running statistics.
"""

import copy
import inspect
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jaxtyping
import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from infer2train.oracle.quantization.frozen import frozen_copy

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""What a batch-norm can be folded into: exactly these classes, for a subclass may do something else with its weight."""
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class FoldedPair:
    """A layer and the batch-norm that is folded into it.

    Args:
        layer: the layer's name in the model.
        norm: the batch-norm's.
        eps: its ε.
    """

    layer: str
    norm: str
    eps: float

    def fold(self, tensors: Mapping[str, Tensor]) -> tuple[Float[Tensor, "c ..."], Float[Tensor, " c"]]:
        """The layer's weight and bias with the batch-norm in them: w·s and (b − μ)·s + β, where s = γ / √(σ² + ε).

        Args:
            tensors: the model's state; a missing bias b or β counts as 0, a missing γ as 1.

        Returns:
            Weight [c ...] and bias [c], float32, on the state's device.

        Source: Jacob et al., arXiv 1712.05877, section 3.2.
        """
        weight = tensors[f"{self.layer}.weight"].float()
        mean, variance = tensors[f"{self.norm}.running_mean"].float(), tensors[f"{self.norm}.running_var"].float()
        scale = torch.rsqrt(variance + self.eps)
        if (gamma := tensors.get(f"{self.norm}.weight")) is not None:
            scale = scale * gamma.float()
        bias = -mean * scale
        if (layer_bias := tensors.get(f"{self.layer}.bias")) is not None:
            bias = bias + layer_bias.float() * scale
        if (beta := tensors.get(f"{self.norm}.bias")) is not None:
            bias = bias + beta.float()
        return weight * scale.view(-1, *[1] * (weight.ndim - 1)), bias


class Folded(nn.Identity):
    """Where a batch-norm was. Behind a linear layer it holds the input to [n c], the shape that folding assumes."""

    def __init__(self, pair: FoldedPair, flat: bool) -> None:
        super().__init__()
        self._pair = pair
        self._flat = flat

    def forward(self, x: Any) -> Any:
        if self._flat and x.ndim != 2:  # of [n l c] the layer maps the last dimension, the batch-norm the second
            raise ValueError(
                f"a batch-norm can be folded into a linear layer only for inputs [n c]: got {tuple(x.shape)} "
                f"between {self._pair.layer} and {self._pair.norm}; build the engine with fold=False"
            )
        return x


def fold_plan(model: nn.Module) -> tuple[nn.Module, list[FoldedPair]]:
    """A model's skeleton without the batch-norms that can be folded, and what was folded into what.

    The skeleton is a copy in evaluation mode, without gradients, that shares no storage with the model. It computes
    what the model computes once it holds `folded_tensors(pairs, model.state_dict())`; until then its weights are the
    model's unfolded ones. Warns, naming the batch-norms that stay, where torch.fx cannot trace the model.

    Args:
        model: any module; it is not changed.

    Returns:
        The skeleton and the pairs, both in the order in which the model calls them.

    Example:
        >>> skeleton, pairs = fold_plan(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
        >>> pairs
        [FoldedPair(layer='0', norm='1', eps=1e-05)]
    """
    skeleton = frozen_copy(model)
    norms = [name for name, module in skeleton.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return skeleton, []
    graphs, errors = _graphs(skeleton)
    if not graphs:
        warnings.warn(
            f"batch-norm is folded only in models that torch.fx can trace: {type(model).__name__} keeps "
            f"{', '.join(norms)}, and the oracle is slower for it; tracing said: {' | '.join(errors)}"
        )
        return skeleton, []
    pairs = _pairs(skeleton, graphs[0])
    for graph in graphs[1:]:
        others = _pairs(skeleton, graph)
        pairs = [pair for pair in pairs if pair in others]
    for pair in pairs:
        _replace(skeleton, pair)
    return skeleton, pairs


def folded_tensors(pairs: list[FoldedPair], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The skeleton's state from the model's: folded weights and biases in float32, the rest as it is.

    Args:
        pairs: from `fold_plan`.
        tensors: every entry of the model's `state_dict()`, for example a record's.

    Returns:
        Tensors by the skeleton's names; the unfolded ones are the very tensors given.
    """
    gone = tuple(f"{pair.norm}." for pair in pairs)
    result = {name: tensor for name, tensor in tensors.items() if not name.startswith(gone)}
    for pair in pairs:
        result[f"{pair.layer}.weight"], result[f"{pair.layer}.bias"] = pair.fold(tensors)
    return result


class _Tracer(fx.Tracer):
    """Fails at a branch on a buffer too, as it does on data: what the buffer says may change with every record."""

    proxy_buffer_attributes = True


def _graphs(skeleton: nn.Module) -> tuple[list[fx.Graph], list[str]]:
    """The traced graphs, and what went wrong in those traces that failed.

    `if mask is None` is decided while tracing. So a model with optional arguments is traced with and without them, and
    only what folds in both is folded.
    """
    parameters = inspect.signature(skeleton.forward).parameters.values()
    optional = {p.name: p.default for p in parameters if p.default is not p.empty}
    graphs: list[fx.Graph] = []
    errors: list[str] = []
    for concrete in [{}, optional] if optional else [{}]:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), untyped():
            warnings.simplefilter("ignore")  # of assertions that a graph would need that is run; this one is only read
            try:
                # A copy, because a forward may store what it computes, and would keep the tracer's proxies.
                graphs.append(_Tracer().trace(copy.deepcopy(skeleton), concrete))
            except Exception as error:  # whatever the user's forward raises when it is fed a proxy
                errors.append(f"{type(error).__name__}: {error}")
    return graphs, errors


@contextmanager
def untyped() -> Iterator[None]:
    """Without jaxtyping's run-time checks, which would refuse torch.fx's proxies for not being tensors."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def _pairs(skeleton: nn.Module, graph: fx.Graph) -> list[FoldedPair]:
    modules = dict(skeleton.named_modules())
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    read = tuple(str(node.target) for node in graph.nodes if node.op == "get_attr")
    pairs: list[FoldedPair] = []
    for node in graph.nodes:
        if node.op != "call_module" or type(modules[node.target]) not in NORMS or len(node.args) != 1:
            continue
        source = node.args[0]
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        layer, norm = str(source.target), str(node.target)
        alone = calls[layer] == calls[norm] == 1 and not any(r.startswith((f"{layer}.", f"{norm}.")) for r in read)
        if alone and _foldable(modules[layer], modules[norm]):
            pairs.append(FoldedPair(layer, norm, modules[norm].eps))
    return pairs


def _foldable(layer: nn.Module, norm: nn.Module) -> bool:
    if type(layer) not in LAYERS or norm.training or norm.running_mean is None:
        return False
    # Pruning, and the older weight and spectral normalisation, make the weight at each call in a hook.
    hooks = [hook for module in (layer, norm) for hook in (*module._forward_hooks, *module._forward_pre_hooks)]
    return not hooks and len(layer.weight) == norm.num_features  # type: ignore[arg-type]  # a layer has a weight, a module need not


def _replace(skeleton: nn.Module, pair: FoldedPair) -> None:
    """Give the layer a weight of its own (a tied one must not be folded twice) and a bias; take the batch-norm away."""
    layer, norm = skeleton.get_submodule(pair.layer), skeleton.get_submodule(pair.norm)
    weight = layer.get_parameter("weight").detach().clone().float()
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = nn.Parameter(weight.new_zeros(len(weight)), requires_grad=False)
    identity = Folded(pair, flat=isinstance(layer, nn.Linear))
    for parent in list(skeleton.modules()):
        for name, child in list(parent._modules.items()):  # under each of its names
            if child is norm:
                setattr(parent, name, identity)
