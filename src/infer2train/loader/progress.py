"""A run as its loop goes on: what a draw that is handed out, and a step that is done, do to the parts of a loader.

Between the host's loop and the parts behind the loader: the course counts, the publisher copies weights, gradients are
known to be used, the journal writes a row, the timeline has what the trainer did.
"""

from time import perf_counter

from infer2train.draws.draw import Draw
from infer2train.loader.accumulation import Gradients
from infer2train.loader.course import Course
from infer2train.loader.journal import Journal
from infer2train.loader.publisher import Publisher
from infer2train.observe.metrics import Meter
from infer2train.observe.timeline import TRAINER, Span, Timeline


class Progress:
    """Is told by the loader alone, in the thread that iterates it.

    Args:
        course: where the run stands.
        publisher: has the versions; None where nothing is scored.
        gradients: of the step under way.
        journal: what is written.
        meter: what is counted.
        timeline: what was done when.
    """

    last: Draw | None = None
    """The draw handed out last."""

    def __init__(
        self,
        course: Course,
        publisher: Publisher | None,
        gradients: Gradients,
        journal: Journal,
        meter: Meter,
        timeline: Timeline,
    ) -> None:
        self._course, self._publisher, self._gradients = course, publisher, gradients
        self._journal, self._meter, self._timeline = journal, meter, timeline
        self._handed_out: float | None = None
        self._is_due = False

    def begin(self) -> None:
        """The loop begins an epoch, or goes on with one."""
        self.count_due()
        self._handed_out = None

    def hand_out(self, draw: Draw, asked: float) -> None:
        """The loop gets a draw, for which it has waited since it asked."""
        course = self._course
        assert draw.number == course.draws, (draw.number, course.draws)
        self.last = draw
        self._journal.drawn(draw)
        course.hand_out()
        if self._publisher is not None:
            self._publisher.saw(draw)
            # A loop may break off before it trains on its last draw; the next epoch then begins at the steps done.
            self._publisher.retire(min(course.step_of(course.draws), course.steps))
        self._handed_out = perf_counter()
        self._meter.add(draws=1, examples=len(draw.addresses), waiting_seconds=self._handed_out - asked)

    def ask(self) -> None:
        """The loop asks for the next draw, or says that the epoch is over: the step before is over too."""
        self.count_due()
        if self._course.has_skipped():
            self._meter.add(skipped_steps=1)
            self._course.warn_of_skips()
            self._count()

    def step_done(self) -> None:
        """The loop has done a step.

        Raises:
            RuntimeError: more steps were done than draws were handed out for.
        """
        self._gradients.step_done()
        self._count()

    def step_due(self) -> None:
        """It has done one of which another optimiser may still do a part."""
        self._gradients.step_done()
        self._is_due = True

    def count_due(self) -> None:
        """That part is done by now."""
        if self._is_due:
            self._is_due = False
            self._count()

    def forget_due(self) -> None:
        """The run goes on from another state."""
        self._is_due = False

    def note_training(self) -> None:
        """What the loop did with the draw that it was handed last."""
        if self._handed_out is not None and self.last is not None:
            details = {"draw": self.last.number, "step": self.last.step}
            seconds = perf_counter() - self._handed_out
            self._timeline.add(Span(TRAINER, "train", self._handed_out, seconds, details))
        self._handed_out = None

    def _count(self) -> None:
        self._course.step_done()
        self.note_training()
        if self._publisher is not None:
            self._publisher.publish_if_due(self._course.steps)
        if self.last is not None:
            self._journal.step(self._course.steps, self.last)


class Counted:
    """Something whose epochs, draws and steps are counted.

    Args:
        course: where it stands.
        progress: is told of its steps.
    """

    def __init__(self, course: Course, progress: Progress) -> None:
        self._course, self._progress = course, progress

    @property
    def epoch(self) -> int:
        """The epoch under way, or the next one (counted from 0): start `for epoch in range(loader.epoch, n)` here."""
        return self._course.epoch

    @property
    def position(self) -> int:
        """Draws of that epoch that were handed out."""
        return self._course.position

    @property
    def last(self) -> Draw | None:
        """The draw handed out last; of several ranks, this one's part of it. Its `candidates` and `scores` are those of
        all ranks where picks are among all (samples), and those of its own slots where picks are within a slot
        (views)."""
        return self._progress.last

    @property
    def steps(self) -> int:
        """Steps acknowledged so far."""
        return self._course.steps

    def step_done(self) -> None:
        """Acknowledge one step: call it after each optimiser attempt, unless `mine()` was given the optimiser.

        Raises:
            RuntimeError: more steps were done than draws were handed out for.
        """
        self._progress.step_done()

    def step_due(self) -> None:
        """Take note of a step that goes on, by another optimiser: it is counted when the next draw is asked for."""
        self._progress.step_due()
