"""The engine that every machine has: PyTorch, eager or compiled, in fp32, bf16 or fp16.

The reference for the engines that run integers, and an oracle in its own right: with batch-norm folded, channels last
and fed in chunks, it runs small networks more than twice as fast as the trainer's modules run one large batch. Weights
live in static tensors that a refresh overwrites, so a refresh allocates and traces nothing that stays, and what
torch.compile has built sees it.
"""

import copy
from collections import defaultdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from infer2train.batches import as_float32, call_model, map_tensors, take_rows, tensors_of, to_device
from infer2train.machine.compilation import compiled
from infer2train.machine.device import device_of
from infer2train.oracle.engine import Engine, Prepared
from infer2train.oracle.quantization.fold import LAYERS, fold_plan, folded_tensors
from infer2train.oracle.quantization.frozen import frozen_copy
from infer2train.oracle.quantization.program import deviation
from infer2train.oracle.snapshot import Record, RecordGate

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NAMES = {dtype: name for name, dtype in DTYPES.items()} | {torch.float64: "fp64"}
UNCOMPILED = "leave +compile out of the oracle's name"
LAID_OUT = (nn.Conv2d, nn.ConvTranspose2d)
"""Layers whose weights are kept channels last, and with them the feature maps that they give."""
SAME = 4.0
"""Output quantisation steps by which two memory layouts may differ, which add in another order; what reads a feature
map by its layout (as_strided) is tens of steps off."""
FEW = 8
"""Rows by which layouts are compared."""
LOW_PRECISION_LAYERS = (*LAYERS, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Layers whose weights are kept in the engine's precision: exactly these classes. A subclass may compute with its
weight (standardise it, hand it to attention), so it keeps float32 and autocast does the rest."""


class TorchEngine(Engine):
    """Runs a copy of the model with PyTorch.

    Convolutions and linear layers keep their weights in `precision` and run under autocast; everything else, and what
    `outputs` returns, is float32. It shares no storage with the model.

    Args:
        model: the trainer's model; its structure is copied, its weights come with the first record.
        precision: fp32, bf16 or fp16.
        device: where it runs. Default: the model's own.
        fold: put batch-norm into the layers before it where that is possible.
        is_compiled: by torch.compile, for inputs of a few shapes; the first outputs may take minutes.

    Raises:
        ValueError: the precision is unknown, or there is nothing to compile with.

    Example:
        >>> from infer2train.oracle.snapshot import snapshot
        >>> model = nn.Sequential(nn.Linear(4, 2))
        >>> engine = TorchEngine(model, precision="bf16")
        >>> engine.refresh(snapshot(model, version=100))
        >>> engine.outputs(torch.ones(3, 4)).shape, engine.precisions()
        (torch.Size([3, 2]), {'0': 'bf16'})
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        precision: str = "fp32",
        device: torch.device | None = None,
        fold: bool = True,
        is_compiled: bool = False,
    ) -> None:
        if precision not in DTYPES:
            raise ValueError(f"precision of the torch engine must be one of {', '.join(DTYPES)}: got {precision!r}")
        self.name = f"torch:{precision}{'+compile' if is_compiled else ''}"
        self.device = device or device_of(model)
        self._dtype = DTYPES[precision]
        self._gate = RecordGate(model)
        network, self._pairs = fold_plan(model) if fold else (frozen_copy(model), [])
        self._network = network.to(self.device)
        _cast(self._network, self._dtype)
        has_maps = any(isinstance(module, LAID_OUT) for module in self._network.modules())
        self._format: torch.memory_format = torch.channels_last if has_maps else torch.contiguous_format
        self._is_settled = not has_maps
        _lay_out(self._network, self._format)
        self._static = dict(self._network.named_parameters()) | dict(self._network.named_buffers())
        """What a refresh writes, under the names that records have."""
        self._ran: dict[str, str] = {}
        for name, module in self._network.named_modules():
            if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
                module.register_forward_hook(partial(_note, self._ran, name))
        self._is_compiled = is_compiled
        self._run = self._runner()

    def _runner(self) -> Any:
        """What is called for outputs."""
        return compiled(self._network, self.device, UNCOMPILED, whole=True) if self._is_compiled else self._network

    def __getstate__(self) -> dict[str, Any]:
        """Without weights: they come with the first record."""
        known: dict[int, Any] = {id(tensor): _without_storage(tensor) for tensor in self._static.values()}
        return copy.deepcopy({**self.__dict__, "version": None, "_run": None}, known | {id(self._ran): {}})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        for static in self._static.values():
            static.data = static.data.contiguous()
        _lay_out(self._network, self._format)
        self._run = self._runner()

    def prepared(self, record: Record) -> Prepared:
        """The record's weights, folded in float32, as the engine's own tensors are.

        Raises:
            ValueError: the record is of another architecture, or holds NaN or infinity, or overflows the precision. A
                buffer that held infinity at construction (an attention mask) may do so.
        """
        self._gate.check(record, self.version)
        with torch.no_grad():
            folded = folded_tensors(self._pairs, record.tensors)
            fresh = {name: torch.empty_like(static).copy_(folded[name]) for name, static in self._static.items()}
            self._gate.check_finite(fresh, self.version, f" once folded and in {NAMES[self._dtype]}")
        return Prepared(record.version, fresh)

    def use(self, prepared: Prepared) -> None:
        with torch.no_grad():
            for name, static in self._static.items():
                static.copy_(prepared.program[name])
        self.version = prepared.version

    def outputs(self, inputs: Any) -> Any:
        self._must_be_refreshed()
        self._ran.clear()
        inputs = as_float32(to_device(inputs, self.device))
        # Not inference_mode: a trainer's loss may multiply by what the oracle says, and inference tensors refuse that.
        with torch.no_grad(), self._autocast():
            if not self._is_settled:
                self._settle(inputs)
            return map_tensors(_widen, self._forward(inputs))

    def precisions(self) -> dict[str, str]:
        return dict(self._ran)

    def _forward(self, inputs: Any) -> Any:
        try:
            return call_model(self._run, inputs)
        except Exception as error:
            is_of_layout = isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
            if self._format is torch.contiguous_format or not is_of_layout:
                if self._is_compiled:
                    error.add_note(f"torch.compile needs a model that it can follow, and few shapes; {UNCOMPILED}")
                raise
        # x.view(n, -1) of a feature map needs the layout that the model was written for.
        self._be_contiguous()
        return self._forward(inputs)

    def _settle(self, inputs: Any) -> None:
        """Stay channels last only if the model says the same in the layout that it was written for; found out once."""
        self._is_settled = True
        few = take_rows(inputs, FEW)
        try:
            here, there = (self._says(few, layout) for layout in (self._format, torch.contiguous_format))
        except RuntimeError:
            return self._be_contiguous()
        has_shapes = [tensor.shape for tensor in here] == [tensor.shape for tensor in there]
        if not (has_shapes and deviation(here, there) <= SAME):
            self._be_contiguous()

    def _says(self, inputs: Any, layout: torch.memory_format) -> list[Tensor]:
        """The real outputs of a copy of the network in float32, in a memory layout."""
        network = copy.deepcopy(self._network).float()
        _lay_out(network, layout)
        with torch.random.fork_rng(devices=[]), torch.autocast(self.device.type, enabled=False):
            outputs = call_model(network, map_tensors(torch.clone, inputs))
        return [tensor for tensor in tensors_of(outputs) if tensor.is_floating_point()]

    def _be_contiguous(self) -> None:
        self._format = torch.contiguous_format
        _lay_out(self._network, self._format)

    def _autocast(self) -> torch.autocast:
        low = self._dtype is not torch.float32
        # Entered for fp32 as well: the caller may stand inside the trainer's autocast.
        return torch.autocast(self.device.type, self._dtype if low else torch.bfloat16, enabled=low)


