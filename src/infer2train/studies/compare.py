"""Methods × seeds: the same run under several methods, paired by seed, and what the differences can be trusted for."""

import json
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from multiprocessing.queues import SimpleQueue
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from infer2train.machine.cores import parts_of_all, stay_on
from infer2train.observe.runlog import CONFIG, METRICS, read_config
from infer2train.observe.warned import OneLine
from infer2train.pool.pools import pool_of
from infer2train.reporting.gallery import replace_file
from infer2train.reporting.report import write_report
from infer2train.reporting.runs import error_name, read
from infer2train.reporting.sections import advised
from infer2train.reporting.summary import MethodSummary, summarise
from infer2train.reporting.tables import comparison_table
from infer2train.training.config import RunConfig
from infer2train.training.folder import Result, enter_folder, is_finished, is_trained_on
from infer2train.training.interrupt import Interrupted, interruptible
from infer2train.training.loop import DivergedError, train
from infer2train.training.setup import load_splits

COMPARISON = "comparison.json"
BASELINE = "baseline"
LOOK_SECONDS = 0.5
"""How long an interrupt may wait to be seen."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared: a run for every method and seed."""

    runs: dict[tuple[str, int], RunConfig]
    """By (method, seed), in the order in which they are trained."""
    baseline: str = BASELINE
    """The method that the others are compared with."""
    runs_in: str = "."
    """Where the run folders are, from the comparison's own: comparisons that have runs in common share them."""

    @property
    def methods(self) -> list[str]:
        """Methods in the order asked for."""
        return list(dict.fromkeys(method for method, _ in self.runs))

    @property
    def seeds(self) -> list[int]:
        """Seeds in the order asked for."""
        return list(dict.fromkeys(seed for _, seed in self.runs))


def compare(
    comparison: Comparison,
    folder: Path,
    *,
    resume: bool = False,
    jobs: int = 1,
    quiet: bool = False,
    after: Callable[[Path], None] | None = None,
) -> list[MethodSummary]:
    """Train every run of a comparison in its own sub-folder, then write the comparison's report.

    Finished runs are not repeated. Seeds are the outer loop, so that an interrupted comparison has whole pairs. A run
    that diverges does not keep the others from being trained and shown.

    Args:
        comparison: what is compared.
        folder: must be new, unless `resume`.
        resume: go on with what is there.
        jobs: runs trained side by side, each in a process of its own; 1 trains in this one.
        quiet: show no progress.
        after: called with the folder of each run that was trained, in the process that trained it.

    Raises:
        ValueError: the folder exists and `resume` is not set, or is no comparison's, or a run in it has another
            configuration.
        Interrupted: Ctrl-C; what was under way has written a checkpoint.
        DivergedError: of one run or more the loss or a weight became NaN or infinite; all others are finished.
    """
    files = {path.name for path in folder.glob("[!.]*") if path.is_file()}
    if files & {CONFIG, METRICS} or (files and COMPARISON not in files):
        raise ValueError(
            f"a comparison needs a folder of its own: got {folder}, which holds {min(files)}; pass another --name or "
            "--runs-dir"
        )
    if not resume and {path.name for path in folder.glob("[!.]*")} - {COMPARISON}:
        raise ValueError(
            f"a new comparison needs a new folder: got {folder}, which exists; pass --resume to go on with it, or "
            "--name for another one"
        )
    trained = Path(os.path.normpath(folder / comparison.runs_in))  # also while the folder is not there yet
    waiting = {
        f"{method}-seed{seed}": config
        for (method, seed), config in comparison.runs.items()
        if not _is_done(config, trained / f"{method}-seed{seed}")
    }
    write_comparison(folder, comparison.methods, comparison.seeds, comparison.baseline, comparison.runs_in)
    if jobs == 1 or not waiting:
        diverged = _train_in_turn(waiting, trained, quiet, after)
    else:
        diverged = _train_side_by_side(waiting, trained, jobs, quiet, after)
    write_report(folder)
    if diverged:
        said = "; ".join(f"{name}: {error}" for name, error in diverged.items())
        raise DivergedError(f"{said} ({len(diverged)} of {len(comparison.runs)} runs; the report shows the others)")
    return summarise(folder)


def write_comparison(
    folder: Path, methods: Sequence[str], seeds: Sequence[int], baseline: str, runs_in: str = "."
) -> None:
    """Write down what a comparison's report shows, in `comparison.json` of its folder, which is made.

    Args:
        folder: of the comparison.
        methods: in the order of the report; those without a run are left out there.
        seeds: those asked for.
        baseline: the method that the others are compared with.
        runs_in: where the run folders are, from the comparison's own.
    """
    contents = {"methods": list(methods), "seeds": list(seeds), "baseline": baseline}
    if runs_in != ".":
        contents["runs_in"] = runs_in
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / COMPARISON, (json.dumps(contents, indent=2) + "\n").encode())


