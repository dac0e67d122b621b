"""The ten lines in `mine()`'s docstring are Algorithm 1, and train the same weights as the loader, bit for bit."""

import copy
import inspect
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from infer2train import mine
from infer2train.draws.addresses import Addresses, Purpose, seeds
from infer2train.loader.order import epoch_batches
from infer2train.sources.replay import Replay
from mined_runs import draws, equal, jittered, network, sgd, state_of

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:the oracle gets new weights every:RuntimeWarning"),
]

GAMMA, UPDATE_EVERY = 3, 4


def ten_lines() -> str:
    """The block of code behind the words `Algorithm 1`, as it stands there."""
    _, _, rest = inspect.getdoc(mine).partition("Algorithm 1, as nm-augment")  # type: ignore[union-attr]
    _, _, code = rest.partition(":\n\n")
    return dedent(code.partition("\n\n")[0])


def test_algorithm_1_is_ten_lines_and_trains_the_loaders_weights() -> None:
    code = ten_lines()
    assert len(code.splitlines()) == 10
    base, model = jittered(40), network()
    optimizer = sgd(model)
    loader = mine(base, model, optimizer, gamma=GAMMA, update_every=UPDATE_EVERY)

    def views(step: int, ids: Any) -> Addresses:
        slot, view = np.arange(len(ids))[:, None], np.arange(GAMMA)
        own = seeds(0, Purpose.VIEW, epoch=0, draw=step, slot=slot, view=view)
        return Addresses(np.repeat(ids, GAMMA), own.reshape(-1))

    by_hand = network()
    names = {"model": by_hand, "optimizer": sgd(by_hand), "loader": loader, "views": views}
    names |= {"read": Replay(base.dataset, base.collate_fn).batch, "batches": epoch_batches(base, 0, 0)}
    exec(code, {"copy": copy, "torch": torch, "F": F, **names})
    seen = list(draws(loader, model, optimizer))
    assert len(seen) == 10
    assert not equal(state_of(model), state_of(network()))
    assert equal(state_of(model), state_of(by_hand))
