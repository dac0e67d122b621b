"""The parts of a report that are words: what was run, how far it is, on what, with which settings, what went wrong.

Beside `plots`, which makes the parts that are pictures; `report` puts both on the page. Whatever a folder does not hold
is left out here, so the page has no empty rows.
"""

import shlex
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from statistics import harmonic_mean
from typing import Any

from infer2train.draws.methods.table import METHODS
from infer2train.observe.runlog import CONFIG
from infer2train.reporting import tables
from infer2train.reporting.evidence import Fitted, evidence, nearest
from infer2train.reporting.gathering import BASELINE, differing
from infer2train.reporting.runs import BESIDE_THE_LOOP, Row, RunFolder, RunSet, logged
from infer2train.reporting.summary import judged_alike


def title(runs: RunSet) -> str:
    """The folder's name; of several, the first two and how many more."""
    names = [folder.resolve().name for folder in runs.folders]
    if len(names) < 3:
        return " and ".join(names)
    return f"{names[0]}, {names[1]} and {len(names) - 2} more"


def subject(runs: RunSet) -> str:
    """Model and data in a few words; empty where nothing is known, or not the same of all."""
    configs = [run.config for run in runs.runs.values()]
    shared = {name: {str(config.get(name) or "") for config in configs} for name in ("model", "data")}
    return " on ".join(values.pop() for values in shared.values() if len(values) == 1 and values != {""})


def state(runs: RunSet) -> str:
    """How far it is; empty when all is finished."""
    asked = len(runs.asked)
    finished = sum(run.finished for run in runs.runs.values())
    if finished == asked:
        return ""
    if runs.baseline is not None:
        return f"{finished} of {asked} runs finished"
    (run,) = runs.runs.values()
    return f"not finished: {_how_far(run)}" if run.epochs else _how_far(run)


def _how_far(run: RunFolder) -> str:
    """What a run has done so far."""
    if run.epochs:
        return f"{len(run.epochs)} of {run.config.get('epochs', '?')} epochs"
    return f"logged up to step {run.steps[-1]['step']}" if run.steps else "nothing logged yet"


def facts(runs: RunSet) -> list[tuple[str, str]]:
    """The figures of a single run that are known, as (name, value with unit)."""
    (run,) = runs.runs.values()
    last = run.epochs[-1] if run.epochs else {}
    lag, name = _mean(logged(run.steps, "step", "lag")), runs.error_name.capitalize()
    found: list[tuple[str, Any, Callable[[Any], str]]] = [
        (name, last.get("test_error"), _percent),
        (f"{name}, top 5", last.get("test_top5_error"), _percent),
        ("Training error, views trained on", last.get("train_error_mined"), _percent),
        ("Training error, random views", last.get("train_error_random"), _percent),
        ("Wall-clock", run.seconds.get("total"), tables.duration),
        ("Spent on scoring", run.scoring_share, tables.share),
        ("γ asked for", None if _is_of_one_view(run) else run.config.get("gamma"), str),
        ("Oracle", run.config.get("oracle") if lag is not None else None, str),
        ("Multiply-adds in integers", _mean(logged(run.steps, "step", "int8_share")), _percent),
        ("Captured gain", _mean(logged(run.steps, "step", "captured_gain")), lambda value: f"{value:.2f}"),
        ("Same view as fp32", _mean(logged(run.steps, "step", "same_view")), _percent),
        ("Rank correlation with fp32", _mean(logged(run.steps, "step", "rank_correlation")), lambda v: f"{v:.2f}"),
        ("Versions scored in fp32", _fp32_versions(run), str),
        ("Mean lag", lag, lambda value: f"{value:.1f} steps"),
        ("Speed", _steps_per_second(run), lambda value: f"{value:.2f} steps/s"),
        ("Steps", _num_steps(run), tables.grouped),
    ]
    return [(name, as_text(value)) for name, value, as_text in found if value is not None]