def _is_done(config: RunConfig, target: Path) -> bool:
    if not (target / CONFIG).is_file():
        return False
    config = enter_folder(config, target, resume=True)  # refuses a run of another configuration
    if not is_finished(target):
        return False
    if read_config(target)["data"] != config.data and not is_trained_on(target, load_splits(config, progress=False)[1]):
        raise ValueError(
            f"a finished run is of the images that it was trained on: got others in {config.data} than {target} was "
            "trained on; pass those, or another --name"
        )
    return True


After = Callable[[Path], None] | None


def _train_in_turn(
    waiting: Mapping[str, RunConfig], folder: Path, quiet: bool, after: After
) -> dict[str, DivergedError]:
    """Returns the runs that diverged."""
    console, diverged = Console(stderr=True, quiet=quiet), dict[str, DivergedError]()
    for number, (name, config) in enumerate(waiting.items(), start=1):
        title = f"[{number}/{len(waiting)}] {name}"
        try:
            result = _train_one(config, folder / name, quiet=quiet, title=title, after=after)
        except DivergedError as error:
            diverged[name] = error
        told = _told(title, config, diverged.get(name) or result)
        console.print(told, highlight=False, markup=False, soft_wrap=True)
    return diverged


def _train_one(config: RunConfig, folder: Path, *, quiet: bool, title: str | None, after: After) -> Result:
    result = train(config, folder, resume=folder.exists(), quiet=quiet, title=title, report=False)
    if after is not None:
        after(folder)
    return result


def _train_side_by_side(
    waiting: Mapping[str, RunConfig], folder: Path, jobs: int, quiet: bool, after: After
) -> dict[str, DivergedError]:
    """Each run in one of `jobs` fresh processes. Ctrl-C is passed on to them: each finishes its step and saves.

    Returns the runs that diverged.
    """
    console, diverged = Console(stderr=True, quiet=quiet), dict[str, DivergedError]()
    bar = Progress(
        TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console, disable=quiet
    )
    spawn = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    places = spawn.SimpleQueue()
    have_oracles = any(pool_of(config).runs_beside for config in waiting.values())
    for cores in parts_of_all(jobs):
        places.put(cores if have_oracles else ())  # or all oracles would have the same
    with (
        bar,
        interruptible() as interrupt,
        ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_begin_job, initargs=(places,)) as executor,
    ):
        task, done = bar.add_task("runs", total=len(waiting)), 0
        left, running = iter(waiting.items()), dict[Future[Result], str]()

        def start(number: int) -> None:
            for name, config in islice(left, number):
                call = executor.submit(_train_one, config, folder / name, quiet=True, title=None, after=after)
                running[call] = name

        try:
            # As many as are trained at once: the executor sends further ones ahead, which nothing takes back.
            start(jobs)
            while running and not interrupt.is_set:
                for future in wait(running, LOOK_SECONDS, return_when=FIRST_COMPLETED).done:
                    name = running.pop(future)
                    try:
                        result = future.result()
                    except DivergedError as error:
                        diverged[name] = error
                    if not interrupt.is_set:
                        start(1)
                    done += 1
                    bar.advance(task)
                    title = f"[{done}/{len(waiting)}] {name}"
                    told = _told(title, waiting[name], diverged.get(name) or result)
                    console.print(told, highlight=False, markup=False, soft_wrap=True)
            if interrupt.is_set:
                raise KeyboardInterrupt
        except BaseException as stop:
            executor.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - others:
                os.kill(child.pid or 0, signal.SIGINT)
            executor.shutdown(wait=True)
            if interrupt.is_set:  # a second Ctrl-C may have broken into anything
                raise Interrupted("interrupted; finished runs stay, those under way are saved") from stop
            raise
    return diverged


def _begin_job(places: "SimpleQueue[tuple[int, ...]]") -> None:
    """In a fresh process: take orders from the parent alone, not from the terminal, and end when it is gone."""
    os.setsid()
    warnings.formatwarning = OneLine()
    if cores := places.get():
        stay_on(cores)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _told(title: str, config: RunConfig, result: Result | DivergedError) -> str:
    if isinstance(result, DivergedError):
        return f"{title}: {result}"
    return f"{title}: {error_name(config.validation_split)} {result.evaluation.error:.2%} in {result.seconds:.1f} s"


def print_comparison(summaries: Sequence[MethodSummary], folder: Path, console: Console) -> None:
    """The table, what was measured nearest to it before, and where the report is."""
    runs = read(folder)
    console.print(comparison_table(summaries, runs.error_name))
    if said := advised(runs):
        console.print(said, highlight=False, markup=False, soft_wrap=True)
    console.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)
