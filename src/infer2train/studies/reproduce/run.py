"""`reproduce`: choose on held-out images, train every arm over all seeds, write the page. Finished runs stay.

    reproduce-SCALE[-VARIANT]/
      runs/ARM-seedN/        run folders, shared by all experiments of this scale
      EXPERIMENT/            page.md, results.json, figures, report.html, a folder for each sweep, and of what was timed

It can be stopped at any moment and goes on from there, with the same command.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from infer2train.reporting.report import write_report
from infer2train.reporting.runs import RunSet, read, read_run
from infer2train.reporting.statistics import mean_std
from infer2train.studies.compare import Comparison, compare, write_comparison
from infer2train.studies.reproduce.archive import restore, store
from infer2train.studies.reproduce.arms import Arm, Experiment, Sweep
from infer2train.studies.reproduce.costs import Cost, costs
from infer2train.studies.reproduce.diagnosis import diagnose
from infer2train.studies.reproduce.equal_hardware import with_all_devices
from infer2train.studies.reproduce.page import table, write_page
from infer2train.studies.reproduce.plan import Plan
from infer2train.studies.reproduce.results import Line
from infer2train.training.config import RunConfig, from_plain
from infer2train.training.folder import CHECKPOINTS, is_finished

RUNS, DECIDED, TIMING = "runs", "decided.json", "timing"
HELD_OUT_PREFIX = "held-out-"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an experiment's runs and results go, and how they are trained.

    Args:
        folder: of the scale and variant; runs in it are shared.
        name: of the experiment.
        archive: finished runs are taken from it and put into it, see `archive`; None where there is none.
        jobs: runs trained side by side, in processes.
        quiet: show no progress.
    """

    folder: Path
    name: str
    archive: Path | None = None
    jobs: int = 1
    quiet: bool = False

    @property
    def results(self) -> Path:
        """The experiment's own folder."""
        return self.folder / self.name

    def restore(self, arm: str, seeds: int, data: str) -> None:
        """Take the finished runs of an arm from the archive; their images are where this sitting's are."""
        if self.archive is not None:
            for seed in range(seeds):
                restore(f"{arm}-seed{seed}", self.archive, self.folder / RUNS, data)

    def train(self, runs: dict[tuple[str, int], RunConfig], baseline: str, name: str = ".") -> None:
        """Train those of these runs that are neither finished nor in the archive.

        A run that was finished by a sitting which then ended, or had no archive, is looked at and kept now.
        """
        data = next(iter(runs.values())).data
        for arm in dict.fromkeys(arm for arm, _ in runs):
            self.restore(arm, 1 + max(seed for name, seed in runs if name == arm), data)
        folder = self.results / name
        for arm, seed in runs:
            if is_finished(run := self.folder / RUNS / f"{arm}-seed{seed}"):
                _finish(run, self.archive)
        runs_in = "/".join([".."] * (1 + len(Path(name).parts)) + [RUNS])
        after = partial(_finish, archive=self.archive)
        comparison = Comparison(runs=runs, baseline=baseline, runs_in=runs_in)
        compare(
            comparison,
            folder,
            resume=True,
            jobs=self.jobs,
            quiet=self.quiet,
            after=after,
        )


def _finish(folder: Path, archive: Path | None) -> None:
    """What is done with a run once it is trained, while its weights are there."""
    if (folder / CHECKPOINTS).is_dir():
        diagnose(folder)
    if archive is not None:
        store(folder, archive)


def reproduce(experiment: Experiment, plan: Plan, place: Place, only: Sequence[str] = ()) -> list[Line]:
    """Train an experiment to its end, as far as it is not, and write its page.

    Args:
        experiment: which.
        plan: scale, seeds and settings.
        place: where.
        only: names of arms; the others are not trained in this sitting, and the page says what is missing.
            Default: all.

    Raises:
        ValueError: an arm that the experiment does not have, or a run of another configuration is in the way.
        Interrupted: Ctrl-C; what was under way has written a checkpoint.
    """
    arms = _wanted(experiment, only)
    needed = {arm.winner_of for arm in arms}
    winners = {sweep.name: _winner(sweep, plan, place) for sweep in experiment.sweeps if sweep.name in needed}
    arms = tuple(_as_winner(arm, winners) for arm in arms)
    runs = plan.runs(arms)
    for arm in arms:
        if arm.wall_clock_of is not None:
            config = _given_all_devices(arm, experiment, plan, place)
            runs |= {(arm.name, seed): replace(config, seed=seed) for seed in range(plan.seeds)}
    place.train(runs, arms[0].name)
    everything = tuple(_as_winner(arm, winners) for arm in experiment.arms)
    trained = _trained(place, everything, plan)
    write_comparison(place.results, trained.methods, trained.seeds, everything[0].name, f"../{RUNS}")
    write_report(place.results)  # also of what earlier sittings trained
    return write_page(trained, experiment, plan, everything, winners, _costs(trained, everything, plan, place))


