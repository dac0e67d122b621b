"""What befell the oracles of a run, told once each: processes that were replaced, draws that went without, slowness.

Beside the rows of a run: whoever reads them later, and whoever watches now, is told the same.
"""

from collections.abc import Callable

from infer2train.draws.mining import Mining
from infer2train.observe.keeping_up import FEWEST_DRAWS, Accounts, Waits, warning
from infer2train.observe.metrics import Totals, window
from infer2train.observe.runlog import RunLog
from infer2train.observe.timeline import Span, Timeline
from infer2train.pool.pools import pool_of

COUNTED = {
    "skipped_draws": ("draws-skipped", "scores are late: draws are trained on unmined"),
    "oracle_lost_draws": ("oracle-lost", "there is no oracle any more: the run goes on without mining"),
}
"""Totals that are told of as soon as there are any: the event, and what it means."""
TOO_SLOW = "oracle-too-slow"


class Health:
    """Follows the oracles of one run.

    Args:
        mining: its settings.
        draws_per_epoch: of its loader.
        timeline: of its pool.
        log: gets an event for each accident.
        warn: tells the user what can be done something about.
    """

    def __init__(
        self, mining: Mining, draws_per_epoch: int, timeline: Timeline, log: RunLog, warn: Callable[[str], None]
    ) -> None:
        self._mining, self._log, self._warn = mining, log, warn
        self._told: set[str] = set()
        self._steps = 0
        self._waits = Waits(draws_per_epoch)
        self._mark: Totals | None = None
        timeline.listen(self._waits.add)
        timeline.listen(self._note_lost)

    def step(self, steps: int, now: Totals) -> None:
        """After each step: how many there were, and the loader's totals."""
        self._steps = steps
        for name, (event, message) in COUNTED.items():
            if now.get(name) and event not in self._told:
                self._tell(event, message)
        if pool_of(self._mining).runs_beside and self._waits.draws >= FEWEST_DRAWS:
            # The first window is not judged: in it the trainer waits until the oracles have started.
            slow = None if self._mark is None else warning(self._accounts(now, self._mark))
            if slow is not None and TOO_SLOW not in self._told:
                self._tell(TOO_SLOW, slow)
            self._mark = now
            self._waits.clear()

    def _accounts(self, now: Totals, mark: Totals) -> Accounts:
        measured, mining, waits = window(now, mark), self._mining, self._waits

        def seconds(*lanes: str) -> float:
            return sum(measured.get(f"{name}_seconds", 0.0) for name in lanes)

        return Accounts(
            draws=waits.draws,
            waiting_seconds=waits.seconds,
            trainer_seconds=waits.own_seconds,
            scoring_seconds=seconds("oracle_views", "oracle_forward"),
            refresh_seconds=seconds("oracle_refresh"),
            behind_seconds=waits.behind_seconds,
            versions=waits.versions,
            workers=mining.oracle_workers,
            oracle=mining.oracle,
            gamma=mining.gamma,
            mine_every=mining.mine_every,
            update_every=mining.update_every,
            delay_steps=mining.delay_steps,
            queue_depth=mining.queue_depth,
        )

    def _note_lost(self, span: Span) -> None:
        if span.name == "lost":
            event = "worker-restarted" if span.details.get("again", True) else "worker-given-up"
            message = f"{span.lane} {span.details['why']}"
            self._log.write("event", event=event, step=self._steps, message=message)

    def _tell(self, event: str, message: str) -> None:
        self._told.add(event)
        self._log.write("event", event=event, step=self._steps, message=message)
        self._warn(message)
