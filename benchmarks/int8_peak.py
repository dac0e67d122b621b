"""What this machine's integer units can do at most, and what a trained image costs in joules, where it says so.

The peak is the roof under which every int8 engine works: the fastest of torch's, OpenVINO's and ONNX Runtime's int8
matrix products. Joules are of the processor packages (Linux' RAPL counters, which on most machines only root may read)
and of NVIDIA devices (NVML).

    taskset -c 0 python benchmarks/int8_peak.py --threads 1 --model resnet44
"""

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import nn

from infer2train.observe.runlog import cpu_name
from infer2train.oracle.engines import missing_packages
from infer2train.oracle.rounds import Contestant, fastest, take_turns
from infer2train.oracle.telemetry import switch_off_openvino_telemetry
from infer2train.studies.gamma.measure import subject

RAPL = Path("/sys/class/powercap")
SIZES = ((1024, 1024, 1024), (2048, 1024, 1024), (4096, 512, 512))
"""(m, k, n) of the products."""
PEAK_ROUNDS = 4
"""Rounds in which they are timed."""


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


def fastest_product() -> Contestant:
    """Of a few rounds; its rate is the peak, in operations a second."""
    products = int8_products()
    take_turns(products, rounds=PEAK_ROUNDS)
    return fastest(products)


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


def joules_of(call: Callable[[], object], seconds: float = 1.0) -> float | None:
    """Energy of one call: the mean over calls that take `seconds` together; None where nothing can be read."""
    before = read_joules()
    if before is None:
        return None
    started, count = perf_counter(), 0
    while count == 0 or perf_counter() - started < seconds:
        call()
        count += 1
    after = read_joules()
    return None if after is None or after < before else (after - before) / count


def read_joules(root: Path = RAPL) -> float | None:
    """Energy used so far by all processor packages and NVIDIA devices (joules); None where none can be read."""
    found = [*_packages(root), *_devices()]
    return sum(found) if found else None


def _packages(root: Path) -> list[float]:
    found = []
    for path in sorted(root.glob("intel-rapl:*/energy_uj")):
        if path.parent.name.count(":") == 1:  # a package; what lies below it is a part of it
            try:
                found.append(int(path.read_text()) / 1e6)
            except (OSError, ValueError):  # only root may read it on most machines
                continue
    return found


def _devices() -> list[float]:
    if not torch.cuda.is_available():
        return []
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return [pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3 for handle in handles]
    except pynvml.NVMLError:  # a container without the library, a part of a device, a virtual one
        return []


def main() -> None:
    """Print the peak, and the energy of a trained image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet44")
    parser.add_argument("--image-size", type=int, default=None)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    source, model, about = subject(options.model, None, None, options.image_size)
    images = torch.rand(options.batch_size, 3, *source.output_size)
    targets = torch.zeros(options.batch_size, dtype=torch.int64)

    def step() -> None:
        torch.autograd.backward(nn.functional.cross_entropy(model(images), targets))

    best, joules = fastest_product(), joules_of(step)
    print(f"{cpu_name()}, {options.threads} thread(s), torch {torch.__version__}")
    print(f"int8 peak: {best.rate / 1e12:.3f} TOP/s ({best.name})")
    print(f"{about['model']}: {operations_per_image(model, images) / 1e9:.4f} GOP an image")
    told = "no counter can be read" if joules is None else f"{joules / len(images):.2f} J in fp32"
    print(f"energy of a trained image: {told}")


if __name__ == "__main__":
    main()
