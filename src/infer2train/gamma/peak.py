"""What this machine's integer units can do at most, measured: the roof under which every int8 engine works."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import nn

from infer2train.oracle.catalogue import missing_packages
from infer2train.oracle.measurement import timed
from infer2train.oracle.telemetry import switch_off_openvino_telemetry

SIZES = ((1024, 1024, 1024), (2048, 1024, 1024), (4096, 512, 512))
"""(m, k, n) of the products."""


def int8_gemm_peak() -> float:
    """Operations per second (a multiplication and an addition are two) of the fastest int8 matrix product found.

    Tries torch's and, where they are installed, OpenVINO's and ONNX Runtime's, in several sizes, on as many threads as
    torch has: which is fastest depends on the CPU. Each core multiplies matrices of its own, since one product of this
    size, divided among cores, leaves them waiting for each other.
    """
    best = 0.0
    for m, k, n in SIZES:
        a = torch.randint(-127, 128, (m, k), dtype=torch.int8)
        b = torch.randint(-127, 128, (k, n), dtype=torch.int8)
        seconds = [timed(lambda a=a, b=b: torch._int_mm(a, b), 0.3)]  # type: ignore[misc]
        if not missing_packages("openvino"):
            seconds.append(_openvino_seconds(m, k, n))
        if not missing_packages("onnxruntime"):
            seconds.append(_onnxruntime_seconds(m, k, n))
        best = max(best, 2 * m * k * n / min(seconds))
    return best


def _openvino_seconds(m: int, k: int, n: int) -> float:
    switch_off_openvino_telemetry()
    import openvino as ov
    from openvino import opset13 as ops

    left = ops.parameter([m, k], np.uint8)
    scaled = ops.fake_quantize(
        ops.convert(left, "f32"), np.float32(0), np.float32(255), np.float32(0), np.float32(25.5), levels=256
    )
    weight = torch.randint(-127, 128, (n, k), dtype=torch.int8).numpy()
    right = ops.multiply(ops.convert(ops.constant(weight), "f32"), ops.constant(np.float32(0.01)))
    model = ov.Model([ops.matmul(scaled, right, False, True)], [left])
    cores = torch.get_num_threads()
    settings = {"INFERENCE_NUM_THREADS": str(cores), "NUM_STREAMS": str(cores), "INFERENCE_PRECISION_HINT": "f32"}
    program = ov.Core().compile_model(model, "CPU", settings)
    data = torch.randint(0, 256, (m, k), dtype=torch.uint8).numpy()
    requests = [program.create_infer_request() for _ in range(cores)]
    return _side_by_side([lambda request=request: request.infer([data], share_inputs=True) for request in requests])  # type: ignore[misc]


def _onnxruntime_seconds(m: int, k: int, n: int) -> float:
    import onnx
    import onnxruntime as ort
    from onnx import helper, numpy_helper

    weight = torch.randint(-127, 128, (k, n), dtype=torch.int8).numpy()
    kinds = onnx.TensorProto
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["left", "right"], ["product"])],
        "product",
        [helper.make_tensor_value_info("left", kinds.UINT8, [m, k])],
        [helper.make_tensor_value_info("product", kinds.INT32, [m, n])],
        [numpy_helper.from_array(weight, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    data = torch.randint(0, 256, (m, k), dtype=torch.uint8).numpy()
    return _side_by_side([lambda: session.run(None, {"left": data})] * torch.get_num_threads())


def _side_by_side(products: Sequence[Callable[[], object]]) -> float:
    """Seconds for each of several products, one core each, in threads that let go of the interpreter."""
    if len(products) == 1:
        return timed(products[0], 0.3)
    with ThreadPoolExecutor(len(products)) as threads:
        return timed(lambda: list(threads.map(lambda product: product(), products)), 0.3) / len(products)


def operations_per_image(model: nn.Module, images: torch.Tensor) -> float:
    """Operations of the convolutions and matrix products of one forward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    training = model.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(images[:1])
    model.train(training)
    return float(counter.get_total_flops())
