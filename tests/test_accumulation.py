"""States taken anywhere in an accumulated step: a run that goes on from one ends in the bits of an unbroken run."""

import io
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infer2train import MinedLoader, mine
from infer2train.loader.accumulation import Gradients
from mined_runs import equal, jittered, network, sgd, state_of

EVERY, DRAWS, EPOCHS = 4, 9, 2
"""Draws in a step and in an epoch, whose last draw is left over."""
STOPS = 1, 3, 10, 12
"""Which of the places where somebody may save: in the first step, after it, about the end of the epoch, and in the
next."""


class Run:
    """What a user trains and saves."""

    def __init__(self) -> None:
        self.model = network()
        self.optimizer = sgd(self.model)
        self.loader: MinedLoader = mine(
            jittered(4 * DRAWS), self.model, self.optimizer, gamma=2, update_every=2, accumulation_steps=EVERY
        )

    def saved(self) -> bytes:
        file = io.BytesIO()
        torch.save({name: getattr(self, name).state_dict() for name in ("model", "optimizer", "loader")}, file)
        return file.getvalue()

    def restore(self, saved: bytes) -> None:
        for name, state in torch.load(io.BytesIO(saved), weights_only=True).items():
            getattr(self, name).load_state_dict(state)

    def add(self, x: Tensor, y: Tensor) -> None:
        (F.cross_entropy(self.model(x), y) / EVERY).backward()

    def draws(self) -> Iterator[tuple[int, Any]]:
        """The place of each draw in its epoch, counted from 1, and its batch."""
        while self.loader.epoch < EPOCHS:
            for batch in self.loader:
                yield self.loader.position, batch


def zeroing_after(run: Run, *, set_to_none: bool) -> Iterator[None]:
    for place, batch in run.draws():
        run.add(*batch)
        if place % EVERY == 0 or place == DRAWS:
            run.optimizer.step()
            yield  # what the step has used is still there, and nobody zeroes it in a run that goes on from here
            run.optimizer.zero_grad(set_to_none=set_to_none)
        yield


def zeroing_before(run: Run) -> Iterator[None]:
    for place, batch in run.draws():
        if place % EVERY == 1:
            run.optimizer.zero_grad()
        run.add(*batch)
        if place % EVERY == 0 or place == DRAWS:
            run.optimizer.step()
        yield


def carrying(run: Run) -> Iterator[None]:
    """Over the end of an epoch, as Ignite does."""
    for place, batch in run.draws():
        run.add(*batch)
        if (run.loader.epoch * DRAWS + place) % EVERY == 0:
            run.optimizer.step()
            yield
            run.optimizer.zero_grad()
        yield


LOOPS: dict[str, Callable[[Run], Iterator[None]]] = {
    "zeroed after a step": partial(zeroing_after, set_to_none=True),
    "zeroed in place": partial(zeroing_after, set_to_none=False),
    "zeroed before": zeroing_before,
    "carried over": carrying,
}
"""Loops that users have; they stop wherever somebody may save."""


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS.keys())
def test_a_run_goes_on_from_anywhere_in_the_same_bits(loop: Callable[[Run], Iterator[None]]) -> None:
    whole = Run()
    saved = [whole.saved() for _ in loop(whole)]
    for number in STOPS:
        run = Run()
        run.restore(saved[number])
        list(loop(run))
        assert equal(state_of(run.model), state_of(whole.model)), number
        assert run.loader.steps == whole.loader.steps


@pytest.mark.parametrize("place", [1, 2])
def test_a_batch_that_was_trained_on_is_told_from_one_that_was_looked_at(place: int) -> None:
    """Both loops are left in the first step, and saved. Only the look begins again."""
    whole = Run()
    list(zeroing_before(whole))
    looked, left = Run(), Run()
    next(iter(looked.loader))
    for number, batch in enumerate(left.loader, start=1):
        left.add(*batch)
        if number == place:
            break
    for run, ahead in ((looked, 0), (left, place)):
        again = Run()
        again.restore(run.saved())
        assert again.loader.state_dict()["draws"] == ahead
        list(zeroing_before(again))
        assert equal(state_of(again.model), state_of(whole.model))


def test_what_a_step_has_used_is_left_out_and_what_is_added_then_is_not() -> None:
    run = Run()
    batches = run.draws()
    for _ in range(EVERY):
        run.add(*next(batches)[1])
    assert run.loader.state_dict()["gradients"].keys() == dict(run.model.named_parameters()).keys()
    run.optimizer.step()
    assert run.loader.state_dict()["gradients"] == {}
    run.add(*next(batches)[1])
    assert len(run.loader.state_dict()["gradients"]) == 4, "the loop adds to what was used, so a resumed one does too"


def test_two_optimizers_use_what_there_is_in_their_steps() -> None:
    run = Run()
    parameters = list(run.model.parameters())
    optimizers = [sgd(nn.ParameterList(part)) for part in (parameters[:2], parameters[2:])]  # type: ignore[arg-type]
    run.loader = mine(jittered(), run.model, optimizers, gamma=2, update_every=2, accumulation_steps=2)
    batches = run.draws()
    for _ in range(2):
        run.add(*next(batches)[1])
    for optimizer in optimizers:
        optimizer.step()
    assert run.loader.state_dict()["gradients"] == {}


def test_a_draw_that_is_left_out_uses_no_gradients() -> None:
    """A loop that leaves a step out keeps its gradients for the next one."""
    run = Run()
    batches = run.draws()
    for place in range(1, 2 * EVERY):
        run.add(*next(batches)[1])
        if place == EVERY:
            run.optimizer.step()
            run.optimizer.zero_grad()
    run.add(*next(batches)[1])
    with pytest.warns(RuntimeWarning, match="without a step in between"):
        next(batches)
    assert run.loader.steps == 2
    assert len(run.loader.state_dict()["gradients"]) == 4


def test_the_gradients_of_a_state_are_all_that_there_are() -> None:
    run = Run()
    _, batch = next(run.draws())
    state = run.loader.state_dict()
    run.add(*batch)
    run.loader.load_state_dict(state)
    assert all(parameter.grad is None for parameter in run.model.parameters())


def test_a_new_gradient_in_the_memory_of_a_used_one_is_not_taken_for_it() -> None:
    layer = nn.Linear(1, 1)
    gradients = Gradients(layer, is_accumulated=True)
    for _ in range(20):
        layer(torch.ones(1, 1)).backward()
        assert list(gradients.state_dict()) == ["weight", "bias"]
        gradients.step_done()
        assert gradients.state_dict() == {}
        layer.zero_grad()
