"""Users' data that are read in workers, mixed by collate functions, and opened in `worker_init_fn`: whole runs."""

import copy
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from infer2train import MinedLoader, Replay, mine
from infer2train.machine.cores import as_text, available_cores
from mined_runs import CLASSES, SIZE, Jittered, draws, equal, jittered, network, sgd

pytestmark = pytest.mark.usefixtures("one_thread")


# A collate function that mixes


def soft_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy with classes or with shares of classes as targets."""
    return F.cross_entropy(outputs, targets, reduction="none")


def mixup(items: list[Any]) -> tuple[Tensor, Tensor]:
    images, labels = default_collate(items)
    targets = F.one_hot(labels, CLASSES).float()
    share, others = float(np.random.beta(1, 1)), torch.randperm(len(images))
    return share * images + (1 - share) * images[others], share * targets + (1 - share) * targets[others]


def mixed(method: str = "nm-augment", **settings: Any) -> MinedLoader:
    base = jittered(collate_fn=mixup, num_workers=settings.pop("num_workers", 0))
    return mine(base, network(), method=method, gamma=3, **settings)


def test_a_collate_fn_that_mixes_is_refused_where_batches_are_scored() -> None:
    with pytest.raises(ValueError, match=r"whatever it is batched with.*batch\[0\].*score_collate=") as error:
        mixed(score=soft_loss)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="whatever it is batched with"):
        mixed("random-sample", epochs=5, num_workers=1)


@pytest.mark.parametrize("method", ["baseline", "batch-augment"])
def test_a_method_that_looks_at_no_candidate_may_mix(method: str) -> None:
    images, targets = next(iter(mixed(method)))
    assert images.shape[1:] == (1, SIZE, SIZE)
    assert targets.shape[1:] == (CLASSES,)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_score_collate_scores_samples_before_they_are_mixed(num_workers: int) -> None:
    loader = mixed(score=soft_loss, score_collate=default_collate, num_workers=num_workers)
    apart = Replay(Jittered(), default_collate)
    together = Replay(Jittered(), mixup, may_mix=True)
    model = network().eval()
    for batch in loader:
        last = loader.last
        assert last is not None
        assert last.scores is not None
        images, labels = apart.batch(last.candidates)
        with torch.no_grad():
            assert torch.allclose(last.scores, soft_loss(model(images), labels), atol=1e-5)
        assert (last.scores.view(-1, 3).argmax(1).numpy() + 3 * np.arange(4) == last.chosen).all()
        assert equal(list(batch), list(together.batch(last.addresses))), "trained on is what collate_fn makes"
        loader.step_done()
    assert any("score_collate makes the batches that are scored" in note for note in loader.notes)
    loader.close()


def test_score_collate_is_tried_as_collate_fn_would_be() -> None:
    with pytest.raises(ValueError, match="whatever it is batched with"):
        mixed(score=soft_loss, score_collate=mixup)


def test_score_collate_is_refused_where_both_sides_need_one_batch() -> None:
    with pytest.raises(ValueError, match=r"self-distill compares .* got score_collate; mix after the loader"):
        mixed("self-distill", score_collate=default_collate)
    data = Replay(Jittered(), default_collate)
    with pytest.raises(ValueError, match="score_collate must be left out where the data set makes whole batches"):
        mine(DataLoader(data, batch_size=4), network(), score_collate=default_collate)


# Files that workers open


class Opened(Dataset[Any]):
    """Labelled images in a file that each worker opens for itself; jittered."""

    file: Any = None

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "starts").touch()
        generator = np.random.default_rng(0)
        np.save(path / "images.npy", generator.normal(size=(24, 1, SIZE, SIZE)).astype(np.float32))

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        info = get_worker_info()
        assert info is not None, "read outside a worker"
        assert info.dataset is self
        return torch.from_numpy(np.array(self.file[index])) + 0.3 * torch.randn(1, SIZE, SIZE), index % CLASSES


def open_file(worker: int) -> None:
    """Opens it, and writes down that a worker has started."""
    info = get_worker_info()
    assert info is not None
    data: Any = info.dataset
    data.file = np.load(data.path / "images.npy", mmap_mode="r")
    with (data.path / "starts").open("a") as starts:
        starts.write(f"{worker}\n")


def opened(path: Path, model: Any, **settings: Any) -> MinedLoader:
    options = {"num_workers": 1, **{k: settings.pop(k) for k in list(settings) if k in LOADER}}
    base = DataLoader(Opened(path), batch_size=4, shuffle=True, worker_init_fn=open_file, **options)
    return mine(base, model, settings.pop("optimizer"), gamma=3, update_every=4, **settings)


LOADER = ("num_workers", "persistent_workers", "multiprocessing_context")
IN_PROCESS = {"pool": "process", "oracle_cores": as_text(available_cores()[-1:])}


def run(path: Path, epochs: int = 2, **settings: Any) -> tuple[list[Any], list[int]]:
    """What was scored in each draw, and how many workers had started after each epoch."""
    model = network()
    optimizer = sgd(model)
    loader = opened(path, model, optimizer=optimizer, **settings)
    scores, starts = [], []
    for _ in range(epochs):
        scores += [copy.deepcopy(draw.scores) for draw in draws(loader, model, optimizer)]
        starts.append(len((path / "starts").read_text().split()))
    loader.close()
    return scores, starts


@pytest.mark.parametrize("oracle", [pytest.param("torch:fp32", marks=pytest.mark.slow), "simulated:b8"])
def test_files_opened_in_workers_are_read_wherever_the_oracle_runs(oracle: str, tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())
    inline, _ = run(tmp_path, oracle=oracle)
    assert set(multiprocessing.active_children()) <= before
    elsewhere, _ = run(tmp_path, oracle=oracle, **IN_PROCESS)
    assert set(multiprocessing.active_children()) <= before
    assert len(inline) == 12
    assert equal(inline, elsewhere)


@pytest.mark.slow
def test_files_opened_in_spawned_workers_are_read(tmp_path: Path) -> None:
    forked, _ = run(tmp_path, epochs=1)
    assert equal(run(tmp_path, epochs=1, multiprocessing_context="spawn")[0], forked)


# Workers that stay


STAYING = {"oracle": "simulated:b8", "epochs": 3, "num_workers": 2}


def test_persistent_workers_start_once(tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())
    scores, starts = run(tmp_path, persistent_workers=True, **STAYING)
    assert starts[1:] == starts[:1] * 2, "no worker starts after the first epoch"
    assert set(multiprocessing.active_children()) <= before
    others, starts = run(tmp_path, **STAYING)
    assert np.diff(starts).tolist() == [4, 4], "two for the oracle and two for the trainer each epoch"
    assert equal(scores, others)


def test_persistent_workers_of_an_oracle_s_process_start_once(tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())
    _, starts = run(tmp_path, persistent_workers=True, **STAYING, **IN_PROCESS)
    assert starts[1:] == starts[:1] * 2
    assert set(multiprocessing.active_children()) <= before


def test_leaving_an_epoch_keeps_them_and_their_old_batches_out(tmp_path: Path) -> None:
    def seen(**settings: Any) -> list[Any]:
        model = network()
        optimizer = sgd(model)
        loader = opened(tmp_path, model, optimizer=optimizer, num_workers=2, **settings)
        batches = []
        for _ in range(3):
            for draw in draws(loader, model, optimizer):
                batches.append(copy.deepcopy(draw.scores))
                if draw.number % 6 == 2:
                    break
        loader.close()
        return batches

    assert equal(seen(persistent_workers=True), seen())
