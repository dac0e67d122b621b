"""The page of an experiment, `page.md` and `results.json`: what the finished runs of each arm say, a line each.

The final epoch is reported, never the best one. A difference that the seeds cannot resolve is called so. An arm with an
oracle is also compared with what the oracle's device could have done instead, where the experiment has trained that.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from infer2train.draws.methods.table import METHODS
from infer2train.reporting import plots, sections, tables
from infer2train.reporting.curves import errors_of
from infer2train.reporting.figures import FINAL_PART
from infer2train.reporting.runs import RunFolder, RunSet
from infer2train.reporting.statistics import PairedDifference, mean_std
from infer2train.reporting.summary import difference_from, final_errors, mean_of
from infer2train.reporting.svg import standalone
from infer2train.studies.reproduce.costs import Cost
from infer2train.studies.reproduce.diagnosis import EVENT
from infer2train.studies.reproduce.experiments import Arm
from infer2train.studies.reproduce.sitting import Sitting

PAGE, RESULTS = "page.md", "results.json"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One arm. Errors are fractions, losses in nats, times relative to the first arm's; None is what was not found."""

    arm: Arm
    errors: Mapping[int, float]
    """Final test error by seed, of the finished runs."""
    difference: PairedDifference | None
    """From the arm that it is compared with, over common seeds."""
    others: Mapping[str, PairedDifference]
    """From those that it is also compared with, as far as there are any, by their names."""
    on_equal_hardware: PairedDifference | None
    """From the arm that has the hybrid's devices and wall-clock; of arms with an oracle."""
    reached: float | None
    """Steps until its test error is first at most the first arm's final one, as a part of that arm's steps; mean over
    common seeds, None where one never gets there."""
    loss: float | None
    calibration_error: float | None
    recalibrated: float | None
    """Mean test error with batch-norm statistics of random views."""
    num_devices: int | None
    wall: float | None
    device_seconds: float | None

    def as_plain(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self) | {"arm": self.arm.name, "against": self.arm.against}


def lines(arms: Sequence[Arm], runs: RunSet, costs: Mapping[str, Cost]) -> list[Line]:
    """A line for each arm of which a run is finished, the baseline first; without costs where none were measured."""
    errors = {arm.name: final_errors(runs.of(arm.name)) for arm in arms}
    instead = next((errors[arm.name] for arm in arms if arm.wall_clock_of is not None), {})

    def line(arm: Arm, finished: Sequence[RunFolder]) -> Line:
        own, first = costs.get(arm.name), costs.get(arms[0].name)
        wall = own.wall / first.wall if own and first else None
        has_oracle = METHODS[finished[0].config["method"]].has_oracle  # of a sweep's winner the arm does not say it
        return Line(
            arm=arm,
            errors=errors[arm.name],
            difference=difference_from(errors.get(arm.against or "", {}), errors[arm.name]),
            others={
                other: found
                for other in arm.also_against
                if (found := difference_from(errors.get(other, {}), errors[arm.name])) is not None
            },
            on_equal_hardware=difference_from(instead, errors[arm.name]) if has_oracle else None,
            reached=None
            if arm is arms[0]
            else reached(finished, [run for run in runs.of(arms[0].name) if run.finished]),
            loss=mean_of([run.epochs[-1].get("test_loss") for run in finished]),
            calibration_error=mean_of([run.epochs[-1].get("test_calibration_error") for run in finished]),
            recalibrated=mean_of(
                [row["test_error"] for run in finished for row in run.events if row["event"] == EVENT]
            ),
            num_devices=own.devices if own else None,
            wall=wall,
            device_seconds=wall * own.devices / first.devices if wall and own and first else None,
        )

    return [line(arm, [run for run in runs.of(arm.name) if run.finished]) for arm in arms if errors[arm.name]]


