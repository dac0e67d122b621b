"""Draws on their way: candidates to the pool, scores to the pick, picks to the trainer's pipeline.

    ids of an epoch, from the user's sampler        loader/order.py
        |
    planned: kind of draw, version, candidates      loader/planning.py; draws/draw.py, draws/methods/
        |  addresses, version                       of several ranks each its part: loader/parts.py
    pool: view -> engine -> score                   pool/, sources/, oracle/, draws/scores.py
        |  scores, targets                          gathered where a pick is among all
    picked by the draw's method                     draws/methods/, draws/selection.py
        |  addresses                                the rank's own part
    the trainer's views                             sources/pipeline.py
        |  batch
    handed out to the training loop                 loader/loader.py

Several draws are on their way at once; they come out in the order in which they went in.
"""

import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from infer2train.draws.collapse import ClassShare, CollapseWatch, largest_class
from infer2train.draws.draw import Draw, Kind
from infer2train.draws.methods.method import Method
from infer2train.draws.methods.samples import has_classes
from infer2train.draws.ramp import ALWAYS
from infer2train.draws.selection import count_nonfinite
from infer2train.loader.parts import Parts
from infer2train.loader.planning import as_given
from infer2train.loader.validation import Validation
from infer2train.observe.metrics import Meter
from infer2train.observe.timeline import TRAINER
from infer2train.oracle.scorer import Scores
from infer2train.pool.pool import OracleLostError, Pool, check_answer
from infer2train.pool.task import Answer
from infer2train.sources.pipeline import AddressPipeline


def remedy_of(method: Method) -> str:
    """What a run that collapses could do that it does not do yet."""
    mining = method.mining
    ways = [f"a lower update_every (now {mining.update_every})", f"a lower gamma (now {mining.gamma})"]
    if method.choices.schedule == ALWAYS:
        ways.insert(0, "ramp_stop=1.0 with epochs=, which mines little at first")
    if mining.balance == "none":
        ways.insert(0, "balance='stratified'")
    return f"pass {', or '.join(ways)}"


