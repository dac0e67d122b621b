"""Weights of as many bits as the CPU's products of bytes allow, so that integers mean what they say on every CPU."""

from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import nn

from conformance.engine import needs
from infer2train.oracle import weight_bits
from infer2train.oracle.engines import build_engine
from infer2train.oracle.lowered_engine import LoweredEngine
from infer2train.oracle.samples import GivenSamples
from infer2train.oracle.snapshot import snapshot
from infer2train.oracle.weight_bits import exact_weight_bits

pytestmark = pytest.mark.usefixtures("one_thread")

INTEGERS = ("openvino:int8", "onnxruntime:int8")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"architecture": "x86_64", "avx2": True}, 7),
        ({"architecture": "x86_64", "avx512_f": True, "avx512_vnni": False}, 7),
        ({"architecture": "x86_64", "avx512_vnni": True}, 8),
        ({"architecture": "x86_64", "avx_vnni": True}, 8),
        ({"architecture": "arm64", "dot": True}, 8),
    ],
)
def test_seven_bits_where_pairs_of_products_are_added_in_sixteen(capabilities: dict[str, Any], expected: int) -> None:
    assert exact_weight_bits(8, capabilities) == expected
    assert exact_weight_bits(4, capabilities) == 4


def extreme() -> tuple[nn.Module, torch.Tensor]:
    """Products as large as they come, all of one sign: what saturates first."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].weight[::2] = -1.0
    rows = torch.tensor([1.0, 0.9, 0.8, 0.7]).view(-1, 1, 1, 1)  # apart enough to be told apart in 8 bits
    return model, rows * (torch.ones(4, 8, 6, 6) - 0.01 * torch.rand(4, 8, 6, 6))


def refreshed(spec: str) -> LoweredEngine:
    needs(spec)
    model, inputs = extreme()
    engine = build_engine(spec, model, samples=GivenSamples(inputs, torch.zeros(4, dtype=torch.long)), rows=4)
    assert isinstance(engine, LoweredEngine)
    engine.refresh(engine.calibrated(snapshot(model, 1)))
    return engine


@pytest.mark.parametrize("spec", INTEGERS)
def test_the_largest_products_are_added_exactly_on_this_cpu(spec: str) -> None:
    engine = refreshed(spec)
    assert engine.totals()["fp32_versions"] == 0
    assert engine.totals()["deviation_sum"] <= 0.5


@pytest.mark.parametrize("spec", INTEGERS)
def test_a_cpu_without_vnni_is_said(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old = MappingProxyType({"architecture": "x86_64", "avx2": True})
    monkeypatch.setattr(weight_bits, "_capabilities", lambda: old)
    engine = refreshed(spec)
    assert engine.weight_bits == 7
    assert "VNNI" in " ".join(engine.notes)
    assert engine.totals()["fp32_versions"] == 0
    monkeypatch.setattr(weight_bits, "_capabilities", lambda: old | {"avx512_vnni": True})
    model, inputs = extreme()
    wide = build_engine(spec, model, samples=GivenSamples(inputs, torch.zeros(4, dtype=torch.long)), rows=4)
    assert "VNNI" not in " ".join(wide.notes)
