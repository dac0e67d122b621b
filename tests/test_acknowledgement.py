"""Steps are counted as hosts really step: accumulation, prefetching, skipped attempts, epochs broken off."""

import copy
import multiprocessing
import pickle
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn import functional as F

from infer2train import MinedLoader, mine
from infer2train.loader.acknowledgement import optimizers_of
from mined_runs import draws, equal, jittered, network, one_ahead, sgd, state_of


def accumulated(
    loader: MinedLoader, model: nn.Module, optimizer: torch.optim.Optimizer, every: int, *, last_too: bool = True
) -> Iterator[Any]:
    """One epoch of a host that steps after `every` draws, and after the epoch's last one."""
    for number, (x, y) in enumerate(loader, 1):
        (F.cross_entropy(model(x), y) / every).backward()
        if number % every == 0 or (last_too and number == len(loader)):
            optimizer.step()
            optimizer.zero_grad()
        yield loader.last


def made(**settings: Any) -> tuple[MinedLoader, nn.Module, torch.optim.Optimizer]:
    """A loader of 10 draws an epoch, T = 1, and what it trains."""
    model = network()
    optimizer = sgd(model)
    return mine(jittered(40), model, optimizer, **{"gamma": 2, "update_every": 1, **settings}), model, optimizer


# Gradient accumulation


def test_accumulation_counts_steps_not_draws_and_anew_in_each_epoch() -> None:
    loader, model, optimizer = made(accumulation_steps=4)
    seen = [draw for _ in range(2) for draw in accumulated(loader, model, optimizer, 4)]
    assert [draw.step for draw in seen] == [0] * 4 + [1] * 4 + [2] * 2 + [3] * 4 + [4] * 4 + [5] * 2
    assert [draw.version for draw in seen] == [draw.step for draw in seen]
    assert (loader.steps, seen[-1].number) == (6, 19)


def test_a_host_that_carries_gradients_into_the_next_epoch_goes_on() -> None:
    loader, model, optimizer = made(accumulation_steps=4)
    number = 0
    for _ in range(4):
        for x, y in loader:
            F.cross_entropy(model(x), y).backward()
            number += 1
            if number % 4 == 0:
                optimizer.step()
                optimizer.zero_grad()
            assert loader.last is not None
            assert loader.last.lag == 0
    assert loader.steps == 10


def test_accumulation_that_is_not_declared_is_refused_with_the_remedy() -> None:
    loader, model, optimizer = made()
    with pytest.raises(RuntimeError, match=r"got 0 steps done.*accumulation_steps= if the loop accumulates gradients"):
        list(accumulated(loader, model, optimizer, 4))
    assert loader.last is not None
    assert loader.last.number == 0, "the draw before was handed out"


def test_accumulation_that_is_declared_but_not_done_is_refused() -> None:
    loader, model, optimizer = made(accumulation_steps=4)
    with pytest.raises(RuntimeError, match="got step 2 after 2 draws of accumulation_steps=4; pass the accumulation_"):
        list(draws(loader, model, optimizer))


def test_all_micro_batches_of_a_step_may_be_fetched_before_it() -> None:
    """As the Hugging Face Trainer does."""
    loader, model, optimizer = made(accumulation_steps=4)
    batches, steps = iter(loader), []
    while group := list(islice(batches, 4)):
        assert loader.last is not None
        steps.append((len(group), loader.last.step))
        sum(F.cross_entropy(model(x), y) for x, y in group).backward()  # type: ignore[union-attr]
        optimizer.step()
    assert steps == [(4, 0), (4, 1), (2, 2)]


# Hosts that fetch ahead


def fetched_ahead(loader: MinedLoader, model: nn.Module, optimizer: torch.optim.Optimizer, times: int = 1) -> None:
    batches: Any = loader
    for _ in range(times):
        batches = one_ahead(batches)
    for x, y in batches:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("update_every", [1, 4])
