"""What this machine's integer units can do at most, measured: the roof under which every int8 engine works."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import nn

from infer2train.oracle.catalogue import missing_packages
from infer2train.oracle.measurement import EngineSpeed
from infer2train.oracle.rounds import Contestant, fastest, take_turns
from infer2train.oracle.telemetry import switch_off_openvino_telemetry

SIZES = ((1024, 1024, 1024), (2048, 1024, 1024), (4096, 512, 512))
"""(m, k, n) of the products."""
PEAK_ROUNDS = 4
"""Rounds in which they are timed where nothing else is."""


def int8_products() -> list[Contestant]:
    """The products of which the fastest may be this machine's int8 peak.

    torch's and, where they are installed, OpenVINO's and ONNX Runtime's, in several sizes, on as many threads as torch
    has: which is fastest depends on the CPU. Each core multiplies matrices of its own, since one product of this size,
    divided among cores, leaves them waiting for each other.
    """
    kinds: dict[str, Callable[[int, int, int], list[Callable[[], object]]]] = {"torch": _torch_products}
    if not missing_packages("openvino"):
        kinds["openvino"] = _openvino_products
    if not missing_packages("onnxruntime"):
        kinds["onnxruntime"] = _onnxruntime_products
    found = []
    for kind, make in kinds.items():
        for m, k, n in SIZES:
            products = make(m, k, n)
            operations = 2.0 * m * k * n * len(products)
            name = f"{kind} {m}×{k}×{n}"
            found.append(Contestant(name=name, call=_side_by_side(products), group="int8 peak", work=operations))
    return found


def int8_gemm_peak() -> float:
    """Operations in a second of the fastest product, over a few rounds."""
    products = int8_products()
    take_turns(products, rounds=PEAK_ROUNDS)
    return fastest(products).rate


def greatest_peak(
    products: Sequence[Contestant], speeds: Sequence[EngineSpeed], operations_per_image: float
) -> tuple[float, str]:
    """The most operations in a second that were seen, and of what: an engine may be faster than the products.

    Args:
        products: that have been timed; their work is operations.
        speeds: of the engines.
        operations_per_image: of the model.
    """
    seen = {one.name: one.rate for one in products}
    seen |= {speed.name: speed.images_per_second * operations_per_image for speed in speeds}
    name = max(seen, key=seen.__getitem__)
    return seen[name], name


def _torch_products(m: int, k: int, n: int) -> list[Callable[[], object]]:
    a = torch.randint(-127, 128, (m, k), dtype=torch.int8)
    b = torch.randint(-127, 128, (k, n), dtype=torch.int8)
    return [lambda: torch._int_mm(a, b)]  # it divides the work itself


def _openvino_products(m: int, k: int, n: int) -> list[Callable[[], object]]:
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
    return [lambda request=request: request.infer([data], share_inputs=True) for request in requests]  # type: ignore[misc]


def _onnxruntime_products(m: int, k: int, n: int) -> list[Callable[[], object]]:
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
    return [lambda: session.run(None, {"left": data})] * torch.get_num_threads()


def _side_by_side(products: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """All of them at once, one core each, in threads that let go of the interpreter."""
    if len(products) == 1:
        return products[0]
    threads = ThreadPoolExecutor(len(products))
    return lambda: list(threads.map(lambda product: product(), products))


def operations_per_image(model: nn.Module, images: torch.Tensor) -> float:
    """Operations of the convolutions and matrix products of one forward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    training = model.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(images[:1])
    model.train(training)
    return float(counter.get_total_flops())
