"""Mining under Ignite: an engine runs a mined loader as it is, and selects what a loop of one's own selects."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver
from torch import nn
from torch.nn import functional as F

import infer2train
from infer2train.loader.loader import MinedLoader
from integrations.host_runs import EPOCHS, SETTINGS, Told, are_the_same, die, killed, parts, run_of_ones_own
from mined_runs import equal, state_of

pytestmark = pytest.mark.usefixtures("one_thread")


def engine(every: int = 1) -> tuple[Engine, nn.Module, Any, MinedLoader, Told]:
    """A trainer as Ignite makes it, and what it is given; it notes its draws."""
    model, optimizer, base = parts()
    trainer = create_supervised_trainer(model, optimizer, F.cross_entropy, gradient_accumulation_steps=every)
    loader = infer2train.mine(base, model, optimizer, **SETTINGS, accumulation_steps=every)
    told: Told = []

    @trainer.on(Events.ITERATION_COMPLETED)
    def note() -> None:
        assert loader.last is not None
        told.append(loader.last)

    return trainer, model, optimizer, loader, told


def test_an_engine_selects_what_a_loop_of_ones_own_selects() -> None:
    own, weights = run_of_ones_own()
    trainer, model, _, loader, told = engine()
    trainer.run(loader, max_epochs=EPOCHS)
    assert trainer.state.epoch_length == len(loader)
    assert are_the_same(told, own)
    assert equal(state_of(model), weights)


def saving(every: int, folder: Path) -> tuple[Engine, nn.Module, Told, dict[str, Any]]:
    """A trainer that saves after every draw, and all that is saved."""
    trainer, model, optimizer, loader, told = engine(every)
    parts = {"t": trainer, "model": model, "optimizer": optimizer, "loader": loader}
    keeper = Checkpoint(parts, DiskSaver(str(folder), create_dir=False, require_empty=False), n_saved=1)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, keeper)
    return trainer, model, told, parts


@pytest.mark.parametrize(("every", "draws"), [(1, 10), (1, 14), (4, 13)], ids=["mid-epoch", "between", "mid-step"])
def test_a_killed_run_goes_on_in_the_same_bits(every: int, draws: int, tmp_path: Path) -> None:
    """Ignite carries gradients of an unfinished step into the next epoch, and so through a checkpoint."""
    trainer, model, _, loader, own = engine(every)
    trainer.run(loader, max_epochs=EPOCHS)
    weights = state_of(model)

    def dies() -> None:
        trainer, _, _, parts = saving(every, tmp_path)
        trainer.add_event_handler(Events.ITERATION_STARTED(once=draws + 1), die)
        trainer.run(parts["loader"], max_epochs=EPOCHS)

    killed(dies)
    trainer, model, told, parts = saving(every, tmp_path)
    (saved,) = tmp_path.glob("*.pt")
    Checkpoint.load_objects(parts, torch.load(saved, weights_only=True))
    trainer.run(parts["loader"], max_epochs=EPOCHS)
    assert are_the_same(told, own[draws:])
    assert equal(state_of(model), weights)


def test_an_engine_that_runs_again_begins_a_new_epoch() -> None:
    trainer, _, _, loader, told = engine()
    trainer.run(loader, max_epochs=1)
    trainer.run(loader, max_epochs=2)
    assert [draw.number for draw in told] == list(range(14))
    assert [draw.epoch for draw in told] == [0] * 7 + [1] * 7