def _note(ran: dict[str, str], name: str, module: nn.Module, arguments: Any, output: Any) -> None:
    ran[name] = NAMES.get(output.dtype, str(output.dtype))


def _without_storage(tensor: Tensor) -> Tensor:
    """A tensor of that kind and shape that takes no room in a pickle."""
    bare = tensor.detach().new_zeros(()).expand(tensor.shape)
    return nn.Parameter(bare, requires_grad=False) if isinstance(tensor, nn.Parameter) else bare


def _widen(tensor: Tensor) -> Tensor:
    """Scores need float32: bf16 losses have eight bits, and half of the candidates would tie."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _cast(network: nn.Module, dtype: torch.dtype) -> None:
    """The weights of convolutions and linear layers to `dtype`, all else that is floating to float32, in place."""
    owners: defaultdict[Tensor, set[type[nn.Module]]] = defaultdict(set)
    for module in network.modules():
        # A hook makes the weight of others (spectral_norm), which must be of one precision.
        kind = nn.Module if module._forward_pre_hooks else type(module)
        for parameter in module.parameters(recurse=False):
            owners[parameter].add(kind)
    for tensor in (*network.parameters(), *network.buffers()):
        # A weight shared with an embedding, say, is not the layer's alone.
        low = tensor in owners and owners[tensor] <= {*LOW_PRECISION_LAYERS}
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype if low else torch.float32)


def _lay_out(network: nn.Module, memory_format: torch.memory_format) -> None:
    for module in network.modules():
        if isinstance(module, LAID_OUT):
            for parameter in module.parameters(recurse=False):
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=memory_format)
