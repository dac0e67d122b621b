"""What int8 oracles do on one core, side by side in one run: the figures that docs/results quotes.

Speed against the measured int8 peak and the trainer, refresh, deviation from the simulated program, memory over many
refreshes, and the same model through NNCF's and ONNX Runtime's own quantisation pipelines (pip install nncf).
Give trained weights with --run, a folder that `infer2train train` made.

    taskset -c 0 python benchmarks/int8_engines.py --run runs/resnet44
    taskset -c 0 python benchmarks/int8_engines.py --model imagenet-resnet50 --image-size 224 --batch-size 8
"""

import argparse
import copy
import importlib.util
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from infer2train.batches import split_batch, tensors_of
from infer2train.draws.addresses import Addresses, Purpose, seeds
from infer2train.observe.runlog import cpu_name
from infer2train.oracle.engines import build_engine
from infer2train.oracle.lowered_engine import LoweredEngine
from infer2train.oracle.measurement import timed
from infer2train.oracle.quantization.fold import fold_plan, folded_tensors
from infer2train.oracle.quantization.program import Simulation, deviation
from infer2train.oracle.rounds import Contestant, fastest, take_turns
from infer2train.oracle.samples import SourceSamples
from infer2train.oracle.snapshot import snapshot
from infer2train.studies.gamma.measure import subject, subject_of
from infer2train.studies.gamma.trainer import training_ways
from int8_peak import fastest_product, operations_per_image

ENGINES = ("openvino:int8", "onnxruntime:int8")
SECTIONS = ("speed", "refresh", "deviation", "pipelines", "memory")


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=None, help="a run folder with trained weights")
    parser.add_argument("--model", default="resnet44")
    parser.add_argument("--data", default=None)
    parser.add_argument("--image-size", type=int, default=None)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--chunks", nargs="+", type=int, default=[16, 32, 64, 128])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--refreshes", type=int, default=500, help="of the memory section")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    return parser.parse_args()


