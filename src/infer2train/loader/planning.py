"""Draws that are to be made: everything about them but what the oracle will say.

Between the course, which knows where the run stands, and the picker, which takes planned draws in.
"""

from abc import ABC, abstractmethod
from dataclasses import replace

import numpy as np

from infer2train.draws.addresses import Addresses, Purpose, seeds
from infer2train.draws.draw import Draw, Kind
from infer2train.draws.methods.method import Method
from infer2train.loader.course import Course
from infer2train.loader.publisher import Publisher


class Plan(ABC):
    """Knows the draws of an epoch before they are made.

    Args:
        course: knows their numbers, steps and ids.
        publisher: knows their versions.
    """

    def __init__(self, course: Course, publisher: Publisher) -> None:
        self._course, self._publisher = course, publisher

    @abstractmethod
    def draw(self, ahead: int = 0) -> Draw:
        """The draw that comes after so many others of the epoch."""

    def next(self) -> Draw:
        """The draw that the host asks for.

        Raises:
            RuntimeError: its version needs a step that is not done.
        """
        draw = self.draw()
        self._publisher.require(draw, self._course.steps)
        return draw

    def ready(self, ahead: int) -> Draw | None:
        """The draw that comes after so many others of the epoch; None where its version is not there yet."""
        draw = self.draw(ahead)
        return draw if self._publisher.has(draw) else None


class Planner(Plan):
    """Plans the draws of an epoch; the same on every rank, unless each reads a stream of its own.

    Args:
        method: decides what kind of draw each is.
        course: knows their numbers, steps and ids.
        publisher: knows their versions.
        seed: that everything random in them follows from.
    """

    def __init__(self, method: Method, course: Course, publisher: Publisher, seed: int) -> None:
        super().__init__(course, publisher)
        self._method, self._seed = method, seed

    def draw(self, ahead: int = 0) -> Draw:
        method, course = self._method, self._course
        number, epoch, ids = course.draws + ahead, course.epoch, course.ids(ahead)
        step, share, seed = course.step_of(number), method.share(epoch), self._seed
        kind = method.kind_of(step, share, len(ids))
        given = Addresses(ids, seeds(seed, Purpose.VIEW, epoch=epoch, draw=number, slot=np.arange(len(ids))))
        is_scored = method.choices.has_oracle and kind is not Kind.GIVEN
        draw = Draw(
            number=number,
            epoch=epoch,
            step=step,
            kind=kind,
            share=share,
            seed=seed,
            ids=ids,
            epoch_ids=course.offered(ahead),
            version=self._publisher.version_for(step) if is_scored else None,
            candidates=given[:0],
            addresses=given,
        )
        return replace(draw, candidates=method.candidates(draw)) if kind.is_scored else draw


def as_given(draw: Draw) -> Draw:
    """A planned draw as the batch that the user's loader gave: nobody scores it any more."""
    return replace(draw, kind=Kind.GIVEN, version=None, candidates=draw.candidates[:0])