def _is_of_one_view(run: RunFolder) -> bool:
    """Whether its method has no candidates besides what the loader gives, and so no γ."""
    choices = METHODS.get(str(run.config.get("method")))
    return choices is not None and choices.candidates == "one-view"


def _num_steps(run: RunFolder) -> int | None:
    """Steps done, also those since its last step row; None before the first."""
    return max((row.get("step") or 0 for row in (*run.epochs, *run.steps, *run.events)), default=0) or None


def _steps_per_second(run: RunFolder) -> float | None:
    """Over the time of the loop, without evaluations and checkpoints; where no epoch was timed, by the step rows."""
    loop = run.seconds.get("total", 0.0) - sum(run.seconds.get(part, 0.0) for part in BESIDE_THE_LOOP)
    if loop > 0 and (steps := run.epochs[-1].get("step")):
        return float(steps / loop)
    rates = [rate for rate in logged(run.steps, "step", "steps_per_second").values() if rate > 0]
    return harmonic_mean(rates) if rates else None  # each row is of as many steps


def _fp32_versions(run: RunFolder) -> int | None:
    """How many versions' programs failed their check; None where none did."""
    return int(sum(logged(run.steps, "step", "fp32_versions").values())) or None


def settings(runs: RunSet) -> dict[str, Any]:
    """The settings that all runs share, and those that differ, by method; method and seed name planned runs."""
    configs = {method: runs.of(method)[0].config for method in runs.methods if runs.of(method)}
    names = list(dict.fromkeys(name for config in configs.values() for name in config))
    if runs.baseline is not None:
        names = [name for name in names if name != "seed" and (runs.is_gathered or name != "method")]
    apart = differing(configs.values())
    known = {name: value for config in reversed(configs.values()) for name, value in config.items()}
    shared = {name: known[name] for name in names if name not in apart}
    return {"shared": shared, "differing": [name for name in names if name in apart], "by_method": configs}


def unpaired(runs: RunSet, method: str) -> str:
    """Why no difference of a method from the baseline can be told, in a few words."""
    baseline, others = runs.of(str(runs.baseline)), runs.of(method)
    if runs.is_gathered and not judged_alike([*baseline, *others]):
        return f"errors of other data than those of {runs.baseline}"
    if runs.is_gathered and not {run.seed for run in baseline} & {run.seed for run in others}:
        return f"no seed in common with {runs.baseline}"
    return f"no seed finished yet by both this {'setting' if runs.is_gathered else 'method'} and {runs.baseline}"


def table_of_runs(runs: RunSet) -> list[dict[str, Any]]:
    """Each run by itself, for a set that nobody planned: how far it is, its error so far, what it cost."""
    return [
        {
            "name": name,
            "seed": run.config.get("seed"),
            "state": "finished" if run.finished else f"not finished: {_how_far(run)}",
            "steps": _num_steps(run) or 0,
            "error": run.test_error,
            "seconds": run.seconds.get("total"),
            "scoring_share": run.scoring_share,
            "folder": run.folder.as_posix(),
        }
        for name in runs.methods
        for run in runs.of(name)
    ]


def machines(runs: Iterable[RunFolder]) -> list[dict[str, str]]:
    """The different machines and versions that the runs were started on, each once, with its first start."""
    found: dict[str, dict[str, str]] = {}
    for row in (row for run in runs for row in run.starts):
        entries = {**(row.get("machine") or {}), **(row.get("versions") or {})}
        plain = {name: tables.setting(value) for name, value in entries.items()}
        found.setdefault(repr(sorted(plain.items())), {**plain, "first started": _moment(row.get("time"))})
    return list(found.values())


def commands(runs: Iterable[RunFolder]) -> list[str]:
    """What makes each run again, from where the report was made."""
    return [
        f"infer2train train --config {shlex.quote((run.folder / CONFIG).as_posix())}"
        for run in runs
        if (run.folder / CONFIG).is_file() and "regime" in run.config  # not of a loop of the user's own
    ]


