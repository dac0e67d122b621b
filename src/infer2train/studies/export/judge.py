"""Judges one exported file in a process of its own, by its own runtime: what anybody who has the file would get.

`python -m infer2train.studies.export.judge FILE PIXELS.npy TARGETS.npy THREADS` prints one JSON object.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, UInt8

ROWS = 64
"""Images at a time."""

Run = Callable[[UInt8[np.ndarray, "n c h w"]], Float[np.ndarray, "n k"]]


def opened(path: Path, threads: int) -> Run:
    """The program in a file, by its ending."""
    return {".onnx": _by_onnxruntime, ".xml": _by_openvino, ".safetensors": _by_torch}[path.suffix](path, threads)


def _by_onnxruntime(path: Path, threads: int) -> Run:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda pixels: np.asarray(session.run(None, {given.name: pixels})[0])


def _by_openvino(path: Path, threads: int) -> Run:
    import openvino as ov

    # Left alone, OpenVINO computes in bf16 what is real, where the CPU has it.
    settings = {"INFERENCE_NUM_THREADS": str(threads), "INFERENCE_PRECISION_HINT": "f32"}
    model = ov.Core().read_model(path)
    compiled = ov.Core().compile_model(model, "CPU", settings)
    last = model.get_parameters()[0].get_layout() == ov.Layout("NHWC")
    return lambda pixels: np.array(
        compiled([np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)) if last else pixels])[0]
    )


def _by_torch(path: Path, threads: int) -> Run:
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_model

    from infer2train.training.config import from_plain
    from infer2train.training.setup import pixel_model

    torch.set_num_threads(threads)
    with safe_open(path, framework="pt") as file:
        facts: dict[str, Any] = json.loads(file.metadata()["infer2train"])
    model = pixel_model(from_plain({"model": facts["model"]}), facts["classes"], facts["channels"])
    load_model(model, path)
    model.eval()

    @torch.inference_mode()
    def run(pixels: UInt8[np.ndarray, "n c h w"]) -> Float[np.ndarray, "n k"]:
        return np.asarray(model(torch.from_numpy(pixels)))

    return run


def judged(run: Run, pixels: UInt8[np.ndarray, "n c h w"], targets: Int64[np.ndarray, " n"]) -> dict[str, float]:
    """Error and mean cross entropy of a program on images, and how many of them it does in a second."""
    losses, wrong, rates = [], [], []
    for start in range(0, len(pixels), ROWS):
        batch, target = np.ascontiguousarray(pixels[start : start + ROWS]), targets[start : start + ROWS]
        started = perf_counter()
        logits = run(batch).astype(np.float64)
        rates.append(len(batch) / (perf_counter() - started))
        logits -= logits.max(1, keepdims=True)
        own = np.take_along_axis(logits, target[:, None], axis=1)[:, 0]
        losses.append(np.log(np.exp(logits).sum(1)) - own)
        wrong.append(logits.argmax(1) != target)
    return {
        "error": float(np.concatenate(wrong).mean()),
        "loss": float(np.concatenate(losses).mean()),
        "images_per_second": median(rates),
    }


def main(path: str, pixels: str, targets: str, threads: str) -> None:
    """Judge a file, and print what was found."""
    run = opened(Path(path), int(threads))
    print(json.dumps(judged(run, np.load(pixels, mmap_mode="r"), np.load(targets))))  # noqa: T201  # its answer


if __name__ == "__main__":
    main(*sys.argv[1:])