class Bench:
    """The model, its views, and engines with its weights."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.source, self.model, self.about = (
            subject_of(options.run, options.data)
            if options.run
            else subject(options.model, options.data, None, options.image_size)
        )
        self.samples = SourceSamples(self.source, lambda: np.arange(len(self.source)), seed=0, split=split_batch)
        self.images, self.targets = self.batch(options.batch_size)

    def batch(self, rows: int, draw: int = 0) -> tuple[Tensor, Tensor]:
        """Views of training images."""
        ids = np.arange(rows) * 7919 % len(self.source)
        images, targets = self.source.batch(Addresses(ids, seeds(0, Purpose.VIEW, draw=draw, slot=np.arange(rows))))
        return images, targets

    def engine(self, spec: str, rows: int = 32) -> Any:
        """An engine that was refreshed once."""
        engine = build_engine(spec, self.model, samples=self.samples, rows=rows)
        engine.refresh(engine.calibrated(snapshot(self.model, 0)))
        return engine


def speed(bench: Bench) -> Iterator[str]:
    """Images per second of trainer and engines, interleaved; the best chunk counts."""
    options = bench.options
    ways = training_ways(bench.model, bench.images, bench.targets, compiled=False)
    trainers = [Contestant(name=name, call=call, group="trainer", work=options.batch_size) for name, call in ways]
    take_turns(trainers)
    best = fastest(trainers)
    yield "trainer, B = %d: %s" % (  # noqa: UP031
        options.batch_size,
        ", ".join(f"{one.name} {one.rate:.1f} images/s" for one in trainers),
    )
    operations = operations_per_image(bench.model, bench.images)
    engines = {(spec, rows): bench.engine(spec, rows) for spec in (*ENGINES, "torch:fp32") for rows in options.chunks}
    inputs = {rows: bench.batch(rows)[0] for rows in options.chunks}
    taken: dict[tuple[str, int], list[float]] = {key: [] for key in engines}
    peaks = []
    for _ in range(options.repetitions):
        peaks.append(fastest_product().rate)
        for (spec, rows), engine in engines.items():
            taken[spec, rows].append(rows / timed(lambda e=engine, r=rows: e.outputs(inputs[r]), 0.2))  # type: ignore[misc]
    peak = statistics.median(peaks)
    yield f"int8 matrix products: {peak / 1e12:.3f} TOP/s; {operations / 1e9:.4f} GOP an image"
    for spec in (*ENGINES, "torch:fp32"):
        by_rows = {rows: statistics.median(taken[spec, rows]) for rows in options.chunks}
        rows = max(by_rows, key=by_rows.__getitem__)
        rate = by_rows[rows]
        share = statistics.median(r * operations / p for r, p in zip(taken[spec, rows], peaks, strict=True))
        yield (
            f"{spec}: {rate:.0f} images/s at chunk {rows}, {share:.0%} of the int8 peak, γ = "
            f"{rate / best.rate:.1f}; by chunk " + ", ".join(f"{r}: {value:.0f}" for r, value in by_rows.items())
        )


def refresh(bench: Bench) -> Iterator[str]:
    """Seconds from the publication of a version to its first verified score."""
    images, _ = bench.batch(32)
    engines = {spec: bench.engine(spec) for spec in ENGINES}
    taken: dict[str, list[float]] = {spec: [] for spec in ENGINES}
    for version in range(1, 3 + bench.options.repetitions):
        for spec, engine in engines.items():
            started = time.perf_counter()
            engine.refresh(engine.calibrated(snapshot(bench.model, version)))
            engine.outputs(images)
            taken[spec].append(time.perf_counter() - started)
    for spec, seconds in taken.items():
        yield f"{spec}: publish to first verified score {statistics.median(seconds[2:]):.3f} s"


def deviations(bench: Bench) -> Iterator[str]:
    """Greatest deviation from the simulated program over 256 views, in output quantisation steps."""
    images, _ = bench.batch(256, draw=1)
    for spec in ENGINES:
        engine: LoweredEngine = build_engine(spec, bench.model, samples=bench.samples)  # type: ignore[assignment]
        record = engine.calibrated(snapshot(bench.model, 0))
        engine.refresh(record)
        program = engine.specified(engine.weights, record.ranges)
        assert program is not None
        simulated = Simulation(engine.graph, program, engine.clipped)(images)
        steps = deviation(tensors_of(engine.outputs(images)), simulated)
        kinds = sorted({*engine.precisions().values()})
        yield f"{spec}: {steps:.2f} output quantisation steps at most, layers ran in {', '.join(kinds)}"


def memory(bench: Bench) -> Iterator[str]:
    """Growth of the process over many refreshes, after the first ten, and what the check of each version found."""
    for spec in ENGINES:
        engine = bench.engine(spec)
        sizes = []
        for version in range(bench.options.refreshes + 10):
            engine.refresh(engine.calibrated(snapshot(bench.model, version)))
            sizes.append(_resident())
        yield (
            f"{spec}: {bench.options.refreshes} refreshes, own memory {sizes[9]:.0f} -> {sizes[-1]:.0f} MB "
            f"(growth {sizes[-1] - sizes[9]:+.0f}, peak of the process "
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f})"
        )
        found = engine.totals()
        yield (
            f"{spec}: {found['refreshes']:.0f} versions checked, a deviation of "
            f"{found['deviation_sum'] / found['refreshes']:.2f} output quantisation steps on average; "
            f"{found['recalibrations']:.0f} measured again, {found['fp32_versions']:.0f} scored in fp32"
        )


def _resident() -> float:
    """Memory of the process itself (MB), without pages of the memory-mapped data set, which views fill up."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def pipelines(bench: Bench) -> Iterator[str]:
    """The same model through the packages' own post-training quantisation, images/s and seconds, side by side."""
    folded, pairs = fold_plan(bench.model)
    folded.load_state_dict(folded_tensors(pairs, bench.model.state_dict()), strict=False)
    others: dict[str, tuple[str, int, Callable[[nn.Module, Bench, Tensor], Callable[[], Any]]]] = {
        "onnxruntime:int8": ("ORT quantize_static", 32, _quantize_static)
    }
    if importlib.util.find_spec("nncf"):
        others["openvino:int8"] = ("NNCF", 128, _nncf)
    for spec, (name, rows, build) in others.items():  # at the chunk at which each runtime is fastest
        images = bench.batch(rows)[0]
        engine = bench.engine(spec, rows)
        started = time.perf_counter()
        run = build(folded, bench, images)
        theirs_seconds = time.perf_counter() - started
        started = time.perf_counter()
        engine.refresh(engine.calibrated(snapshot(bench.model, 1)))
        ours_seconds = time.perf_counter() - started
        ratios, ours = [], []
        for _ in range(bench.options.repetitions):
            mine, other = timed(lambda e=engine, x=images: e.outputs(x), 0.3), timed(run, 0.3)  # type: ignore[misc]
            ratios.append(other / mine)
            ours.append(rows / mine)
        yield (
            f"{spec} ÷ {name}: {statistics.median(ratios):.3f} × the images/s ({statistics.median(ours):.0f}); "
            f"refresh {ours_seconds:.2f} s against {theirs_seconds:.2f} s: {theirs_seconds / ours_seconds:.0f} × faster"
        )


