"""The same small run under every host: what is trained, the loop of one's own to compare with, what tells two apart."""

import multiprocessing
import os
import random
import signal
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import infer2train
from infer2train.draws.draw import Draw
from infer2train.loader.loader import MinedLoader
from mined_runs import equal, jittered, network, sgd, state_of

EPOCHS, SAMPLES = 3, 26
"""Seven draws an epoch, the last of two samples."""
SETTINGS: dict[str, Any] = {"gamma": 3, "update_every": 2, "oracle": "torch:fp32"}

Told = list[Draw]
Parts = tuple[nn.Module, torch.optim.Optimizer, "DataLoader[Any]"]


def parts() -> Parts:
    """A model with batch-norm and dropout, its optimiser and loader; the global generators seeded."""
    model = network(norm=True, dropout=0.2)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    return model, sgd(model), jittered(SAMPLES)


def own_loop(
    loader: MinedLoader, model: nn.Module, optimizer: torch.optim.Optimizer, every: int = 1, *, in_bf16: bool = False
) -> Iterator[Draw]:
    """One epoch of a loop without a host, which steps after `every` draws and after the last."""
    for x, y in loader:
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
            outputs = model(x)
        (F.cross_entropy(outputs.float(), y) / every).backward()
        if loader.position % every == 0 or loader.position == len(loader):
            optimizer.step()
            optimizer.zero_grad()
        assert loader.last is not None
        yield loader.last


@cache
def run_of_ones_own(every: int = 1, *, in_bf16: bool = False) -> tuple[Told, dict[str, Tensor]]:
    """Draws and weights of the whole run without a host."""
    model, optimizer, base = parts()
    loader = infer2train.mine(base, model, optimizer, **SETTINGS, accumulation_steps=every)
    told = [draw for _ in range(EPOCHS) for draw in own_loop(loader, model, optimizer, every, in_bf16=in_bf16)]
    loader.close()
    return told, state_of(model)


def are_the_same(told: Told, others: Told) -> bool:
    """Whether these are draws of the same ids and views, by the same versions, with the same scores."""
    return len(told) == len(others) and all(
        (a.number, a.epoch, a.step, a.version) == (b.number, b.epoch, b.step, b.version)
        and np.array_equal(a.addresses.ids, b.addresses.ids)
        and np.array_equal(a.addresses.seeds, b.addresses.seeds)
        and equal(a.scores, b.scores)
        for a, b in zip(told, others, strict=True)
    )


def die() -> None:
    """What the kernel, a scheduler or a power cut does."""
    os.kill(os.getpid(), signal.SIGKILL)


def killed(run: Callable[[], object], limit_seconds: float = 200) -> None:
    """Have a run die at some moment in a process of its own, which is forked: that costs milliseconds.

    Args:
        run: calls `die`.
        limit_seconds: within which it does.
    """
    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(limit_seconds)
    status = process.exitcode
    process.kill()
    assert status == -signal.SIGKILL, status
