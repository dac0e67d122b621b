"""The ONNX Runtime engine: int8 that refreshes fastest.

Exported once, with weights as inputs. From that a template is made whose sites are QuantizeLinear and DequantizeLinear;
a refresh fills in initialisers (integers, S, Z) and builds a session.
"""

import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from infer2train.batches import tensors_of
from infer2train.oracle.lowered_engine import ROWS, Lowered, LoweredEngine
from infer2train.oracle.quantization.graph import WeightGraph
from infer2train.oracle.quantization.program import BIAS_LIMIT, Program
from infer2train.oracle.samples import Samples
from infer2train.oracle.weight_bits import exact_weight_bits

if TYPE_CHECKING:
    import onnx
    import onnxruntime as ort

PRECISIONS = ("int8", "fp32")
INTEGER_LAYERS = ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "ConvInteger", "MatMulInteger")
ZERO_WEIGHT_STEPS = 2**24
"""In which a layer whose weights are all zero has its greatest bias."""
UNSIGNED = 128
"""Added to integers of activations: the runtime's kernels are fastest on unsigned ones; only the numbering moves."""


class ONNXRuntimeEngine(LoweredEngine):
    """Runs a copy of the model with ONNX Runtime.

    Args:
        model: the trainer's; its structure is exported, which takes seconds, once.
        precision: int8 or fp32.
        samples: calibration samples and probe.
        device: an execution provider such as CUDAExecutionProvider. Others than CPUExecutionProvider are untested,
            their refresh cost unknown.
        scheme: how S and Z are chosen.
        rows: of every call.

    Raises:
        ValueError: the precision is unknown, or ONNX has no operation for one of the model's.
        GraphError: the model cannot be made into a graph.
    """

    takes_any_rows = True
    fuses = False  # only a convolution that is rounded at once becomes one of integers

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
        if precision not in PRECISIONS:
            raise ValueError(
                f"precision of the onnxruntime engine must be one of {', '.join(PRECISIONS)}: got {precision!r}"
            )
        import onnxruntime as ort

        self._provider = device or "CPUExecutionProvider"
        if self._provider not in ort.get_available_providers():
            raise ValueError(
                f"onnxruntime runs on the execution providers that it was built with: got @{self._provider}, there is "
                f"{', '.join(ort.get_available_providers())}; leave it out for the CPU"
            )
        bits = 8 if precision == "int8" else None
        super().__init__(
            f"onnxruntime:{precision}" + (f"@{device}" if device else ""),
            model,
            samples=samples,
            bits=bits,
            weight_bits=exact_weight_bits(bits) if bits and device in (None, "CPUExecutionProvider") else None,
            scheme=scheme,
            rows=rows,
        )

    def _convert(self) -> None:
        exported = self.graph.exported()
        try:
            with _quiet():
                program = torch.onnx.export(exported, dynamo=True, optimize=True, verbose=False)
            assert program is not None
            self._template = _Template(program.model_proto, self.graph, quantised=self._bits is not None)
        except Exception as error:  # the exporter raises many kinds, with the operation in the text
            raise ValueError(
                f"ONNX must have every operation of the model: got {_reason(error)}; use oracle='torch:bf16', or "
                "'openvino:int8' if it knows them"
            ) from error

    def _lower(self, tensors: Sequence[Tensor], program: Program | None) -> Lowered:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        model = self._template.filled(tensors, program)
        try:
            session = ort.InferenceSession(model, options, providers=[self._provider])
        except Exception as error:  # the runtime has kinds of its own, with the operation in the text
            raise ValueError(
                f"onnxruntime must be able to run every operation of the model: got {_reason(error)}; use "
                "oracle='torch:bf16', or 'openvino:int8' if it knows them"
            ) from error
        return _Session(session, model)

    def _write(self, lowered: Lowered, path: Path) -> None:
        assert isinstance(lowered, _Session)
        path.write_bytes(lowered.model)

    def _ran_in(self, lowered: Lowered) -> dict[str, str]:
        """Read from the graph that the runtime makes of the program."""
        import onnx
        import onnxruntime as ort

        assert isinstance(lowered, _Session)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimised.onnx"
            options.optimized_model_filepath = str(path)
            ort.InferenceSession(lowered.model, options, providers=[self._provider])
            nodes = onnx.load(path).graph.node
        readers = Counter(name for node in nodes if node.op_type in INTEGER_LAYERS for name in {*node.input})
        calls = Counter(layer.sites[1] for layer in self.graph.layers if layer.sites)
        return {
            layer.name: "int8" if layer.sites and readers[_scale(layer.sites[1])] == calls[layer.sites[1]] else "fp32"
            for layer in self.graph.layers
        }


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of packages that it could use too."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


class _Session:
    """A session, called with flat tensors, and the model that it runs."""

    def __init__(self, session: "ort.InferenceSession", model: bytes) -> None:
        self._session, self.model = session, model
        self._names = [node.name for node in session.get_inputs()]

    def __call__(self, flat: list[Tensor]) -> list[Tensor]:
        arrays = {name: tensor.contiguous().numpy() for name, tensor in zip(self._names, flat, strict=True)}
        return [torch.from_numpy(np.array(found)) for found in self._session.run(None, arrays)]