class Picker:
    """Takes draws in, gives batches out; called by one thread.

    Args:
        method: what is mined.
        pool: scores candidates.
        trainer: makes the picked views.
        meter: where what was picked is counted.
        parts: divides draws among the ranks of the run.
    """

    def __init__(self, method: Method, pool: Pool, trainer: AddressPipeline, meter: Meter, parts: Parts) -> None:
        self._method, self._mining = method, method.mining
        self._pool, self._trainer, self._meter, self._parts = pool, trainer, meter, parts
        is_by_loss = (method.choices.score, method.choices.pick) == ("loss", "hardest")
        self._watch = CollapseWatch(remedy_of(method), is_loss=is_by_loss)
        self._submitted: deque[Draw] = deque()
        self._picked: deque[Draw] = deque()
        self._shares: dict[int, ClassShare] = {}
        self._is_lost = False
        self.validation: Validation | None = None
        """What evaluates the versions that score draws, if anything does."""

    def __len__(self) -> int:
        """Draws on their way."""
        return len(self._submitted) + len(self._picked)

    @property
    def depth(self) -> int:
        """Draws worth having on their way: the one asked for, those that workers make views of, those scored ahead."""
        return 1 + self._trainer.depth + self._pool.queue_depth

    def submit(self, draw: Draw) -> None:
        """Take in a planned draw, whose version is published."""
        if self._is_asked(draw) and not self._is_lost:
            with self._surviving():
                if self.validation is not None:
                    self.validation.follow(draw.version)
                self._pool.submit(draw.number, self._parts.looked_at(draw), draw.version)
        self._submitted.append(draw)

    def take(self) -> tuple[Draw, Any]:
        """This rank's part of the oldest draw on its way, and its batch; waits for its scores and its views."""
        if self.validation is not None:
            self.validation.advance()
        while self._submitted and self._is_wanted(self._submitted[0]):
            self._picked.append(self._pick(self._submitted[0]))
            self._submitted.popleft()
        with self._pool.timeline.span(TRAINER, "views", draw=self._picked[0].number):
            batch = self._trainer.get()
        drawn = self._picked.popleft()
        self._method.observe(drawn)
        part = self._parts.own(drawn)
        self._measure(part)
        return part, batch

    def _is_asked(self, draw: Draw) -> bool:
        """Whether the oracle of this rank looks at candidates of it."""
        return draw.kind.is_scored and len(self._parts.looked_at(draw)) > 0

    def _is_wanted(self, draw: Draw) -> bool:
        """Whether to pick a draw now: the one asked for, and those that workers make views of, where nobody waits."""
        if not self._picked:
            return True
        is_ready = not self._is_asked(draw) or self._pool.is_ready(draw.number)
        if len(self._picked) > self._trainer.depth:
            return False
        return self._parts.are_ready(is_ready) if draw.kind.is_scored else is_ready

    def stop(self) -> None:
        """Forget all draws on their way. May be called twice."""
        self._pool.forget()
        if self.validation is not None:
            self.validation.forget()
        self._trainer.forget()
        self._submitted.clear()
        self._picked.clear()
        self._shares.clear()

    def close(self) -> None:
        """Forget them and stop the workers that make views. May be called twice."""
        self._trainer.close()
        self.stop()

    def _pick(self, draw: Draw) -> Draw:
        picked = self._selected(draw)
        self._trainer.put(self._parts.own(picked).addresses)
        return picked

    def _selected(self, draw: Draw) -> Draw:
        """The draw with what is trained on."""
        if draw.kind is Kind.GIVEN:
            return draw
        if not draw.kind.is_scored:
            return replace(self._method.select(draw, None, None), version=None)
        answer = self._answer(draw) if self._is_asked(draw) else Answer(draw.number, draw.version, None)
        if answer is None:
            return as_given(draw)
        scores = self._parts.whole(draw, self._found(draw, answer))
        scored = replace(draw, version=answer.version, scores=scores.values, log_probabilities=scores.log_probabilities)
        picked = self._method.select(scored, scores.values, scores.targets)
        if scores.values is not None and self._method.choices.candidates == "samples":
            self._look(picked, scores)
        return picked

    def _found(self, draw: Draw, answer: Answer) -> Scores | None:
        """What this rank's oracle says of the candidates that it was asked for.

        Raises:
            ValueError: there are more or fewer than candidates.
        """
        if answer.tree is None:
            return None
        scores = Scores(**answer.tree)
        expected = (
            (scores.values, len(self._parts.looked_at(draw))),
            (scores.log_probabilities, self._parts.slots(draw)),
        )
        for found, count in expected:
            if found is not None and len(found) != count:
                raise ValueError(
                    f"every candidate needs a score: got {len(found)} for {count}; a collate_fn must keep every sample"
                )
        return scores

    def _look(self, draw: Draw, scores: Scores) -> None:
        """See whether mining samples has collapsed."""
        assert scores.values is not None
        assert draw.chosen is not None
        assert draw.mined is not None
        mined = torch.from_numpy(draw.chosen[draw.mined])
        if len(mined) == 0:
            return
        picked = torch.zeros(len(scores.values), dtype=torch.bool)
        picked[mined] = True
        self._watch.see_scores(scores.values.cpu(), picked, draw.epoch)
        if not has_classes(scores.targets):
            return
        share = largest_class(scores.targets.cpu().long(), picked)
        self._watch.see_classes(share)
        self._shares[draw.number] = share

    def _answer(self, draw: Draw) -> Answer | None:
        """What the oracle says of a draw; None where the run goes on without."""
        mining, pool = self._mining, self._pool
        if self._is_lost:
            return None
        if mining.when_late == "skip" and not pool.is_ready(draw.number):
            pool.cancel(draw.number)
            self._meter.add(skipped_draws=1)
            return None
        answer = None
        with self._surviving(), pool.timeline.span(TRAINER, "scores", draw=draw.number):
            answer = pool.collect(draw.number)
        if answer is None:
            return None
        return check_answer(answer, draw.number, draw.version, is_exact=mining.staleness == "strict")

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        """Within, the loss of the oracle ends the run, or ends only mining."""
        try:
            yield
        except OracleLostError as error:
            if self._mining.on_oracle_loss == "stop":
                raise
            self._is_lost = True
            warnings.warn(f"{error} The run goes on without mining.", RuntimeWarning)

    def _measure(self, drawn: Draw) -> None:
        if self._is_lost:
            self._meter.add(oracle_lost_draws=1)
        if self._method.choices.candidates == "samples":
            self._meter.add(duplicates=len(drawn.addresses) - len(np.unique(drawn.addresses.ids)))
        if (share := self._shares.pop(drawn.number, None)) is not None:
            self._meter.add(
                class_picked=share.picked, class_picks=share.picks, class_there=share.there, class_all=share.candidates
            )
        if drawn.version is not None:
            self._meter.add(mined_draws=1, lag_sum=drawn.lag or 0)
        said = drawn.log_probabilities
        if said is not None and said.ndim == 2:  # of sequences, NaN also stands for what is no token of theirs
            self._meter.add(nonfinite_scores=int(said.isnan().any(1).sum()))
        if drawn.scores is None or drawn.mined is None or drawn.chosen is None:
            return
        picked = drawn.scores[torch.from_numpy(drawn.chosen[drawn.mined]).to(drawn.scores.device)]
        self._meter.add(**score_amounts(drawn.scores, picked))


def score_amounts(scores: Float[Tensor, " n"], picked: Float[Tensor, " m"]) -> dict[str, float]:
    """What is added up of scores: of all candidates, and of those that were picked for theirs."""
    finite, finite_picked = scores[torch.isfinite(scores)], picked[torch.isfinite(picked)]
    return {
        "mined_examples": len(picked),
        "scored": len(finite),
        "score_sum": float(finite.sum()),
        "chosen": len(finite_picked),
        "chosen_sum": float(finite_picked.sum()),
        "nonfinite_scores": count_nonfinite(scores),
    }
