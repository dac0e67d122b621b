"""Draws on their way: candidates to the pool, scores to the pick, picks to the trainer's pipeline.

What happens to one draw between the loader, which decides when it may be scored and by which version, and the batch
that the training loop gets. Several draws are on their way at once; they come out in the order in which they went in.
"""

import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from infer2train.collapse import ClassShare, CollapseWatch, largest_class
from infer2train.methods import ALWAYS, Selection, Slots, candidates, has_classes, select, unmined
from infer2train.metrics import Meter
from infer2train.oracle.scorer import Scores
from infer2train.pipeline import AddressPipeline
from infer2train.plan import Draw, MiningPlan
from infer2train.pool.pool import OracleLostError, Pool, check_scores
from infer2train.selection import count_nonfinite, num_mined
from infer2train.timeline import TRAINER


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A draw that is to be made: all that is known of it before anything is scored."""

    slots: Slots
    step: int
    """The step that trains on it."""
    share: float
    """Mined share r in [0, 1]."""
    version: int | None
    """Version of the weights that may score it; None where no oracle does."""
    scored: bool
    """Whether its candidates are looked at."""


def plan_draw(plan: MiningPlan, slots: Slots, step: int, version: int | None) -> Planned:
    """The draw of `step` as it is to be made."""
    method = plan.method
    share = method.schedule.share(slots.epoch, plan.epochs)
    # Nothing is asked of the oracle where the ramp mines nothing yet.
    scored = plan.is_mined(step) and (not method.is_rampable or num_mined(share, len(slots.ids)) > 0)
    return Planned(slots=slots, step=step, share=share, version=version, scored=scored)


def finished_draw(plan: MiningPlan, planned: Planned, selection: Selection, scores: Scores | None) -> Draw:
    """The draw as it was made."""
    slots = planned.slots
    return Draw(
        draw=slots.draw,
        epoch=slots.epoch,
        step=planned.step,
        version=scores.version if scores else None,
        addresses=selection.addresses,
        candidates=candidates(plan.method, slots, plan.gamma) if scores else selection.addresses[:0],
        scores=scores.values if scores else None,
        chosen=selection.chosen if scores else None,
        mined=selection.mined if scores else None,
        log_probabilities=scores.log_probabilities if scores else None,
    )


def remedy_of(plan: MiningPlan) -> str:
    """What a run that collapses could do that it does not do yet."""
    ways = [f"a lower update_every (now {plan.rule.update_every})", f"a lower gamma (now {plan.gamma})"]
    if plan.method.schedule == ALWAYS:
        ways.insert(0, "ramp=Ramp(stop=1.0) with epochs=, which mines little at first")
    if plan.balance == "none":
        ways.insert(0, "balance='stratified'")
    return f"pass {', or '.join(ways)}"


class Picker:
    """Takes draws in, gives batches out; called by one thread.

    Args:
        plan: what is mined.
        pool: scores candidates.
        trainer: makes the picked views.
        meter: where what was picked is counted.
    """

    def __init__(self, plan: MiningPlan, pool: Pool, trainer: AddressPipeline, meter: Meter) -> None:
        self._plan, self._pool, self._trainer, self._meter = plan, pool, trainer, meter
        self._watch = CollapseWatch(remedy_of(plan), is_loss=plan.score == "loss")
        self._submitted: deque[Planned] = deque()
        self._picked: deque[Draw] = deque()
        self._shares: dict[int, ClassShare] = {}
        self._is_lost = False

    def __len__(self) -> int:
        """Draws on their way."""
        return len(self._submitted) + len(self._picked)

    @property
    def depth(self) -> int:
        """Draws worth having on their way: the one asked for, those that workers make views of, those scored ahead."""
        return 1 + self._trainer.depth + self._pool.queue_depth

    def submit(self, planned: Planned) -> None:
        """Take in a draw, whose version is published."""
        slots = planned.slots
        if planned.scored and not self._is_lost:
            with self._surviving():
                self._pool.submit(slots.draw, candidates(self._plan.method, slots, self._plan.gamma), planned.version)
        self._submitted.append(planned)

    def take(self) -> tuple[Draw, Any]:
        """The oldest draw on its way, and its batch; waits for its scores and its views."""
        while self._submitted and self._is_wanted(self._submitted[0]):
            self._picked.append(self._pick(self._submitted[0]))
            self._submitted.popleft()
        with self._pool.timeline.span(TRAINER, "views", draw=self._picked[0].draw):
            batch = self._trainer.get()
        drawn = self._picked.popleft()
        self._measure(drawn)
        return drawn, batch

    def _is_wanted(self, planned: Planned) -> bool:
        """Whether to pick a draw now: the one asked for, and those that workers make views of, where nobody waits."""
        if not self._picked:
            return True
        is_ready = not planned.scored or self._pool.is_ready(planned.slots.draw)
        return is_ready and len(self._picked) <= self._trainer.depth

    def stop(self) -> None:
        """Forget all draws on their way. May be called twice."""
        self._pool.forget()
        self._trainer.forget()
        self._submitted.clear()
        self._picked.clear()
        self._shares.clear()

    def close(self) -> None:
        """Forget them and stop the workers that make views. May be called twice."""
        self._trainer.close()
        self.stop()

    def _pick(self, planned: Planned) -> Draw:
        scores = self._scores(planned) if planned.scored else None
        selection = unmined(planned.slots) if planned.scored and scores is None else self._select(planned, scores)
        self._trainer.put(selection.addresses)
        if scores is not None and scores.values is not None and self._plan.method.candidates == "samples":
            self._look(planned, selection, scores)
        return finished_draw(self._plan, planned, selection, scores)

    def _look(self, planned: Planned, selection: Selection, scores: Scores) -> None:
        """See whether mining samples has collapsed."""
        assert scores.values is not None
        assert selection.chosen is not None
        assert selection.mined is not None
        mined = torch.from_numpy(selection.chosen[selection.mined])
        if len(mined) == 0:
            return
        picked = torch.zeros(len(scores.values), dtype=torch.bool)
        picked[mined] = True
        self._watch.see_scores(scores.values.cpu(), picked, planned.slots.epoch)
        if not has_classes(scores.targets):
            return
        share = largest_class(scores.targets.cpu().long(), picked)
        self._watch.see_classes(share)
        self._shares[planned.slots.draw] = share

    def _scores(self, planned: Planned) -> Scores | None:
        """What the oracle says of a draw; None where the run goes on without."""
        plan, slots, pool = self._plan, planned.slots, self._pool
        if self._is_lost:
            return None
        if plan.when_late == "skip" and not pool.is_ready(slots.draw):
            pool.cancel(slots.draw)
            self._meter.add(skipped_draws=1)
            return None
        scores = None
        with self._surviving(), pool.timeline.span(TRAINER, "scores", draw=slots.draw):
            scores = pool.collect(slots.draw)
        if scores is None:
            return None
        check_scores(scores, slots.draw, planned.version, is_exact=plan.staleness == "strict")
        _require_every_candidate(scores, slots, plan)
        return scores

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        """Within, the loss of the oracle ends the run, or ends only mining."""
        try:
            yield
        except OracleLostError as error:
            if self._plan.on_oracle_loss == "stop":
                raise
            self._is_lost = True
            warnings.warn(f"{error} The run goes on without mining.", RuntimeWarning)

    def _select(self, planned: Planned, scores: Scores | None) -> Selection:
        plan = self._plan
        if planned.step % plan.mine_every:
            return unmined(planned.slots)
        return select(
            plan.method,
            planned.slots,
            plan.gamma,
            scores=scores.values if scores else None,
            targets=scores.targets if scores else None,
            share=planned.share,
            balance=plan.balance,
        )

    def _measure(self, drawn: Draw) -> None:
        if self._is_lost:
            self._meter.add(oracle_lost_draws=1)
        if self._plan.method.candidates == "samples":
            self._meter.add(duplicates=len(drawn.addresses) - len(np.unique(drawn.addresses.ids)))
        if (share := self._shares.pop(drawn.draw, None)) is not None:
            self._meter.add(
                class_picked=share.picked, class_picks=share.picks, class_there=share.there, class_all=share.candidates
            )
        if drawn.version is not None:
            self._meter.add(mined_draws=1, lag_sum=drawn.lag or 0)
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


def _require_every_candidate(scores: Scores, slots: Slots, plan: MiningPlan) -> None:
    """Refuse scores that cannot be matched with their candidates.

    Raises:
        ValueError: there are more or fewer than candidates.
    """
    pairs = ((scores.values, plan.gamma * len(slots.ids)), (scores.log_probabilities, len(slots.ids)))
    for found, expected in pairs:
        if found is not None and len(found) != expected:
            raise ValueError(
                f"every candidate needs a score: got {len(found)} for {expected}; a collate_fn must keep every sample"
            )
