"""The command line: verbs over the library. Nothing heavy is imported before the arguments are understood.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

import argparse
import difflib
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonargparse

from infer2train import __version__
from infer2train.draws.mining import Mining
from infer2train.settings import at_least
from infer2train.training.config import DataConfig, RunConfig, TrainingConfig, from_plain
from infer2train.training.regimes import regime_defaults

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
WIDTH_OF_A_FILE = 120
"""Columns of a table where nobody has a terminal's width."""
GROUPS = {"data": DataConfig, "mining": Mining, "training": TrainingConfig}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the entry point of `infer2train`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        return _run([argument for argument in given if argument != "--debug"])
    except argparse.ArgumentError as error:
        return _explain_usage(error, given)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    except Exception as error:
        if debug:
            raise
        return _explain(error, given)


def _explain(error: Exception, arguments: Sequence[str]) -> int:
    """One or two lines for an expected error; an unexpected one says how to see more."""
    from infer2train.checkpoint.checkpoint import CheckpointError
    from infer2train.data.images import DataError
    from infer2train.training.interrupt import Interrupted
    from infer2train.training.loop import DivergedError

    if isinstance(error, Interrupted):
        command = (
            "the same command"
            if {"--resume", "demo", "reproduce"} & set(arguments)
            else "the same command with --resume"
        )
        print(f"\n{error}; {command} goes on", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    expected = isinstance(error, ValueError | OSError | DivergedError | CheckpointError | ImportError)
    name = "" if expected else f"{type(error).__name__}: "
    hint = "" if expected else "\n(--debug shows where)"
    print(f"infer2train: {name}{error}{hint}", file=sys.stderr)  # noqa: T201
    return USAGE if isinstance(error, ValueError) and not isinstance(error, DataError) else FAILED


def _explain_usage(error: argparse.ArgumentError, arguments: Sequence[str]) -> int:
    """Two lines for what the parser refused: what, and where all settings are explained."""
    verb = next((argument for argument in arguments if argument in VERBS), None)
    message = " ".join(error.message.split())
    flags = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    known = ["--" + field.name.replace("_", "-") for field in fields(RunConfig)]
    unknown = [flag for flag in flags if flag in message and flag not in known]
    near = [match for flag in unknown for match in difflib.get_close_matches(flag, known, n=1)]
    suggestion = f"; did you mean {' '.join(near)}?" if near else ""
    help_command = " ".join(["infer2train", *([verb] if verb else []), "--help"])
    print(f"infer2train: {message}{suggestion}\n{help_command} explains every setting", file=sys.stderr)  # noqa: T201
    return USAGE


def _run(arguments: list[str]) -> int:
    if not arguments:
        build_parser(arguments).print_help()
        return USAGE
    verb, options = parse(arguments)
    VERBS[verb](options)
    return DONE


def parse(arguments: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The verb and its options: the regime's defaults, then the file that --config names, then flags.

    Raises:
        argparse.ArgumentError: wrong usage.
        ValueError: no such regime.
    """
    arguments = _file_first(arguments)
    namespace = build_parser(arguments).parse_args(arguments)
    options = dict(vars(namespace[namespace.verb]))
    options.pop("config", None)
    # What was asked for in so many words, as opposed to a default of the same value.
    options["given"] = {word[2:].partition("=")[0].replace("-", "_") for word in arguments if word.startswith("--")}
    return namespace.verb, options


def _file_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with `--config FILE` right after the verb: what stands after it wins, and every flag shall."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    peek.add_argument("--config", action="append", default=[])
    try:
        named, others = peek.parse_known_args(arguments)
    except argparse.ArgumentError:  # no file after it: the real parser says so
        return list(arguments)
    return [*others[:1], *(f"--config={file}" for file in named.config), *others[1:]]


def build_parser(arguments: Sequence[str]) -> jsonargparse.ArgumentParser:
    """The parser, with the defaults of the regime and method that the arguments name."""
    parser = jsonargparse.ArgumentParser(
        prog="infer2train",
        description="Put cheap inference silicon to work on training accuracy.",
        epilog="Every verb takes --debug, which shows the traceback of an error.",
        version=__version__,
        exit_on_error=False,
    )
    verbs = parser.add_subcommands(dest="verb", required=True)
    verbs.add_subcommand("train", _train_parser(arguments), help="train a model with one method")
    verbs.add_subcommand("compare", _compare_parser(arguments), help="compare methods over paired seeds")
    verbs.add_subcommand("report", _report_parser(), help="write the report of a run or comparison again")
    verbs.add_subcommand("eval", _eval_parser(), help="evaluate the newest checkpoint of a run")
    verbs.add_subcommand("gamma", _gamma_parser(), help="measure what this machine can do, and whether mining pays")
    verbs.add_subcommand("reproduce", _reproduce_parser(), help="the paper's figures and tables, and whether it pays")
    verbs.add_subcommand("demo", _demo_parser(), help="the paper's methods on real data, in minutes")
    return parser


def _train_parser(arguments: Sequence[str]) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(
        description="Train a model with one of the paper's methods.", exit_on_error=False
    )
    _add_folder(parser, "Name of the run's folder. Default: REGIME-METHOD-seedN.")
    trace_help = "Write what trainer and oracles do when to this file, for ui.perfetto.dev or chrome://tracing."
    parser.add_argument("--trace", type=str | None, default=None, help=trace_help)
    _add_settings(parser, arguments)
    return parser


def _compare_parser(arguments: Sequence[str]) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(
        description="Train methods × seeds, paired by seed, and compare them.", exit_on_error=False
    )
    _add_folder(parser, "Name of the comparison's folder. Default: compare-REGIME.")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["baseline", "nm-augment"],
        help="Methods to compare, the baseline among them; METHOD@ORACLE gives one an oracle of its own. "
        "Default: baseline nm-augment.",
    )
    parser.add_argument("--seeds", type=int, default=5, help="Paired seeds of each method: seed, seed + 1, …")
    parser.add_argument("--jobs", type=int, default=1, help="Runs trained side by side (processes); set --threads too.")
    _add_settings(parser, arguments)
    return parser


def _report_parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(
        description="Write report.html of a run or comparison folder again.", exit_on_error=False
    )
    parser.add_argument("folder", type=str, help="A folder such as runs/NAME.")
    return parser


def _eval_parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(
        description="Evaluate the newest good checkpoint of a run on its test images.", exit_on_error=False
    )
    parser.add_argument("folder", type=str, help="A run folder such as runs/NAME.")
    parser.add_argument("--device", type=str | None, default=None, help="Where to evaluate. Default: as trained.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object instead of a sentence.")
    return parser


def _gamma_parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(
        description="Measure trainer, int8 engines and views on this machine: γ, alone and end to end, and a verdict.",
        exit_on_error=False,
    )
    add = parser.add_argument
    add("--model", type=str, default="resnet44", help="As for train.")
    add("--data", type=str | None, default=None, help="As for train. Default: random pixels.")
    add("--data-cache", type=str | None, default=None, help="As for train.")
    add("--image-size", type=int | None, default=None, help="Height and width in pixels. Default: as stored, or 32.")
    add("--label-column", type=str | None, default=None, help="As for train. Default: by name or feature.")
    add("--batch-size", type=int, default=64, help="Examples trained on in each step (B; images).")
    add("--gamma", type=int, default=10, help="Candidates for each trained example that are asked for.")
    add("--threads", type=int | None, default=None, help="Threads of trainer and engines. Default: all cores.")
    add(
        "--oracle-cores",
        type=str | None,
        default=None,
        help="Cores of the oracle, e.g. 1; the trainer gets the others.",
    )
    add("--compile", action="store_true", help="Try torch.compile for the trainer too (minutes).")
    add("--run", type=str | None, default=None, help="A run folder: its model, data and newest weights.")
    add("--engines", nargs="+", default=[], help="Engines to measure. Default: all that are installed.")
    add("--json", type=str | None, default=None, help="Write everything measured to this file.")
    add("--quiet", action="store_true", help="Show no progress.")
    return parser


def _reproduce_parser() -> jsonargparse.ArgumentParser:
    from infer2train.studies.reproduce.experiments import EXPERIMENTS

    questions = "; ".join(f"{name}: {experiment.title}" for name, experiment in EXPERIMENTS.items())
    parser = jsonargparse.ArgumentParser(
        description="Train an experiment of the paper over paired seeds, and write its table and figures. It can be "
        "stopped at any moment; the same command goes on. " + questions,
        exit_on_error=False,
    )
    add = parser.add_argument
    add("experiment", type=str, help=f"{', '.join(EXPERIMENTS)}.")
    add("--scale", type=str, default="mini", help="full: the paper's; mini: ResNet-20 on 5,000 images for two cores.")
    add("--variant", type=str, default="clean", help="Training labels: clean, noisy (10 % wrong) or long-tailed.")
    add("--seeds", type=int, default=5, help="Paired seeds of each arm: 0, 1, …")
    add("--data", type=str | None, default=None, help="As for train. Default: the regime's.")
    add("--data-cache", type=str | None, default=None, help="As for train.")
    add("--label-column", type=str | None, default=None, help="As for train. Default: by name or feature.")
    add("--decode", type=str, default="once", help="As for train: on-demand where decoded images fit no disk.")
    add("--num-workers", type=int, default=0, help="Processes that make views, as for train.")
    add("--device", type=str, default="cpu", help="Where the trainer runs: cpu, cuda.")
    add("--pool", type=str, default="inline", help="Where the oracle runs: inline, process, stream.")
    add("--threads", type=int, default=1, help="Threads of the trainer's CPU arithmetic.")
    add("--jobs", type=int, default=1, help="Runs trained side by side (processes).")
    add("--arms", nargs="+", default=[], help="Train only these in this sitting. Default: all of the experiment.")
    archive_help = (
        "Folder in which a few kilobytes of each finished run are kept: what it holds is not trained again, here or on "
        "another machine."
    )
    add("--archive", type=str | None, default=None, help=archive_help)
    add("--runs-dir", type=str, default="runs", help="Folder of run folders.")
    add("--quiet", action="store_true", help="Show no progress.")
    return parser


def _demo_parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(
        description="Compare the paper's methods on scikit-learn's digits.", exit_on_error=False
    )
    parser.add_argument("--runs-dir", type=str, default="runs", help="Folder of run folders.")
    parser.add_argument("--quiet", action="store_true", help="Show no progress.")
    return parser


def _add_folder(parser: jsonargparse.ArgumentParser, name_help: str) -> None:
    parser.add_argument("--config", action="config", help="A config.yaml, such as runs/NAME/config.yaml; flags win.")
    parser.add_argument("--name", type=str | None, default=None, help=name_help)
    parser.add_argument("--runs-dir", type=str, default="runs", help="Folder of run folders.")
    parser.add_argument("--resume", action="store_true", help="Go on with an existing folder.")
    parser.add_argument("--quiet", action="store_true", help="Show no progress.")


def _add_settings(parser: jsonargparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """A flag for each field of a run, with the field's own words as its help."""
    defaults = _defaults_for(arguments)
    types = {field.name: field.type for field in fields(RunConfig)}
    groups = {title: parser.add_argument_group(f"{title} settings") for title in GROUPS}
    for name, (title, text) in setting_texts().items():
        flag = "--" + name.replace("_", "-")
        groups[title].add_argument(flag, type=types[name], default=defaults[name], help=text)


def setting_texts() -> dict[str, tuple[str, str]]:
    """Setting -> its group and the docstring under it."""
    from docstring_parser import parse_from_object

    return {
        entry.arg_name: (title, " ".join((entry.description or "").split()))
        for title, kind in GROUPS.items()
        for entry in parse_from_object(kind).params
    }


def _defaults_for(arguments: Sequence[str]) -> dict[str, Any]:
    """The defaults of the regime and the method that the arguments (or the --config they name) ask for."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--regime", "--method", "--config"):
        peek.add_argument(flag)
    named, _ = peek.parse_known_args(arguments)
    stored: dict[str, Any] = {}
    if named.config and Path(named.config).is_file():
        import yaml

        loaded = yaml.safe_load(Path(named.config).read_text(encoding="utf-8"))
        stored = loaded if isinstance(loaded, dict) else {}
    regime = named.regime or stored.get("regime") or RunConfig.regime
    return regime_defaults(regime, named.method or stored.get("method") or RunConfig.method)


def _config_of(options: dict[str, Any], **changes: Any) -> RunConfig:
    names = {field.name for field in fields(RunConfig)}
    return from_plain({**{name: value for name, value in options.items() if name in names}, **changes})


def _train(options: dict[str, Any]) -> None:
    config = _config_of(options)
    name = options["name"] or f"{config.regime}-{config.method}-seed{config.seed}"
    folder = Path(options["runs_dir"]) / name
    from infer2train.training.loop import train

    trace = None if options["trace"] is None else Path(options["trace"])
    result = train(config, folder, resume=options["resume"], quiet=options["quiet"], trace=trace)
    top5 = "" if result.evaluation.top5_error is None else f", top-5 error {result.evaluation.top5_error:.2%}"
    print(  # noqa: T201
        f"{name}: test error {result.evaluation.error:.2%}{top5}, loss {result.evaluation.loss:.4f}, "
        f"{result.seconds:.1f} s, {result.scoring_share:.0%} of it scoring\nreport: {folder / 'report.html'}"
    )


def _compare(options: dict[str, Any]) -> None:
    from rich.console import Console

    from infer2train.draws.methods.table import METHODS
    from infer2train.settings import unknown
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
        # A colon is no character for a folder's name everywhere.
        (arm.replace(":", "-"), given.seed + offset): _config_of(
            options, seed=given.seed + offset, **_settings_of_arm(options, arm)
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


def _settings_of_arm(options: dict[str, Any], arm: str) -> dict[str, Any]:
    """Settings of `METHOD`, or of `METHOD@ORACLE`."""
    method, _, oracle = arm.partition("@")
    return _own_settings(options, method) | ({"oracle": oracle} if oracle else {})


def _own_settings(options: dict[str, Any], method: str) -> dict[str, Any]:
    """What a method has instead of a comparison's common settings: its regime's own, and nothing without effect."""
    from infer2train.draws.methods.table import METHODS
    from infer2train.draws.selection import PICKS

    general = regime_defaults(options["regime"], RunConfig.method)
    own = {
        name: value
        for name, value in regime_defaults(options["regime"], method).items()
        if value != general[name] and options[name] == general[name] and name not in options["given"]
    }
    own["method"] = method
    if not METHODS[method].is_rampable:
        own |= {"ramp_rate": None, "ramp_start": None, "ramp_stop": None}
    if METHODS[method].score is None or METHODS[method].score == "uniform":
        own["score"] = None
    if METHODS[method].pick not in PICKS:
        own["pick"] = None
    return own


def _report(options: dict[str, Any]) -> None:
    from infer2train.reporting.report import write_report

    print(f"report: {write_report(Path(options['folder']))}")  # noqa: T201


def _eval(options: dict[str, Any]) -> None:
    import json

    from infer2train.training.folder import evaluate_folder

    result = evaluate_folder(Path(options["folder"]), device=options["device"])
    if options["json"]:
        print(json.dumps(vars(result)))  # noqa: T201
        return
    top5 = "" if result.top5_error is None else f", top-5 error {result.top5_error:.2%}"
    print(f"{options['folder']}: test error {result.error:.2%}{top5}, loss {result.loss:.4f}")  # noqa: T201


def _gamma(options: dict[str, Any]) -> None:
    import json

    from rich.console import Console

    from infer2train.studies.gamma.measure import measure_gamma
    from infer2train.studies.gamma.report import print_gamma

    progress = Console(stderr=True)
    with progress.status("measuring …") as status:
        report = measure_gamma(
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
            say=(lambda line: None) if options["quiet"] else (lambda line: _tell(line, progress, status)),
        )
    if options["json"] is not None:
        Path(options["json"]).write_text(json.dumps(report.as_plain(), indent=2) + "\n", encoding="utf-8")
    console = Console()
    print_gamma(report, console if console.is_terminal else Console(width=WIDTH_OF_A_FILE))


def _tell(line: str, console: Any, status: Any) -> None:
    """What is under way: as the live line of a terminal, as a line of its own elsewhere."""
    status.update(f"measuring {line}")
    if not console.is_terminal:
        console.print(f"measuring {line}", highlight=False)


def _demo(options: dict[str, Any]) -> None:
    from infer2train.studies.demo import demo

    demo(Path(options["runs_dir"]), quiet=options["quiet"])


def _reproduce(options: dict[str, Any]) -> None:
    from rich.console import Console

    from infer2train.settings import unknown
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
    "eval": _eval,
    "gamma": _gamma,
    "reproduce": _reproduce,
    "demo": _demo,
}


if __name__ == "__main__":
    sys.exit(main())
