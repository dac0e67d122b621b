"""Users' loops with the oracle in a process of its own: the same run as with the oracle inline, bit for bit.

And what only `staleness="freshest"` may do: skip draws whose scores are late, and use whatever weights are newest.
"""

import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import infer2train
from infer2train.draws.addresses import Purpose, seeds
from infer2train.draws.draw import Draw
from infer2train.loader.loader import MinedLoader
from infer2train.machine.cores import as_text, available_cores
from mined_runs import draws, equal, jittered, network, sgd, state_of

pytestmark = pytest.mark.usefixtures("one_thread")

IN_PROCESS = {"pool": "process", "oracle_cores": as_text(available_cores()[-1:])}
METHODS = {
    "nm-augment": {"delay_steps": 2, "num_workers": 2},
    "self-distill": {"distill_weight": 0.1},
    "nm-sample": {"ramp_rate": 0.5},
}


def made(model: nn.Module, optimizer: torch.optim.Optimizer, method: str, **settings: Any) -> MinedLoader:
    base = jittered(num_workers=settings.pop("num_workers", 0))
    settings = {"gamma": 3, "update_every": 4, "oracle": "torch:fp32", **settings}
    return infer2train.mine(base, model, optimizer, method=method, **settings)


def trained(method: str, **settings: Any) -> tuple[dict[str, Tensor], list[Draw]]:
    """Weights and draws of two epochs."""
    model = network(norm=True, dropout=0.2)
    optimizer = sgd(model)
    torch.manual_seed(5)
    loader = made(model, optimizer, method, **METHODS[method], **settings)
    told = [draw for _ in range(2) for draw in draws(loader, model, optimizer)]
    loader.close()
    return state_of(model), told


@pytest.mark.parametrize("method", ["nm-augment", "self-distill", pytest.param("nm-sample", marks=pytest.mark.slow)])
def test_the_run_is_the_same_wherever_the_oracle_runs(method: str) -> None:
    weights, inline = trained(method)
    others, elsewhere = trained(method, **IN_PROCESS)
    assert equal(others, weights)
    for here, there in zip(inline, elsewhere, strict=True):
        assert here.version == there.version
        assert (here.addresses.ids == there.addresses.ids).all()
        assert (here.addresses.seeds == there.addresses.seeds).all()
        assert equal(here.scores, there.scores)
        assert equal(here.log_probabilities, there.log_probabilities)


def test_a_run_goes_on_in_another_pool_than_it_was_begun_in() -> None:
    weights, told = trained("nm-augment")
    model = network(norm=True, dropout=0.2)
    optimizer = sgd(model)
    torch.manual_seed(5)
    loader = made(model, optimizer, "nm-augment", **METHODS["nm-augment"])
    begun = draws(loader, model, optimizer)
    for _ in range(5):
        next(begun)
    saved = loader.state_dict(), state_of(model), optimizer.state_dict()
    loader.close()

    model = network(seed=9, norm=True, dropout=0.2)
    optimizer = sgd(model)
    loader = made(model, optimizer, "nm-augment", **METHODS["nm-augment"], **IN_PROCESS)
    model.load_state_dict(saved[1])
    optimizer.load_state_dict(saved[2])
    loader.load_state_dict(saved[0])
    rest = [draw for _ in range(loader.epoch, 2) for draw in draws(loader, model, optimizer)]
    loader.close()
    assert equal(state_of(model), weights)
    assert [draw.number for draw in rest] == [draw.number for draw in told[5:]]


def slow_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    time.sleep(0.5)
    return F.cross_entropy(outputs, targets, reduction="none")


def test_late_draws_are_trained_on_unmined_where_that_was_asked_for() -> None:
    model = network()
    optimizer = sgd(model)
    loader = made(
        model,
        optimizer,
        "nm-augment",
        score=slow_loss,
        staleness="freshest",
        when_late="skip",
        queue_depth=8,
        **IN_PROCESS,
    )
    mined, skipped = [], []
    until = time.monotonic() + 60
    while not (mined and skipped) and time.monotonic() < until:
        for draw in draws(loader, model, optimizer):
            (skipped if draw.scores is None else mined).append(draw)
            time.sleep(0.1)  # the trainer's own work; an oracle this slow keeps up with one draw of five
    figures = loader.metrics()
    loader.close()
    assert mined
    assert skipped
    assert figures["skipped_draws"] == len(skipped)
    for draw in skipped:
        own_views = seeds(0, Purpose.VIEW, epoch=draw.epoch, draw=draw.number, slot=torch.arange(4).numpy())
        assert (draw.addresses.seeds == own_views).all(), "a skipped draw is the baseline's"
        assert draw.version is None
    for draw in mined:
        assert draw.version is not None
        assert draw.lag is not None
        assert draw.lag >= 0


def test_freshest_weights_are_the_newest_that_are_published() -> None:
    model = network()
    optimizer = sgd(model)
    loader = made(model, optimizer, "nm-augment", staleness="freshest", delay_steps=0)
    told = [draw.version for _ in range(2) for draw in draws(loader, model, optimizer)]
    assert told == [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8], "inline, nothing is scored ahead"
    loader.close()


@pytest.mark.parametrize("setting", [{"when_late": "skip"}, {"on_oracle_loss": "continue"}])
def test_a_strict_run_never_depends_on_time(setting: dict[str, Any]) -> None:
    model = network()
    with pytest.raises(ValueError, match=r"a strict run never depends on .*pass staleness='freshest' too"):
        made(model, sgd(model), "nm-augment", **setting)


def test_a_user_learns_which_cores_are_whose() -> None:
    model = network()
    loader = made(model, sgd(model), "nm-augment", **IN_PROCESS)
    assert any(f"processes: 1, on cores {available_cores()[-1]}" in note for note in loader.notes)
    loader.close()


def test_a_control_without_an_oracle_starts_no_process() -> None:
    model = network()
    optimizer = sgd(model)
    loader = made(model, optimizer, "baseline", **IN_PROCESS)
    assert len(list(draws(loader, model, optimizer))) == 6
    assert not hasattr(loader._pool, "workers")
    loader.close()
