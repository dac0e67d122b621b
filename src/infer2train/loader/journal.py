"""What a loader writes of its run, for anybody's loop: step rows, what befell its oracles, an epoch's last steps.

Nothing here changes what is computed. The rows of a folder are read by `reporting`, and by who watches it grow.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from infer2train.draws.draw import Draw
from infer2train.draws.methods.method import Choices
from infer2train.draws.mining import Mining
from infer2train.loader.health import Health
from infer2train.observe.metrics import LOGGED, OF_MINED, Totals, draws_per_second, window
from infer2train.observe.picks import PickLog
from infer2train.observe.runlog import RunLog, read_rows, write_config
from infer2train.observe.timeline import Timeline, last_steps

TIMELINE_STEPS = 20
"""Steps at the end of an epoch whose timeline is kept."""


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def begun_log(folder: Path, config: Mapping[str, Any], device: torch.device, is_new: bool) -> RunLog:
    """The log of a run that begins, or goes on, in this folder.

    Raises:
        ValueError: a new run would be written into another's; nothing of that is touched.
    """
    if is_new and any(row["kind"] == "step" for row in read_rows(folder)):
        raise ValueError(
            f"log_dir must be a new folder, or that of the state loaded: got {folder}, which holds another run; name "
            "another one, or call load_state_dict() first"
        )
    write_config(folder, config)
    log = RunLog(folder)
    log.start(str(device), torch.get_num_threads())
    return log


class Journal:
    """Writes into one run folder, once it was told which; until then it writes nothing.

    Args:
        mining: what is mined.
        choices: the method's.
        draws_per_epoch: of the loader; asked only where something is written.
        timeline: of its pool.
        totals: of the loader, now.
        logged: figures of a row of a step.
    """

    def __init__(
        self,
        mining: Mining,
        choices: Choices,
        draws_per_epoch: Callable[[], int],
        timeline: Timeline,
        totals: Callable[[], Totals],
        logged: Sequence[str] = LOGGED,
    ) -> None:
        self._mining, self._choices, self._draws_per_epoch = mining, choices, draws_per_epoch
        self._timeline, self._totals, self._logged = timeline, totals, logged
        self._log: RunLog | None = None
        self._picks: PickLog | None = None
        self._open_log: Callable[[bool], RunLog] | None = None
        self._version: int | None = None
        self._paused: float | None = None
        self._steps_of_epoch = 0

    def write_to(
        self,
        open_log: Callable[[bool], RunLog],
        *,
        more: Callable[[], Mapping[str, Any]] = dict,
        warn: Callable[[str], None] = _warn,
        report: bool = True,
    ) -> None:
        """Write rows, events and the timeline to what `open_log` opens, when the first epoch begins or goes on.

        Args:
            open_log: called once, told whether the run is a new one. It may refuse a folder that holds another run,
                of which nothing is touched then.
            more: what the loop adds to each row of a step, such as its loss; asked while a step is acknowledged.
            warn: tells the user of an oracle that is too slow, and the like.
            report: write report.html on `close()`.
        """
        self._open_log, self._more, self._warn, self._writes_report = open_log, more, warn, report

    def begin(self, is_new: bool, draws: int) -> None:
        """Begin to write, if that was asked for and is not done yet.

        Args:
            is_new: whether no run goes on.
            draws: handed out so far.
        """
        if self._open_log is not None:
            self._log, self._open_log = self._open_log(is_new), None
            self._picks = self._picks_from(draws)
            self._health = Health(self._mining, self._draws_per_epoch(), self._timeline, self._log, self._warn)
            self._mark = self._totals()

    def take_back(self, steps: int, epoch: int, draws: int) -> None:
        """Forget rows after a checkpoint that a run goes on from."""
        if self._log is not None:
            self._log.take_back(steps, epoch)
            self._picks = self._picks_from(draws)

    def _picks_from(self, draws: int) -> PickLog | None:
        if self._log is None or self._mining.audit == "off" or not self._choices.looks_at_candidates:
            return None
        return PickLog(
            self._log.folder,
            is_of_views=self._choices.candidates == "views",
            draws=draws,
            keeps_all=self._mining.audit == "all",
        )

    def drawn(self, draw: Draw) -> None:
        """After each draw that is handed out: what was picked."""
        if self._picks is not None:
            self._picks.add(draw)

    def flush(self) -> None:
        """Write what is held; a state that is saved now knows of no later draw."""
        if self._picks is not None:
            self._picks.flush()

    def step(self, steps: int, draw: Draw) -> None:
        """After each step: a row now and then.

        Args:
            steps: done so far.
            draw: the last that was trained on.
        """
        if self._log is None:
            return
        now = self._totals()
        self._steps_of_epoch += 1
        # With `mine_every`, rows show the last version that scored anything.
        self._version = self._version if draw.version is None else draw.version
        self._health.step(steps, now)
        if steps % self._mining.log_every:
            return
        measured, self._mark = window(now, self._mark), now
        unknown = () if measured["mined_draws"] else OF_MINED
        self._log.write(
            "step",
            step=steps,
            draw=draw.number,
            epoch=draw.epoch,
            version=self._version,
            steps_per_second=draws_per_second(measured) / self._mining.accumulation_steps,
            **self._more(),
            **{name: measured[name] for name in self._logged if name in measured and name not in unknown},
        )

    def pause(self) -> None:
        """Before anything in the midst of an epoch that is no training, an evaluation or a checkpoint: rows leave its
        time out. What comes between epochs is left out anyway."""
        if self._log is not None and self._paused is None:
            self._paused = self._totals()["seconds"]

    def go_on(self) -> None:
        """After it."""
        if self._paused is not None:
            passed = self._totals()["seconds"] - self._paused
            self._mark = {**self._mark, "seconds": self._mark.get("seconds", 0.0) + passed}
            self._paused = None

    def end_epoch(self) -> None:
        """Keep the timeline of the epoch's last steps."""
        if self._log is None:
            return
        from infer2train.reporting.lanes import save_timeline

        self.pause()
        self.flush()
        steps, self._steps_of_epoch = min(TIMELINE_STEPS, self._steps_of_epoch), 0
        save_timeline(self._log.folder, last_steps(self._timeline.recent, steps))

    def close(self) -> None:
        """Close the files, and write the report. May be called twice."""
        log, self._log = self._log, None
        if log is None:
            return
        self.flush()
        log.close()
        if self._writes_report:
            from infer2train.reporting.report import write_report

            write_report(log.folder)
