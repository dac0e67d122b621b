"""What the device does in a step: score and pick a draw, train on one. Written so that CUDA graphs can record it.

Everything here reads its row from a tensor, draws nothing, allocates only what it needs within, and asks the device for
nothing; results go into the tables.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import SGD

from infer2train.losses import distillation
from infer2train.methods import pick_views
from infer2train.plan import MiningPlan
from infer2train.pool.inline import InlinePool
from infer2train.selection import PICKS
from infer2train.training.device_tables import EpochTables
from infer2train.training.setup import Run
from infer2train.training.step import trained_logits, update


class ScoringWork:
    """Scores the candidates of one draw by the weights in use, and picks.

    Args:
        plan: what is mined.
        pool: whose engine scores.
        tables: of the epoch.
    """

    def __init__(self, plan: MiningPlan, pool: InlinePool, tables: EpochTables) -> None:
        self._plan, self._pool, self._tables = plan, pool, tables
        self.row = tables.new_row()
        """The draw's, [1]."""

    def __call__(self) -> None:
        tables, at = self._tables, self.row
        pixels, targets = tables.candidates(at)
        starts = range(0, len(pixels), self._pool.chunk)
        chunks = ((pixels[start:][: self._pool.chunk], targets[start:][: self._pool.chunk]) for start in starts)
        scores = self._pool.score(0, chunks)
        if scores.log_probabilities is not None:
            tables.write("log_probabilities", at, scores.log_probabilities)
        if scores.values is not None:
            tables.write("scores", at, scores.values)
            by_slot, pick = scores.values.view(tables.batch_size, -1), PICKS[self._plan.method.pick]
            tables.pick(at, pick_views(pick, by_slot, tables.row("uniforms", at), tables.row("mined", at)))


class TrainingWork:
    """Trains on one draw.

    Args:
        run: whose model and optimiser.
        tables: of the epoch.
    """

    def __init__(self, run: Run, tables: EpochTables) -> None:
        self._run, self._tables = run, tables
        self.row = tables.new_row()
        """The draw's, [1]."""
        self.lr: Float[Tensor, ""] = torch.zeros((), device=self.row.device)
        if self.lr.is_cuda:
            lay_out_momentum(run.optimizer)

    def __call__(self, *, is_whole: bool, is_distilled: bool) -> None:
        """Train on all views of the draw or on the picked ones, with or without the penalty of equation 1."""
        tables, at = self._tables, self.row
        images, targets = tables.trained(at, is_whole)
        logits = trained_logits(self._run, images)
        penalty = logits.new_zeros(())
        if is_distilled:
            weight = self._run.loader.plan.distill_weight
            penalty = weight * distillation(logits, tables.found("log_probabilities").index_select(0, at)[0])
            tables.write("logits", at, logits.detach())
        with settings_on_device(self._run.optimizer, self.lr):
            loss = update(self._run, logits, targets, penalty)
        tables.write("loss", at, loss)
        tables.write("penalty", at, penalty.detach())
        tables.write("wrong", at, (logits.argmax(dim=1) != targets).sum())

    def changed(self) -> list[Tensor]:
        """Everything that a step changes and the next one reads."""
        model, states = self._run.model, self._run.optimizer.state.values()
        return [*model.parameters(), *model.buffers(), *(t for s in states for t in s.values() if torch.is_tensor(t))]


@contextmanager
def settings_on_device(optimizer: SGD, lr: Float[Tensor, ""]) -> Iterator[None]:
    """Within, the learning rate is a tensor, and on CUDA one fused kernel updates all weights.

    Outside the optimiser is what it always is, so that checkpoints are.
    """
    own: dict[str, Any] = {"lr": lr, "fused": True, "foreach": False} if lr.is_cuda else {"lr": lr}
    before = [{name: group[name] for name in own} for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group.update(own)
    try:
        yield
    finally:
        for group, settings in zip(optimizer.param_groups, before, strict=True):
            group.update(settings)


def lay_out_momentum(optimizer: SGD) -> None:
    """Give every weight its momentum, in the memory layout of the weight.

    The fused kernel takes nothing else, and a checkpoint gives all tensors back in one layout. A momentum of 0 before
    the first step is what torch begins with there: 0.9 · 0 + g.
    """
    for group in optimizer.param_groups:
        for weight in group["params"] if group["momentum"] else ():
            found = optimizer.state[weight].get("momentum_buffer")
            optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
            if found is not None:
                optimizer.state[weight]["momentum_buffer"].copy_(found)
