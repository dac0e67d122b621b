"""The OpenVINO engine: the fastest int8 on x86 CPUs, and OpenVINO's other devices by name.

Converted once, with weights as parameters, so the converter folds nothing that a refresh would have to find again. A
refresh clones that graph, puts constants in the parameters' places and FakeQuantize (weights: integers and their S and
Z) in the places of the sites, and compiles. Pixels come in as uint8, channels last; normalisation is the model's own
operations.
"""

import functools
import itertools
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from infer2train.batches import tensors_of
from infer2train.oracle.lowered_engine import ROWS, Lowered, LoweredEngine
from infer2train.oracle.quantization.affine import BITS as BITS_OF_ALL
from infer2train.oracle.quantization.affine import Affine
from infer2train.oracle.quantization.program import Program
from infer2train.oracle.samples import Samples
from infer2train.oracle.telemetry import switch_off_openvino_telemetry
from infer2train.oracle.weight_bits import exact_weight_bits

if TYPE_CHECKING:
    import openvino as ov

switch_off_openvino_telemetry()  # before anything here imports openvino

BITS = {"int8": 8} | {f"b{bits}": bits for bits in BITS_OF_ALL if bits < 8}
"""Precision -> width. Fewer than 8 bits run on the same int8 units: studies of precision at nearly the same speed."""
HINTS = dict.fromkeys(("fp32", *BITS), "f32") | {"bf16": "bf16"}
"""Precision -> of what stays real. It must be said: left alone, OpenVINO takes bf16 where the CPU has it."""
RAN_IN = {"u8": "int8", "i8": "int8", "f32": "fp32", "bf16": "bf16", "f16": "fp16"}
SITE = "site "
KERNEL_CACHE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
COMBINED = ("AUTO", "HETERO", "MULTI")
"""Devices that are several others."""
RUNTIME_LAYERS = ("Convolution", "FullyConnected", "MatMul", "Deconvolution")
LAYERS = ("Convolution", "GroupConvolution", "MatMul", "ConvolutionBackpropData", "GroupConvolutionBackpropData")
FUSED = ("Add", "Subtract", "Multiply", "Divide", "Relu")
ON_THE_WAY = ("Reshape", "Transpose", "Convert", "Unsqueeze", "Squeeze")
"""Operations between a weight and the layer that reads it."""


