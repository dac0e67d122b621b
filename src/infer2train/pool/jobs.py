"""What a supervisor was asked for, which seat owes it, and what was answered and not yet taken.

Kept beside the seats, which come and go: a job is done again by whoever sits there next, or is given to another.
"""

import math
import time
from collections import deque
from dataclasses import dataclass

from infer2train.draws.addresses import Addresses
from infer2train.pool.messages import Do
from infer2train.pool.seat import Seat
from infer2train.pool.task import Answer


@dataclass
class Job:
    """One order, whoever does it."""

    order: Do
    seat: Seat | None = None
    since: float = 0.0
    """When the worker began to owe this answer before any other."""

    def begin(self, seat: Seat) -> None:
        """Have a seat owe it from now on."""
        self.seat, self.since = seat, time.monotonic()


class Jobs:
    """Draws, in the order in which they were asked for, and asides, which may wait until no draw is to be done."""

    def __init__(self) -> None:
        self._draws: deque[Job] = deque()
        self._asides: dict[int, Job] = {}
        self._answers: dict[int, Answer | Exception] = {}
        self._tickets = 0

    def draw(self, draw: int, addresses: Addresses, version: int | None) -> Job:
        """A draw to be done after all others."""
        self._tickets += 1
        self._draws.append(Job(Do(self._tickets, draw, version, addresses.ids, addresses.seeds)))
        return self._draws[-1]

    def aside(self, number: int, addresses: Addresses, version: int) -> Job:
        """Something to be done while no draw is."""
        self._tickets += 1
        job = Job(Do(self._tickets, number, version, addresses.ids, addresses.seeds, is_aside=True))
        self._asides[self._tickets] = job
        return job

    # Who owes what

    def owed(self, seat: Seat) -> list[Job]:
        """Draws that a seat has not answered, in their order."""
        return [job for job in self._draws if job.seat is seat and job.order.ticket not in self._answers]

    def owed_asides(self, seat: Seat) -> list[Job]:
        """Asides that it has not answered."""
        return [job for ticket, job in self._asides.items() if job.seat is seat and ticket not in self._answers]

    def num_asides(self, seat: Seat | None = None) -> int:
        """Asides, answered or not, that nobody has taken: of a seat, or all."""
        return len(self._asides) if seat is None else sum(job.seat is seat for job in self._asides.values())

    # Answers

    def note(self, ticket: int, answer: Answer | Exception) -> None:
        """Keep an answer, if it has not been forgotten meanwhile that somebody wants it."""
        if ticket in self._asides or any(job.order.ticket == ticket for job in self._draws):
            self._answers[ticket] = answer

    def is_answered(self, draw: int) -> bool:
        """Whether a draw is."""
        return any(job.order.draw == draw and job.order.ticket in self._answers for job in self._draws)

    def require_next(self, draw: int) -> None:
        """Draws are taken in the order in which they were asked for, each once."""
        assert self._draws, draw
        assert self._draws[0].order.draw == draw, (self._draws[0].order.draw, draw)

    def taken(self, draw: int) -> tuple[int, Answer | Exception | None]:
        """The ticket of the oldest draw, and its answer, if there is one; it is forgotten with this."""
        self.require_next(draw)
        ticket = self._draws.popleft().order.ticket
        return ticket, self._answers.pop(ticket, None)

    def taken_asides(self) -> list[Answer]:
        """What came of asides since the last call.

        Raises:
            Exception: what failed in a worker.
        """
        answered = [ticket for ticket in self._asides if ticket in self._answers]
        answers = [(self._asides.pop(ticket), self._answers.pop(ticket))[1] for ticket in answered]
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return [answer for answer in answers if isinstance(answer, Answer)]

    # The end

    def cancelled_asides(self, below: float = math.inf) -> list[int]:
        """The tickets of all asides of versions below one, which are forgotten with this."""
        tickets = [
            ticket
            for ticket, job in self._asides.items()
            if job.order.version is not None and job.order.version < below
        ]
        for ticket in tickets:
            self._asides.pop(ticket)
            self._answers.pop(ticket, None)
        return tickets

    def forget(self) -> None:
        """Nobody wants any answer any more."""
        self._draws.clear()
        self._asides.clear()
        self._answers.clear()
