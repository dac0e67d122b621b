"""Batches at addresses, ahead of time: their order, their workers, and what workers leave behind."""

import gc
import multiprocessing
import os
import random
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate, get_worker_info

from infer2train.draws.addresses import Addresses
from infer2train.sources.pipeline import AddressPipeline, ViewWorkers
from infer2train.sources.reader import Reader
from infer2train.sources.replay import Replay
from infer2train.sources.source import Source


class Echo(Source):
    """Gives the addresses back; a sample takes as many milliseconds as its seed says."""

    def __len__(self) -> int:
        return 1 << 40

    def batch(self, addresses: Addresses) -> tuple[Tensor, Tensor]:
        time.sleep(int(addresses.seeds[0]) / 1000)
        return torch.from_numpy(addresses.ids), torch.from_numpy(addresses.seeds)


class Noise(Dataset[Any]):
    """Draws from the global random state, as users' transforms do."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> Tensor:
        if index == 99:
            raise LookupError("the file of sample 99 is missing")
        return index + torch.rand(()) + random.random() + float(np.random.random())


class Named(NamedTuple):
    images: Tensor
    names: list[str]


def like(num_workers: int, **settings: Any) -> DataLoader[Any]:
    return DataLoader(Noise(), num_workers=num_workers, **settings)


def at(*ids: int, seed: int = 0) -> Addresses:
    return Addresses(np.array(ids), np.full(len(ids), seed))


@pytest.fixture
def make() -> Iterator[Callable[..., AddressPipeline]]:
    """Pipelines that are closed at the end, whatever happens."""
    made: list[AddressPipeline] = []

    def make(source: Source, num_workers: int, **settings: Any) -> AddressPipeline:
        made.append(AddressPipeline(source, like=like(num_workers, **settings)))
        return made[-1]

    yield make
    for pipeline in made:
        pipeline.close()


def follow(pipeline: AddressPipeline, calls: list[int | None]) -> None:
    """Put a batch that takes so many milliseconds, get one (None), close (-1) or forget (-2).

    Every answer is the oldest that is still wanted.
    """
    waiting: deque[Addresses] = deque()
    for number, call in enumerate(calls):
        if call is None:
            if waiting:
                _assert_is(pipeline.get(), waiting.popleft())
        elif call < 0:
            pipeline.close() if call == -1 else pipeline.forget()
            waiting.clear()
        else:
            waiting.append(Addresses(np.array([number, number + 1]), np.array([call, 7])))
            pipeline.put(waiting[-1])
    while waiting:
        _assert_is(pipeline.get(), waiting.popleft())


def _assert_is(batch: Any, addresses: Addresses) -> None:
    ids, seeds = batch
    assert (ids.tolist(), seeds.tolist()) == (addresses.ids.tolist(), addresses.seeds.tolist())


CALLS = st.lists(st.one_of(st.integers(0, 3), st.none(), st.none(), st.integers(-2, -1)), max_size=40)


@given(calls=CALLS)
def test_order_is_kept_without_workers(calls: list[int | None]) -> None:
    follow(AddressPipeline(Echo(), like=like(0)), [call and min(call, 0) for call in calls])


@settings(max_examples=6)
@given(
    calls=st.lists(st.one_of(st.integers(0, 3), st.none(), st.none(), st.just(-2)), min_size=10, max_size=40),
    persistent_workers=st.booleans(),
)
def test_order_is_kept_with_workers_that_finish_in_another_order(
    calls: list[int | None], persistent_workers: bool
) -> None:
    pipeline = AddressPipeline(Echo(), like=like(2, persistent_workers=persistent_workers))
    follow(pipeline, calls)
    pipeline.close()


def test_closing_in_the_middle_forgets_and_begins_anew(make: Callable[..., AddressPipeline]) -> None:
    follow(make(Echo(), 2), [2, 0, 1, None, 0, -1, 0, 3, None, -1, -1, None, 0, None])


def test_idle_workers_give_nothing(make: Callable[..., AddressPipeline]) -> None:
    """Between batches the workers have been asked many times; only what was put comes out."""
    pipeline = make(Echo(), 2, prefetch_factor=4)
    for number in range(5):
        pipeline.put(at(number))
        _assert_is(pipeline.get(), at(number))
        time.sleep(0.01)


def test_one_iterator_lives_through_an_epoch(make: Callable[..., AddressPipeline]) -> None:
    pipeline = make(Echo(), 2)
    pipeline.put(at(0))
    pipeline.get()
    workers = _children()
    for number in range(12):
        pipeline.put(at(number))
        pipeline.get()
        assert _children() == workers


@pytest.mark.parametrize("num_workers", [0, 2])
def test_depth_is_what_is_made_ahead(num_workers: int, make: Callable[..., AddressPipeline]) -> None:
    assert make(Echo(), num_workers).depth == num_workers * 2
    if num_workers:
        assert make(Echo(), num_workers, prefetch_factor=5).depth == 10


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_collate_fn_returns_comes_out(num_workers: int, make: Callable[..., AddressPipeline]) -> None:
    """Also None, which is what an idle worker gives."""
    for answer in (None, [], (), {"x": None}, Named(torch.ones(2), ["a", "b"]), "text"):
        source = Replay([1.0, 2.0], lambda items, answer=answer: answer)
        pipeline = make(source, num_workers)
        for _ in range(3):
            pipeline.put(at(0, 1))
            got = pipeline.get()
            assert type(got) is type(answer)
            assert str(got) == str(answer)
        pipeline.close()


def test_batches_are_pinned_for_a_cuda_device_alone() -> None:
    loader = DataLoader(TensorDataset(torch.arange(4)), pin_memory=True)
    assert ViewWorkers.of(loader).pin_memory
    assert ViewWorkers.of(loader, torch.device("cuda", 1)).pin_memory
    assert not ViewWorkers.of(loader, torch.device("cpu")).pin_memory


def test_an_oracle_may_take_longer_than_one_of_the_users_batches() -> None:
    loader = DataLoader(TensorDataset(torch.arange(4)), num_workers=1, timeout=5)
    assert ViewWorkers.of(loader).timeout == 5
    assert ViewWorkers.of(loader, torch.device("cpu")).timeout == 0
    assert Reader(Echo(), ViewWorkers.of(loader))._workers.timeout == 0


def test_get_without_put_is_our_own_fault(make: Callable[..., AddressPipeline]) -> None:
    with pytest.raises(AssertionError, match="without put"):
        make(Echo(), 0).get()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_of_the_data_set_comes_through(num_workers: int, make: Callable[..., AddressPipeline]) -> None:
    source = Replay(Noise(), default_collate)
    pipeline = make(source, num_workers)
    for ids in ((1,), (2, 99), (3,)):
        pipeline.put(at(*ids, seed=5))
    first = pipeline.get()
    with pytest.raises(LookupError, match="the file of sample 99 is missing") as caught:
        pipeline.get()
    told = str(caught.value) + "".join(getattr(caught.value, "__notes__", ()))
    assert "while reading sample 99 under seed 5" in told, "which sample it was must be said"
    assert torch.equal(pipeline.get(), source.batch(at(3, seed=5))), "what was put behind it comes all the same"
    pipeline.close()
    pipeline.put(at(1, seed=5))
    assert torch.equal(pipeline.get(), first)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_views_are_those_of_the_addresses_whoever_makes_them(
    num_workers: int, make: Callable[..., AddressPipeline]
) -> None:
    source = Replay(Noise(), default_collate)
    pipeline = make(source, num_workers)
    asked = [Addresses(np.array([n, n]), np.array([n, n + 1])) for n in range(8)]
    for addresses in asked:
        pipeline.put(addresses)
    for addresses in asked:
        assert torch.equal(pipeline.get(), source.batch(addresses))


def test_workers_that_are_spawned_give_the_same(make: Callable[..., AddressPipeline]) -> None:
    source = Replay(Noise(), default_collate)
    pipeline = make(source, 1, multiprocessing_context="spawn")
    pipeline.put(at(4, 5, seed=6))
    assert torch.equal(pipeline.get(), source.batch(at(4, 5, seed=6)))


# What is left behind


def _children() -> set[int | None]:
    """Processes that this one started and that are still running."""
    return {process.pid for process in multiprocessing.active_children()}


def test_close_stops_the_workers(make: Callable[..., AddressPipeline]) -> None:
    before = _children()
    pipeline = make(Echo(), 2)
    assert _children() == before, "no worker before the first batch is wanted"
    for number in range(6):
        pipeline.put(at(number))
    pipeline.get()
    assert len(_children() - before) == 2
    pipeline.close()
    assert _children() == before
    pipeline.close()


def test_close_stops_the_workers_while_an_error_is_looked_at(make: Callable[..., AddressPipeline]) -> None:
    """A notebook keeps the last traceback, and with it every frame that it went through."""
    before = _children()
    pipeline = make(Replay(Noise(), default_collate), 2)
    pipeline.put(at(99))
    try:
        pipeline.get()
    except LookupError as error:
        kept = error
        pipeline.close()
        assert _children() == before
    assert kept.__traceback__ is not None


def test_a_pipeline_that_is_forgotten_stops_its_workers() -> None:
    before = _children()
    pipeline = AddressPipeline(Echo(), like=like(2))
    pipeline.put(at(0))
    pipeline.get()
    del pipeline
    gc.collect()
    assert _children() == before


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_users_random_state_does_not_move(num_workers: int) -> None:
    loader = like(num_workers)
    source = Replay(Noise(), default_collate)
    torch.rand(1)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    pipeline = AddressPipeline(source, like=loader)
    for _ in range(2):
        pipeline.put(at(0, 1))
        pipeline.put(at(2))
        pipeline.get()
        pipeline.close()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    if os.environ.get("INFER2TRAIN_NO_TYPECHECK") == "1":  # the tests' type checker draws from it
        assert random.getstate() == states[2]


def test_the_users_loader_is_only_read() -> None:
    generator = torch.Generator().manual_seed(3)
    loader: DataLoader[Any] = DataLoader(Noise(), shuffle=True, generator=generator)
    state = generator.get_state()
    pipeline = AddressPipeline(Echo(), like=loader)
    pipeline.put(at(0))
    pipeline.get()
    assert torch.equal(generator.get_state(), state)


def test_settings_of_the_users_loader_are_taken_over(tmp_path: Path, make: Callable[..., AddressPipeline]) -> None:
    def init(worker: int) -> None:
        (tmp_path / str(worker)).touch()

    pipeline = make(Echo(), 2, worker_init_fn=init, timeout=20)
    pipeline.put(at(0))
    pipeline.put(at(1))
    pipeline.get()
    pipeline.get()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def test_a_worker_that_hangs_is_an_error_after_the_users_timeout(make: Callable[..., AddressPipeline]) -> None:
    pipeline = make(Echo(), 1, timeout=1)
    pipeline.put(at(0, seed=2500))
    with pytest.raises(RuntimeError, match="timed out"):
        pipeline.get()


# Workers that stay


def test_persistent_workers_outlive_what_is_forgotten(make: Callable[..., AddressPipeline]) -> None:
    pipeline = make(Echo(), 2, persistent_workers=True)
    before = _children()
    workers = set()
    for epoch in range(4):
        for number in range(9):  # more than are made ahead
            pipeline.put(at(10 * epoch + number, seed=number % 3))
        _assert_is(pipeline.get(), at(10 * epoch))
        workers |= _children() - before
        pipeline.forget()
        assert pipeline.waiting == 0
    assert len(workers) == 2, "no worker is started again"
    assert _children() - before == workers
    pipeline.close()
    assert _children() == before


def test_without_persistence_what_is_forgotten_stops_them(make: Callable[..., AddressPipeline]) -> None:
    before = _children()
    pipeline = make(Echo(), 2)
    pipeline.put(at(0))
    pipeline.get()
    pipeline.forget()
    assert _children() == before


def test_an_error_in_what_is_forgotten_is_nobodys(make: Callable[..., AddressPipeline]) -> None:
    source = Replay(Noise(), default_collate)
    pipeline = make(source, 2, persistent_workers=True)
    for ids in ((1,), (99,), (2,)):
        pipeline.put(at(*ids, seed=5))
    pipeline.get()
    pipeline.forget()
    pipeline.put(at(3, seed=5))
    assert torch.equal(pipeline.get(), source.batch(at(3, seed=5)))


def test_after_an_interrupted_wait_no_old_batch_comes(make: Callable[..., AddressPipeline]) -> None:
    pipeline = make(Echo(), 1, persistent_workers=True)
    pipeline.put(at(0))
    pipeline.get()
    pipeline.put(at(1, seed=1500))
    handler = signal.signal(signal.SIGALRM, lambda *_: _interrupt())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            pipeline.get()
    finally:
        signal.signal(signal.SIGALRM, handler)
    pipeline.forget()
    pipeline.put(at(2))
    _assert_is(pipeline.get(), at(2))


def _interrupt() -> None:
    raise KeyboardInterrupt


# What a worker knows


class Opened(Dataset[Any]):
    """Readable only where `open_file` was called; as HDF5 and LMDB are used."""

    file: Any = None

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Tensor:
        info = get_worker_info()
        assert info is not None
        assert info.dataset is self, "also where a sample is read"
        return self.file[index]


def open_file(worker: int) -> None:
    get_worker_info().dataset.file = torch.arange(10) * 11  # type: ignore[union-attr]


class Asks(Opened):
    """Needs no file."""

    def __getitem__(self, index: int) -> Tensor:
        assert get_worker_info().dataset is self  # type: ignore[union-attr]
        return torch.tensor(index * 11)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_worker_finds_the_users_data_set(context: str, make: Callable[..., AddressPipeline]) -> None:
    for data, init in ((Opened(), open_file), (Asks(), None)):
        source = Replay(data, default_collate, check=False)
        pipeline = make(source, 2, worker_init_fn=init, multiprocessing_context=context)
        pipeline.put(at(1, 2))
        pipeline.put(at(3))
        assert [pipeline.get().tolist() for _ in range(2)] == [[11, 22], [33]]
        pipeline.close()


class Interrupted(Dataset[Any]):
    """What Ctrl-C does to the process that reads it."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_an_interrupt_of_the_terminal_is_left_to_the_trainer(
    context: str, make: Callable[..., AddressPipeline]
) -> None:
    source = Replay(Interrupted(), default_collate, check=False)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    try:
        for num_workers, expected in ((0, False), (1, True)):
            pipeline = make(source, num_workers, multiprocessing_context=context if num_workers else None)
            pipeline.put(at(1))
            assert pipeline.get().tolist() == [expected]
    finally:
        signal.signal(signal.SIGINT, before)


def draw_in_worker(worker: int) -> None:
    drawn = torch.rand(()).item(), np.random.random(), random.random()
    get_worker_info().dataset.file = [torch.tensor(drawn)] * 10  # type: ignore[union-attr]


def test_what_worker_init_fn_draws_is_the_same_in_every_worker(make: Callable[..., AddressPipeline]) -> None:
    pipeline = make(Replay(Opened(), default_collate, check=False), 2, worker_init_fn=draw_in_worker)
    pipeline.put(at(0))
    pipeline.put(at(0))
    assert torch.equal(pipeline.get(), pipeline.get())