@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_a_host_that_fetches_ahead_is_told_the_delay_that_will_do_and_it_does(update_every: int, ahead: int) -> None:
    settings = {"update_every": update_every, "delay_steps": ahead - 1}
    with pytest.raises(RuntimeError, match=f"fetches {ahead} steps ahead. Pass delay_steps={ahead} to mine"):
        fetched_ahead(*made(**settings), times=ahead)
    if ahead <= update_every:
        with pytest.raises(RuntimeError, match=f"Pass delay_steps={ahead} to mine"):
            fetched_ahead(*made(**settings | {"delay_steps": 0}), times=ahead)
    loader, model, optimizer = made(**settings | {"delay_steps": ahead})
    for _ in range(2):
        fetched_ahead(loader, model, optimizer, times=ahead)
    assert loader.steps == 20


def test_accelerate_fetches_one_ahead_and_is_told_delay_steps_1() -> None:
    with pytest.raises(RuntimeError, match=r"a draw of step 1 is scored by the weights after step 1: got 0 steps done"):
        fetched_ahead(*made())
    with pytest.raises(RuntimeError, match=r"Pass delay_steps=1 to mine\(\) if it prefetches"):
        fetched_ahead(*made())
    loader, model, optimizer = made(delay_steps=1)
    fetched_ahead(loader, model, optimizer)
    assert loader.last is not None
    assert (loader.last.number, loader.last.step, loader.last.version) == (9, 9, 8)


def test_the_penalty_of_a_draw_that_is_not_trained_on_yet_is_refused() -> None:
    """A host that fetches ahead would add the next draw's penalty to this one's loss."""
    loader, model, _ = made(method="self-distill", delay_steps=1)
    x, _ = next(one_ahead(loader))
    with pytest.raises(RuntimeError, match="must be the one trained on: got draw 1 of step 1 and 0 steps done"):
        loader.penalty(model(x))
    loader, model, optimizer = made(method="self-distill", accumulation_steps=2)
    for number, (x, _) in enumerate(loader):
        assert loader.penalty(model(x)) > 0
        if number % 2:
            optimizer.step()
        assert loader.penalty(model(x)) > 0, "asked again after the step, for the log"


# Attempts that a gradient scaler skips


def scaled(
    loader: MinedLoader, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> list[bool]:
    """One epoch under a real scaler, infinite gradients in its third draw; which attempts moved the weights."""
    moved = []
    for number, (x, y) in enumerate(loader):
        before = state_of(model)
        loss = F.cross_entropy(model(x), y) * (float("inf") if number == 2 else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        moved.append(not equal(state_of(model), before))
    return moved


def test_a_step_that_a_scaler_skips_is_counted_where_mine_knows_the_scaler() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    loader, model, optimizer = made(scaler=scaler)
    assert scaled(loader, model, optimizer, scaler) == [True] * 2 + [False] + [True] * 7
    assert loader.steps == 10
    assert scaler.get_scale() == 128.0, "the scaler itself works as ever"


def test_a_step_that_a_scaler_skips_unseen_is_counted_as_skipped() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    loader, model, optimizer = made()
    with pytest.warns(RuntimeWarning, match="draw 2 was followed by another one without a step"):
        scaled(loader, model, optimizer, scaler)
    assert (loader.steps, loader.metrics()["skipped_steps"]) == (10, 1)


def test_a_scaler_that_steps_two_optimizers_counts_one() -> None:
    scaler = torch.amp.GradScaler("cpu")
    loader, model, optimizer = made(scaler=scaler)
    other = network(1)
    others = sgd(other)
    for x, y in loader:
        scaler.scale(F.cross_entropy(model(x), y) + F.cross_entropy(other(x), y)).backward()
        scaler.step(others)
        scaler.step(optimizer)
        scaler.update()
    assert loader.steps == 10


# As torch.save does it, and a process that is started.
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda scaler: pickle.loads(pickle.dumps(scaler))])
def test_a_copy_of_a_scaler_steps_itself_and_is_not_counted(copied: Callable[[Any], Any]) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    loader, model, optimizer = made(scaler=scaler)
    second, *_ = made(scaler=scaler)  # and one that counts in front of it
    other = copied(copied(scaler))
    parameter = nn.Parameter(torch.ones(1))
    others = sgd(nn.ParameterList([parameter]), lr=1.0)
    other.scale(parameter.sum()).backward()
    other.step(others)
    other.update()
    assert parameter.item() == 0.0, "one step, by unscaled gradients"
    assert other._per_optimizer_states.keys() == scaler._per_optimizer_states.keys() == set()
    x, y = next(iter(loader))
    other.scale(F.cross_entropy(model(x), y)).backward()
    other.step(optimizer)
    assert (loader.steps, second.steps) == (0, 0)
    other.update()
    assert not scaler._per_optimizer_states
    scaler.scale(F.cross_entropy(model(x), y)).backward()
    scaler.step(optimizer)
    assert (loader.steps, second.steps) == (1, 0), "the scaler itself is counted as ever"


