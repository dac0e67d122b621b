"""Runs side by side in threads of one process end as runs in turn do, and stop together."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from infer2train.compare import Comparison, compare, train_in_threads
from infer2train.order import epoch_batches
from infer2train.runlog import read_rows
from infer2train.training import loop
from infer2train.training.config import RunConfig, from_plain
from infer2train.training.interrupt import Interrupted
from infer2train.training.loop import DivergedError, train
from infer2train.training.regimes import regime_defaults

TINY = {
    "epochs": 2,
    "batch_size": 8,
    "limit": 40,
    "gamma": 2,
    "threads": 1,
    "train_error_samples": 0,
    "evaluate_every": 2,
    "update_every": 3,
}
METHODS = {"baseline": "loop", "nm-augment": "eager", "nm-sample": "loop", "self-distill": "eager"}


def config(method: str, seed: int = 0, **changes: object) -> RunConfig:
    return from_plain({**regime_defaults("digits", method), **TINY, "seed": seed, **changes})


def results(folder: Path) -> dict[str, torch.Tensor]:
    """Of the last checkpoint, all but the process's random states, which threads share and nothing here draws from."""
    tensors = load_file(max((folder / "checkpoints").glob("step-*")) / "tensors.safetensors")
    return {name: tensor for name, tensor in tensors.items() if "rng" not in name}


@pytest.fixture(autouse=True)
def _threads(one_thread: None) -> None:
    """A run sets the number of threads of its thread."""


def test_threads_train_what_runs_in_turn_do(tmp_path: Path) -> None:
    configs = {
        f"{method}-{seed}": config(method, seed, step=step) for method, step in METHODS.items() for seed in (0, 1)
    }
    for name, run in configs.items():
        train(run, tmp_path / "in turn" / name, quiet=True, report=False)
    train_in_threads(configs, tmp_path / "side by side", 3, quiet=True)
    for name in configs:
        found, expected = results(tmp_path / "side by side" / name), results(tmp_path / "in turn" / name)
        assert any("'model'" in tensor for tensor in expected)
        assert found.keys() == expected.keys()
        for tensor, value in expected.items():
            assert torch.equal(found[tensor], value), (name, tensor)


def test_several_really_train_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits in its first step until the other is in its own."""
    step, both = loop.train_step, threading.Barrier(2)
    waited: set[int] = set()

    def in_company(*arguments: object) -> object:
        if threading.get_ident() not in waited:
            waited.add(threading.get_ident())
            both.wait(timeout=120)
        return step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "train_step", in_company)
    train_in_threads({"a": config("baseline"), "b": config("baseline", 1)}, tmp_path, 2, quiet=True)
    assert len(waited) == 2


def test_the_failure_of_one_saves_the_others(tmp_path: Path) -> None:
    configs = {"bad": config("baseline", lr=1e30), "good": config("baseline", epochs=1000)}
    with pytest.raises(DivergedError):
        train_in_threads(configs, tmp_path, 2, quiet=True)
    (interrupted,) = [row for row in read_rows(tmp_path / "good") if row.get("event") == "interrupted"]
    assert (tmp_path / "good" / "checkpoints" / f"step-{interrupted['step']:08d}").is_dir()


def test_ctrl_c_saves_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes when both have made a step."""
    import os
    import signal

    step, both = loop.train_step, threading.Barrier(2, action=lambda: os.kill(os.getpid(), signal.SIGINT))
    seen: set[int] = set()

    def stopped(*arguments: object) -> object:
        result = step(*arguments)  # type: ignore[arg-type]
        if threading.get_ident() not in seen:
            seen.add(threading.get_ident())
            both.wait(timeout=120)
        return result

    monkeypatch.setattr(loop, "train_step", stopped)
    configs = {name: config("baseline", seed, epochs=1000) for seed, name in enumerate("ab")}
    with pytest.raises(Interrupted, match="those under way are saved"):
        train_in_threads(configs, tmp_path, 2, quiet=True)
    for name in configs:
        (interrupted,) = [row for row in read_rows(tmp_path / name) if row.get("event") == "interrupted"]
        assert (tmp_path / name / "checkpoints" / f"step-{interrupted['step']:08d}").is_dir()


@pytest.mark.parametrize(
    ("changes", "jobs", "parallel_seeds", "reason"),
    [
        ({"device": "cuda"}, 1, 33, "of which there are 32: got parallel_seeds=33"),
        ({}, 1, 2, "share one CUDA device: got baseline with seed 0 on cpu; pass --jobs"),
        ({"device": "cuda"}, 2, 2, "got jobs=2 too; drop one"),
        ({"device": "cuda", "num_workers": 1}, 1, 2, "got pool=inline, num_workers=1; leave both out"),
        ({"device": "cuda", "pool": "process"}, 1, 2, "got pool=process, num_workers=0; leave both out"),
    ],
)
def test_what_cannot_share_a_device_is_refused(
    changes: dict[str, object], jobs: int, parallel_seeds: int, reason: str, tmp_path: Path
) -> None:
    runs = {("baseline", 0): replace(config("baseline"), **changes)}  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=reason):
        compare(Comparison(runs=runs), tmp_path / "c", jobs=jobs, parallel_seeds=parallel_seeds)
    assert not (tmp_path / "c").exists()


def test_the_order_of_an_epoch_does_not_depend_on_other_threads() -> None:
    """Samplers draw from the process's generators: each thread has them for itself while its sampler is asked."""
    base = DataLoader(torch.utils.data.TensorDataset(torch.arange(500)), batch_size=10, shuffle=True)
    expected = [np.concatenate(epoch_batches(base, 0, epoch)).tolist() for epoch in range(40)]
    found: dict[int, list[int]] = {}

    def ask(epochs: range) -> None:
        for epoch in epochs:
            found[epoch] = np.concatenate(epoch_batches(base, 0, epoch)).tolist()

    others = [threading.Thread(target=ask, args=(range(first, 40, 4),)) for first in range(4)]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join()
    assert [found[epoch] for epoch in range(40)] == expected
