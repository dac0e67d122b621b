"""Run and comparison folders, read: the configuration and the rows of `metrics.jsonl`, as plain Python.

The first of the reporting modules: the others take what is read here and open no metrics themselves. Nothing is
averaged here (`summary` and `curves` do that), and nothing is written. `gathering` makes one set of several folders.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infer2train.observe.runlog import CONFIG, METRICS, read_config, rows_and_rest, says_finished

Row = dict[str, Any]

COMPARISON = "comparison.json"
BESIDE_THE_LOOP = ("evaluation", "checkpoint", "irreducible models")
"""The parts that are not of its steps."""
MINING = ("views", "scoring", "publishing")
"""The parts of the wall-clock that count as scoring: candidates' views, their scores, the oracle's weights."""


def error_name(validation_split: int | None) -> str:
    """What the error of a run is called that held back so many images to be evaluated on.

    Example:
        >>> error_name(0), error_name(5000)
        ('test error', 'validation error')
    """
    return "validation error" if validation_split else "test error"


@dataclass(frozen=True)
class RunFolder:
    """One run folder as it stands, finished or not.

    Args:
        folder: where it is.
        method: the one planned or configured; the folder's name for a loop of the user's own.
        seed: the one planned or configured; 0 where there is none.
        config: the flat mapping of `config.yaml`; empty for a loop of the user's own.
        starts: one row for each time it was started.
        steps: the last row of each step: a resumed run logs the steps behind its checkpoint again.
        epochs: the last row of each epoch, counted from 0.
        events: in the order in which they happened.
        unreadable: lines that a kill cut short.
    """

    folder: Path
    method: str
    seed: int
    config: dict[str, Any]
    starts: tuple[Row, ...]
    steps: tuple[Row, ...]
    epochs: tuple[Row, ...]
    events: tuple[Row, ...]
    unreadable: int

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return says_finished(self.events)

    @property
    def test_error(self) -> float | None:
        """Test error after the last epoch so far, a fraction."""
        return self.epochs[-1].get("test_error") if self.epochs else None

    @property
    def before_seconds(self) -> float:
        """What it needed first took: irreducible models, whether or not other runs had them trained for it."""
        return max((row.get("before_seconds") or 0.0 for row in self.starts), default=0.0)

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock of each part, summed over the epochs, and of what it needed before; empty where no epoch was
        timed."""
        total: dict[str, float] = {}
        for row in self.epochs:
            for name, value in (row.get("seconds") or {}).items():
                if value is not None:
                    total[name] = total.get(name, 0.0) + value
        if total.get("total") and self.before_seconds:
            total |= {"irreducible models": self.before_seconds, "total": total["total"] + self.before_seconds}
        return total

    @property
    def scoring_share(self) -> float | None:
        """Part of the wall-clock that mining took, 0 to 1: timed over epochs, else the mean of what steps logged."""
        seconds = self.seconds
        if seconds.get("total") and "scoring" in seconds:
            return sum(seconds.get(name, 0.0) for name in MINING) / seconds["total"]
        shares = list(logged(self.steps, "step", "scoring_share").values())
        return sum(shares) / len(shares) if shares else None


@dataclass(frozen=True)
class RunSet:
    """A run folder, a comparison folder with all its runs, or the runs of several of these.

    Args:
        folders: where it is: one, or those that were gathered.
        methods: in the order of the comparison; of several folders, the names of the settings that their runs have.
        seeds: those asked for.
        baseline: the method that the others are compared with; None for a single run.
        runs: those that exist, by method and seed.
    """

    folders: tuple[Path, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    baseline: str | None
    runs: dict[tuple[str, int], RunFolder]

    @property
    def is_gathered(self) -> bool:
        """Whether several folders are compared, which nobody planned as one comparison."""
        return len(self.folders) > 1

    @property
    def asked(self) -> list[tuple[str, int]]:
        """The runs that there shall be, by method and seed: those of the plan, or those that were gathered."""
        planned = [(method, seed) for method in self.methods for seed in self.seeds]
        return [key for key in planned if key in self.runs or not self.is_gathered]

    @property
    def error_name(self) -> str:
        """What the errors of its runs are called: by the images that they are of, where these are the same."""
        names = {error_name(run.config.get("validation_split")) for run in self.runs.values()}
        return names.pop() if len(names) == 1 else "error"

    def of(self, method: str) -> list[RunFolder]:
        """The runs of one method, by seed."""
        return [self.runs[method, seed] for seed in self.seeds if (method, seed) in self.runs]

    def shown(self, method: str) -> list[RunFolder]:
        """The runs that its curves are drawn from: the finished ones, or all while none is."""
        runs = self.of(method)
        return [run for run in runs if run.finished] or runs


def read(folder: Path) -> RunSet:
    """A run folder or a comparison folder.

    Raises:
        ValueError: it is neither.
    """
    if (folder / COMPARISON).is_file():
        return _read_comparison(folder)
    if not (folder / METRICS).is_file():
        raise ValueError(
            f"a report needs a folder with {METRICS} or {COMPARISON}: got {folder}; give the folder of a run, such as "
            "runs/NAME"
        )
    run = read_run(folder)
    return RunSet((folder,), (run.method,), (run.seed,), None, {(run.method, run.seed): run})


def read_run(folder: Path, method: str | None = None, seed: int | None = None) -> RunFolder:
    """One run folder, of the method and seed that a comparison planned; files that it does not have count as empty."""
    rows, unreadable = rows_and_rest(folder)
    config = read_config(folder) if (folder / CONFIG).is_file() else {}
    kinds: dict[str, list[Row]] = {"start": [], "step": [], "epoch": [], "event": []}
    for row in map(_drawable, rows):
        kinds.get(row.get("kind", ""), []).append(row)
    return RunFolder(
        folder=folder,
        method=method or str(config.get("method") or folder.resolve().name),
        seed=int(config.get("seed") or 0) if seed is None else seed,
        config=config,
        starts=tuple(kinds["start"]),
        steps=_last_of_each(kinds["step"], "step"),
        epochs=_last_of_each(kinds["epoch"], "epoch"),
        events=tuple(kinds["event"]),
        unreadable=unreadable,
    )


def logged(rows: Iterable[Row], key: str, name: str) -> dict[int, float]:
    """The values of one field by step or epoch, without the rows that have none."""
    return {int(row[key]): float(row[name]) for row in rows if row.get(name) is not None}


def _read_comparison(folder: Path) -> RunSet:
    """The comparison and those of its runs that were started."""
    path = folder / COMPARISON
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        methods, seeds = tuple(map(str, plan["methods"])), tuple(map(int, plan["seeds"]))
        baseline, trained = str(plan.get("baseline") or methods[0]), folder / str(plan.get("runs_in", "."))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{path} must hold a comparison's methods and seeds: got {error!r}; the command that made it, with "
            "--resume if that is compare, writes it again and trains nothing twice"
        ) from error
    folders = {(method, seed): trained / f"{method}-seed{seed}" for method in methods for seed in seeds}
    runs = {key: read_run(path, *key) for key, path in folders.items() if (path / METRICS).is_file()}
    return RunSet((folder,), methods, seeds, baseline, runs)


def _drawable(value: Any) -> Any:
    """The value with None for NaN and infinities, which cannot be drawn."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return {name: _drawable(part) for name, part in value.items()} if isinstance(value, dict) else value


def _last_of_each(rows: list[Row], key: str) -> tuple[Row, ...]:
    """The last row for each value of `key`, in order of `key`."""
    last = {int(row[key]): row for row in rows if row.get(key) is not None}
    return tuple(last[value] for value in sorted(last))