class _Template:
    """The exported graph with its sites as operations of quantisation, and initialisers that a refresh fills in.

    Args:
        model: the exported graph, whose inputs are weights, marks and inputs; it is changed in place.
        graph: what it was exported from.
        quantised: whether the sites round, or hand on what they get.
    """

    def __init__(self, model: "onnx.ModelProto", graph: WeightGraph, quantised: bool) -> None:
        from onnx import helper

        self._model, self._graph, self._quantised = model, graph, quantised
        inputs = list(model.graph.input)
        count = len(graph.names) + len(graph.sites)
        assert len(inputs) == count + len(tensors_of(graph.example)), (len(inputs), count)
        self._weights = {node.name: name for node, name in zip(inputs[:count], graph.names, strict=False)}
        number_of = {node.name: n for n, node in enumerate(inputs[len(graph.names) : count])}
        site_of: dict[str, int] = {}
        self._biases: list[tuple[str, int, int]] = []
        nodes: list[onnx.NodeProto] = []
        for node in model.graph.node:
            number = next((number_of[name] for name in node.input if name in number_of), None)
            if number is not None:
                source = next(name for name in node.input if name not in number_of)
                site_of[node.output[0]] = number
                nodes += self._at_site(number, source, node.output[0])
                continue
            if quantised and node.op_type in ("Conv", "Gemm") and len(node.input) == 3:
                data, weight, bias = node.input
                if data in site_of and weight in site_of and bias in self._weights:
                    name = f"bias.{len(self._biases)}"
                    nodes.append(helper.make_node("DequantizeLinear", [name, f"{name}.s"], [f"{name}.real"], axis=0))
                    self._biases.append((self._weights[bias], site_of[data], site_of[weight]))
                    node.input[2] = f"{name}.real"
            nodes.append(node)
        del model.graph.node[:], model.graph.input[:]
        model.graph.node.extend(nodes)
        model.graph.input.extend(inputs[count:])
        self._used = {name for node in nodes for name in node.input}

    def _at_site(self, number: int, source: str, output: str) -> "list[onnx.NodeProto]":
        from onnx import helper

        if not self._quantised:
            return [helper.make_node("Identity", [source], [output])]
        scale, zero = _scale(number), f"site.{number}.z"
        if self._graph.sites[number].kind == "weight":
            return [helper.make_node("DequantizeLinear", [f"site.{number}", scale, zero], [output], axis=0)]
        return [
            helper.make_node("QuantizeLinear", [source, scale, zero], [f"site.{number}.q"]),
            helper.make_node("DequantizeLinear", [f"site.{number}.q", scale, zero], [output]),
        ]

    def filled(self, tensors: Sequence[Tensor], program: Program | None) -> bytes:
        """The graph with these weights, as a session takes it."""
        import onnx
        from onnx import numpy_helper

        by_name = dict(zip(self._graph.names, tensors, strict=True))
        arrays = {name: by_name[held].numpy() for name, held in self._weights.items() if name in self._used}
        for number, affine in enumerate(program.affines if program else ()):
            site, zero = self._graph.sites[number], affine.zero_point.numpy()
            arrays[_scale(number)] = affine.scale.numpy()
            if site.kind == "weight":
                arrays[f"site.{number}"] = affine.quantize(by_name[site.name]).numpy().astype(np.int8)
                arrays[f"site.{number}.z"] = zero.astype(np.int8)
            else:
                arrays[f"site.{number}.z"] = (zero + UNSIGNED).astype(np.uint8)
        for number, (held, data, weight) in enumerate(self._biases):
            assert program is not None
            of_data, of_weight = program.affines[data].scale.double(), program.affines[weight].scale.double()
            greatest = by_name[held].double().abs().max()
            if greatest > 0 and not bool(by_name[self._graph.sites[weight].name].any()):
                # S of weights that are all zero says nothing: one in which the bias is nearly what it is.
                of_weight = (greatest / (of_data * ZERO_WEIGHT_STEPS)).float().double()
                arrays[_scale(weight)] = np.full_like(arrays[_scale(weight)], of_weight.item())
            scale = of_data * of_weight
            steps = (by_name[held].double() / scale).round().clamp(-BIAS_LIMIT, BIAS_LIMIT)
            arrays[f"bias.{number}"] = steps.numpy().astype(np.int32)
            arrays[f"bias.{number}.s"] = scale.float().expand(len(steps)).numpy()
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items())
        return bytes(model.SerializeToString())


def _scale(site: int) -> str:
    """Name of the initialiser that holds S of a site."""
    return f"site.{site}.s"


def _reason(error: BaseException) -> str:
    """The lines of an exporter's long error that name what it cannot export."""
    chain: list[str] = []
    found: BaseException | None = error
    while found is not None:
        chain += [line.strip() for line in str(found).splitlines() if line.strip()]
        found = found.__cause__
    named = [line for line in chain if "OpOverload" in line]
    return f"{type(error).__name__}: {' '.join(dict.fromkeys(named[:3] or chain[:3]))[:600]}"
