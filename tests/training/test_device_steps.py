"""Steps made on the device are the ordinary loop's: on a CPU the same picks, weights and checkpoints, to the bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from infer2train.addresses import Addresses
from infer2train.metrics import LANES
from infer2train.pool.inline import InlinePool
from infer2train.runlog import read_rows
from infer2train.training import loop
from infer2train.training.config import RunConfig, from_plain
from infer2train.training.device_steps import DeviceSteps
from infer2train.training.interrupt import Interrupt
from infer2train.training.loop import train
from infer2train.training.regimes import regime_defaults
from infer2train.training.setup import Run, prepare, resolved
from infer2train.training.step import EpochSums
from infer2train.training.ways import images_on_device, way_of

TINY = {
    "epochs": 3,
    "batch_size": 8,
    "limit": 40,
    "gamma": 3,
    "threads": 1,
    "train_error_samples": 20,
    "evaluate_every": 3,
    "update_every": 4,  # an epoch has 5 steps
    "oracle_chunk": 7,  # 24 candidates: the last chunk is padded
    "log_every": 2,
    "checkpoint_every": 3,
}
CASES: dict[str, dict[str, Any]] = {
    "baseline": {"method": "baseline"},
    "batch-augment": {"method": "batch-augment"},
    "batch-augment-every-second": {"method": "batch-augment", "mine_every": 2},
    "max": {"method": "nm-augment"},
    "max-cropped": {"method": "nm-augment", "view": "pad-crop-flip"},
    "max-resized": {"method": "nm-augment", "view": "random-resized-crop-flip"},
    "max-trivial-augment": {
        "method": "nm-augment",
        "view": "trivial-augment",
        "label_smoothing": 0.1,
        "nesterov": True,
    },
    "max-every-second": {"method": "nm-augment", "mine_every": 2},
    "max-delayed": {"method": "nm-augment", "delay_steps": 3},
    "max-ramped": {"method": "nm-augment", "ramp_rate": 0.4},
    "max-bf16": {"method": "nm-augment", "oracle": "torch:bf16", "precision": "bf16"},
    "max-int8": {"method": "nm-augment", "oracle": "simulated:b8"},
    "proportional": {"method": "nm-augment-soft"},
    "quantile-of-margins": {"method": "nm-augment", "pick": "quantile", "score": "margin"},
    "uniform": {"method": "nm-augment", "pick": "uniform"},
    "self-distill": {"method": "self-distill", "distill_weight": 0.1},
    "self-distill-every-second": {"method": "self-distill", "distill_weight": 0.1, "mine_every": 2, "delay_steps": 1},
}
TIMED = ("seconds", "steps_per_second", "scoring_share", "waiting_share", *(f"{name}_seconds" for name in LANES))
MEANS = ("score_mean", "score_chosen")
"""Sums of float32 over several draws at once, whose order is another one."""


def config(name: str, **changes: Any) -> RunConfig:
    settings = {**TINY, **CASES[name], **changes}
    return from_plain({**regime_defaults("digits", str(settings["method"])), **settings})


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Weights, momentum, published records and random states of the last checkpoint."""
    return load_file(max((folder / "checkpoints").glob("step-*")) / "tensors.safetensors")


def state(folder: Path) -> str:
    """All else that the last checkpoint holds, but what a clock decides."""
    text = (max((folder / "checkpoints").glob("step-*")) / "state.json").read_text()
    return text[: text.index('"seconds"')] if '"seconds"' in text else text


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = [row for row in read_rows(folder) if row["kind"] == kind]
    return [{name: value for name, value in row.items() if name not in TIMED} for row in found]


def assert_same_results(folder: Path, expected: Path) -> None:
    found, wanted = tensors(folder), tensors(expected)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
    assert state(folder) == state(expected)
    assert rows(folder, "epoch") == rows(expected, "epoch")


def assert_same_rows(folder: Path, expected: Path) -> None:
    steps = rows(expected, "step")
    assert len(steps) == 7
    for row, other in zip(rows(folder, "step"), steps, strict=True):
        for name in MEANS:
            assert row.pop(name) == pytest.approx(other.pop(name), rel=1e-5)
        assert row == other


@pytest.mark.parametrize("name", CASES)
def test_a_run_on_the_device_is_the_ordinary_run(name: str, tmp_path: Path) -> None:
    for step in ("loop", "eager"):
        train(config(name, step=step), tmp_path / step, quiet=True, report=False)
    assert_same_results(tmp_path / "eager", tmp_path / "loop")
    assert_same_rows(tmp_path / "eager", tmp_path / "loop")


class StopError(Exception):
    """Instead of a kill."""


