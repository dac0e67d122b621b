"""The task that keeps what an engine makes, in every pool that the CPU has, by a toy user who trains on it.

The toy: a decoder is trained to double its input; the decoder's outputs on fresh noise train a student. No pick.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from infer2train.draws.addresses import Addresses, Purpose, seeds
from infer2train.machine.cores import available_cores
from infer2train.oracle.snapshot import snapshot
from infer2train.oracle.torch_engine import TorchEngine
from infer2train.pool.inline import InlinePool
from infer2train.pool.pool import Pool
from infer2train.pool.process import ProcessPool
from infer2train.pool.stream import StreamPool
from infer2train.pool.task import GeneratingTask, Task
from infer2train.sources.pipeline import ViewWorkers
from infer2train.sources.reader import Reader
from infer2train.sources.seeded import WithSeeds
from infer2train.sources.source import Source

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, ROWS, PER_DRAW = 4, 8, 21
POOLS: dict[str, Callable[[Task], Pool]] = {
    "inline": InlinePool,
    "stream": lambda task: StreamPool(task, torch.device("cpu")),
    "process": lambda task: ProcessPool(task, cores=available_cores()[-1:]),
}


class Noise(Source):
    """No data at all: an input is its seed's; its target is the condition, one of three."""

    def __len__(self) -> int:
        return 3

    def batch(self, addresses: Addresses) -> Any:
        rows = [np.random.default_rng(int(seed) & (1 << 62) - 1).standard_normal(WIDTH) for seed in addresses.seeds]
        return torch.tensor(np.array(rows), dtype=torch.float32), torch.from_numpy(addresses.ids.copy())


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, noise: Tensor) -> dict[str, Tensor]:
        return {"image": self.linear(noise)}


def decoder(factor: float) -> Decoder:
    made = Decoder()
    with torch.no_grad():
        made.linear.weight.copy_(factor * torch.eye(WIDTH))
        made.linear.bias.zero_()
    return made


def addresses(draw: int) -> Addresses:
    slots = np.arange(PER_DRAW)
    return Addresses(slots % 3, seeds(0, Purpose.VIEW, draw=draw, slot=slots))


def task() -> GeneratingTask:
    source, workers = Noise(), ViewWorkers()
    engine = TorchEngine(decoder(0.0))
    return GeneratingTask(
        source=WithSeeds(source), reader=Reader(source, workers), view_workers=workers, engine=engine, rows=ROWS
    )


@pytest.mark.parametrize("name", POOLS)
def test_what_a_version_makes_of_given_seeds_comes_back(name: str) -> None:
    pool = POOLS[name](task())
    for version, factor in ((0, 2.0), (100, -1.0)):
        pool.publish(snapshot(decoder(factor), version))
    for draw in range(4):
        pool.submit(draw, addresses(draw), 100 * (draw % 2))
    for draw in range(4):
        answer = pool.collect(draw)
        noise, conditions = Noise().batch(addresses(draw))
        assert (answer.draw, answer.version) == (draw, 100 * (draw % 2))
        torch.testing.assert_close(answer.tree["outputs"]["image"], noise * (-1.0 if draw % 2 else 2.0))
        assert torch.equal(answer.tree["targets"], conditions)
    pool.close()


@pytest.mark.parametrize("name", ["inline", "process"])
def test_a_student_learns_from_what_is_made(name: str) -> None:
    pool, student = POOLS[name](task()), decoder(0.0)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.3)
    pool.publish(snapshot(decoder(2.0), 0))
    for draw in range(40):
        pool.submit(draw, addresses(draw), 0)
    for draw in range(40):
        images = pool.collect(draw).tree["outputs"]["image"]
        noise, _ = Noise().batch(addresses(draw))
        loss = (student(noise)["image"] - images).square().sum(1).mean()
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    pool.close()
    torch.testing.assert_close(student.linear.weight.detach(), 2 * torch.eye(WIDTH), rtol=0, atol=0.01)