class OpenVINOEngine(LoweredEngine):
    """Runs a copy of the model with OpenVINO.

    Args:
        model: the trainer's; its structure is converted, which takes seconds, once.
        precision: int8, fp32 or bf16; b2 … b7 for values of fewer bits on the int8 units.
        samples: calibration samples and probe.
        device: an OpenVINO device such as GPU or NPU. Other devices than CPU are untested, their refresh cost unknown.
        scheme: how S and Z are chosen.
        rows: of every call.

    Raises:
        ValueError: the precision is unknown, or OpenVINO cannot run an operation of the model.
        GraphError: the model cannot be made into a graph.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        precision: str = "int8",
        samples: Samples,
        device: str | None = None,
        scheme: str = "default",
        rows: int = ROWS,
    ) -> None:
        if precision not in HINTS:
            raise ValueError(f"precision of the openvino engine must be one of {', '.join(HINTS)}: got {precision!r}")
        self._target = device or "CPU"
        kinds = {found.partition(".")[0] for found in _core().available_devices} | set(COMBINED)
        if self._target.partition(":")[0].partition(".")[0] not in kinds:
            raise ValueError(
                f"openvino runs on the devices that it finds: got @{self._target}, found "
                f"{', '.join(_core().available_devices)}; leave the device out for CPU"
            )
        self._hint = HINTS[precision]
        self.real = RAN_IN[self._hint]
        bits = BITS.get(precision)
        super().__init__(
            f"openvino:{precision}" + (f"@{device}" if device else ""),
            model,
            samples=samples,
            bits=bits,
            weight_bits=exact_weight_bits(bits) if bits and self._target == "CPU" else None,
            scheme=scheme,
            rows=rows,
        )

    def _convert(self) -> None:
        import openvino as ov

        graph, inputs = self.graph, tensors_of(self.graph.example)
        exported = graph.exported()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch about torch
                self._converted = _Converted(ov.convert_model(exported))
        except Exception as error:  # the converter raises many kinds, with the operation in the text
            raise ValueError(
                f"openvino must know every operation of the model: got {_reason(error)}; use oracle='torch:bf16', "
                "or 'onnxruntime:int8' if it knows them"
            ) from error
        count = len(graph.names) + len(graph.sites) + len(inputs)
        parameters = self._converted.model.get_parameters()
        if len(parameters) != count:  # None becomes one too
            raise ValueError(
                f"openvino must be given every input as a tensor: got {len(inputs)} tensors for "
                f"{len(parameters) - count + len(inputs)} inputs; leave None out in collate_fn, or use "
                "oracle='onnxruntime:int8' or 'torch:bf16'"
            )
        self._is_channels_last = [_is_channels_last(tensor) for tensor in inputs]
        self._clipped_known = False
        self._name_layers(dict(zip(graph.names, parameters, strict=False)), parameters[len(graph.names) :])

    def _name_layers(self, by_name: Mapping[str, Any], marks: Sequence[Any]) -> None:
        """Give layers names by which the compiled graph can be read; a fused one may go by what stands around it."""
        site_of = {mark.get_name(): f"{SITE}{number}" for number, mark in enumerate(marks[: len(self.graph.sites)])}
        readers_of_site = Counter(layer.sites[0] for layer in self.graph.layers if layer.sites)
        self._layer_of: dict[str, str] = {}
        self._also_known_as: dict[str, str] = {}
        for layer in self.graph.layers:
            if layer.weight is None:
                continue
            for node in _readers(by_name[layer.weight]):
                if node.get_friendly_name() not in self._layer_of:
                    node.set_friendly_name(f"{layer.name} reads {node.get_friendly_name()}")
                    self._layer_of[node.get_friendly_name()] = layer.name
                    for name in _behind(node, site_of):
                        self._also_known_as.setdefault(name, layer.name)
            if layer.sites and readers_of_site[layer.sites[0]] == 1:
                self._also_known_as.setdefault(f"{SITE}{layer.sites[0]}", layer.name)

    def _lower(self, tensors: Sequence[Tensor], program: Program | None) -> Lowered:
        from openvino import opset13 as ops

        model = self._converted.model.clone()
        parameters = model.get_parameters()
        weights, marks = parameters[: len(tensors)], parameters[len(tensors) : len(tensors) + len(self.graph.sites)]
        inputs = parameters[len(tensors) + len(self.graph.sites) :]
        constants = [ops.constant(tensor.numpy()) for tensor in tensors]
        by_name = dict(zip(self.graph.names, tensors, strict=True))
        for number, (site, mark) in enumerate(zip(self.graph.sites, marks, strict=True)):
            product = next(iter(mark.output(0).get_target_inputs())).get_node()
            source = next(v for v in product.input_values() if v.get_node().get_name() != mark.get_name())
            if program is None:
                result = source
            elif site.kind == "weight":
                result = _integers(by_name[site.name], program.affines[number]).output(0)
            else:
                affine = program.affines[number]
                low, high = (limit.numpy() for limit in affine.limits())
                levels, name = affine.high - affine.low + 1, f"{SITE}{number}"
                result = ops.fake_quantize(source, low, high, low, high, levels=levels, name=name).output(0)
            for reader in product.output(0).get_target_inputs():
                reader.replace_source_output(result)
            model.remove_parameter(mark)
        for parameter, constant in zip(weights, constants, strict=True):
            for reader in parameter.output(0).get_target_inputs():
                reader.replace_source_output(constant.output(0))
            model.remove_parameter(parameter)
        self._shape_inputs(model, inputs)
        settings = {"INFERENCE_PRECISION_HINT": self._hint, "PERFORMANCE_HINT": "LATENCY"}
        if self._target == "CPU":
            settings |= {"NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": str(torch.get_num_threads())}
        compiled = _core().compile_model(model, self._target, settings)
        if program is not None and not self._clipped_known:
            self.may_clip, self._clipped_known = frozenset(_added_unrounded(compiled)), True
        return _Request(model, compiled, self._is_channels_last)

    def _shape_inputs(self, model: "ov.Model", inputs: Sequence[Any]) -> None:
        """Give the inputs their shapes, channels last where the example has them so; free sizes stay free."""
        import openvino as ov
        from openvino import opset13 as ops

        examples = tensors_of(self.graph.example)
        described = zip(inputs, examples, self.graph.free, self._is_channels_last, strict=True)
        for parameter, tensor, free, last in described:
            sizes = [-1 if dim in free else size for dim, size in enumerate(tensor.shape)]
            shape = [self.rows, *sizes[1:]]
            if not last:
                parameter.set_partial_shape(ov.PartialShape(shape))
                continue
            n, c, h, w = shape
            fresh = ops.parameter(ov.PartialShape([n, h, w, c]), parameter.get_element_type())
            planes = ops.transpose(fresh, ops.constant(np.array([0, 3, 1, 2])))
            for reader in parameter.output(0).get_target_inputs():
                reader.replace_source_output(planes.output(0))
            index = model.get_parameter_index(parameter)
            model.replace_parameter(index, fresh)
        model.validate_nodes_and_infer_types()

    def _write(self, lowered: Lowered, path: Path) -> None:
        import openvino as ov

        assert isinstance(lowered, _Request)
        model = lowered.model.clone()
        if self.graph.takes_any_rows:
            model.reshape({value: [-1, *list(value.get_partial_shape())[1:]] for value in model.inputs})
        for parameter, last in zip(model.get_parameters(), self._is_channels_last, strict=True):
            if len(parameter.get_partial_shape()) == 4:
                parameter.set_layout(ov.Layout("NHWC" if last else "NCHW"))
        ov.save_model(model, path, compress_to_fp16=False)

    def _ran_in(self, lowered: Lowered) -> dict[str, str]:
        assert isinstance(lowered, _Request)
        found: dict[str, str] = {}
        for node in lowered.compiled.get_runtime_model().get_ops():
            info = node.get_rt_info()
            if _text(info, "layerType") not in RUNTIME_LAYERS:
                continue
            precision = RAN_IN.get(_text(info, "runtimePrecision"), _text(info, "runtimePrecision"))
            for layer in self._layers_named(_text(info, "originalLayersNames").split(",")):
                if found.setdefault(layer, precision) != precision:
                    found[layer] = "+".join(sorted({*found[layer].split("+"), precision}))
        return {layer.name: self.real for layer in self.graph.layers if layer.weight is None} | found

    def _layers_named(self, names: Sequence[str]) -> set[str]:
        """The layers that a compiled operation was made of, by their own names, else by those of their neighbours."""
        for known in (self._layer_of, self._also_known_as):
            # Transformations add a suffix.
            layers = {known[base] for base in known for name in names if name == base or name.startswith(f"{base}/")}
            if layers:
                return layers
        return set()


@functools.cache
def _core() -> "ov.Core":
    """OpenVINO, once a process."""
    import openvino as ov

    _keep_no_kernels()
    return ov.Core()


def _keep_no_kernels() -> None:
    """Have OpenVINO's oneDNN keep no kernels of earlier programs.

    Scales are compiled into them, so no later refresh finds its own there, and they would grow to a hundred megabytes.
    The setting is read from the environment at the first use; torch has a oneDNN of its own, which needs its kernels
    kept, and so is used first.
    """
    import openvino as ov
    from openvino import opset13 as ops

    torch.nn.functional.conv2d(torch.ones(1, 8, 4, 4), torch.ones(8, 8, 3, 3))
    own = os.environ.get(KERNEL_CACHE)
    os.environ.setdefault(KERNEL_CACHE, "0")
    try:
        # A convolution, since OpenVINO multiplies matrices without oneDNN on CPUs that have no AVX-512.
        image, weight = ops.parameter([1, 8, 4, 4], np.float32), ops.constant(np.ones((8, 8, 3, 3), np.float32))
        found = ops.convolution(image, weight, [1, 1], [0, 0], [0, 0], [1, 1])
        ov.Core().compile_model(ov.Model([found], [image]), "CPU")([np.ones((1, 8, 4, 4), np.float32)])
    finally:
        if own is None:
            del os.environ[KERNEL_CACHE]


class _Converted:
    """A model, pickled as OpenVINO writes it."""

    def __init__(self, model: "ov.Model") -> None:
        self.model = model

    def __getstate__(self) -> tuple[bytes, bytes]:
        import openvino as ov

        with tempfile.TemporaryDirectory() as folder:
            operations, constants = Path(folder) / "model.xml", Path(folder) / "model.bin"
            ov.serialize(self.model, operations, constants)
            return operations.read_bytes(), constants.read_bytes()

    def __setstate__(self, state: tuple[bytes, bytes]) -> None:
        self.model = _core().read_model(*state)


class _Request:
    """A compiled model, called with flat tensors."""

    def __init__(self, model: "ov.Model", compiled: "ov.CompiledModel", is_channels_last: Sequence[bool]) -> None:
        self.model = model
        self.compiled, self._request = compiled, compiled.create_infer_request()
        self._is_channels_last = is_channels_last
        self._outputs = range(len(compiled.outputs))

    def __call__(self, flat: list[Tensor]) -> list[Tensor]:
        arrays = [
            (tensor.permute(0, 2, 3, 1) if last else tensor).contiguous().numpy()
            for tensor, last in zip(flat, self._is_channels_last, strict=True)
        ]
        self._request.infer(arrays, share_inputs=True)
        return [torch.from_numpy(self._request.get_output_tensor(i).data.copy()) for i in self._outputs]


def _integers(weight: Tensor, affine: Affine) -> Any:
    """int8 constants and the multiplication that makes real numbers of them."""
    from openvino import opset13 as ops

    shape = (-1, *[1] * (weight.ndim - 1)) if affine.scale.ndim else ()
    node = ops.convert(ops.constant(affine.quantize(weight).to(torch.int8).numpy()), "f32")
    if bool(affine.zero_point.any()):
        node = ops.subtract(node, ops.constant(affine.zero_point.float().numpy().reshape(shape)))
    return ops.multiply(node, ops.constant(affine.scale.numpy().reshape(shape)))


def _readers(node: Any) -> Iterator[Any]:
    """The layers that read a weight, through whatever reshapes it."""
    for reader in node.output(0).get_target_inputs():
        found = reader.get_node()
        if found.get_type_name() in LAYERS:
            yield found
        elif found.get_type_name() in (*ON_THE_WAY, "Multiply"):  # by the mark of a site
            yield from _readers(found)


def _behind(node: Any, site_of: Mapping[str, str]) -> Iterator[str]:
    """Names of the operations on single numbers that alone read a layer, one after another: it is fused with them."""
    while len(readers := node.output(0).get_target_inputs()) == 1:
        node = next(iter(readers)).get_node()
        if node.get_type_name() not in FUSED:
            return
        inputs = [value.get_node().get_name() for value in node.input_values()]
        yield next((site_of[name] for name in inputs if name in site_of), node.get_friendly_name())


def _added_unrounded(compiled: "ov.CompiledModel") -> Iterator[int]:
    """Sites that were fused between a convolution and an addition: OpenVINO clips there, and rounds after the sum."""
    for node in compiled.get_runtime_model().get_ops():
        names = _text(node.get_rt_info(), "originalLayersNames").split(",")
        for name, following in itertools.pairwise(names):
            if name.startswith(SITE) and "aten.add" in following:
                yield int(name.removeprefix(SITE))


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def _text(info: Any, name: str) -> str:
    value = info[name] if name in info else ""  # noqa: SIM401  # OpenVINO's mapping has no get
    return str(getattr(value, "value", value))


def _reason(error: Exception) -> str:
    """The lines of a converter's long error that name what it cannot convert."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "aten" in line or "No conversion" in line]
    return f"{type(error).__name__}: {' '.join(dict.fromkeys(named or lines[:3]))[:600]}"
