"""What a data set is tried for when a run is built, in the processes that will read it."""

import multiprocessing
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from infer2train.sources.pipeline import ViewWorkers
from infer2train.sources.replay import Replay


class Here(Dataset[Any]):
    """A well-behaved data set that writes down which process read it."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.folder is not None:
            (self.folder / str(os.getpid())).touch()
        return torch.rand(3), index


class OfItsWorker(Here):
    """Random numbers that follow a worker's seed: the same again there, and others in another worker."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        info = get_worker_info()
        seed = 0 if info is None else info.seed
        return torch.from_numpy(np.random.default_rng(seed + index).random(3)), index


class OfItsPlace(Here):
    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]  # Here gives tuples
        info = get_worker_info()
        return {"index": index, "shifts": [0, 0 if info is None else info.id]}


class OwnGenerator(Here):
    """A generator that `worker_init_fn` makes; in the calling process there is none."""

    generator: np.random.Generator | None = None

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor(0.0 if self.generator is None else self.generator.random()), index


class Seeded(Here):
    """A seed that `worker_init_fn` makes."""

    seed = 0

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor(self.seed), index


def make_generator(worker: int) -> None:
    get_worker_info().dataset.generator = np.random.default_rng(worker)  # type: ignore[union-attr]


def make_seed(worker: int) -> None:
    get_worker_info().dataset.seed = get_worker_info().seed  # type: ignore[union-attr]


IN_ANOTHER = r"must give the same item in every DataLoader worker: got another {} of sample \d+ under seed \d+"


@pytest.mark.parametrize("num_workers", [1, 4])
@pytest.mark.parametrize(
    ("data", "init", "said"),
    [
        (OfItsWorker, None, IN_ANOTHER.format(r"item\[0\]") + r".*get_worker_info\(\)"),
        (OfItsPlace, None, IN_ANOTHER.format(r"item\['shifts'\]\[1\]")),
        (Seeded, make_seed, IN_ANOTHER.format(r"item\[0\]")),
        (OwnGenerator, make_generator, r"whenever it is read .*another item\[0\] of .*made in worker_init_fn"),
    ],
)
def test_randomness_of_a_worker_is_found_in_workers(data: Any, init: Any, said: str, num_workers: int) -> None:
    workers = ViewWorkers(num_workers=num_workers, worker_init_fn=init)
    before = set(multiprocessing.active_children())
    with pytest.raises(ValueError, match=said):
        Replay(data(), default_collate, workers=workers)
    assert set(multiprocessing.active_children()) <= before
    assert len(Replay(data(), default_collate)) == 30, "without workers there is nothing to find"


def drawn_by_the_worker(items: list[Any]) -> Any:
    images, labels = default_collate(items)
    info = get_worker_info()
    return images + (0 if info is None else info.id), labels


def mixed_in_workers(items: list[Any]) -> Any:
    images, labels = default_collate(items)
    return images if get_worker_info() is None else images + images.roll(1, 0), labels


@pytest.mark.parametrize(
    ("collate_fn", "said"),
    [
        (drawn_by_the_worker, r"the same batch of the same samples in every DataLoader worker: got another batch\[0\]"),
        (mixed_in_workers, r"whatever it is batched with.*got another batch\[0\]"),
    ],
)
def test_collate_fn_is_tried_in_workers(collate_fn: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Replay(Here(), collate_fn, workers=ViewWorkers(num_workers=1))
    assert len(Replay(Here(), collate_fn)) == 30


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_alone_read_and_are_stopped(tmp_path: Path, context: str) -> None:
    before = set(multiprocessing.active_children())
    Replay(Here(tmp_path), default_collate, workers=ViewWorkers(num_workers=1, multiprocessing_context=context))
    readers = {path.name for path in tmp_path.iterdir()}
    assert len(readers) == 2
    assert str(os.getpid()) not in readers
    assert set(multiprocessing.active_children()) <= before


def test_without_workers_this_process_reads(tmp_path: Path) -> None:
    Replay(Here(tmp_path), default_collate)
    assert [path.name for path in tmp_path.iterdir()] == [str(os.getpid())]


@pytest.mark.parametrize("n", [1, 2, 8, 9, 30])
def test_samples_from_all_over_the_data_are_batched(n: int) -> None:
    seen: set[int] = set()

    def collate(items: list[int]) -> Tensor:
        seen.update(items)
        return torch.tensor(items)

    Replay(list(range(n)), collate)
    assert len(seen) == min(n, 8)
    assert max(seen) >= n * 7 // 8


class Flat(Here):
    """Dictionaries, made anew whenever they are read."""

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]  # Here gives tuples
        return {"x": torch.arange(4.0).reshape(1, 2, 2) + index, "labels": index}


class Kept(Here):
    """The same, kept and flipped in place by the data set itself."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = [Flat()[index] for index in range(30)]

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]  # Here gives tuples
        return flipped(self.kept[index])


def flipped(item: dict[str, Any]) -> dict[str, Any]:
    if random.random() < 0.5:
        item["x"] = item["x"].flip(-1)
    return item


def turned(item: dict[str, Any]) -> dict[str, Any]:
    item["x"] = torch.rot90(item["x"], random.randint(0, 3), (-2, -1))
    return item


def brightened(item: dict[str, Any]) -> dict[str, Any]:
    item["x"] = item["x"] * random.choice([0.5, 1.0, 2.0])
    return item


@pytest.mark.parametrize("transform", [flipped, turned, brightened])
def test_changes_in_place_are_found_whatever_their_order(transform: Any) -> None:
    """All views of a sample would be one object, with all changes on top of each other."""
    with pytest.raises(ValueError, match=r"another item\['x'\] of sample \d+ .*changes its argument in place"):
        Replay(Flat(), default_collate, transform=transform)
    assert len(Replay(Flat(), default_collate, transform=lambda item: transform(dict(item)))) == 30


def test_a_data_set_that_changes_what_it_keeps_is_found() -> None:
    with pytest.raises(ValueError, match=r"another item\['x'\] of sample \d+ .*changes its argument in place"):
        Replay(Kept(), default_collate)
