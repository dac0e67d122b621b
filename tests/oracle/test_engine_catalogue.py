"""Engines by name."""

import pytest
import torch
from torch import nn

from infer2train.oracle.catalogue import build_engine
from infer2train.oracle.snapshot import snapshot


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
