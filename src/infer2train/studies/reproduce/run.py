"""`reproduce`: choose on held-out images, train every arm over all seeds, write the page. Finished runs stay.

    reproduce-SCALE[-VARIANT]/
      runs/ARM-seedN/        run folders, shared by all experiments of this scale
      EXPERIMENT/            page.md, results.json, figures, report.html, a folder for each sweep, and of what was timed

It can be stopped at any moment and goes on from there, with the same command. The runs are trained by `compare`.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from infer2train.observe.runlog import CONFIG, read_config
from infer2train.reporting.gallery import replace_file
from infer2train.reporting.report import write_report
from infer2train.reporting.runs import RunSet, read
from infer2train.reporting.statistics import mean_std
from infer2train.reporting.summary import final_errors
from infer2train.studies.compare import Comparison, compare, write_comparison
from infer2train.studies.reproduce.archive import restore, store
from infer2train.studies.reproduce.costs import Cost, cost, with_all_devices
from infer2train.studies.reproduce.diagnosis import diagnose
from infer2train.studies.reproduce.experiments import Arm
from infer2train.studies.reproduce.page import Line, write_page
from infer2train.studies.reproduce.sitting import Sitting, over_seeds
from infer2train.training.config import RunConfig, from_plain
from infer2train.training.folder import CHECKPOINTS, is_finished
from infer2train.training.loop import DivergedError

DECIDED, TIMING = "decided.json", "timing"


def reproduce(sitting: Sitting, only: Sequence[str] = ()) -> list[Line]:
    """Train an experiment to its end, as far as it is not, and write its page.

    Args:
        sitting: which experiment, how and where.
        only: names of arms; the others are not trained in this sitting, and the page says what is missing.
            Default: all.

    Raises:
        ValueError: an arm that the experiment does not have, or a run of another configuration is in the way.
        Interrupted: Ctrl-C; what was under way has written a checkpoint.
        DivergedError: a run's loss or weights became NaN or infinite; the page shows the others. Of a sweep: of each
            candidate a run's did, and nothing is chosen.
    """
    experiment, folder = sitting.experiment, sitting.results
    names = [arm.name for arm in experiment.arms]
    for name in only:
        if name not in names:
            raise ValueError(f"arms must be the experiment's own: got {name!r}, there is {', '.join(names)}")
    needed = {arm.winner_of for arm in experiment.arms if arm.name in (only or names)}
    decided = {
        sweep: _decide(sitting, sweep)
        for sweep in experiment.sweeps
        if sweep in needed or (_sweep_folder(sitting, sweep) / DECIDED).is_file()
    }
    arms = [_as_winner(sitting, arm, decided) for arm in experiment.arms]
    configs = {arm.name: _config(sitting, arm) for arm in arms if arm.name in (only or names)}
    diverged = None
    try:
        train(sitting, over_seeds(configs, sitting.seeds), folder)
    except DivergedError as error:
        diverged = error
    write_comparison(folder, names, range(sitting.seeds), names[0], "../runs")
    write_report(folder)  # also of what earlier sittings trained
    trained = read(folder)
    found = write_page(trained, sitting, arms, decided, _costs(sitting, trained, arms, decided))
    if diverged is not None:
        raise diverged
    return found


def train(sitting: Sitting, runs: Mapping[tuple[str, int], RunConfig], folder: Path) -> None:
    """Train those of these runs that are neither finished nor in the archive.

    A run that was finished by a sitting which then ended, or had no archive, is looked at and kept now.
    """
    for arm, seed in runs:
        _restore(sitting, arm, seed)
        if is_finished(run := sitting.run_folder(arm, seed)):
            _finish(run, sitting.archive)
    runs_in = os.path.relpath(sitting.folder / "runs", folder)
    comparison = Comparison(runs=dict(runs), baseline=next(iter(runs))[0], runs_in=runs_in)
    after = partial(_finish, archive=sitting.archive)
    compare(comparison, folder, resume=True, jobs=sitting.jobs, quiet=sitting.quiet, after=after)


def _restore(sitting: Sitting, arm: str, seed: int) -> None:
    """From the archive, if it is there; the images are where this sitting's are."""
    if sitting.archive is not None:
        restore(sitting.archive, sitting.run_folder(arm, seed), sitting.run(sitting.experiment.arms[0]).data)


