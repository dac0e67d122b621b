"""Free validation: what the oracle finds in its idle time is what it would find inline, and changes nothing else."""

import os
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, default_collate

import infer2train
from infer2train.loader.loader import MinedLoader
from infer2train.loader.ranks import Ranks
from infer2train.machine.cores import as_text, available_cores
from infer2train.observe.runlog import read_rows
from infer2train.oracle.snapshot import snapshot
from infer2train.oracle.torch_engine import TorchEngine
from infer2train.pool.validated import _wrong
from mined_runs import Measured, Plain, draws, equal, jittered, network, sgd, state_of
from rank_processes import in_processes

pytestmark = pytest.mark.usefixtures("one_thread")

IN_PROCESS = {"pool": "process", "oracle_cores": as_text(available_cores()[-1:])}
EVERY, HELD_OUT, CHUNK, EPOCHS = 3, 70, 8, 2


def made(model: nn.Module, optimizer: torch.optim.Optimizer, **settings: Any) -> MinedLoader:
    settings = {"update_every": EVERY, "gamma": 3, "oracle_chunk": CHUNK, **settings}
    return infer2train.mine(jittered(), model, optimizer, method="nm-augment", **settings)


def test_outputs_that_are_nan_are_wrong() -> None:
    logits = torch.tensor([[torch.nan, 1.0], [2.0, 1.0], [torch.nan, torch.nan]])
    wrong = _wrong(logits, torch.zeros(3, dtype=torch.int64))
    assert wrong is not None
    assert wrong.tolist() == [True, False, True]


def until_validated(loader: MinedLoader, version: int) -> None:
    """Wait as a trainer does that is slow."""
    validation = loader.validation
    assert validation is not None
    end = time.monotonic() + 60
    while version not in validation.curve:
        validation.advance()
        assert time.monotonic() < end
        time.sleep(0.001)


def by_hand(model: nn.Module, version: int) -> tuple[float, float]:
    """Loss and error of these weights, by an engine of one's own."""
    engine, data, losses, wrong = TorchEngine(network(norm=True)), Plain(HELD_OUT), [], []
    engine.refresh(snapshot(model, version))
    for start in range(0, HELD_OUT, CHUNK):
        rows = list(range(start, min(start + CHUNK, HELD_OUT)))
        padded = rows + rows[-1:] * (CHUNK - len(rows))
        images, labels = default_collate([data[row] for row in padded])
        outputs = engine.outputs(images)
        losses.append(F.cross_entropy(outputs, labels, reduction="none")[: len(rows)])
        wrong.append((outputs.argmax(1) != labels)[: len(rows)])
    return float(torch.cat(losses).double().mean()), float(torch.cat(wrong).double().mean())


def test_versions_are_evaluated_as_inline_and_the_run_is_the_same(tmp_path: Path) -> None:
    model = network(norm=True, dropout=0.2)
    optimizer = sgd(model)
    torch.manual_seed(5)
    loader = made(model, optimizer)
    plain = [draw for _ in range(EPOCHS) for draw in draws(loader, model, optimizer)]
    loader.close()
    weights = state_of(model)

    model = network(norm=True, dropout=0.2)
    optimizer = sgd(model)
    torch.manual_seed(5)
    loader = made(model, optimizer, validation=Plain(HELD_OUT), log_dir=tmp_path, log_every=1, **IN_PROCESS)
    validation = loader.validation
    assert validation is not None
    found, expected, tensors, told = [], {0: by_hand(model, 0)}, {0: state_of(model)}, []
    for _ in range(EPOCHS):
        for draw in draws(loader, model, optimizer):
            told.append(draw)
            if loader.steps % EVERY == 0:
                expected[loader.steps] = by_hand(model, loader.steps)
                tensors[loader.steps] = state_of(model)
            elif loader.steps % EVERY == 1:
                assert draw.version is not None
                until_validated(loader, draw.version)
                found.append(draw.version)
    figures = loader.metrics()
    state = loader.state_dict()
    loader.close()
    assert equal(state_of(model), weights), "validation changes nothing"
    for here, there in zip(plain, told, strict=True):
        assert equal(here.scores, there.scores)

    assert found == [0, 3, 6, 9]
    for version in found:
        one = validation.curve[version]
        assert (one.loss, one.error) == expected[version], version
    assert figures["oracle_validation_version"] == 9
    assert (figures["oracle_validation_loss"], figures["oracle_validation_error"]) == expected[9]
    rows = [row for row in read_rows(tmp_path) if row["kind"] == "step" and "oracle_validation_loss" in row]
    assert {row["oracle_validation_version"] for row in rows} <= set(found)
    assert len(rows) >= 3
    assert "Error on held-out data of the version that the oracle evaluated last" in (
        tmp_path / "report.html"
    ).read_text("utf-8")

    best = min(found, key=lambda version: (expected[version][1], expected[version][0]))
    assert validation.best is not None
    assert validation.best.version == best
    for name, tensor in validation.best.tensors.items():
        assert torch.equal(tensor, tensors[best][name]), name
    assert validation.versions_since_best == sum(version > best for version in found)
    held = state["validation"]
    validation.load_state_dict({"curve": {}, "best": {}})
    assert (validation.best, validation.versions_since_best, validation.metrics()) == (None, 0, {})
    validation.load_state_dict(held)
    assert sorted(validation.curve) == found
    assert validation.best is not None
    assert (validation.best.version, validation.best.error) == (best, expected[best][1])


