"""The loader between the draws: which version scores, what scoring leaves untouched, going on after a stop."""

import io
import multiprocessing
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler, default_collate

from infer2train import MinedLoader, Replay, mine
from infer2train.checkpoint.checkpoint import load_checkpoint, save_checkpoint
from infer2train.draws.randomness import rng_state
from mined_runs import Jittered, draws, equal, jittered, network, one_ahead, sgd, state_of

# The rule of versions


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("delay_steps", [0, 1, 3])
def test_each_draw_is_scored_by_the_weights_of_its_version(delay_steps: int, num_workers: int) -> None:
    base = jittered(n=40, num_workers=num_workers)
    model = network(norm=True)
    optimizer = sgd(model)
    loader = mine(base, model, optimizer, gamma=3, update_every=4, delay_steps=delay_steps)
    by_hand = Replay(base.dataset, default_collate)
    snapshots, oracle = [state_of(model)], network(norm=True).eval()
    for _ in range(2 if num_workers == 0 else 1):
        for draw in draws(loader, model, optimizer):
            snapshots.append(state_of(model))
            assert draw.version == 4 * (max(0, draw.step - delay_steps) // 4)
            assert draw.lag is not None
            assert 0 <= draw.lag <= 4 - 1 + delay_steps
            x, y = by_hand.batch(draw.candidates)
            by_version = {}
            for version in range(0, draw.step + 1, 4):
                oracle.load_state_dict(snapshots[version])
                with torch.no_grad():
                    by_version[version] = F.cross_entropy(oracle(x), y, reduction="none")
            torch.testing.assert_close(draw.scores, by_version.pop(draw.version))
            assert draw.scores is not None
            assert not any(torch.allclose(draw.scores, other) for other in by_version.values())


def test_a_host_that_fetches_ahead_gets_what_one_that_does_not_gets() -> None:
    runs = []
    for wrap in (iter, one_ahead):
        model = network(norm=True)
        optimizer = sgd(model)
        loader = mine(jittered(n=40), model, optimizer, gamma=3, update_every=3, delay_steps=2)
        for _ in range(2):
            for x, y in wrap(loader):  # type: ignore[operator]
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
                optimizer.zero_grad()
        runs.append(state_of(model))
    assert equal(runs[0], runs[1])


# What scoring leaves untouched


def test_scoring_changes_nothing_of_the_model_and_no_random_state() -> None:
    model = network(norm=True, dropout=0.5)
    optimizer = sgd(model)
    loader = mine(jittered(), model, optimizer, gamma=4, update_every=2)
    batches = iter(loader)
    next(batches)
    for _ in range(5):
        assert loader.last is not None
        x, y = default_collate([Jittered()[0], Jittered()[1]])
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        grads = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        weights, states, is_training = state_of(model), rng_state(), model.training
        next(batches)
        assert equal([parameter.grad for parameter in model.parameters()], grads)
        assert len(grads) == len(list(model.parameters()))
        assert equal(state_of(model), weights)
        assert same_states(rng_state(), states)
        assert model.training is is_training


def same_states(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return (
        first["python"] == second["python"]
        and np.array_equal(np.asarray(first["numpy"]["state"]["key"]), np.asarray(second["numpy"]["state"]["key"]))
        and first["numpy"]["state"]["pos"] == second["numpy"]["state"]["pos"]
        and torch.equal(first["torch"], second["torch"])
    )


@pytest.mark.parametrize("num_workers", [0, 1])
def test_nm_augment_with_one_candidate_is_the_baseline_bit_for_bit(num_workers: int) -> None:
    """Dropout and batch-norm see the same numbers, and a host that draws its own sees the same too."""
    runs = []
    for method in ("baseline", "nm-augment"):
        for seed in (torch.manual_seed, random.seed, np.random.seed):
            seed(3)
        model = network(norm=True, dropout=0.5)
        optimizer = sgd(model)
        loader = mine(jittered(num_workers=num_workers), model, optimizer, method=method, gamma=1, update_every=2)
        own = [(random.random(), np.random.rand(), torch.rand(1).item()) for _ in draws(loader, model, optimizer)]
        runs.append((state_of(model), own))
    assert equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


# Going on after a stop

EPOCHS, DRAWS = 3, 6


class Run:
    """A user's own run: model with dropout, momentum, a ramp under way, T = 4."""

    def __init__(self, weights: int = 0, num_workers: int = 0, **settings: Any) -> None:
        self.model = network(weights, norm=True, dropout=0.3)
        self.optimizer = sgd(self.model)
        options: dict[str, Any] = {
            "gamma": 3,
            "update_every": 4,
            "method": "nm-augment",
            "ramp_stop": 1.0,
            "epochs": EPOCHS,
        }
        base = jittered(num_workers=num_workers)
        self.loader = mine(base, self.model, self.optimizer, **options | settings)

    def train(self, until: int = EPOCHS * DRAWS) -> None:
        for _ in range(self.loader.epoch, EPOCHS):
            for draw in draws(self.loader, self.model, self.optimizer):
                if draw.number == until - 1:
                    return

    def saved(self) -> io.BytesIO:
        file = io.BytesIO()
        parts = {"model": self.model, "optimizer": self.optimizer, "loader": self.loader}
        torch.save({name: part.state_dict() for name, part in parts.items()}, file)
        file.seek(0)
        return file

    def restore(self, file: io.BytesIO) -> None:
        state = torch.load(file, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.loader.load_state_dict(state["loader"])


def seed_all(seed: int) -> None:
    for set_seed in (torch.manual_seed, random.seed, np.random.seed):
        set_seed(seed)


def undisturbed(**settings: Any) -> Run:
    seed_all(5)
    run = Run(**settings)
    run.train()
    assert run.loader.steps == EPOCHS * DRAWS
    return run


STOPS = {
    "at the start of an epoch": 1,
    "mid-epoch, version as old as the step": 4,
    "mid-epoch, version older than the step": 9,
    "at the last draw of an epoch": 6,
    "at the last draw of the second epoch": 12,
    "one before the end": 17,
}


def interrupted(stop: int, **settings: Any) -> Run:
    seed_all(5)
    first = Run(**settings)
    first.train(until=stop)
    file = first.saved()
    seed_all(77)
    again = Run(weights=1, **settings)
    again.restore(file)
    assert again.loader.steps == stop
    again.train()
    return again


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS.keys())
def test_a_resumed_run_ends_in_the_same_bits(stop: int) -> None:
    whole, resumed = undisturbed(), interrupted(stop)
    assert equal(state_of(resumed.model), state_of(whole.model))
    assert resumed.loader.last is not None
    assert resumed.loader.last.number == EPOCHS * DRAWS - 1
    assert same_states(rng_state(), (undisturbed(), rng_state())[1]), "random states go on too"


@pytest.mark.parametrize("stop", [9, 12])
def test_a_resumed_run_with_workers_ends_in_the_same_bits(stop: int) -> None:
    assert equal(state_of(interrupted(stop, num_workers=2).model), state_of(undisturbed().model))


@pytest.mark.parametrize("method", ["nm-sample", "self-distill", "nm-augment-soft", "random-sample", "baseline"])
def test_every_method_resumes(method: str) -> None:
    own = {} if method in ("nm-sample", "random-sample", "nm-augment-soft") else {"ramp_stop": None}
    settings: dict[str, Any] = {"method": method, "distill_weight": 0.5, "delay_steps": 1, **own}
    assert equal(state_of(interrupted(9, **settings).model), state_of(undisturbed(**settings).model))


def test_a_resumed_epoch_may_be_left_or_have_its_last_draw_back() -> None:
    seed_all(5)
    first = Run()
    first.train(until=9)
    for change, expected in ((MinedLoader.end_epoch, (9, 2)), (MinedLoader.take_back, (8, 1))):
        again = Run()
        again.restore(first.saved())
        assert (again.loader.epoch, again.loader.position) == (1, 3)
        change(again.loader)
        next(iter(again.loader))
        assert again.loader.last is not None
        assert (again.loader.last.number, again.loader.last.epoch) == expected


def test_a_resumed_run_that_was_stopped_twice_and_before_any_draw() -> None:
    seed_all(5)
    run = Run()
    for stop in (0, 3, 3, 11, EPOCHS * DRAWS):
        if stop > run.loader.steps:
            run.train(until=stop)
        file = run.saved()
        seed_all(stop)
        run = Run(weights=1)
        run.restore(file)
    assert equal(state_of(run.model), state_of(undisturbed().model))


@pytest.mark.parametrize(
    ("settings", "until"),
    [({"num_workers": 1}, 3 + DRAWS + 2), ({"mine_every": 2}, 5)],
    ids=["a version of the course left is published", "a version of the course left is in use"],
)
def test_going_back_to_an_earlier_state_in_the_same_loader(settings: dict[str, Any], until: int) -> None:
    """As a host does whose training diverged."""
    seed_all(5)
    run = Run(ramp_stop=None, **settings)
    run.train(until=3)
    file = run.saved()
    with torch.no_grad():
        run.model[-1].weight.neg_()  # type: ignore[index, union-attr]
    run.train(until=until)
    run.restore(file)
    run.train()
    assert equal(state_of(run.model), state_of(undisturbed(ramp_stop=None, **settings).model))


def test_the_state_outlives_our_own_checkpoints_too(tmp_path: Any) -> None:
    seed_all(5)
    first = Run()
    first.train(until=9)
    save_checkpoint(tmp_path, 9, {"loader": first.loader.state_dict(), "model": first.model.state_dict()})
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint is not None
    again = Run(weights=1)
    again.model.load_state_dict(checkpoint.state["model"])
    again.optimizer.load_state_dict(first.optimizer.state_dict())
    again.loader.load_state_dict(checkpoint.state["loader"])
    again.train()
    assert equal(state_of(again.model), state_of(undisturbed().model))


OTHER_SETTINGS: dict[str, Any] = {
    "gamma": 4,
    "update_every": 5,
    "delay_steps": 1,
    "mine_every": 2,
    "seed": 9,
    "epochs": 4,
    "pick": "uniform",
    "score": "entropy",
    "accumulation_steps": 2,
    "oracle": "torch:bf16",
    "oracle_chunk": 5,
    "ramp_start": 0.5,
}


@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_a_resumed_loader_with_other_settings_is_refused_by_name(name: str) -> None:
    state = Run().loader.state_dict()
    with pytest.raises(ValueError, match=rf"got {name}: .* -> .*; restore them"):
        Run(**{name: OTHER_SETTINGS[name]}).loader.load_state_dict(state)


def test_a_resumed_loader_of_another_method_is_refused() -> None:
    state = Run().loader.state_dict()
    with pytest.raises(ValueError, match=r"method: 'nm-augment' -> 'nm-sample'"):
        Run(method="nm-sample").loader.load_state_dict(state)


def test_a_state_of_another_format_is_refused_with_what_it_lacks() -> None:
    run = Run()
    state = run.loader.state_dict()
    older = {name: part for name, part in state.items() if name not in ("format", "ranks", "gradients")}
    with pytest.raises(
        ValueError, match="got format 1 without ranks, gradients; go on with the infer2train that saved"
    ):
        run.loader.load_state_dict(older)
    with pytest.raises(ValueError, match="must be of format 1, with all of its parts: got format 2; go on"):
        run.loader.load_state_dict({**state, "format": 2})
    run.loader.load_state_dict({name: part for name, part in state.items() if name != "format"})


class Backwards(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(23, -1, -1))

    def __len__(self) -> int:
        return 24


@pytest.mark.parametrize(
    "base",
    [
        lambda: DataLoader(Jittered(), batch_size=4, sampler=Backwards()),
        lambda: jittered(batch_size=6),
        lambda: jittered(n=28),
        lambda: jittered(shuffle=False),
    ],
)
def test_a_resumed_epoch_of_another_order_is_refused(base: Any) -> None:
    run = Run()
    run.train(until=2)
    model = network()
    loader = mine(base(), model, gamma=3, update_every=4, method="nm-augment", ramp_stop=1.0, epochs=EPOCHS)
    loader.load_state_dict(run.loader.state_dict())
    with pytest.raises(ValueError, match="a sampler that gives the same order again: got another one"):
        next(iter(loader))


def test_len_and_epoch_follow_the_dataloader() -> None:
    run = Run()
    loader: MinedLoader = run.loader
    assert (len(loader), loader.epoch) == (DRAWS, 0)
    list(draws(loader, run.model, run.optimizer))
    assert (len(loader), loader.epoch) == (DRAWS, 1)


def test_a_log_of_another_run_is_not_continued(tmp_path: Path) -> None:
    model = network()
    optimizer = sgd(model)
    loader = mine(jittered(40), model, optimizer, method="baseline", log_dir=tmp_path, log_every=1)
    list(draws(loader, model, optimizer))
    written = {name: (tmp_path / name).read_text() for name in ("metrics.jsonl", "config.yaml")}
    again = network()
    other = mine(jittered(40), again, sgd(again), gamma=7, log_dir=tmp_path)
    for _ in range(2):
        with pytest.raises(ValueError, match="holds another run; name another one"):
            next(iter(other))
    other.close()
    assert {name: (tmp_path / name).read_text() for name in written} == written


class OneUnreadable(Jittered):
    def __getitem__(self, index: int) -> Any:
        return None if index == 7 else super().__getitem__(index)


def test_a_collate_fn_that_drops_a_sample_now_and_then_is_refused_when_it_does() -> None:
    def dropping(items: list[Any]) -> Any:
        return default_collate([item for item in items if item is not None])

    model = network()
    loader = mine(DataLoader(OneUnreadable(40), batch_size=4, collate_fn=dropping), model, sgd(model), gamma=2)
    batches = iter(loader)
    assert len(next(batches)[0]) == 4
    with pytest.raises(ValueError, match="every candidate needs a score: got 6 for 8; a collate_fn must keep"):
        next(batches)


def test_what_is_only_made_ahead_is_not_counted() -> None:
    model = network()
    loader = mine(jittered(40, num_workers=2), model, sgd(model), gamma=2)
    next(iter(loader))
    measured = loader.metrics()
    assert (measured["draws"], measured["mined_draws"], measured["mined_share"]) == (1, 1, 1)


class CountsReads(Jittered):
    """In whatever process they happen."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.reads = multiprocessing.Value("i", 0)

    def __getitem__(self, index: int) -> Any:
        with self.reads.get_lock():
            self.reads.value += 1
        return super().__getitem__(index)

    def until(self, reads: int) -> None:
        """Wait for so many."""
        end = time.monotonic() + 90
        while self.reads.value < reads:
            assert time.monotonic() < end, f"{self.reads.value} of {reads}"
            time.sleep(0.01)


def test_an_iterator_that_ends_late_leaves_the_next_epoch_alone() -> None:
    model = network()
    counted = CountsReads(40)
    loader = mine(DataLoader(counted, batch_size=4, num_workers=1), model, method="baseline")
    before, ahead = counted.reads.value, 2 * 4
    old = iter(loader)
    next(old)
    counted.until(before + 4 + ahead)
    new = iter(loader)
    seen = [next(new)]
    counted.until(before + 2 * (4 + ahead))
    old.close()  # type: ignore[attr-defined]
    seen += list(new)
    assert len(seen) == 10
    read = counted.reads.value - before
    assert read == 4 + ahead + 40, "what the new one had on its way was thrown away, and read again"


# A look at a batch


def test_a_look_at_a_batch_changes_nothing() -> None:
    model = network()
    optimizer = sgd(model)
    looked = mine(jittered(40), model, optimizer, gamma=2, update_every=3)
    for _ in range(2):
        next(iter(looked))
    assert looked.epoch == 0
    seen = list(draws(looked, model, optimizer))
    other = network()
    others = sgd(other)
    plain = mine(jittered(40), other, others, gamma=2, update_every=3)
    for mine_, theirs in zip(seen, draws(plain, other, others), strict=True):
        assert (mine_.number, mine_.epoch, mine_.step, mine_.version) == (theirs.number, 0, theirs.step, theirs.version)
        assert list(mine_.addresses) == list(theirs.addresses)
    assert equal(state_of(model), state_of(other))
    next(iter(looked))
    assert looked.epoch == 1, "nor does a look at the next epoch's first batch"
    assert [draw.number for draw in draws(looked, model, optimizer)] == list(range(10, 20))


def test_a_look_after_a_resume_changes_nothing() -> None:
    seed_all(5)
    first = Run()
    first.train(until=9)
    again = Run()
    again.restore(first.saved())
    for _ in range(2):
        next(iter(again.loader))
    assert (again.loader.epoch, again.loader.steps) == (1, 9)
    again.train()
    assert again.loader.last is not None
    assert again.loader.last.number == EPOCHS * DRAWS - 1, "the resumed epoch was trained to its end"
    assert equal(state_of(again.model), state_of(undisturbed().model))


def test_a_look_before_a_state_is_saved_changes_nothing() -> None:
    seed_all(5)
    first = Run()
    first.train(until=DRAWS)
    next(iter(first.loader))
    again = Run()
    again.restore(first.saved())
    again.train()
    assert again.loader.last is not None
    assert again.loader.last.number == EPOCHS * DRAWS - 1
    assert equal(state_of(again.model), state_of(undisturbed().model))


def test_a_loop_of_looks_that_nobody_counts_goes_on() -> None:
    """As with any DataLoader, `next(iter(loader))` gives another batch each time, but for a first look."""
    loader = mine(jittered(40), network(), method="baseline")
    seen = []
    for _ in range(5):
        next(iter(loader))
        assert loader.last is not None
        seen.append(tuple(loader.last.ids.tolist()))
    assert len(set(seen)) == 4
    assert seen[0] == seen[1]
    whole = mine(jittered(40), network(), method="baseline")
    for epoch in range(3):
        next(iter(whole))
        assert len(list(whole)) == 10
        assert whole.epoch == epoch + 1, "a look before each epoch uses up none"


LEFT_OUT = {"self-distill": "adds a penalty to the loss", "infobatch": "weights the examples of a batch"}


@pytest.mark.parametrize("method", [*LEFT_OUT, "nm-augment"])
def test_a_loop_that_leaves_out_what_a_method_does_to_the_loss_is_told(
    method: str, recwarn: pytest.WarningsRecorder
) -> None:
    for asks in (True, False):
        model = network()
        optimizer = sgd(model)
        loader = mine(jittered(40), model, optimizer, method=method, epochs=8)
        for _ in range(4):
            for x, y in loader:
                outputs = model(x)
                losses = F.cross_entropy(outputs, y, reduction="none")
                if asks:
                    assert loader.last is not None
                    weights = 1 if loader.last.weights is None else loader.last.weights
                    losses = losses * weights + loader.penalty(outputs)
                losses.mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        told = [message for w in recwarn for message in LEFT_OUT.values() if message in str(w.message)]
        assert told == ([LEFT_OUT[method]] if method in LEFT_OUT and not asks else [])


def test_a_score_is_computed_as_elsewhere_in_a_loop_under_autocast() -> None:
    def score(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs @ outputs.new_full((outputs.shape[1], 1), 0.3)).squeeze(1)

    found = []
    for is_low in (False, True):
        model = network()
        loader = mine(jittered(40), model, sgd(model), gamma=2, score=score)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_low):
            next(iter(loader))
        assert loader.last is not None
        found.append(loader.last.scores)
    assert equal(*found)


def test_an_epoch_without_a_step_is_told() -> None:
    model = network()
    optimizer = sgd(model)
    loader = mine(jittered(40), model, optimizer, gamma=2)
    with pytest.warns(RuntimeWarning, match="an epoch went by without a step"):
        list(loader)
    list(draws(loader, model, optimizer))


def test_a_second_iteration_takes_the_first_ones_place() -> None:
    model = network()
    loader = mine(jittered(40), model, sgd(model), gamma=2)
    first = iter(loader)
    next(first)
    next(iter(loader))
    with pytest.raises(RuntimeError, match=r"iterated once at a time: .* look at a batch"):
        next(first)
    loader.close()
    batches = iter(other := mine(jittered(40), model, sgd(model), gamma=2))
    next(batches)
    other.close()
    with pytest.raises(RuntimeError, match="a loader that is closed has no more batches"):
        next(batches)


@pytest.mark.parametrize("at", [2, DRAWS])
def test_a_state_that_is_loaded_ends_the_iteration_under_way(at: int) -> None:
    """Or it would hand out what remains of one epoch under the counters of another."""
    seed_all(5)
    run = Run()
    start = run.saved()
    epoch = draws(run.loader, run.model, run.optimizer)
    for _ in range(at):
        next(epoch)
    run.restore(start)
    with pytest.raises(RuntimeError, match=r"gone on from by a new iteration: got .* iterate the loader again"):
        next(epoch)
    assert (run.loader.epoch, run.loader.steps) == (0, 0)
    run.train()
    assert equal(state_of(run.model), state_of(undisturbed().model))


def test_a_look_at_several_batches_is_told_from_training_that_nobody_counted() -> None:
    model = network()
    loader = mine(jittered(40), model, sgd(model), gamma=2)
    for _ in zip(range(4), loader, strict=False):
        pass
    with pytest.warns(RuntimeWarning, match=r"4 draws were handed out and no step was done: .* If they were trained"):
        next(iter(loader))
    assert (loader.epoch, loader.last.number if loader.last else None) == (0, 0)


def test_an_epoch_that_was_broken_off_after_steps_is_over() -> None:
    model = network()
    optimizer = sgd(model)
    loader = mine(jittered(40), model, optimizer, gamma=2)
    for _ in range(3):
        for number, _ in enumerate(draws(loader, model, optimizer)):
            if number == 2:
                break
    next(iter(loader))
    assert loader.epoch == 3


# What hosts read of a loader


def test_a_mined_loader_looks_like_its_dataloader() -> None:
    base = jittered(40, num_workers=1, drop_last=True)
    loader = mine(base, network(), gamma=2)
    names = [name for name in (*vars(base), "multiprocessing_context") if name.strip("_") == name]
    assert {"dataset", "batch_size", "sampler", "num_workers", "collate_fn", "drop_last", "in_order"} <= {*names}
    for name in names:
        assert name == "batch_sampler" or getattr(loader, name) is getattr(base, name), name
    assert (len(loader.dataset), len(loader.batch_sampler), loader.batch_sampler.batch_size) == (40, 10, 4)
    assert isinstance(loader.sampler, torch.utils.data.RandomSampler)
    with pytest.raises(AttributeError, match="'MinedLoader' object has no attribute 'batches_sampler'"):
        _ = loader.batches_sampler


class Aging(Jittered):
    """A data set that wants to know the epoch."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def test_set_epoch_reaches_the_sampler_and_the_data_set() -> None:
    data = Aging(8)
    sampler = torch.utils.data.DistributedSampler(data, num_replicas=1, rank=0)
    loader = mine(DataLoader(data, batch_size=4, sampler=sampler), network(), gamma=2)
    loader.set_epoch(3)
    assert (sampler.epoch, data.epoch) == (3, 3)
    mine(jittered(8), network(), gamma=2).set_epoch(3)  # nobody wants to know


def test_a_data_set_that_is_told_the_epoch_is_not_read_elsewhere() -> None:
    loader = mine(DataLoader(Aging(8), batch_size=4), network(), gamma=2, pool="process")
    with pytest.raises(ValueError, match=r"got set_epoch\(\) of Aging; pass pool='inline' to mine\(\)"):
        loader.set_epoch(1)
    loader.close()


def test_another_loader_built_on_it_does_not_train_unmined() -> None:
    loader = mine(jittered(40), network(), gamma=2)
    built = DataLoader(loader.dataset, batch_sampler=loader.batch_sampler)  # as Accelerate skips batches
    with pytest.raises(RuntimeError, match=r"made by itself: got another loader .*loader.load_state_dict"):
        next(iter(built))


@pytest.mark.gpu
def test_a_state_that_was_loaded_onto_another_device_is_taken(tmp_path: Path) -> None:
    seed_all(5)
    first = Run()
    first.train(until=9)
    torch.save(first.loader.state_dict(), tmp_path / "state.pt")
    again = Run()
    again.loader.load_state_dict(torch.load(tmp_path / "state.pt", map_location="cuda", weights_only=True))
    assert again.loader.steps == 9