@pytest.mark.parametrize("name", ["baseline", "max-every-second", "max-delayed", "proportional", "self-distill"])
@pytest.mark.parametrize(("before", "after"), [("eager", "eager"), ("loop", "eager"), ("eager", "loop")])
def test_a_broken_off_run_goes_on_either_way(
    name: str, before: str, after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last checkpoint is of step 9, in the middle of the second epoch and of an update of the oracle."""
    train(config(name, step="loop"), tmp_path / "whole", quiet=True, report=False)
    save, broken = loop.save_checkpoint, tmp_path / "broken"

    def save_and_stop(folder: Path, step: int, state: Any) -> Path:
        path = save(folder, step, state)
        if step == 9:
            raise StopError
        return path

    with monkeypatch.context() as patched:
        patched.setattr(loop, "save_checkpoint", save_and_stop)
        with pytest.raises(StopError):
            train(config(name, step=before), broken, quiet=True, report=False)
    train(config(name, step=after), broken, quiet=True, report=False, resume=True)
    assert_same_results(broken, tmp_path / "whole")


def run_of(name: str, **changes: Any) -> Run:
    return prepare(resolved(config(name, **changes)), progress=False)


def picks(name: str, step: str, **changes: Any) -> list[tuple[Addresses, torch.Tensor | None]]:
    """Addresses and scores of every draw of two epochs."""
    run, seen = run_of(name, log_every=1, **changes), []
    if step == "loop":
        steps = lambda: loop._batch_by_batch(run, EpochSums())  # noqa: E731
    else:
        steps = DeviceSteps(run, images_on_device(run), EpochSums(), Interrupt(), is_recorded=False).epoch
    for _ in range(2):
        for result, _ in steps():
            assert result is not None
            assert run.loader.last is not None
            seen.append((run.loader.last.addresses, run.loader.last.scores))
    return seen


@pytest.mark.parametrize("name", ["max", "proportional", "uniform", "max-ramped", "batch-augment"])
def test_draw_for_draw_the_same_addresses_and_scores(name: str) -> None:
    for (addresses, scores), (expected, by_loop) in zip(picks(name, "eager"), picks(name, "loop"), strict=True):
        assert addresses.ids.tolist() == expected.ids.tolist()
        assert addresses.seeds.tolist() == expected.seeds.tolist()
        assert (scores is None) == (by_loop is None)
        assert scores is None or torch.equal(scores, by_loop)


def test_the_hard_view_is_trained_on_and_not_the_first() -> None:
    run = run_of("max", log_every=1)
    steps = DeviceSteps(run, images_on_device(run), EpochSums(), Interrupt(), is_recorded=False).epoch()
    next(steps)
    assert run.loader.last is not None
    scores, chosen = run.loader.last.scores, run.loader.last.chosen
    assert scores is not None
    assert chosen is not None
    assert chosen.tolist() == [3 * slot + view for slot, view in enumerate(scores.view(8, 3).argmax(1).tolist())]
    assert (chosen % 3 > 0).any()


def test_the_next_draw_is_scored_beside_the_step_where_its_version_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 4 is published after step 4: until then every draw was scored one step ahead."""
    run, order = run_of("max", log_every=1), []
    pool = run.loader.pool
    assert isinstance(pool, InlinePool)
    score = pool.score
    monkeypatch.setattr(pool, "score", lambda draw, batches: (order.append("score"), score(draw, batches))[1])
    for _ in DeviceSteps(run, images_on_device(run), EpochSums(), Interrupt(), is_recorded=False).epoch():
        order += ["step"]
    assert order == ["score", "score", "step", "score", "step", "score", "step", "step", "score", "step"]


def test_what_is_not_asked_for_is_not_waited_for() -> None:
    """Only every fifth step of this run is logged; in between the host learns nothing."""
    run, sums = run_of("max", log_every=5, checkpoint_every=1000), EpochSums()
    steps = DeviceSteps(run, images_on_device(run), sums, Interrupt(), is_recorded=False).epoch()
    results = [(result is not None, sums.steps) for result, _ in steps]
    assert results == [(False, 0)] * 4 + [(True, 5)]


def test_an_interrupt_is_answered_with_everything_known() -> None:
    interrupt, sums = Interrupt(), EpochSums()
    run = run_of("max", log_every=1000, checkpoint_every=1000)
    steps = DeviceSteps(run, images_on_device(run), sums, interrupt, is_recorded=False).epoch()
    assert next(steps)[0] is None
    interrupt.is_set = True
    assert next(steps)[0] is not None
    assert sums.steps == run.loader.steps == 2


def test_a_loss_that_is_no_number_is_noticed_where_it_is_logged(tmp_path: Path) -> None:
    with pytest.raises(loop.DivergedError, match="must stay finite"):
        train(config("baseline", step="eager", lr=1e30), tmp_path / "run", quiet=True, report=False)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method": "nm-sample"}, "samples are picked by class"),
        ({"method": "nm-augment", "pool": "process", "oracle_cores": "0"}, "pool=process"),
        ({"method": "nm-augment", "staleness": "freshest"}, "depends on time"),
        ({"method": "nm-augment-soft", "score": "margin"}, "may be negative"),
    ],
)
def test_what_the_device_cannot_do_is_refused_with_the_reason(changes: dict[str, Any], reason: str) -> None:
    run = run_of("max", step="eager", **changes)
    try:
        with pytest.raises(ValueError, match=rf"step=eager .* not possible here: .*{reason}.*; pass --step loop"):
            way_of(run)
    finally:
        run.loader.close()


def test_graphs_are_refused_on_a_cpu_and_auto_is_the_loop_there() -> None:
    with pytest.raises(ValueError, match="the device is cpu, which has no CUDA graphs; pass --step loop"):
        way_of(run_of("max", step="graph"))
    assert way_of(run_of("max")) == ("loop", None)
    assert way_of(run_of("max", step="eager")) == ("eager", None)
