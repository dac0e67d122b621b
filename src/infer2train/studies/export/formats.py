"""The files that a trained network is exported to, one format each.

The programs are those that an oracle would run: normalisation inside, batch-norm folded, and in int8 with the ranges
that the run's own oracle would have at its last step: by the run's scheme, on the same random views of its training
images. A program that does not do what its weights say is not written.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from infer2train.oracle.engines import missing_packages
from infer2train.oracle.onnxruntime_engine import ONNXRuntimeEngine
from infer2train.oracle.openvino_engine import OpenVINOEngine
from infer2train.oracle.samples import Samples
from infer2train.oracle.snapshot import snapshot


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is exported.

    Args:
        model: takes pixels, uint8 [b c h w], gives logits [b k]; in evaluation mode, on the CPU.
        samples: what ranges are measured on, and the probe.
        version: of the weights, in steps; it says on which samples.
        scheme: how the run's oracles choose S and Z, an entry of `quantization.schemes.SCHEMES`.
        facts: what is needed to build the model again.
    """

    model: nn.Module
    samples: Samples
    version: int
    scheme: str
    facts: Mapping[str, str | int]


@dataclass(frozen=True, kw_only=True)
class Format:
    """One file, or two that belong together.

    Args:
        file: its name.
        title: for people.
        engine: writes and runs it, and its extra is called like it; None where torch does.
        write: (subject, path) -> what its user should know, one line each.
    """

    file: str
    title: str
    engine: str | None
    write: Callable[[Subject, Path], tuple[str, ...]]

    @property
    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [] if self.engine is None else missing_packages(self.engine)


def _safetensors(subject: Subject, path: Path) -> tuple[str, ...]:
    from safetensors.torch import save_model

    save_model(subject.model, str(path), metadata={"infer2train": json.dumps(dict(subject.facts))})
    return ()


def _program(kind: type[ONNXRuntimeEngine] | type[OpenVINOEngine], precision: str) -> Callable[..., tuple[str, ...]]:
    def write(subject: Subject, path: Path) -> tuple[str, ...]:
        engine = kind(subject.model, precision=precision, samples=subject.samples, scheme=subject.scheme)
        engine.save(snapshot(subject.model, subject.version), path)
        return engine.notes

    return write


FORMATS = {
    "safetensors": Format(file="model.safetensors", title="weights", engine=None, write=_safetensors),
    "onnx": Format(
        file="model.onnx", title="ONNX, fp32", engine="onnxruntime", write=_program(ONNXRuntimeEngine, "fp32")
    ),
    "onnx-int8": Format(
        file="model-int8.onnx", title="ONNX, int8", engine="onnxruntime", write=_program(ONNXRuntimeEngine, "int8")
    ),
    "openvino": Format(
        file="model.xml", title="OpenVINO IR, fp32", engine="openvino", write=_program(OpenVINOEngine, "fp32")
    ),
    "openvino-int8": Format(
        file="model-int8.xml", title="OpenVINO IR, int8", engine="openvino", write=_program(OpenVINOEngine, "int8")
    ),
}
"""Name -> format. The IR's weights are in a .bin beside it."""