def notes(runs: RunSet) -> list[tuple[str, str]]:
    """What a reader must know besides the numbers: (where, what)."""
    notes: list[tuple[str, str]] = []
    for (method, seed), run in runs.runs.items():
        where = f"{method}, seed {seed}" if runs.baseline is not None else ""
        notes += [(_place(where, row), _event(row)) for row in run.events if row.get("event") != "finished"]
        if nonfinite := round(sum(logged(run.steps, "step", "nonfinite_scores").values())):
            notes.append((where, f"{nonfinite} scores were NaN or infinite; their candidates were passed over"))
        if run.unreadable:
            notes.append((where, f"{run.unreadable} unreadable lines of metrics.jsonl were left out, cut by a kill"))
    if runs.baseline is not None and (missing := _missing(runs)):
        notes.append(("", f"without a result yet, and left out of every mean: {missing}"))
    return notes


def advised(runs: RunSet) -> str:
    """What was measured nearest to this training, and what says more; empty while nothing of it was measured.

    A comparison is known by its baseline's error on random training views, a run by its own, which of a method is said
    to be none of a baseline; a loop of the user's own by none, and runs that nobody planned together by none either.
    """
    if runs.is_gathered:
        return ""
    asked = runs.baseline or runs.methods[0]
    ends = [run for run in runs.shown(asked) if run.epochs and run.epochs[-1].get("train_error_random") is not None]
    if not ends:
        own = not any("regime" in run.config for run in runs.runs.values())
        by_hand = "infer2train advise --view-error E, with a baseline's error on random training views in %"
        return f"what was measured of trainings like this: {by_hand}" if own else ""
    view_error = 100 * sum(run.epochs[-1]["train_error_random"] for run in ends) / len(ends)
    fitted = Fitted(view_error=view_error, label_noise=ends[0].config.get("label_noise") or 0.0)
    found = nearest(fitted, evidence())
    folder = shlex.quote(ends[0].folder.as_posix())
    if not found:
        return f"nothing was measured of trainings like this yet: infer2train advise {folder}"
    methods = {run.config.get("method") for run in runs.runs.values()}  # of an arm, whatever it is called
    best, _ = min(found, key=lambda pair: (pair[0].method not in methods, pair[1]))
    method = str(ends[0].config.get("method"))
    whose = "" if method == BASELINE else f"this is a run of {method}, and it is a baseline's error that counts; "
    return (
        f"measured nearest to {view_error:.1f} % error on random training views: {best.method} {best.difference:+.2f} "
        f"points [{best.low:+.2f}, {best.high:+.2f}] at {best.view_error:.1f} % ({best.where}); "
        f"{whose}the others: infer2train advise {folder}"
    )


def _missing(runs: RunSet) -> str:
    """The runs that have not finished, by name."""
    return ", ".join(f"{m} seed {s}" for m, s in runs.asked if (m, s) not in runs.runs or not runs.runs[m, s].finished)


def _place(where: str, row: Row) -> str:
    """The run and the step of an event."""
    step = f"step {row['step']}" if row.get("step") is not None else ""
    return ", ".join(part for part in (where, step) if part)


def _event(row: Row) -> str:
    """An event in words."""
    return ": ".join(str(part) for part in (row.get("event"), row.get("message")) if part)


def _percent(value: float) -> str:
    """A fraction in per cent with its sign."""
    return f"{tables.percent(value)} %"


def _mean(values: dict[int, float]) -> float | None:
    """Mean of what was logged."""
    return sum(values.values()) / len(values) if values else None


def data_notes(runs: Iterable[RunFolder]) -> list[str]:
    """What is to be known of the data wherever its figures are shown, such as how its images were stored."""
    notes = (run.config.get("data_note") for run in runs)
    return list(dict.fromkeys(str(note) for note in notes if note))


def _moment(time: Any) -> str:
    """A start time: seconds since 1970 as UTC, anything else as it was written."""
    if isinstance(time, int | float):
        return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return tables.setting(time)
