"""The page of an experiment: table, figures in the paper's form, what was chosen, how it was made. Markdown and JSON.

The final epoch is reported, never the best one. A difference that the seeds cannot resolve is called so.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from infer2train.reporting import plots, sections, tables
from infer2train.reporting.curves import errors_of
from infer2train.reporting.report import FINAL_PART
from infer2train.reporting.runs import RunSet, read
from infer2train.reporting.statistics import PairedDifference, Verdict, mean_std
from infer2train.reporting.svg import standalone
from infer2train.studies.reproduce.arms import Arm, Experiment
from infer2train.studies.reproduce.costs import Cost
from infer2train.studies.reproduce.plan import Plan
from infer2train.studies.reproduce.results import Line, lines

PAGE, RESULTS = "page.md", "results.json"
EQUAL_HARDWARE = "on equal hardware, points [95 %]"
HEADINGS = (
    *("arm", "n", "test error, %", "against", "difference, points [95 %]", "verdict", EQUAL_HARDWARE, "NLL", "ECE, %"),
    *("error with BN of random views, %", "devices", "device-seconds", "wall", "in the paper"),
)

TIMED = "Devices and times are of an epoch of each arm, timed one after another on one machine."
NOT_TIMED = "Times are measured once all runs are there."


def write_page(
    runs: RunSet,
    experiment: Experiment,
    plan: Plan,
    arms: Sequence[Arm],
    winners: Mapping[str, Arm],
    costs: Mapping[str, Cost],
) -> list[Line]:
    """Write page, figures and `results.json` of what is finished into the experiment's folder.

    Args:
        runs: of the arms, as far as there are any.
        experiment: which.
        plan: of its runs.
        arms: as they were trained.
        winners: of its sweeps.
        costs: of its arms, by name; empty where none were measured.

    Returns:
        The lines of the table.
    """
    folder, found = runs.folder, lines(arms, runs.runs, costs)
    figures = _figures(folder, runs, found) if experiment.curves else {}
    parts = [
        f"# {experiment.title}",
        f"Scale *{plan.scale}*, training labels *{plan.variant}*, regime {plan.regime}, {plan.seeds} seeds asked for. "
        f"Paper: {experiment.source}. Final epoch, mean ± sample deviation over seeds; differences are paired by seed. "
        f"{TIMED if costs else NOT_TIMED}",
        table(found),
        "\n".join(f"- {sentence}" for sentence in statements(found, experiment, plan.seeds)),
        *(f"![{name}]({path.name})" for name, path in figures.items()),
        *(_sweep(folder, name, arm, plan) for name, arm in winners.items()),
        provenance(runs, plan),
    ]
    (folder / RESULTS).write_text(json.dumps([line.as_plain() for line in found], indent=2) + "\n", encoding="utf-8")
    (folder / PAGE).write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    return found


def table(found: Sequence[Line]) -> str:
    """The lines as a table in Markdown, without its empty columns; times are relative to the first line's."""
    columns = zip(HEADINGS, *(_cells(line) for line in found), strict=True)
    filled = [(heading, "---", *cells) for heading, *cells in columns if set(cells) - {tables.ABSENT}]
    rows = zip(*filled, strict=True)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cells(line: Line) -> tuple[str, ...]:
    mean, std = mean_std(list(line.errors.values()))
    verdict = tables.ABSENT if line.difference is None else line.difference.verdict.value
    return (
        line.arm.name,
        str(len(line.errors)),
        tables.percent(mean) + (f" ± {tables.percent(std)}" if std is not None else ""),
        line.arm.against or tables.ABSENT,
        tables.difference(line.difference),
        verdict,
        tables.difference(line.on_equal_hardware),
        tables.ABSENT if line.loss is None else f"{line.loss:.3f}",
        tables.percent(line.calibration_error),
        tables.percent(line.recalibrated),
        tables.ABSENT if line.num_devices is None else str(line.num_devices),
        _times(line.device_seconds),
        _times(line.wall),
        line.arm.paper or tables.ABSENT,
    )


