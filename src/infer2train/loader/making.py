"""Made draws on their way: addresses to the pool, what the model made of them back.

    ids of an epoch, from the user's sampler        loader/order.py
        |
    planned: version, addresses                     here
        |
    pool: input -> engine -> outputs                pool/, sources/, oracle/
        |
    handed out to the training loop                 loader/made.py

Beside `picking`, where what comes back is scores, and the trainer reads what is picked.
"""

from collections import deque
from typing import Any

import numpy as np
import torch

from infer2train.batches import to_device
from infer2train.draws.addresses import Addresses, Purpose, seeds
from infer2train.draws.draw import Draw, Kind
from infer2train.loader.course import Course
from infer2train.loader.planning import Plan
from infer2train.loader.publisher import Publisher
from infer2train.observe.metrics import Meter
from infer2train.observe.timeline import TRAINER
from infer2train.pool.pool import Pool, check_answer


class MadePlan(Plan):
    """Plans draws that a model is to make.

    Args:
        course: knows their numbers, steps and ids.
        publisher: knows their versions.
        seed: of the run.
    """

    def __init__(self, course: Course, publisher: Publisher, seed: int) -> None:
        super().__init__(course, publisher)
        self._seed = seed

    def draw(self, ahead: int = 0) -> Draw:
        course, seed = self._course, self._seed
        number, epoch, ids = course.draws + ahead, course.epoch, course.ids(ahead)
        step = course.step_of(number)
        given = Addresses(ids, seeds(seed, Purpose.INPUT, epoch=epoch, draw=number, slot=np.arange(len(ids))))
        return Draw(
            number=number,
            epoch=epoch,
            step=step,
            kind=Kind.MADE,
            seed=seed,
            ids=ids,
            epoch_ids=course.offered(ahead),
            version=self._publisher.version_for(step),
            candidates=given[:0],
            addresses=given,
        )


class Maker:
    """Takes draws in, gives made batches out, in the same order; called by one thread.

    Args:
        pool: makes them.
        meter: where they are counted.
        home: where what was made goes, wherever the pool works.
        is_strict: whether any other version than the one asked for is wrong.
    """

    def __init__(self, pool: Pool, meter: Meter, home: torch.device, *, is_strict: bool) -> None:
        self._pool, self._meter, self._home, self._is_strict = pool, meter, home, is_strict
        self._submitted: deque[Draw] = deque()

    def __len__(self) -> int:
        """Draws on their way."""
        return len(self._submitted)

    @property
    def depth(self) -> int:
        """Draws worth having on their way: the one asked for, and those made ahead."""
        return 1 + self._pool.queue_depth

    def submit(self, draw: Draw) -> None:
        """Take in a draw whose version is published."""
        self._pool.submit(draw.number, draw.addresses, draw.version)
        self._submitted.append(draw)

    def take(self) -> tuple[Draw, Any]:
        """The oldest draw on its way, and (outputs, targets); waits for it."""
        draw = self._submitted[0]
        with self._pool.timeline.span(TRAINER, "scores", draw=draw.number):
            answer = self._pool.collect(draw.number)
        self._submitted.popleft()
        check_answer(answer, draw.number, draw.version, is_exact=self._is_strict)
        assert answer.version is not None
        self._meter.add(mined_draws=1, lag_sum=draw.step - answer.version)
        made = to_device(answer.tree["outputs"], self._home)
        return Draw(**{**vars(draw), "version": answer.version}), (made, answer.tree["targets"])

    def stop(self) -> None:
        """Forget all draws on their way. May be called twice."""
        self._pool.forget()
        self._submitted.clear()
