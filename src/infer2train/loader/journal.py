"""What a loader writes of its run, for anybody's loop: step rows, what befell its oracles, an epoch's last steps.

Nothing here changes what is computed. The rows of a folder are read by `reporting`, and by who watches it grow.
"""

from collections.abc import Callable, Mapping
from typing import Any

from infer2train.draws.draw import Draw
from infer2train.draws.mining import Mining
from infer2train.loader.health import Health
from infer2train.observe.metrics import LOGGED, Totals, draws_per_second, window
from infer2train.observe.runlog import RunLog
from infer2train.observe.timeline import Timeline, last_steps

TIMELINE_STEPS = 20
"""Steps at the end of an epoch whose timeline is kept."""


class Journal:
    """Writes into one run folder.

    Args:
        log: of the folder.
        mining: what is mined.
        draws_per_epoch: of the loader.
        timeline: of its pool.
        now: its totals when it begins to write.
        more: what else goes into a row of a step; asked when one is due.
        warn: tells the user what can be done something about.
    """

    def __init__(
        self,
        log: RunLog,
        mining: Mining,
        draws_per_epoch: int,
        timeline: Timeline,
        now: Totals,
        *,
        more: Callable[[], Mapping[str, Any]],
        warn: Callable[[str], None],
    ) -> None:
        self.log = log
        self._mining, self._timeline, self._more = mining, timeline, more
        self._health = Health(mining, draws_per_epoch, timeline, log, warn)
        self._mark = now
        self._version: int | None = None
        self._left: float | None = None
        self._steps_of_epoch = 0

    def step(self, steps: int, draw: Draw, now: Totals) -> None:
        """After each step: a row now and then.

        Args:
            steps: done so far.
            draw: the last that was trained on.
            now: the loader's totals.
        """
        self._steps_of_epoch += 1
        # With `mine_every`, rows show the last version that scored anything.
        self._version = self._version if draw.version is None else draw.version
        self._health.step(steps, now)
        if steps % self._mining.log_every:
            return
        measured, self._mark = window(now, self._mark), now
        self.log.write(
            "step",
            step=steps,
            draw=draw.number,
            epoch=draw.epoch,
            version=self._version,
            steps_per_second=draws_per_second(measured) / self._mining.accumulation_steps,
            **self._more(),
            **{name: measured[name] for name in LOGGED if name in measured},
        )

    def leave(self, seconds: float) -> None:
        """Before anything that is no training, at so many seconds of the loader's totals."""
        self._left = seconds if self._left is None else self._left

    def come_back(self, seconds: float) -> None:
        """After it: rows count on as if no time had passed."""
        if self._left is not None:
            self._mark = {**self._mark, "seconds": self._mark.get("seconds", 0.0) + seconds - self._left}
            self._left = None

    def end_epoch(self) -> None:
        """Keep the timeline of the epoch's last steps."""
        from infer2train.reporting.lanes import save_timeline

        steps, self._steps_of_epoch = min(TIMELINE_STEPS, self._steps_of_epoch), 0
        save_timeline(self.log.folder, last_steps(self._timeline.recent, steps))

    def close(self, *, with_report: bool) -> None:
        """Close the files, and write the report."""
        self.log.close()
        if with_report:
            from infer2train.reporting.report import write_report

            write_report(self.log.folder)
