"""The pool in a thread of its own: the suite on the CPU, where a stream is only a thread, and on CUDA."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from conformance.pool import TASKS, Task, case, check_pool
from infer2train.batches import map_tensors
from infer2train.draws.addresses import Addresses
from infer2train.loader.mine import mine
from infer2train.oracle.scorer import Scorer
from infer2train.oracle.snapshot import NotFiniteError, Record
from infer2train.pool.stream import StreamPool
from infer2train.pool.task import Answer, ScoringTask
from infer2train.sources.pipeline import ViewWorkers
from infer2train.sources.reader import Reader
from infer2train.sources.replay import Replay
from infer2train.sources.source import Source
from pool.process_pools import scoring_task

pytestmark = pytest.mark.usefixtures("one_thread")


def on_cpu(task: Task) -> StreamPool:
    needs_workers = isinstance(task.source, Replay)
    own = replace(task, num_workers=max(1, task.num_workers)) if needs_workers else task
    return StreamPool(scoring_task(own), torch.device("cpu"))


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "dictionaries" else n for n in TASKS])
def test_conformance(name: str) -> None:
    check_pool(on_cpu, case(name))


def test_transforms_that_use_the_trainers_random_state_are_refused() -> None:
    with pytest.raises(ValueError, match=r"leave the trainer's random state alone: .*pass oracle_num_workers=1"):
        StreamPool(scoring_task(case("dictionaries").task), torch.device("cpu"))


def test_a_ruined_record_is_told_of_when_its_scores_are_asked_for() -> None:
    images = case("images")
    pool = on_cpu(images.task)
    ruined = dict(images.record(100).tensors)
    ruined["stem.weight"][0, 0, 0, 0] = torch.nan
    pool.publish(Record(100, ruined))
    pool.submit(0, images.addresses(0), 100)
    with pytest.raises(NotFiniteError, match=r"NaN or infinity in stem\.weight"):
        pool.collect(0)
    pool.publish(images.record(200))
    pool.submit(1, images.addresses(1), 200)
    assert pool.collect(1).version == 200
    pool.close()


class FailsOnce(Source):
    """Ids as data, of which one cannot be read the first time."""

    def __init__(self) -> None:
        self.has_failed = False

    def __len__(self) -> int:
        return 1000

    @property
    def moves_random_state(self) -> bool:
        return False

    def batch(self, addresses: Addresses) -> tuple[Tensor, Tensor]:
        if 4 in addresses.ids and not self.has_failed:
            self.has_failed = True
            raise OSError("the network disk is gone, for once")
        return torch.from_numpy(addresses.ids).float(), torch.from_numpy(addresses.ids)


def test_after_a_draw_that_failed_the_next_ones_are_scored_on_their_own_views() -> None:
    source, workers = FailsOnce(), ViewWorkers()
    reader, scorer = Reader(source, workers), Scorer(score=None, chunk=4)
    task = ScoringTask(source=source, reader=reader, view_workers=workers, engine=None, scorer=scorer)
    pool = StreamPool(task, torch.device("cpu"))
    for draw in range(2):
        pool.submit(draw, Addresses(np.arange(12) + 100 * draw, np.zeros(12, dtype=np.int64)), None)
    with pytest.raises(OSError, match="for once"):
        pool.collect(0)
    assert pool.collect(1).tree["targets"].tolist() == list(range(100, 112))
    pool.close()


def test_a_model_that_is_not_on_cuda_is_refused_with_the_reason() -> None:
    base = DataLoader(TensorDataset(torch.zeros(8, 4), torch.zeros(8, dtype=torch.long)), batch_size=4)
    with pytest.raises(ValueError, match="shares a CUDA device with the trainer: got a model on cpu; use pool='proc"):
        mine(base, nn.Linear(4, 2), pool="stream", method="nm-augment")


class OnCuda(StreamPool):
    """A pool on a CUDA device, whose scores come to the CPU, where the suite compares them."""

    def __init__(self, task: Task) -> None:
        device = torch.device("cuda")
        super().__init__(scoring_task(task, device), device)

    def collect(self, draw: int) -> Answer:
        answer = super().collect(draw)
        return replace(answer, tree=map_tensors(Tensor.cpu, answer.tree))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: a stream of its own cannot be made")
def test_on_cuda_the_scores_are_those_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    check_pool(OnCuda, case("images"))
