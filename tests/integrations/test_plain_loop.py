"""Mining without a host: a loop of one's own that is killed goes on where it was saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import infer2train
from infer2train.loader.loader import MinedLoader
from integrations.host_runs import EPOCHS, SETTINGS, are_the_same, die, killed, own_loop, parts, run_of_ones_own
from mined_runs import equal, state_of

pytestmark = pytest.mark.usefixtures("one_thread")


def made(every: int) -> tuple[nn.Module, Any, MinedLoader]:
    model, optimizer, base = parts()
    return model, optimizer, infer2train.mine(base, model, optimizer, **SETTINGS, accumulation_steps=every)


@pytest.mark.parametrize(("every", "draws"), [(1, 10), (4, 13)], ids=["mid-epoch", "mid-accumulation"])
def test_a_killed_run_goes_on_in_the_same_bits(every: int, draws: int, tmp_path: Path) -> None:
    """Ten draws are a whole epoch and three; thirteen end after two of the four micro-batches of a step."""
    own, weights = run_of_ones_own(every)

    def dies() -> None:
        run = model, optimizer, loader = made(every)
        for _ in range(EPOCHS):
            for draw in own_loop(loader, model, optimizer, every):
                if draw.number == draws:
                    die()
                torch.save([part.state_dict() for part in run], tmp_path / "state")

    killed(dies)
    run = model, optimizer, loader = made(every)
    for part, state in zip(run, torch.load(tmp_path / "state", weights_only=True), strict=True):
        part.load_state_dict(state)
    epochs = range(loader.epoch, EPOCHS)
    told = [draw for _ in epochs for draw in own_loop(loader, model, optimizer, every)]
    assert are_the_same(told, own[draws:])
    assert equal(state_of(model), weights)
