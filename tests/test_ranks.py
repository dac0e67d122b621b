"""Several ranks: two processes joined by Gloo against one process with twice the batch size."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from difflib import ndiff
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader, DistributedSampler, SubsetRandomSampler

from infer2train import mine
from infer2train.draws.draw import Draw
from infer2train.loader.loader import MinedLoader
from infer2train.loader.order import in_turn
from infer2train.loader.ranks import Ranks
from infer2train.machine import cores
from mined_runs import Jittered, Plain, equal, network, sgd
from rank_processes import in_processes

N, BATCH, EPOCHS = 48, 4, 3
"""Samples, batch size of each of two ranks, epochs."""
OPTIONS: dict[str, dict[str, Any]] = {
    "nm-augment": {"gamma": 3},
    "nm-augment-soft": {"gamma": 3, "ramp_rate": 0.4},
    "nm-sample": {"gamma": 3, "ramp_rate": 0.5},
    "random-sample": {"gamma": 3, "ramp_rate": 0.5},
    "infobatch": {"epochs": 4},
    "self-distill": {"gamma": 2, "distill_weight": 0.1},
    "batch-augment": {"gamma": 2},
    "baseline": {},
}
SHARED_OUT = ["nm-augment-soft", "nm-sample", "random-sample", "infobatch", "self-distill", "batch-augment"]
Row = tuple[int, int | None, list[tuple[int, int]]]
"""Of a draw its number, its version, and this rank's addresses."""

pytestmark = pytest.mark.filterwarnings("ignore:.*use_fork|.*fork.*:DeprecationWarning")


def world() -> int:
    return Ranks.here().world


def loader_of(kind: str, *, n: int = N, batch_size: int = BATCH, ranks: int = 2, **options: Any) -> "DataLoader[Any]":
    """A user's loader: of each of two ranks, or of one rank with twice the batch size."""
    size = batch_size * ranks // world()
    if kind == "plain":
        return DataLoader(Jittered(n), size, shuffle=True, **options)
    sampler: DistributedSampler[Any] = DistributedSampler(Jittered(n), world(), Ranks.here().rank, seed=5)
    return DataLoader(Jittered(n), size, sampler=sampler, **options)


class Run:
    """A user's training: its model computes in float64, so that summing gradients in another order moves no score."""

    def __init__(
        self, base: "DataLoader[Any]", *, norm: bool = False, is_sharded: bool = False, **settings: Any
    ) -> None:
        self.inner: Any = network(norm=norm).double()
        self.model: nn.Module = self.inner
        if is_sharded:
            fully_shard(self.inner[0])
            fully_shard(self.inner)
        elif world() > 1:
            self.model = DistributedDataParallel(self.inner)
        self.optimizer = sgd(self.inner)
        self.every = settings.get("accumulation_steps", 1)
        self.loader: MinedLoader = mine(base, self.model, self.optimizer, **{"update_every": 2, **settings})

    def epoch(self) -> Iterator[Draw]:
        """One epoch of the loop that users have; tells of each draw after its step."""
        if isinstance(sampler := self.loader.sampler, DistributedSampler):
            sampler.set_epoch(self.loader.epoch)
        for x, y in self.loader:
            last = self.loader.last
            assert last is not None
            outputs = self.model(x.double())
            losses = F.cross_entropy(outputs, y, reduction="none")
            loss = (losses if last.weights is None else losses * last.weights).mean() / self.every
            (loss + self.loader.penalty(outputs)).backward()
            if self.loader.position % self.every == 0 or self.loader.position == len(self.loader):
                self.optimizer.step()
                self.optimizer.zero_grad()
            yield last

    def rows(self, epochs: int = EPOCHS) -> list[Row]:
        found = [row(draw) for _ in range(epochs) for draw in self.epoch()]
        self.loader.close()
        return found


def row(draw: Draw) -> Row:
    return draw.number, draw.version, list(draw.addresses)