# Hosts that say it themselves


def test_step_done_by_hand() -> None:
    model = network()
    optimizer = sgd(model)
    loader = mine(jittered(), model, gamma=2, update_every=1)
    for x, y in loader:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.step()  # two optimiser steps a draw are one step where the host says so
        loader.step_done()
        assert loader.last is not None
        assert loader.last.lag == 0
    assert loader.steps == 6


def test_a_host_that_says_nothing_is_told_how() -> None:
    loader = mine(jittered(), network(), gamma=2, update_every=3)
    with pytest.raises(RuntimeError, match=r"a draw of step 3 .*got 0 steps done.*call loader.step_done\(\)"):
        list(loader)


def test_two_optimizer_steps_a_draw_are_refused() -> None:
    loader, model, optimizer = made()
    x, y = next(iter(loader))
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"got step 2 after 1 draws.*call loader.step_done\(\) once"):
        optimizer.step()


def test_the_step_by_which_an_optimizer_is_given_its_state_is_not_counted() -> None:
    """One that has none is stepped each time that it is asked for."""
    for momentum in (0.9, 0.0):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
        loader = mine(jittered(), model, optimizer, gamma=2, update_every=1)
        stepped: list[int] = []
        optimizer.register_step_post_hook(lambda *_, stepped=stepped: stepped.append(0))
        weights, state = get_state_dict(model, optimizer)
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
        for _ in draws(loader, model, optimizer):
            get_state_dict(model, optimizer)
        assert loader.steps == 6
        assert len(stepped) == (7 if momentum else 14)


def test_a_first_step_at_a_learning_rate_of_nothing_is_counted() -> None:
    model = network()
    optimizer = sgd(model, lr=0.0)
    loader = mine(jittered(), model, optimizer, gamma=2, update_every=1)
    assert len(list(draws(loader, model, optimizer))) == loader.steps == 6


def test_a_step_before_the_first_draw_is_refused() -> None:
    loader, _, optimizer = made()
    with pytest.raises(RuntimeError, match="got step 1 after 0 draws"):
        optimizer.step()
    assert loader.steps == 0


@pytest.mark.parametrize("delay_steps", [0, 1, 5])
def test_every_step_is_counted_whatever_the_delay(delay_steps: int) -> None:
    loader, model, optimizer = made(delay_steps=delay_steps)
    for epoch in range(3):
        for number, draw in enumerate(draws(loader, model, optimizer)):
            assert draw.step == 10 * epoch + number
            assert loader.steps == draw.step + 1
    assert loader.metrics()["steps"] == 30.0


def test_only_every_so_many_steps_are_mined() -> None:
    loader, model, optimizer = made(mine_every=3)
    seen = [draw for _ in range(2) for draw in draws(loader, model, optimizer)]
    assert [draw.version for draw in seen] == [n if n % 3 == 0 else None for n in range(20)]
    assert [len(draw.candidates) for draw in seen] == [8 if n % 3 == 0 else 0 for n in range(20)]


def test_accumulation_mines_whole_steps() -> None:
    loader, model, optimizer = made(mine_every=2, accumulation_steps=4)
    seen = list(accumulated(loader, model, optimizer, 4))
    assert [draw.version for draw in seen] == [0] * 4 + [None] * 4 + [2] * 2