def _times(ratio: float | None) -> str:
    return tables.ABSENT if ratio is None else f"{ratio:.2f} ×"


def statements(found: Sequence[Line], experiment: Experiment, seeds: int) -> list[str]:
    """What the table says in words, and what it cannot say."""
    said = []
    instead = next((arm.name for arm in experiment.arms if arm.wall_clock_of is not None), None)
    for line in found:
        said += _statement(line.difference, f"{line.arm.name} against {line.arm.against}")
        said += _statement(line.on_equal_hardware, f"{line.arm.name} against {instead}, on equal hardware")
    missing = [
        f"{arm.name} ({len(done)} of {seeds})"
        for arm in experiment.arms
        if len(done := next((line.errors for line in found if line.arm.name == arm.name), {})) < seeds
    ]
    if missing:
        said.append(f"**Not finished**: {', '.join(missing)}. One seed is an anecdote.")
    return said


def _statement(found: PairedDifference | None, versus: str) -> list[str]:
    if found is None:
        return []
    gap = tables.difference(found)
    if found.verdict is Verdict.INCONCLUSIVE:
        return [f"{versus}: {gap} points, which {found.n} seeds cannot resolve ({tables.outlook(found)})."]
    return [f"{versus}: {gap} points, {found.verdict.value}."]


def _figures(folder: Path, runs: RunSet, found: Sequence[Line]) -> dict[str, Path]:
    """Panels (a), all epochs, and (b), the final ones, as SVG files."""
    names = [line.arm.name for line in found]
    curves = {name: errors_of(runs.shown(name)) for name in names}
    last = max((int(found.validation.x[-1]) for found in curves.values() if len(found.validation)), default=-1)
    if last < 0:
        return {}
    looks = plots.styles(names, names[0])
    first = {"all epochs": 0, "final epochs": last + 1 - max(3, round((last + 1) / FINAL_PART))}
    figures = {}
    for letter, (name, epoch) in zip("ab", first.items(), strict=True):
        drawn = plots.error_curves(curves, looks, first_epoch=max(0, epoch), title=f"Error, {name}", legend=True)
        figures[name] = folder / f"errors-{letter}.svg"
        figures[name].write_text(standalone(drawn), encoding="utf-8")
    return figures


def _sweep(folder: Path, name: str, winner: Arm, plan: Plan) -> str:
    """What a sweep found on held-out training images."""
    trained = read(folder / f"sweep-{name}")
    rows = ["| candidate | n | held-out error, % |", "|---|---|---|"]
    for arm in trained.methods:
        errors = [run.test_error for run in trained.of(arm) if run.finished and run.test_error is not None]
        mean, std = mean_std(errors) if errors else (None, None)
        spread = "" if std is None else f" ± {tables.percent(std)}"
        rows.append(f"| {arm.removeprefix('held-out-')} | {len(errors)} | {tables.percent(mean)}{spread} |")
    heading = f"## {name}: chosen on {plan.held_out} training images held out"
    return "\n".join([heading, "", *rows, "", f"Chosen: **{winner.name}**."])


def provenance(runs: RunSet, plan: Plan) -> str:
    """What the figures were made with."""
    used = [run for run in runs.runs.values() if run.finished]
    machines = [", ".join(f"{key} {value}" for key, value in found.items()) for found in sections.machines(used)]
    data = plan.common.get("data", plan.regime)
    machine = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in plan.common.items())
    return "\n".join(
        [
            "## How it was made",
            "",
            f"- Data: `{data}`. Images are used as the files hold them: if they went through JPEG, so did these.",
            *(f"- Machine and versions: {text}." for text in machines),
            f"- Command: `infer2train reproduce {runs.folder.name} --scale {plan.scale} --variant {plan.variant} "
            f"--seeds {plan.seeds} {machine}`",
        ]
    )
