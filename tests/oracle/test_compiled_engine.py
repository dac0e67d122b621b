"""An engine that torch.compile has made sees every refresh: what it built reads the tensors that a refresh overwrites.

In a process of its own: the tests' type checker and torch.compile do not go together.
"""

import os
import pickle
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from torch import Tensor, nn

from conformance.engine import check_engine
from conformance.networks import NETWORKS
from infer2train.oracle.engine import Engine
from infer2train.oracle.engines import build_engine
from infer2train.oracle.snapshot import Record, snapshot

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        shutil.which(os.environ.get("CXX", "g++")) is None,
        reason="no C++ compiler: torch.compile has nothing to build with",
    ),
]


class Viewing(nn.Module):
    """As many networks do, it takes a feature map for the memory layout that it was written for."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm, self.linear = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(256, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.relu(self.norm(self.convolution(x)))
        return self.linear(features.view(x.size(0), -1))


@pytest.fixture(scope="module")
def unchecked() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as one:
        yield one


def records(model: nn.Module) -> list[Record]:
    """Of two versions that say different things."""
    first = snapshot(model, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return [first, snapshot(model, 7)]


def outputs(engine: Engine, record: Record, inputs: Tensor) -> Tensor:
    engine.refresh(record)
    return engine.outputs(inputs).clone()


def check_refreshes(precision: str) -> None:
    torch.manual_seed(0)
    model, inputs = Viewing(), torch.randn(6, 3, 8, 8)
    plain, compiled = (build_engine(f"torch:{precision}{suffix}", model) for suffix in ("", "+compile"))
    old, new = records(model)
    expected = {record.version: outputs(plain, record, inputs) for record in (old, new)}
    assert (expected[0] - expected[7]).abs().max() > 1, "the canary is too weak"
    for record in (old, new, old):
        torch.testing.assert_close(outputs(compiled, record, inputs), expected[record.version], rtol=1e-2, atol=1e-2)
    assert compiled.precisions() == plain.precisions() == {"convolution": precision, "linear": precision}
    again = pickle.loads(pickle.dumps(compiled))
    assert torch.equal(outputs(again, new, inputs), outputs(compiled, new, inputs))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_refresh_is_seen(precision: str, unchecked: ProcessPoolExecutor) -> None:
    unchecked.submit(check_refreshes, precision).result()


def check_conformance(spec: str, network: str) -> None:
    build, inputs = NETWORKS[network]
    torch.manual_seed(0)
    check_engine(lambda model: build_engine(spec, model), build(), inputs())


@pytest.mark.slow
def test_conformance(unchecked: ProcessPoolExecutor) -> None:
    unchecked.submit(check_conformance, "torch:fp32+compile", "vgg").result()


def check_branches() -> None:
    class Branching(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if float(x.sum()) > 0 else -x)

    engine = build_engine("torch:fp32+compile", model := nn.Sequential(Branching(4, 3)))
    engine.refresh(snapshot(model, 0))
    with pytest.raises(Exception, match="data-dependent") as raised:
        engine.outputs(torch.ones(3, 4))
    assert "leave +compile out of the oracle's name" in str(raised.value.__notes__)


def test_a_model_that_cannot_be_followed_is_refused(unchecked: ProcessPoolExecutor) -> None:
    unchecked.submit(check_branches).result()