def write_page(
    runs: RunSet, sitting: Sitting, arms: Sequence[Arm], sweeps: Mapping[str, Any], costs: Mapping[str, Cost]
) -> list[Line]:
    """Write page, figures and `results.json` of what is finished into the experiment's folder.

    Args:
        runs: of the arms, as far as there are any.
        sitting: of its runs.
        arms: as they were trained.
        sweeps: what each decided, and on which errors.
        costs: of its arms, by name; empty where none were measured.
    """
    import jinja2

    found, folder = lines(arms, runs, costs), sitting.results
    done = dict.fromkeys((arm.name for arm in arms), 0) | {line.arm.name: len(line.errors) for line in found}
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"difference": tables.difference, "outlook": tables.outlook, "spread": _spread}
    page = environment.from_string(resources.files(__package__).joinpath("page.md.j2").read_text(encoding="utf-8"))
    text = page.render(
        **{"sitting": sitting, "experiment": sitting.experiment, "timed": costs, "lines": found, "sweeps": sweeps},
        table=table(found),
        instead=next((arm.name for arm in arms if arm.wall_clock_of is not None), None),
        missing={name: n for name, n in done.items() if n < sitting.seeds},
        figures=_figures(folder, runs, [line.arm.name for line in found]) if sitting.experiment.curves else {},
        machines=sections.machines([run for run in runs.runs.values() if run.finished]),
    )
    (folder / RESULTS).write_text(json.dumps([line.as_plain() for line in found], indent=2) + "\n", encoding="utf-8")
    (folder / PAGE).write_text(text + "\n", encoding="utf-8")
    return found


def reached(finished: Sequence[RunFolder], baselines: Sequence[RunFolder]) -> float | None:
    """Steps until runs are as good as a baseline at its end, as a part of its steps; None where one never is.

    Args:
        finished: runs, of which each epoch that was evaluated counts.
        baselines: finished ones; runs of other seeds do not count.

    Returns:
        The mean over the seeds that both have.
    """
    goals = {run.seed: run.epochs[-1] for run in baselines}
    parts = []
    for run in finished:
        if goal := goals.get(run.seed):
            errors = [(row["step"], row.get("test_error")) for row in run.epochs]
            there = [step for step, error in errors if error is not None and error <= goal["test_error"]]
            parts.append(there[0] / goal["step"] if there else None)
    return None if None in parts else mean_of(parts)


def table(found: Sequence[Line]) -> str:
    """The lines in Markdown, without empty columns."""
    rows = [_cells(line) for line in found]
    shown = [name for name in rows[0] if any(row[name] != tables.ABSENT for row in rows)] if rows else []
    cells = [shown, ["---"] * len(shown), *([row[name] for name in shown] for row in rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def _cells(line: Line) -> dict[str, str]:
    """By heading."""
    return {
        "arm": line.arm.name,
        "n": str(len(line.errors)),
        "test error, %": _spread(list(line.errors.values())),
        "against": line.arm.against or tables.ABSENT,
        "difference, points [95 %]": tables.difference(line.difference),
        "verdict": line.difference.verdict.value if line.difference else tables.ABSENT,
        "on equal hardware, points [95 %]": tables.difference(line.on_equal_hardware),
        "steps to the baseline's error": tables.ABSENT if line.reached is None else f"{line.reached:.2f} ×",
        "NLL": tables.ABSENT if line.loss is None else f"{line.loss:.3f}",
        "ECE, %": tables.percent(line.calibration_error),
        "error with BN of random views, %": tables.percent(line.recalibrated),
        "devices": str(line.num_devices or tables.ABSENT),
        "device-seconds": f"{line.device_seconds:.2f} ×" if line.device_seconds else tables.ABSENT,
        "wall": f"{line.wall:.2f} ×" if line.wall else tables.ABSENT,
        "in the paper": line.arm.paper or tables.ABSENT,
    }


def _spread(errors: Sequence[float]) -> str:
    mean, std = mean_std(errors)
    return tables.percent(mean) + (f" ± {tables.percent(std)}" if std is not None else "")


def _figures(folder: Path, runs: RunSet, names: Sequence[str]) -> dict[str, str]:
    """Panels (a), all epochs, and (b), the final ones, as SVG files by what they show."""
    curves = {name: errors_of(runs.shown(name)) for name in names}
    ends = [int(found.validation.x[-1]) + 1 for found in curves.values() if len(found.validation)]
    if not ends:
        return {}
    final = max(0, max(ends) - max(3, round(max(ends) / FINAL_PART)))
    files = {"all epochs": "errors-a.svg", "final epochs": "errors-b.svg"}
    for (shown, file), epoch in zip(files.items(), (0, final), strict=True):
        looks = plots.styles(names, names[0])
        drawn = plots.error_curves(curves, looks, first_epoch=epoch, title=f"Error, {shown}", legend=True)
        (folder / file).write_text(standalone(drawn), encoding="utf-8")
    return files
