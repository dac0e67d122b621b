"""What each verb does with its options: it calls the library, and prints what came of it. Heavy imports are lazy."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from infer2train.settings import as_plain, at_least, unknown
from infer2train.training.config import RunConfig, from_plain

PLANNING = {"measured", "gamma", "workers", "update_every", "delay_steps", "link_mbit", "quiet"}
"""Options of plan that say something of what was measured before, too."""
WIDTH_OF_A_FILE = 120
"""Columns of a table where nobody has a terminal's width."""


def _config_of(options: dict[str, Any], **changes: Any) -> RunConfig:
    names = {field.name for field in fields(RunConfig)}
    return from_plain({**{name: value for name, value in options.items() if name in names}, **changes})


def _train(options: dict[str, Any]) -> None:
    config = _config_of(options)
    name = options["name"] or f"{config.regime}-{config.method}-seed{config.seed}"
    folder = Path(options["runs_dir"]) / name
    from infer2train.reporting.runs import error_name
    from infer2train.training.loop import train

    trace = None if options["trace"] is None else Path(options["trace"])
    result = train(config, folder, resume=options["resume"], quiet=options["quiet"], trace=trace)
    error = f"{error_name(config.validation_split)} {result.evaluation.error:.2%}"
    top5 = "" if result.evaluation.top5_error is None else f", top-5 error {result.evaluation.top5_error:.2%}"
    print(
        f"{name}: {error}{top5}, loss {result.evaluation.loss:.4f}, "
        f"{result.seconds:.1f} s, {result.scoring_share:.0%} of it scoring\nreport: {folder / 'report.html'}"
    )
    if trace is not None:
        print(f"trace: {trace}, for ui.perfetto.dev or chrome://tracing")
    if config.method == RunConfig.method:
        print(f"would mining pay here? infer2train advise {folder}")


def _compare(options: dict[str, Any]) -> None:
    from rich.console import Console

    from infer2train.cli.arms import settings_of_arm
    from infer2train.draws.methods.table import METHODS
    from infer2train.studies.compare import Comparison, compare, print_comparison

    for arm in options["methods"]:
        if arm.partition("@")[0] not in METHODS:
            raise unknown("method", arm.partition("@")[0], METHODS)
    if "baseline" not in options["methods"]:
        raise ValueError(
            f"a comparison needs the baseline: got {' '.join(options['methods'])}; add baseline to --methods"
        )
    if "method" in options["given"]:
        raise ValueError(f"compare takes several methods: got --method {options['method']}; pass --methods baseline …")
    given = _config_of(options)
    if "auto" in {given.oracle, *(arm.partition("@")[2] for arm in options["methods"])}:
        raise ValueError(
            "the runs of a comparison need one oracle: got auto, which each run would measure anew; see what "
            "infer2train gamma recommends, and pass that"
        )
    runs = {
        # Neither is a character for a folder's name everywhere.
        (re.sub("[:/]", "-", arm), given.seed + offset): _config_of(
            options, seed=given.seed + offset, **settings_of_arm(options, arm)
        )
        for offset in range(options["seeds"])
        for arm in options["methods"]
    }
    folder = Path(options["runs_dir"]) / (options["name"] or f"compare-{given.regime}")
    at_least("seeds", options["seeds"], 1)
    at_least("jobs", options["jobs"], 1)
    summaries = compare(
        Comparison(runs=runs), folder, resume=options["resume"], jobs=options["jobs"], quiet=options["quiet"]
    )
    print_comparison(summaries, folder, Console())


def _report(options: dict[str, Any]) -> None:
    from infer2train.reporting.report import write_report

    out, baseline = (None if options[name] is None else Path(options[name]) for name in ("out", "baseline"))
    folders, defaults = map(Path, options["folders"]), as_plain(RunConfig())
    print(f"report: {write_report(*folders, out=out, baseline=baseline, defaults=defaults)}")


def _inspect(options: dict[str, Any]) -> None:
    from rich.console import Console

    from infer2train.studies.inspection.inspect import inspect

    progress = Console(stderr=True)
    with progress.status("inspecting …") as status:
        page = inspect(
            Path(options["folder"]),
            options["data"],
            say=(lambda line: None) if options["quiet"] else (lambda line: status.update(f"reading {line}")),
        )
    print(f"page: {page}\nsuspects: {page.with_name('suspects.csv')}")


def _eval(options: dict[str, Any]) -> None:
    import json

    from infer2train.observe.runlog import read_config
    from infer2train.reporting.runs import error_name
    from infer2train.training.folder import evaluate_folder

    folder, on_test = Path(options["folder"]), options["test"]
    result = evaluate_folder(
        folder, device=options["device"], best=options["best"], on_test=on_test, data=options["data"]
    )
    if options["json"]:
        print(json.dumps(vars(result)))
        return
    name = error_name(None if on_test else read_config(folder).get("validation_split"))
    top5 = "" if result.top5_error is None else f", top-5 error {result.top5_error:.2%}"
    print(f"{options['folder']}: {name} {result.error:.2%}{top5}, loss {result.loss:.4f}")