def _costs(trained: RunSet, arms: Sequence[Arm], plan: Plan, place: Place) -> dict[str, Cost]:
    """Of every arm, once all their runs are finished; before that none, since they are timed in one sitting."""
    if any(sum(run.finished for run in trained.of(arm.name)) < plan.seeds for arm in arms):
        return {}
    configs = {arm.name: plan.run(arm, 0) for arm in arms}
    for arm in arms:
        if arm.wall_clock_of is not None:
            configs[arm.name] = from_plain(trained.of(arm.name)[0].config)
    return costs(configs, place.results / TIMING, quiet=place.quiet)


def _trained(place: Place, arms: Sequence[Arm], plan: Plan) -> RunSet:
    """All runs of these arms that there are, of earlier sittings too."""
    found = {
        (arm.name, seed): read_run(folder, arm.name, seed)
        for arm in arms
        for seed in range(plan.seeds)
        if (folder := place.folder / RUNS / f"{arm.name}-seed{seed}").is_dir()
    }
    names = tuple(arm.name for arm in arms)
    return RunSet(place.results, names, tuple(range(plan.seeds)), names[0], found)


def _wanted(experiment: Experiment, only: Sequence[str]) -> tuple[Arm, ...]:
    names = [arm.name for arm in experiment.arms]
    for name in only:
        if name not in names:
            raise ValueError(f"arms must be the experiment's own: got {name!r}, there is {', '.join(names)}")
    return tuple(arm for arm in experiment.arms if not only or arm.name in only)


def _winner(sweep: Sweep, plan: Plan, place: Place) -> Arm:
    """The candidate of the lowest mean error on held-out training images; decided once, and written down."""
    decided = place.results / f"sweep-{sweep.name}" / DECIDED
    if not decided.is_file():
        arms = tuple(replace(arm, name=HELD_OUT_PREFIX + arm.name) for arm in sweep.candidates)
        place.train(plan.sweep_runs(arms), arms[0].name, f"sweep-{sweep.name}")
        trained = read(place.results / f"sweep-{sweep.name}")
        errors = {arm.name: [run.test_error or 0.0 for run in trained.of(arm.name)] for arm in arms}
        means = {name: mean_std(found) for name, found in errors.items()}
        best = min(means, key=lambda name: means[name][0])
        contents = {"winner": best.removeprefix(HELD_OUT_PREFIX), "held_out_errors": errors}
        decided.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    name = json.loads(decided.read_text(encoding="utf-8"))["winner"]
    return next(arm for arm in sweep.candidates if arm.name == name)


def _as_winner(arm: Arm, winners: dict[str, Arm]) -> Arm:
    if arm.winner_of is None or arm.winner_of not in winners:  # not known in this sitting
        return arm
    return replace(arm, settings={**winners[arm.winner_of].settings, **arm.settings})


def _given_all_devices(arm: Arm, experiment: Experiment, plan: Plan, place: Place) -> RunConfig:
    """The run of an arm whose length follows from another's wall-clock: measured once, then as its first run is."""
    place.restore(arm.name, plan.seeds, plan.run(arm, 0).data)
    if own := _trained(place, (arm,), plan).of(arm.name):
        return from_plain(own[0].config)
    hybrid = next(other for other in experiment.arms if other.name == arm.wall_clock_of)
    timing = place.results / f"timing-{arm.name}"
    return with_all_devices(plan.run(arm, 0), plan.run(hybrid, 0), timing, quiet=place.quiet)


def print_lines(found: Sequence[Line], place: Place, console: Console) -> None:
    """The table, and where the page is."""
    console.print(table(found), highlight=False, markup=False, soft_wrap=True)
    console.print(f"page: {place.results / 'page.md'}", highlight=False, soft_wrap=True)