def together(ranks: list[list[Row]]) -> list[Row]:
    """What ranks trained on, joined to global draws."""
    joined = []
    for rows in zip(*ranks, strict=True):
        numbers = {(number, version) for number, version, _ in rows}
        assert len(numbers) == 1, "ranks were at different draws"
        turns = in_turn([np.arange(len(own)) + 1000 * rank for rank, (_, _, own) in enumerate(rows)])
        joined.append((*rows[0][:2], [rows[place // 1000][2][place % 1000] for place in turns]))
    return joined


def chosen(kind: str, method: str, n: int = N, workers: int = 0, epochs: int = EPOCHS, **settings: Any) -> list[Row]:
    options = {"n": n, "num_workers": workers, "persistent_workers": workers > 0}
    return Run(loader_of(kind, **options), method=method, **OPTIONS[method], **settings).rows(epochs)


# What is selected


@pytest.mark.parametrize(
    ("kind", "methods"),
    [pytest.param("distributed", SHARED_OUT, marks=pytest.mark.slow), ("plain", ["nm-augment", "nm-sample"])],
)
def test_two_ranks_select_what_one_of_twice_the_batch_does(kind: str, methods: list[str], tmp_path: Path) -> None:
    def everything() -> dict[str, tuple[list[Row], Tensor]]:
        runs = {method: Run(loader_of(kind), method=method, **OPTIONS[method]) for method in methods}
        return {
            method: (run.rows(), parameters_to_vector(run.inner.parameters()).detach()) for method, run in runs.items()
        }

    said, expected = in_processes(2, everything, tmp_path), everything()
    assert all(isinstance(one, dict) for one in said), said
    for method, (rows, weights) in expected.items():
        found = together([one[method][0] for one in said])
        if method == "batch-augment":  # a rank has all views of a slot, so they come in another order
            rows, found = ([(*draw[:2], sorted(draw[2])) for draw in them] for them in (rows, found))
        assert found == rows, method
        torch.testing.assert_close(said[1][method][1], weights, rtol=1e-9, atol=1e-9, msg=method)


@pytest.mark.parametrize(
    ("method", "workers"), [("nm-augment", 0), pytest.param("nm-sample", 1, marks=pytest.mark.slow)]
)
def test_and_so_do_oracles_in_processes_of_their_own(method: str, workers: int, tmp_path: Path) -> None:
    beside = partial(chosen, "distributed", method, workers=workers, epochs=2, pool="process")
    assert together(in_processes(2, beside, tmp_path)) == chosen("distributed", method, epochs=2)


@pytest.mark.parametrize("kind", ["distributed", "plain"])
def test_the_last_draws_are_divided_evenly_and_every_rank_has_something(kind: str, tmp_path: Path) -> None:
    n = 17 if kind == "plain" else 22  # `DistributedSampler` itself makes its parts alike
    said = in_processes(2, partial(chosen, kind, "nm-sample", n), tmp_path)
    sizes = [[len(own) for _, _, own in rows[: len(rows) // EPOCHS]] for rows in said]
    assert sizes == ([[4, 4, 1], [4, 4, 1]] if kind == "plain" else [[4, 4, 3], [4, 4, 3]])
    if kind == "distributed":
        assert together(said) == chosen(kind, "nm-sample", n)


def test_an_unmined_draw_is_what_the_ranks_own_sampler_gave(tmp_path: Path) -> None:
    def ids() -> tuple[list[list[int]], list[list[int]]]:
        base = loader_of("distributed")
        return [[i for i, _ in own] for _, _, own in Run(base, method="baseline").rows(1)], list(base.batch_sampler)  # type: ignore[arg-type]

    for mined, given in in_processes(2, ids, tmp_path):
        assert mined == given


def test_accumulated_steps_are_counted_alike(tmp_path: Path) -> None:
    alike = partial(chosen, "plain", "nm-augment", accumulation_steps=2)
    rows = together(in_processes(2, alike, tmp_path))
    assert rows == alike()
    assert {version for _, version, _ in rows} == {0, 2, 4, 6, 8}


def own_parts(method: str) -> list[tuple[int, int, int, bool]]:
    run = Run(loader_of("distributed"), method=method, **OPTIONS[method])
    found = []
    for draw in run.epoch():
        assert draw.scores is not None
        assert draw.chosen is not None
        same = list(draw.candidates[draw.chosen]) == list(draw.addresses)
        found.append(
            (len(draw.ids), len(draw.scores), len(draw.candidates), same and bool(draw.scores.isfinite().all()))
        )
    return found


def test_last_tells_of_the_ranks_own_slots_or_of_all_candidates(tmp_path: Path) -> None:
    assert set(in_processes(2, partial(own_parts, "nm-augment"), tmp_path)[1]) == {(4, 12, 12, True)}
    assert set(in_processes(2, partial(own_parts, "infobatch"), tmp_path)[1]) == {(4, 8, 8, True)}


# What is published and saved


def saved() -> tuple[list[Row], dict[str, Any], dict[str, Tensor]]:
    """Two epochs and a half of a network whose running statistics differ between ranks."""
    run = Run(loader_of("plain"), method="nm-sample", norm=True, **OPTIONS["nm-sample"])
    rows = run.rows(2)
    return rows, run.loader.state_dict(), {name: tensor.clone() for name, tensor in run.inner.named_buffers()}


def test_all_publish_what_the_first_has_and_save_the_same_state(tmp_path: Path) -> None:
    (_, first, buffers), (_, second, others) = in_processes(2, saved, tmp_path)
    assert not equal(buffers, others), "the test has nothing to tell apart"
    del first["rng"], second["rng"]
    assert (first.pop("rank"), second.pop("rank")) == (0, 1)
    assert equal(first, second)
    record = first["records"]["12"]
    assert equal({name: record["tensors"][name] for name in buffers}, buffers)


def stopped_at(draws: int, state: dict[str, Any] | None, ranks: int) -> tuple[list[Row], dict[str, Any]]:
    """So many draws of a run that goes on from a state, and the state after them."""
    run = Run(loader_of("distributed", num_workers=0), method="nm-sample", **OPTIONS["nm-sample"])
    if state is not None:
        run.inner.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.loader.load_state_dict(state["loader"])
    found: list[Row] = []
    while len(found) < draws:
        for draw in run.epoch():
            found.append(row(draw))
            if len(found) == draws:
                break
    parts = {"model": run.inner.state_dict(), "optimizer": run.optimizer.state_dict()}
    return found, {**parts, "loader": run.loader.state_dict()}


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    whole, _ = stopped_at(18, None, 1)
    first = in_processes(2, lambda: stopped_at(8, None, 2), tmp_path)
    state = first[0][1]
    then, state = stopped_at(5, state, 1)
    last = in_processes(2, lambda: stopped_at(5, state, 2), tmp_path)
    assert together([rows for rows, _ in first]) + then + together([rows for rows, _ in last]) == whole


def test_another_global_batch_is_refused(tmp_path: Path) -> None:
    _, state = stopped_at(8, None, 1)

    def other() -> None:
        Run(loader_of("plain", batch_size=5), method="nm-sample", **OPTIONS["nm-sample"]).loader.load_state_dict(
            state["loader"]
        )

    for said in in_processes(2, other, tmp_path):
        assert "needs the same global batch, which selection follows: got 8 samples on 1 ranks" in said
        assert said.endswith("10 on 2 here; pass batch_size=4 if that divides it")


def accumulating(draws: int, saved: Any = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the state after so many draws of a run whose ranks exchange gradients in the last of each step.

    What went before is in the state that this rank has saved.
    """
    run = Run(loader_of("plain"), method="nm-augment", accumulation_steps=3, **OPTIONS["nm-augment"])
    parts = {"model": run.inner, "optimizer": run.optimizer, "loader": run.loader}
    if saved is not None:
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    for x, y in run.loader:
        is_last = run.loader.position % 3 == 0
        with nullcontext() if is_last else run.model.no_sync():  # type: ignore[operator]
            (F.cross_entropy(run.model(x.double()), y) / 3).backward()
        if is_last:
            run.optimizer.step()
            run.optimizer.zero_grad()
        if run.loader.position == draws:
            break
    return run.inner.state_dict(), {name: part.state_dict() for name, part in parts.items()}


def test_each_rank_goes_on_in_an_accumulated_step_from_a_state_of_its_own(tmp_path: Path) -> None:
    whole = in_processes(2, partial(accumulating, 6), tmp_path)
    saved = [state for _, state in in_processes(2, partial(accumulating, 5), tmp_path)]
    assert not equal(saved[0]["loader"]["gradients"], saved[1]["loader"]["gradients"])
    resumed = in_processes(2, lambda: accumulating(6, saved[Ranks.here().rank]), tmp_path)
    assert all(equal(found[0], expected[0]) for found, expected in zip(resumed, whole, strict=True)), resumed
    assert not resumed[1][1]["loader"]["gradients"], "after a step one state will do for all"
    refused = in_processes(
        2,
        lambda: Run(
            loader_of("plain"), method="nm-augment", accumulation_steps=3, **OPTIONS["nm-augment"]
        ).loader.load_state_dict(saved[0]["loader"]),
        tmp_path,
    )
    assert refused[0] is None
    assert (
        "those of one rank: got a state of rank 0 of 2 on rank 1 of 2; have each rank save its own state" in refused[1]
    )


def test_only_the_first_rank_writes_a_log(tmp_path: Path) -> None:
    def logged() -> list[Row]:
        folder = tmp_path / "run"
        return Run(loader_of("plain"), method="nm-augment", log_dir=folder, log_every=2, gamma=2).rows(1)

    in_processes(2, logged, tmp_path)
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [one["step"] for one in steps if one["kind"] == "step"] == [2, 4, 6]


# Sharded models

WHOLE = StateDictOptions(full_state_dict=True)


def sharded(draws: int, state: Any = None, every: int = 1) -> tuple[list[Row], dict[str, Any]]:
    """So many draws of a model that is sharded if there are ranks, and what is saved after them.

    After an epoch it is evaluated, which leaves a part of it whole.
    """
    options = {**OPTIONS["nm-sample"], "accumulation_steps": every}
    run = Run(loader_of("plain"), is_sharded=world() > 1, method="nm-sample", **options)
    if state is not None:
        parts = {"model_state_dict": state["model"], "optim_state_dict": state["optimizer"]}
        set_state_dict(run.inner, run.optimizer, **parts, options=WHOLE)
        run.loader.load_state_dict(state["loader"])
    found: list[Row] = []
    while len(found) < draws:
        for draw in run.epoch():
            found.append(row(draw))
            if len(found) == draws:
                break
        else:
            with torch.no_grad():
                run.model(torch.zeros(2, 1, 6, 6).double())
    model, optimizer = get_state_dict(run.inner, run.optimizer, options=WHOLE)
    return found, {"model": model, "optimizer": optimizer, "loader": run.loader.state_dict()}


def test_a_sharded_model_selects_what_a_whole_one_does_and_goes_on(tmp_path: Path) -> None:
    rows, whole = sharded(18)
    said = in_processes(2, partial(sharded, 18), tmp_path)
    assert together([found for found, _ in said]) == rows
    first, last = (max(state["loader"]["records"], key=int) for state in (said[0][1], whole))
    assert first == last
    records = [state["loader"]["records"][last]["tensors"] for state in (said[0][1], said[1][1], whole)]
    assert equal(records[0], records[1])
    assert {name: tensor.shape for name, tensor in records[0].items()} == {
        name: tensor.shape for name, tensor in records[2].items()
    }, "an oracle gets whole weights"
    for name, tensor in records[2].items():
        torch.testing.assert_close(records[0][name], tensor, rtol=1e-9, atol=1e-9)
    saved = in_processes(2, partial(sharded, 8), tmp_path)[0]
    resumed = in_processes(2, partial(sharded, 10, saved[1]), tmp_path)
    assert [found for found, _ in resumed] == [found[8:] for found, _ in said]
    assert equal(resumed[0][1]["model"], said[0][1]["model"])


def test_a_sharded_model_goes_on_in_an_accumulated_step(tmp_path: Path) -> None:
    whole = in_processes(2, partial(sharded, 6, every=3), tmp_path)
    states = [state for _, state in in_processes(2, partial(sharded, 5, every=3), tmp_path)]
    assert states[0]["loader"]["gradients"]
    resumed = in_processes(2, lambda: sharded(1, states[Ranks.here().rank], every=3), tmp_path)
    assert equal(resumed[0][1]["model"], whole[0][1]["model"])


# What goes wrong


def test_ranks_that_would_do_different_things_are_refused(tmp_path: Path) -> None:
    def different() -> None:
        Run(loader_of("plain"), method="nm-augment", gamma=2 + Ranks.here().rank).rows()

    first, second = in_processes(2, different, tmp_path)
    assert first == second
    assert "all ranks of a run must do the same: got gamma 2 on rank 0, 3 on rank 1; call mine() alike" in first


def test_picks_that_depend_on_timing_are_refused(tmp_path: Path) -> None:
    said = in_processes(2, partial(chosen, "plain", "nm-augment", staleness="freshest"), tmp_path)
    assert all("several ranks must pick alike" in one for one in said)


def leaving(how: Callable[[], None], method: str) -> float:
    """Seconds until the rank that is left behind has its error."""
    run = Run(loader_of("plain"), method=method, **OPTIONS[method])
    for place, _ in enumerate(run.epoch()):
        if place == 2 and Ranks.here().rank == 1:
            how()
    raise AssertionError("nothing was noticed")


def die() -> None:
    os._exit(1)


def hang() -> None:
    time.sleep(6)
    os._exit(1)


@pytest.mark.parametrize("how", [die, hang])
def test_a_rank_that_is_left_alone_ends_with_one_clear_error(how: Callable[[], None], tmp_path: Path) -> None:
    started = time.monotonic()
    first, second = in_processes(2, partial(leaving, how, "infobatch"), tmp_path, timeout_seconds=3)
    assert second is None
    assert time.monotonic() - started < 120, "which is less than any group waits by default"
    assert first.startswith("RuntimeError: every rank must be there, and at the same draw: rank 0 of 2 waited for the")
    assert first.endswith("Start all of them again, from the last checkpoint")


def test_a_process_group_of_one_is_no_ranks_at_all(tmp_path: Path) -> None:
    (said,) = in_processes(1, partial(chosen, "plain", "nm-sample"), tmp_path)
    assert said == chosen("plain", "nm-sample")


def test_the_mined_example_differs_from_the_plain_one_in_at_most_three_lines() -> None:
    folder = Path(__file__).resolve().parents[1] / "examples"
    plain, mined = (
        (folder / f"ddp_{name}.py").read_text().split('"""', 2)[2].splitlines() for name in ("plain", "mined")
    )
    changed = [line for line in ndiff(plain, mined) if line[0] in "+-" and line[1:].strip()]
    assert len(changed) <= 3, changed


def test_oracles_of_ranks_on_one_machine_have_cores_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "available_cores", lambda: tuple(range(8)))
    assert cores.shared_out(None, 2) == ((6, 7), (0, 1, 2, 3, 4, 5))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for rank, own in (("0", (4, 5)), ("1", (6, 7))):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert cores.shared_out(None, 2) == (own, (0, 1, 2, 3))
    monkeypatch.setattr(cores, "available_cores", lambda: (0, 1))
    assert cores.shared_out(None, 1) == ((1,), (0,)), "there are not enough"


def test_cores_are_shared_out_to_processes_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "available_cores", lambda: (0, 1, 2, 5, 6))
    assert cores.parts_of_all(2) == [(0, 1), (2, 5, 6)]
    assert cores.parts_of_all(7) == [(0,), (1,), (2,), (5,), (6,), (0,), (1,)], "each has one, though not its own"


def test_an_epoch_of_parts_that_no_sampler_tells_of_is_as_long_as_a_part(tmp_path: Path) -> None:
    def lengths() -> tuple[int, int, int]:
        model = network()
        own = range(Ranks.here().rank, 24, 2) if Ranks.here().rank else range(0, 20, 2)
        base = DataLoader(Plain(24), batch_size=2, sampler=SubsetRandomSampler(own))
        loader = mine(base, model, gamma=2)
        before = len(loader)
        seen = sum(1 for _ in loader)
        return before, len(loader), seen

    assert in_processes(2, lengths, tmp_path) == [(6, 6, 6), (6, 6, 6)], "of ten and twelve samples"