# Epochs broken off


@pytest.mark.parametrize("update_every", [1, 4])
@pytest.mark.parametrize("trained", [1, 3, 4, 7])
@pytest.mark.parametrize("fetched_in_vain", [0, 1])
def test_after_a_break_draws_and_steps_go_on(update_every: int, trained: int, fetched_in_vain: int) -> None:
    """`if i == trained: break` stands before the step or after it."""
    loader, model, optimizer = made(update_every=update_every)
    for epoch in range(3):
        for number, (x, y) in enumerate(loader):
            if number == trained:
                break
            assert loader.last is not None
            step = epoch * trained + number
            assert (loader.last.epoch, loader.last.step) == (epoch, step)
            assert loader.last.number == epoch * (trained + fetched_in_vain) + number
            assert loader.last.version == step // update_every * update_every
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            if number == trained - 1 and not fetched_in_vain:
                break
    assert loader.steps == 3 * trained


def test_a_break_stops_the_workers_and_the_next_epoch_starts_others() -> None:
    before = set(multiprocessing.active_children())

    def workers() -> int:
        return len(set(multiprocessing.active_children()) - before)

    model = network()
    optimizer = sgd(model)
    loader = mine(jittered(40, num_workers=1), model, optimizer, gamma=2, update_every=2)
    for _ in range(2):
        for draw in draws(loader, model, optimizer):
            assert workers() == 2, "one makes candidates, one what is trained on"
            if draw.step % 3 == 2:
                break
        assert workers() == 0
    assert [draw.number for draw in draws(loader, model, optimizer)] == list(range(6, 16))
    assert workers() == 0


def test_an_exception_in_the_loop_leaves_a_loader_that_goes_on() -> None:
    loader, model, optimizer = made(update_every=2)

    def fails_once() -> None:
        for draw in draws(loader, model, optimizer):
            if draw.number == 2:
                raise KeyError("the user's own")

    with pytest.raises(KeyError, match="own"):
        fails_once()
    assert [draw.number for draw in draws(loader, model, optimizer)] == list(range(3, 13))


def test_a_closed_loader_counts_no_more_steps() -> None:
    loader, model, optimizer = made()
    list(draws(loader, model, optimizer))
    loader.close()
    again = mine(jittered(), model, optimizer, gamma=2, update_every=1)
    assert len(list(draws(again, model, optimizer))) == again.steps == 6
    assert loader.steps == 10


def test_a_loader_that_is_gone_counts_no_more_steps() -> None:
    """As when a notebook's cell with mine() is run again."""
    loader, model, optimizer = made()
    list(draws(loader, model, optimizer))
    loader = mine(jittered(), model, optimizer, gamma=2, update_every=1)
    assert len(list(draws(loader, model, optimizer))) == loader.steps == 6


def test_a_scaler_goes_on_after_its_loader_is_closed() -> None:
    scaler = torch.amp.GradScaler("cpu")
    loader, model, optimizer = made(scaler=scaler)
    loader.close()
    again = mine(jittered(), model, optimizer, scaler=scaler, gamma=2, update_every=1)
    assert sum(scaled(again, model, optimizer, scaler)) == 5
    assert (loader.steps, again.steps) == (0, 6)


def test_an_oracle_that_hardly_ever_learns_is_pointed_out() -> None:
    loader, _, _ = made(update_every=100)
    with pytest.warns(RuntimeWarning, match="new weights every 100 steps, an epoch has 10: lower update_every, to 5"):
        next(iter(loader))


def test_steps_that_nobody_counts_are_pointed_out_once() -> None:
    loader = mine(jittered(40), network(), gamma=2, update_every=10)
    list(loader)
    with pytest.warns(RuntimeWarning, match=r"0 steps were done after 10 draws.*loader.step_done\(\)"):
        list(loader)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(loader)


# Draws that a loop leaves out


