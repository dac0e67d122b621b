"""What this machine's integer units can do at most, measured: the roof under which every int8 engine works."""

import numpy as np
import torch
from torch import nn

from infer2train.oracle.catalogue import missing_packages
from infer2train.oracle.measurement import timed

SIZES = ((1024, 1024, 1024), (2048, 1024, 1024), (4096, 512, 512))
"""(m, k, n) of the products."""


def int8_gemm_peak() -> float:
    """Operations per second (a multiplication and an addition are two) of the fastest int8 matrix product found.

    Tries torch's and, where they are installed, OpenVINO's and ONNX Runtime's, in several sizes, on as many threads as
    torch has: which is fastest depends on the CPU.
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
    import openvino as ov
    from openvino import opset13 as ops

    left = ops.parameter([m, k], np.uint8)
    scaled = ops.fake_quantize(
        ops.convert(left, "f32"), np.float32(0), np.float32(255), np.float32(0), np.float32(25.5), levels=256
    )
    weight = torch.randint(-127, 128, (n, k), dtype=torch.int8).numpy()
    right = ops.multiply(ops.convert(ops.constant(weight), "f32"), ops.constant(np.float32(0.01)))
    model = ov.Model([ops.matmul(scaled, right, False, True)], [left])
    settings = {"INFERENCE_NUM_THREADS": str(torch.get_num_threads()), "INFERENCE_PRECISION_HINT": "f32"}
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    data = torch.randint(0, 256, (m, k), dtype=torch.uint8).numpy()
    return timed(lambda: request.infer([data], share_inputs=True), 0.3)


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
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    data = torch.randint(0, 256, (m, k), dtype=torch.uint8).numpy()
    return timed(lambda: session.run(None, {"left": data}), 0.3)


def operations_per_image(model: nn.Module, images: torch.Tensor) -> float:
    """Operations of the convolutions and matrix products of one forward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    training = model.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(images[:1])
    model.train(training)
    return float(counter.get_total_flops())