@pytest.mark.parametrize(
    "settings",
    [{"method": "infobatch", "epochs": 8, "update_every": 2}, {"mine_every": 4, "update_every": 1}],
    ids=["a last part that is not scored", "versions that no draw has"],
)
def test_a_version_that_is_kept_for_less_than_it_takes_is_left_unfinished(settings: dict[str, Any]) -> None:
    model = network()
    optimizer = sgd(model)
    settings = {"method": "nm-augment", "gamma": 2, "oracle_chunk": CHUNK, **settings}
    loader = infer2train.mine(jittered(), model, optimizer, validation=Plain(2000), **settings, **IN_PROCESS)
    assert sum(1 for _ in range(8) for _ in draws(loader, model, optimizer)) == 8 * len(loader)
    loader.close()


def test_of_numbers_there_is_a_loss_and_no_error_also_where_a_worker_is_killed() -> None:
    model = network(outputs=1)
    optimizer = sgd(model, lr=0.0)

    base = DataLoader(Measured(24), batch_size=4)
    held_out = DataLoader(Measured(HELD_OUT), batch_size=4)
    loader = infer2train.mine(
        base, model, optimizer, score=mean_squared, validation=held_out, gamma=2, update_every=100, **IN_PROCESS
    )
    assert loader.validation is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        next(iter(loader))
        os.kill(loader._pool.workers()["oracle 0"], signal.SIGKILL)  # type: ignore[attr-defined]
        for _ in loader:
            optimizer.step()
            until_validated(loader, 0)
            break
    found = loader.validation.curve[0]
    loader.close()
    assert found.error is None
    assert found.loss > 0


def mean_squared(outputs: Any, targets: Any) -> Any:
    return (outputs[:, 0] - targets).square()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "validation is done in time that an oracle in a process of its own has left.*pool='process'"),
        ({**IN_PROCESS, "method": "baseline"}, "got baseline"),
        ({**IN_PROCESS, "staleness": "freshest"}, "validation is of versions"),
    ],
)
def test_whoever_would_have_to_wait_for_it_is_refused(given: dict[str, Any], said: str) -> None:
    model = network()
    with pytest.raises(ValueError, match=said):
        infer2train.mine(jittered(), model, sgd(model), validation=Plain(HELD_OUT), **given)


def evaluated_by_ranks() -> tuple[dict[int, tuple[float, float | None]], int, int, bool]:
    """What a rank knows after two epochs of a run whose first rank's oracle evaluates."""
    model = network(norm=True)
    optimizer = sgd(model)
    loader = infer2train.mine(
        DataLoader(Plain(24), batch_size=4, shuffle=True),
        DistributedDataParallel(model),
        optimizer,
        gamma=2,
        update_every=EVERY,
        oracle_chunk=CHUNK,
        validation=Plain(HELD_OUT),
        **IN_PROCESS,
    )
    validation = loader.validation
    assert validation is not None
    for _ in range(2):
        for x, y in loader:
            assert loader.last is not None
            assert loader.last.version is not None
            if Ranks.here().is_first:
                until_validated(loader, loader.last.version)
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    loader.close()
    assert validation.best is not None
    curve = {version: (one.loss, one.error) for version, one in validation.curve.items()}
    return curve, validation.versions_since_best, validation.best.version, bool(validation.best.tensors)


def test_of_several_ranks_the_first_ones_oracle_evaluates_and_all_know(tmp_path: Path) -> None:
    first, second = in_processes(2, evaluated_by_ranks, tmp_path)
    assert first[:3] == second[:3]
    assert sorted(first[0]) == [0, 3]
    assert (first[3], second[3]) == (True, False)