def leaving_out(loader: MinedLoader, model: nn.Module, optimizer: torch.optim.Optimizer, *left: int) -> Iterator[Any]:
    """One epoch of a host that does not step on some draws, as one does whose loss was not finite."""
    for number, (x, y) in enumerate(loader):
        yield loader.last
        if number in left:
            continue
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_draw_without_a_step_is_a_skipped_step() -> None:
    loader, model, optimizer = made()
    with pytest.warns(RuntimeWarning, match="draw 3 was followed by another one without a step in between"):
        seen = list(leaving_out(loader, model, optimizer, 3, 4, 9))
    assert [draw.version for draw in seen] == list(range(10)), "every draw is scored by the weights of its own step"
    assert loader.steps == 10, "the last one too: the host has asked for a draw behind it"
    measured = loader.metrics()
    assert measured["skipped_steps"] == 3
    assert [draw.step for draw in leaving_out(loader, model, optimizer)] == list(range(10, 20))


def test_with_a_delay_too(recwarn: pytest.WarningsRecorder) -> None:
    loader, model, optimizer = made(delay_steps=2)
    list(leaving_out(loader, model, optimizer, 5, 6, 9))
    assert loader.steps == 10
    assert loader.metrics()["skipped_steps"] == 3
    assert any("draw 5 was followed by another" in str(warning.message) for warning in recwarn)


def test_a_host_ahead_within_its_delay_is_taken_for_no_skipper() -> None:
    loader, model, optimizer = made(delay_steps=2)
    ahead = iter(loader)
    waiting = [next(ahead)]
    for number in range(10):  # one draw ahead, as by a thread, but for some time that has no draw ready
        if number not in range(3, 7) and (batch := next(ahead, None)) is not None:
            waiting.append(batch)
        x, y = waiting.pop(0)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        if not waiting and (batch := next(ahead, None)) is not None:
            waiting.append(batch)
    assert loader.steps == 10
    assert "skipped_steps" not in loader.metrics()


def test_a_resumed_run_knows_as_much_of_its_host() -> None:
    def run(resume: bool) -> tuple[int, list[int | None]]:
        loader, model, optimizer = made(delay_steps=1)
        versions = []
        for number, (x, y) in enumerate(loader):
            assert loader.last is not None
            versions.append(loader.last.version)
            if number != 2:
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
                optimizer.zero_grad()
            if number == 1 and resume:
                states = [part.state_dict() for part in (loader, model, optimizer)]
                loader.close()
                break
        if resume:
            loader, model, optimizer = made(delay_steps=1)
            for part, state in zip((loader, model, optimizer), states, strict=True):
                part.load_state_dict(state)
            versions += [draw.version for draw in leaving_out(loader, model, optimizer, 0)]
        return loader.steps, versions

    with pytest.warns(RuntimeWarning, match="followed by another one without a step"):
        assert run(resume=True) == run(resume=False)


def test_who_skips_the_first_draw_is_known_in_the_next_epoch() -> None:
    loader, model, optimizer = made(update_every=100)
    list(leaving_out(loader, model, optimizer, 0))
    assert loader.steps == 9
    with pytest.warns(RuntimeWarning, match="followed by another one without a step"):
        list(leaving_out(loader, model, optimizer, 3))
    assert loader.metrics()["skipped_steps"] == 1


def test_weights_that_are_changed_after_the_step_are_published_by_step_done() -> None:
    model = network()
    optimizer = sgd(model)
    loader = mine(jittered(40), model, gamma=2, update_every=1)
    for x, y in loader:
        if loader.steps:
            record = loader.state_dict()["records"][str(loader.steps)]["tensors"]
            assert all(float(tensor.abs().max()) <= 0.01 for name, tensor in record.items() if "weight" in name)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "weight" in name:
                    parameter.clamp_(-0.01, 0.01)
        loader.step_done()
    loader.close()


