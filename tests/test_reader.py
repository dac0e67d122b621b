"""What is read beside the batches: in a worker where the user's loader has any, and nowhere else."""

import multiprocessing
import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from conformance.views import same
from infer2train.batches import split_batch
from infer2train.draws.addresses import Addresses
from infer2train.oracle.samples import SourceSamples
from infer2train.pool.fingerprint import data_digest
from infer2train.sources.pipeline import ViewWorkers
from infer2train.sources.reader import Reader
from infer2train.sources.replay import Replay

HERE = Addresses(np.array([3, 3, 1]), np.array([5, 6, 7]))


class Noisy(Dataset[Any]):
    """Readable anywhere; says which process it was."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return index + torch.rand(2), index


class Process(Noisy):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 13:
            raise LookupError("the file of sample 13 is missing")
        return torch.tensor([os.getpid()]), index


class InFile(Noisy):
    """Readable only in a worker, which has opened a file."""

    def __init__(self, file: Path) -> None:
        self.path, self.file = file, None

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        assert self.file is not None
        return torch.from_numpy(np.array(self.file[index])) + torch.rand(3), index


def open_file(worker: int) -> None:
    info = get_worker_info()
    assert info is not None
    info.dataset.file = np.load(info.dataset.path, mmap_mode="r")  # type: ignore[attr-defined]


@pytest.fixture
def in_file(tmp_path: Path) -> InFile:
    np.save(tmp_path / "images.npy", np.random.default_rng(0).random((20, 3)).astype(np.float32))
    return InFile(tmp_path / "images.npy")


OPENING = ViewWorkers(num_workers=3, worker_init_fn=open_file)


@contextmanager
def reading(data: Any, workers: ViewWorkers) -> Iterator[Reader]:
    reader = Reader(Replay(data, default_collate, check=False), workers)
    yield reader
    reader.close()


def children() -> set[int | None]:
    return {process.pid for process in multiprocessing.active_children()}


@pytest.mark.parametrize("num_workers", [0, 3])
def test_it_reads_what_the_source_gives(num_workers: int) -> None:
    source = Replay(Noisy(), default_collate)
    reader = Reader(source, ViewWorkers(num_workers=num_workers))
    before = torch.get_rng_state()
    for _ in range(2):
        assert same(reader.batch(HERE), source.batch(HERE))
        reader.close()
    assert len(reader) == 20
    assert reader.dataset is source.dataset
    assert torch.equal(torch.get_rng_state(), before)


def test_it_reads_in_one_worker_that_lives_until_it_is_closed() -> None:
    before = children()
    with reading(Process(), ViewWorkers(num_workers=3, persistent_workers=True)) as reader:
        assert children() == before, "no worker before it is needed"
        readers = {int(pid) for _ in range(3) for pid in reader.batch(HERE)[0].flatten()}
        assert readers == children() - before
        assert len(readers) == 1
        reader.close()
        assert children() == before
        reader.close()
        assert {int(pid) for pid in reader.batch(HERE)[0].flatten()} == children() - before != readers
    assert children() == before


def test_without_workers_it_reads_here() -> None:
    before = children()
    with reading(Process(), ViewWorkers()) as reader:
        assert reader.batch(HERE)[0].flatten().tolist() == [os.getpid()] * 3
        assert children() == before


def test_an_error_comes_through_and_the_next_batch_is_the_next_one() -> None:
    with reading(Process(), ViewWorkers(num_workers=1)) as reader:
        with pytest.raises(LookupError, match="the file of sample 13 is missing"):
            reader.batch(Addresses(np.array([13]), np.array([0])))
        assert reader.batch(HERE)[1].tolist() == [3, 3, 1]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_files_that_a_worker_opens_are_read(in_file: InFile, context: str) -> None:
    workers = ViewWorkers(num_workers=1, worker_init_fn=open_file, multiprocessing_context=context)
    with reading(in_file, workers) as reader:
        images, ids = reader.batch(HERE)
        expected = torch.from_numpy(np.load(in_file.path))[ids]
        assert bool(((images - expected) >= 0).all())
        assert bool(((images - expected) < 1).all())


def test_it_is_sent_to_another_process_as_one_that_has_not_begun(in_file: InFile) -> None:
    with reading(in_file, OPENING) as reader:
        wanted = reader.batch(HERE)
        before = children()
        sent = pickle.loads(pickle.dumps(reader))
        assert children() == before
        assert same(sent.batch(HERE), wanted)
        sent.close()
        assert same(reader.batch(HERE), wanted), "the one that was sent goes on"


def test_samples_and_the_digest_are_read_there_also_by_another_thread(in_file: InFile) -> None:
    with reading(in_file, OPENING) as reader:
        samples = SourceSamples(reader, lambda: np.arange(20), 0, split_batch)
        calibration, probe, digest = samples.calibration(3, 5), samples.probe(16), data_digest(reader)
        with ThreadPoolExecutor(1) as thread:
            assert same(thread.submit(samples.calibration, 3, 5).result(), calibration)
            sent = pickle.loads(pickle.dumps(samples))
            assert same(thread.submit(sent.calibration, 3, 5).result(), calibration)
            assert same(thread.submit(sent.probe, 16).result(), probe)
            thread.submit(sent._source.close).result()
        assert data_digest(reader) == digest