def _finish(folder: Path, archive: Path | None) -> None:
    """What is done with a run once it is trained, while its weights are there."""
    if (folder / CHECKPOINTS).is_dir():
        diagnose(folder)
    if archive is not None:
        store(folder, archive)


def _config(sitting: Sitting, arm: Arm) -> RunConfig:
    """Of an arm's runs. Where its length follows from another's wall-clock: measured once, then as its first run is."""
    if arm.wall_clock_of is None:
        return sitting.run(arm)
    for seed in range(sitting.seeds):
        _restore(sitting, arm.name, seed)
        if (sitting.run_folder(arm.name, seed) / CONFIG).is_file():
            return from_plain(read_config(sitting.run_folder(arm.name, seed)))
    hybrid = next(other for other in sitting.experiment.arms if other.name == arm.wall_clock_of)
    timing = sitting.results / f"timing-{arm.name}"
    return with_all_devices(sitting.run(arm), sitting.run(hybrid), timing, sitting.quiet)


def _sweep_folder(sitting: Sitting, sweep: str) -> Path:
    return sitting.results / f"sweep-{sweep}"


def _decide(sitting: Sitting, sweep: str) -> Any:
    """The candidate of the lowest mean error on held-out training images, the first of equals; decided once.

    Candidates of which a run diverged are left out.

    Raises:
        DivergedError: of each candidate one did.
    """
    folder = _sweep_folder(sitting, sweep)
    if not (folder / DECIDED).is_file():
        diverged = None
        try:
            train(sitting, sitting.sweep_runs(sitting.experiment.sweeps[sweep]), folder)
        except DivergedError as error:
            diverged = error
        errors = _held_out_errors(read(folder))
        if not errors:
            raise DivergedError(
                f"a sweep is decided among candidates whose runs all finish: got none of {sweep} in {folder}; "
                f"{diverged}; name the arms that need no sweep with --arms"
            ) from diverged
        best = min(errors, key=lambda name: mean_std(errors[name])[0])
        contents = {
            "winner": best.removeprefix("held-out-"),
            "held_out_errors": errors,
            "diverged": [arm.name for arm in sitting.experiment.sweeps[sweep] if f"held-out-{arm.name}" not in errors],
        }
        replace_file(folder / DECIDED, (json.dumps(contents, indent=2) + "\n").encode())
    return _read_decided(folder / DECIDED)


def _held_out_errors(trained: RunSet) -> dict[str, list[float]]:
    """By candidate, of those whose runs have all finished."""
    errors = {name: list(final_errors(trained.of(name)).values()) for name in trained.methods}
    return {name: found for name, found in errors.items() if len(found) == len(trained.seeds)}


def _read_decided(path: Path) -> Mapping[str, Any]:
    """What a sweep chose, by which errors, and which candidates it left out."""
    try:
        decided = json.loads(path.read_text(encoding="utf-8"))
        needed = {name: decided[name] for name in ("winner", "held_out_errors")}
        return {"diverged": decided.get("diverged", []), **needed}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must hold a sweep's winner and its errors: got {error!r}; remove it, and the same command decides "
            "again by the runs that are there"
        ) from error


def _as_winner(sitting: Sitting, arm: Arm, decided: Mapping[str, Any]) -> Arm:
    """The arm with the settings of its sweep's winner besides its own, once it is known."""
    if arm.winner_of is None or arm.winner_of not in decided:
        return arm
    name = decided[arm.winner_of]["winner"]
    winner = next(other for other in sitting.experiment.sweeps[arm.winner_of] if other.name == name)
    return replace(arm, settings={**winner.settings, **arm.settings})


def _costs(sitting: Sitting, trained: RunSet, arms: Sequence[Arm], decided: Mapping[str, Any]) -> dict[str, Cost]:
    """Of every arm, once all their runs are finished; before that none, since they are timed in one sitting.

    None as well where the settings of one are not known here: its sweep was decided elsewhere.
    """
    if any(arm.winner_of not in (None, *decided) for arm in arms):
        return {}
    if any(sum(run.finished for run in trained.of(arm.name)) < sitting.seeds for arm in arms):
        return {}
    return {arm.name: cost(_config(sitting, arm), sitting.results / TIMING / arm.name, sitting.quiet) for arm in arms}