def test_a_resumed_run_knows_a_skipped_draw_too() -> None:
    loader, model, optimizer = made()
    with pytest.warns(RuntimeWarning, match="skipped steps"):
        through = [list(draw.addresses) for draw in leaving_out(loader, model, optimizer, 6)]
    loader, model, optimizer = made()
    batches = iter(loader)
    for _ in range(6):
        x, y = next(batches)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    resumed = mine(jittered(40), model, optimizer, gamma=2, update_every=1)
    resumed.load_state_dict(loader.state_dict())
    loader.close()
    with pytest.warns(RuntimeWarning, match="draw 6 was followed by another"):
        again = [list(draw.addresses) for draw in leaving_out(resumed, model, optimizer, 0)]
    assert again == through[6:]
    assert resumed.steps == 10


def test_who_skips_at_the_very_beginning_is_told_the_causes() -> None:
    """A loop that fetches one draw ahead looks the same until then."""
    loader, model, optimizer = made()
    with pytest.raises(RuntimeError, match=r"got 0 steps done.*If a step was skipped .*was replaced, or a second one"):
        list(leaving_out(loader, model, optimizer, 0))


def test_who_fetches_ahead_is_not_taken_for_one_who_skips() -> None:
    loader, model, optimizer = made(delay_steps=1)
    fetched_ahead(loader, model, optimizer)
    assert "skipped_steps" not in loader.metrics()


def test_a_replaced_optimizer_is_named_and_the_run_goes_on_with_fresh_weights() -> None:
    loader, model, optimizer = made()
    list(draws(loader, model, optimizer))
    with pytest.warns(RuntimeWarning, match="the optimizer was replaced"):
        seen = list(draws(loader, model, sgd(model)))
    # Its first draw may still have been fetched ahead; from the second one on it is clear.
    assert [draw.version for draw in seen] == list(range(10, 20))


# Optimizers as hosts hand them


class Prepared(torch.optim.Optimizer):
    """As Accelerate wraps an optimiser: a subclass whose own construction never ran."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)


def test_a_wrapped_optimizer_is_counted() -> None:
    model = network()
    optimizer = Prepared(sgd(model))
    loader = mine(jittered(40), model, optimizer, gamma=2, update_every=1)
    assert [draw.version for draw in draws(loader, model, optimizer)] == list(range(10))


def halves(model: nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    parameters = list(model.parameters())
    return torch.optim.SGD(parameters[:-2], lr=0.1), torch.optim.SGD(parameters[-2:], lr=0.1)


@pytest.mark.parametrize("given", ["both", "the first", "the second"])
def test_the_record_holds_what_all_optimizers_have_done(given: str) -> None:
    model = network()
    first, second = halves(model)
    optimizer = {"both": [first, second], "the first": first, "the second": second}[given]
    loader = mine(jittered(40), model, optimizer, gamma=2, update_every=1)
    for number, (x, y) in enumerate(loader):
        assert loader.steps == number
        record = loader.state_dict()["records"][str(number)]["tensors"]
        assert equal(record, dict(state_of(model))), "the weights of this very step"
        F.cross_entropy(model(x), y).backward()
        first.step()
        second.step()
        model.zero_grad()
    assert loader.steps == 10


def test_two_optimizers_that_take_turns_count_one_step_a_draw() -> None:
    model = network()
    optimizers = halves(model)
    loader = mine(jittered(40), model, optimizers, gamma=2, update_every=1)
    for number, (x, y) in enumerate(loader):
        F.cross_entropy(model(x), y).backward()
        optimizers[number % 2].step()
        model.zero_grad()
    assert (loader.steps, "skipped_steps" in loader.metrics()) == (10, False)


def test_a_step_that_is_due_is_counted_before_the_state_is_taken() -> None:
    model = network()
    first, second = halves(model)
    loader = mine(jittered(40), model, [first, second], gamma=2, update_every=1)
    x, y = next(iter(loader))
    F.cross_entropy(model(x), y).backward()
    first.step()
    second.step()
    state = loader.state_dict()
    assert state["steps"] == 1
    assert equal(dict(state["records"]["1"]["tensors"]), dict(state_of(model)))


def test_what_is_no_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a torch optimizer, or a list of them: got int; leave it out and call"):
        optimizers_of([sgd(network()), 3])
