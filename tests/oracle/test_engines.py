"""Engines by name."""

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conformance.engine import check_engine, converted, needs
from conformance.networks import NETWORKS
from infer2train.oracle.engine import Engine
from infer2train.oracle.engines import ENGINES, EXTRAS, build_engine, resolve_engine
from infer2train.oracle.lowered_engine import LoweredEngine
from infer2train.oracle.samples import GivenSamples
from infer2train.oracle.snapshot import snapshot
from infer2train.settings import resolve

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_conforms_by_its_bare_name(name: str) -> None:
    needs(name)
    build, inputs = NETWORKS["vgg"]
    is_converted = issubclass(resolve(ENGINES[name]), LoweredEngine)
    torch.manual_seed(0)
    check_engine(
        lambda model: converted(name, "vgg") if is_converted else build_engine(name, model), build(), inputs(13)
    )


@pytest.mark.parametrize(
    ("spec", "name"), [("torch", "torch:fp32"), ("torch:fp32", "torch:fp32"), ("torch:bf16", "torch:bf16")]
)
def test_an_engine_as_asked_for(spec: str, name: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    engine = build_engine(spec, model, torch.device("cpu"))
    assert engine.name == name
    engine.refresh(snapshot(model, 0))
    engine.outputs(torch.ones(1, 2))
    assert engine.precisions() == {"0": name.partition(":")[2]}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tourch:fp32", "unknown engine 'tourch': there is .*torch.*did you mean 'torch'"),
        ("torch:int3", "fp32, bf16, fp16: got 'int3'"),
        ("torch:", "fp32, bf16, fp16: got ''"),
        ("", "unknown engine ''"),
    ],
)
def test_what_there_is_not_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_engine(spec, nn.Linear(2, 2))


# Engines that are lowered

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def built(spec: str, **how: Any) -> Engine:
    return build_engine(spec, nn.Sequential(nn.Linear(4, 2)), samples=GivenSamples(X), **how)


@pytest.mark.parametrize(
    ("spec", "name", "ran_in"),
    [
        ("simulated", "simulated:b8", "b8"),
        ("simulated:b4@CPU", "simulated:b4", "b4"),
        ("simulated:b16", "simulated:b16", "b16"),
        ("openvino@CPU", "openvino:int8@CPU", "int8"),
        ("openvino:b2", "openvino:b2", "int8"),
        ("onnxruntime@CPUExecutionProvider", "onnxruntime:int8@CPUExecutionProvider", "int8"),
    ],
)
def test_a_lowered_engine_as_asked_for(spec: str, name: str, ran_in: str) -> None:
    needs(spec)
    model = nn.Sequential(nn.Linear(4, 2))
    engine = build_engine(spec, model, torch.device("cpu"), samples=GivenSamples(X), rows=3)
    assert (engine.name, engine.device) == (name, torch.device("cpu"))
    engine.refresh(engine.calibrated(snapshot(model, 0)))
    assert engine.outputs(X).shape == (6, 2)
    assert engine.precisions() == {"0": ran_in}
    assert resolve_engine(name) == name


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("opnvino:int8", "unknown engine 'opnvino': .*did you mean 'openvino'"),
        ("simulated:b9", "b2, b3, b4, b5, b6, b7, b8, b16: got 'b9'"),
        ("simulated:b8@GPU", "device must be one that torch can use here: got 'gpu' .*; leave the device out"),
        ("torch:bf16@GPU", "device must be one that torch can use here: got 'GPU' .*; leave it out for the model's"),
        ("openvino:fp16", "precision of the openvino engine must be one of .*int8.*: got 'fp16'"),
        ("openvino:int8@NPU7", "devices that it finds: got @NPU7, found .*CPU.*; leave the device out for CPU"),
        ("openvino:int8@C", "devices that it finds: got @C"),
        ("onnxruntime:bf16", "precision of the onnxruntime engine must be one of int8, fp32: got 'bf16'"),
        ("onnxruntime:int8@GPU", "execution providers .*: got @GPU, there is .*CPUExecutionProvider; leave it out"),
    ],
)
def test_what_no_lowered_engine_does_is_refused(spec: str, message: str) -> None:
    if "opn" not in spec:
        needs(spec)
    with pytest.raises(ValueError, match=message):
        built(spec)


def test_lowered_engines_need_samples() -> None:
    with pytest.raises(ValueError, match=r"simulated engine needs samples= .*: got none; pass GivenSamples\(x\)"):
        build_engine("simulated", nn.Linear(4, 2))


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown quantisation scheme 'papers': .*did you mean 'paper'"):
        built("simulated", scheme="papers")


@pytest.mark.parametrize(
    ("installed", "engine"),
    [
        ({"openvino", "onnxruntime", "onnx", "onnxscript"}, "openvino:int8"),
        ({"onnxruntime", "onnx", "onnxscript"}, "onnxruntime:int8"),
        ({"openvino", "onnx"}, "openvino:int8"),
    ],
)
def test_int8_is_the_fastest_engine_that_is_installed(
    installed: set[str], engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(installed, monkeypatch)
    assert resolve_engine("int8") == engine


def only(installed: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let packages be found only where they are these."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in installed else None)


@pytest.mark.parametrize(
    ("spec", "installed", "message"),
    [
        (
            "openvino:int8",
            set(),
            r"oracle 'openvino:int8' needs openvino, which .*: pip install 'infer2train\[openvino\]'$",
        ),
        (
            "onnxruntime",
            {"onnx"},
            r"needs onnxruntime and onnxscript, which .*: pip install 'infer2train\[onnxruntime\]'$",
        ),
        ("int8", {"onnx"}, r"needs an int8 engine, .* pip install 'infer2train\[openvino\]' .* or 'infer2train\[onnxr"),
    ],
)
def test_a_missing_package_is_refused_with_what_to_install(
    spec: str, installed: set[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(installed, monkeypatch)
    for call in (built, resolve_engine):
        with pytest.raises(ValueError, match=message):
            call(spec)
    assert resolve_engine(spec, is_used=False) == spec, "a control that builds none needs no packages"


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_extra_of_an_engine_installs_what_it_needs(extra: str) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert {re.split("[<>=]", wanted)[0] for wanted in project["optional-dependencies"][extra]} == set(EXTRAS[extra])


def test_automatic_names_are_no_engines() -> None:
    assert resolve_engine("auto") == "auto"
    with pytest.raises(ValueError, match=r"'auto' is decided by mine\(\)"):
        built("auto")
