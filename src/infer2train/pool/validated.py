"""A task whose oracle also says how good a version is on data that is held out, in time that nobody else needs.

Beside the task that it wraps: a chunk is either of the draws' candidates, or of what is held out.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from infer2train.batches import Split, batch_size, logits_of, split_batch, to_device
from infer2train.draws.scores import SCORES, Score
from infer2train.oracle.scorer import one_each, outputs_of
from infer2train.pool.task import ScoringTask, Task
from infer2train.sources.held_out import HeldOut, WithHeldOut
from infer2train.sources.source import Source


@dataclass(frozen=True, kw_only=True)
class ValidatedTask(Task):
    """Scores candidates as `scoring` does; of held-out data the tree is `{"losses": [n], "wrong": [n] or None}`."""

    scoring: ScoringTask
    split: Split = split_batch
    """batch -> (inputs, targets)."""
    measure: Score = SCORES["loss"]
    """(outputs, targets) -> [n]."""

    @property
    def chunk(self) -> int:
        return self.scoring.chunk

    def run(self, batches: Iterable[Any]) -> dict[str, Any]:
        following = iter(batches)
        first = next(following)
        if isinstance(first, HeldOut):
            return self._judged(first.batch)
        return self.scoring.run(chain([first], following))

    def _judged(self, batch: Any) -> dict[str, Any]:
        assert self.engine is not None, "nobody is there to be evaluated"
        inputs, targets = self.split(batch)
        outputs = outputs_of(self.engine, inputs, self.chunk)
        targets = to_device(targets, self.engine.device)
        losses = one_each(self.measure(outputs, targets), batch_size(inputs))
        return {"losses": losses.cpu(), "wrong": _wrong(outputs, targets)}


def _wrong(outputs: Any, targets: Any) -> Tensor | None:
    """Whether each answer is another class than the right one; None where targets are no classes."""
    if not isinstance(targets, Tensor) or targets.dtype != torch.int64 or targets.ndim != 1:
        return None
    logits = logits_of(outputs)
    return ((logits.argmax(1) != targets) | logits.isnan().any(1)).cpu() if logits.ndim == 2 else None


def validated(task: ScoringTask, held_out: Source, split: Split, measure: Score | None) -> ValidatedTask:
    """The task, with data that it is evaluated on beside its draws."""
    return ValidatedTask(
        source=WithHeldOut(task.source, held_out),
        reader=task.reader,
        view_workers=task.view_workers,
        engine=task.engine,
        monitor=task.monitor,
        scoring=task,
        split=split,
        measure=measure or SCORES["loss"],
    )