def _quantize_static(folded: nn.Module, bench: Bench, images: Tensor) -> Callable[[], Any]:
    """Calibrate, quantise and load with ONNX Runtime's tools; the export is left out, as it is of our refresh."""
    import onnxruntime as ort
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = iter([{"images": bench.batch(len(images), d)[0].contiguous().numpy()} for d in range(3)])

        def get_next(self) -> Any:
            return next(self._batches, None)

    folder = Path(tempfile.mkdtemp())
    program = torch.onnx.export(
        copy.deepcopy(folded).eval(), (images,), input_names=["images"], dynamo=True, verbose=False
    )
    assert program is not None
    program.save(folder / "model.onnx")
    quantize_static(
        folder / "model.onnx",
        folder / "int8.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = bench.options.threads
    session = ort.InferenceSession(folder / "int8.onnx", settings, providers=["CPUExecutionProvider"])
    data = images.contiguous().numpy()
    return lambda: session.run(None, {"images": data})


def _nncf(folded: nn.Module, bench: Bench, images: Tensor) -> Callable[[], Any]:
    """Convert, quantise and compile with NNCF, some 300 calibration samples (its default)."""
    import nncf
    import openvino as ov

    model = ov.convert_model(copy.deepcopy(folded).eval(), example_input=images)
    model.reshape(list(images.shape))
    batches = [bench.batch(len(images), draw)[0].contiguous().numpy() for draw in range(3)]
    quantised = nncf.quantize(model, nncf.Dataset(batches), subset_size=3)
    settings = {"INFERENCE_NUM_THREADS": str(bench.options.threads), "INFERENCE_PRECISION_HINT": "f32"}
    request = ov.Core().compile_model(quantised, "CPU", settings).create_infer_request()
    data = images.contiguous().numpy()
    return lambda: request.infer([data], share_inputs=True)


def main() -> None:
    """Print every section that was asked for."""
    options = arguments()
    torch.set_num_threads(options.threads)
    bench = Bench(options)
    print(
        f"{cpu_name()}, {options.threads} thread(s), torch {torch.__version__}; {bench.about['model']}, "
        f"{bench.about['data']}, {bench.about['steps']} steps trained"
    )
    sections = {"speed": speed, "refresh": refresh, "deviation": deviations, "pipelines": pipelines, "memory": memory}
    for name in options.only:
        print(f"\n{name}")
        for line in sections[name](bench):
            print(f"  {line}", flush=True)


if __name__ == "__main__":
    main()