def _export(options: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from infer2train.studies.export.export import CARD, export

    at_least("threads", options["threads"], 1)
    into = Path(options["into"] or Path(options["folder"]) / "export")
    progress = Console(stderr=True)
    with progress.status("exporting …") as status:
        made = export(
            Path(options["folder"]),
            into,
            formats=options["formats"],
            threads=options["threads"],
            data=options["data"],
            say=(lambda line: None) if options["quiet"] else (lambda line: _tell(line, progress, status)),
        )
    table = Table("file", "MB", "error, %", "loss", "images/s")
    for file in made.files:
        rate = f"{file.images_per_second:,.0f}"
        table.add_row(file.file, f"{file.megabytes:.2f}", f"{100 * file.error:.2f}", f"{file.loss:.4f}", rate)
    console = Console()
    console.print(table)
    for file in made.files:
        for note in file.notes:
            console.print(f"{file.file}: {note}", highlight=False, markup=False, soft_wrap=True)
    for name, reason in made.failed.items():
        console.print(f"{name}: not written: {reason}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"files and model card: {into / CARD}", highlight=False, markup=False, soft_wrap=True)


def _gamma(options: dict[str, Any]) -> None:
    import json

    from rich.console import Console

    from infer2train.studies.gamma.report import print_gamma

    file = None if options["json"] is None else Path(options["json"])
    if file is not None and (file.is_dir() or not file.parent.is_dir()):  # said now, not after minutes
        raise ValueError(f"--json names a file in a folder that exists: got {file}; name another, or make the folder")
    report = _measured(options)
    console = Console()
    print_gamma(report, console if console.is_terminal else Console(width=WIDTH_OF_A_FILE))
    if file is not None:
        file.write_text(json.dumps(report.as_plain(), indent=2) + "\n", encoding="utf-8")


def _plan(options: dict[str, Any]) -> None:
    from rich.console import Console

    from infer2train.studies.plan import check_plan, plan_of, print_plan, read_measured

    file = options["measured"]
    ignored = ["--" + name.replace("_", "-") for name in sorted(options["given"] - PLANNING)]
    if file is not None and ignored:
        raise ValueError(
            f"plan --measured goes by what was measured before: got {' '.join(ignored)}; leave it out, or --measured"
        )
    settings = {name: options[name] for name in ("gamma", "workers", "update_every", "delay_steps")}
    settings["link_megabits"] = options["link_mbit"]
    check_plan(**settings)
    plan = plan_of(read_measured(Path(file)) if file is not None else _measured(options).as_plain(), **settings)
    console = Console()
    print_plan(plan, console if console.is_terminal else Console(width=WIDTH_OF_A_FILE))


def _measured(options: dict[str, Any]) -> Any:
    """What this machine can do, measured."""
    from rich.console import Console

    from infer2train.studies.gamma.measure import measure_gamma

    progress = Console(stderr=True)
    with progress.status("measuring …") as status:
        return measure_gamma(
            model=options["model"],
            data=options["data"],
            data_cache=options["data_cache"],
            image_size=options["image_size"],
            label_column=options["label_column"],
            batch_size=options["batch_size"],
            gamma=options["gamma"],
            threads=options["threads"],
            oracle_cores=options["oracle_cores"],
            compiled=options["compile"],
            run=None if options["run"] is None else Path(options["run"]),
            engines=tuple(options["engines"]),
            say=(lambda line: None)
            if options["quiet"]
            else (lambda line: _tell(f"measuring {line}", progress, status)),
        )


def _tell(line: str, console: Any, status: Any) -> None:
    """What is under way: as the live line of a terminal, as a line of its own elsewhere."""
    status.update(line)
    if not console.is_terminal:
        console.print(line, highlight=False)


def _advise(options: dict[str, Any]) -> None:
    from rich.console import Console

    from infer2train.reporting.evidence import Fitted
    from infer2train.studies.advise import print_advice, read_baseline

    folder, view_error, label_noise = (options[name] for name in ("folder", "view_error", "label_noise"))
    if (folder is None) == (view_error is None):
        raise ValueError("advise looks at one baseline: got no run folder or both; pass FOLDER, or --view-error 3.5")
    if folder is None:
        baseline = Fitted(view_error=view_error, label_noise=label_noise or 0.0)
    else:
        baseline = read_baseline(Path(folder), label_noise)
    console = Console()
    print_advice(baseline, console if console.is_terminal else Console(width=WIDTH_OF_A_FILE))


def _demo(options: dict[str, Any]) -> None:
    from infer2train.studies.demo import demo

    demo(Path(options["runs_dir"]), quiet=options["quiet"])


def _reproduce(options: dict[str, Any]) -> None:
    from rich.console import Console

    from infer2train.studies.reproduce.experiments import EXPERIMENTS
    from infer2train.studies.reproduce.page import table
    from infer2train.studies.reproduce.run import reproduce
    from infer2train.studies.reproduce.sitting import Sitting

    name = options["experiment"]
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, EXPERIMENTS)
    for count in ("seeds", "jobs", "threads"):
        at_least(count, options[count], 1)
    machine = ("data", "data_cache", "label_column", "decode", "num_workers", "device", "pool", "threads")
    suffix = "" if options["variant"] == "clean" else f"-{options['variant']}"
    folder = f"reproduce-{EXPERIMENTS[name].regime.partition('-')[0]}-{options['scale']}{suffix}"
    sitting = Sitting(
        experiment=EXPERIMENTS[name],
        folder=Path(options["runs_dir"]) / folder,
        common={field: options[field] for field in machine if options[field] is not None},
        archive=None if options["archive"] is None else Path(options["archive"]),
        **{field: options[field] for field in ("scale", "variant", "seeds", "jobs", "quiet")},
    )
    found = table(reproduce(sitting, options["arms"]))
    Console().print(f"{found}\npage: {sitting.results / 'page.md'}", highlight=False, markup=False, soft_wrap=True)


VERBS = {
    "train": _train,
    "compare": _compare,
    "report": _report,
    "inspect": _inspect,
    "eval": _eval,
    "export": _export,
    "gamma": _gamma,
    "plan": _plan,
    "advise": _advise,
    "reproduce": _reproduce,
    "demo": _demo,
}
