"""The arguments of the command line: a parser for each verb, and where its defaults come from."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonargparse

from infer2train import __version__
from infer2train.draws.mining import Mining
from infer2train.training.config import DataConfig, RunConfig, TrainingConfig
from infer2train.training.regimes import regime_defaults

GROUPS = {"data": DataConfig, "mining": Mining, "training": TrainingConfig}


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
    parser = _parser(
        "Put cheap inference silicon to work on training accuracy.",
        prog="infer2train",
        epilog="Every verb takes --debug, which shows the traceback of an error.",
        version=__version__,
    )
    verbs = parser.add_subcommands(dest="verb", required=True)
    verbs.add_subcommand("train", _train_parser(arguments), help="train a model with one method")
    verbs.add_subcommand("compare", _compare_parser(arguments), help="compare methods over paired seeds")
    verbs.add_subcommand(
        "report", _report_parser(), help="write the report of a run or comparison again, or compare any runs"
    )
    verbs.add_subcommand("inspect", _inspect_parser(), help="show what a run picked, and samples of doubtful labels")
    verbs.add_subcommand("eval", _eval_parser(), help="evaluate the newest checkpoint of a run")
    verbs.add_subcommand(
        "export", _export_parser(), help="write a trained network as ONNX, OpenVINO IR and safetensors"
    )
    verbs.add_subcommand("gamma", _gamma_parser(), help="measure what this machine can do, and whether mining pays")
    verbs.add_subcommand("plan", _plan_parser(), help="how many oracles keep gamma fed, and what a step then costs")
    verbs.add_subcommand("advise", _advise_parser(), help="does mining pay for a baseline, by what was measured before")
    verbs.add_subcommand("reproduce", _reproduce_parser(), help="the paper's figures and tables, and whether it pays")
    verbs.add_subcommand("demo", _demo_parser(), help="what helps and what does not, on real data, in minutes")
    return parser


def flags_of(verb: str | None, arguments: Sequence[str]) -> list[str]:
    """The flags that a verb takes; of no verb, those that stand before one."""
    parser = build_parser(arguments)
    verbs: Any = next(action.choices for action in parser._actions if action.choices)
    takes = parser if verb is None else verbs[verb]
    return [flag for flag in (*takes._option_string_actions, "--debug") if flag.startswith("--")]


def _parser(description: str, **more: Any) -> jsonargparse.ArgumentParser:
    """A parser that takes flags by their whole names only: `given`, and what looks for the regime, go by those."""
    return jsonargparse.ArgumentParser(description=description, exit_on_error=False, allow_abbrev=False, **more)


def _train_parser(arguments: Sequence[str]) -> jsonargparse.ArgumentParser:
    parser = _parser("Train a model with one of the paper's methods.")
    _add_folder(parser, "Name of the run's folder. Default: REGIME-METHOD-seedN.")
    trace_help = "Write what trainer and oracles do when to this file, for ui.perfetto.dev or chrome://tracing."
    parser.add_argument("--trace", type=str | None, default=None, help=trace_help)
    _add_settings(parser, arguments)
    return parser


def _compare_parser(arguments: Sequence[str]) -> jsonargparse.ArgumentParser:
    parser = _parser("Train methods × seeds, paired by seed, and compare them.")
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
    parser = _parser(
        "Write report.html of a run or comparison folder again; of several of them, one page that compares "
        "all their runs: what differs, curves over steps and seconds, differences where seeds agree, and costs."
    )
    add = parser.add_argument
    add("folders", type=str, nargs="+", help="Folders such as runs/NAME, of runs and of comparisons.")
    out_help = "File of the page. Default: report.html in the folder; of several, comparison.html beside the first."
    add("--out", type=str | None, default=None, help=out_help)
    against_help = (
        "Of several, the folder that the others are compared with. Default: the first baseline, or the first."
    )
    add("--baseline", type=str | None, default=None, help=against_help)
    return parser


def _add_where_data_are(parser: jsonargparse.ArgumentParser) -> None:
    data_help = "The folder where the run's images are now, or their name. Default: as trained."
    parser.add_argument("--data", type=str | None, default=None, help=data_help)


def _inspect_parser() -> jsonargparse.ArgumentParser:
    parser = _parser(
        "Write inspect.html into a run's folder: picked beside rejected views, what was picked how often, "
        "the most extreme, and suspects (also as suspects.csv)."
    )
    parser.add_argument("folder", type=str, help="A run folder such as runs/NAME, of train.")
    _add_where_data_are(parser)
    parser.add_argument("--quiet", action="store_true", help="Show no progress.")
    return parser


def _eval_parser() -> jsonargparse.ArgumentParser:
    parser = _parser(
        "Evaluate the newest good checkpoint of a run on what it was evaluated on: its test images, or those that "
        "--validation-split held back."
    )
    parser.add_argument("folder", type=str, help="A run folder such as runs/NAME.")
    _add_where_data_are(parser)
    parser.add_argument("--device", type=str | None, default=None, help="Where to evaluate. Default: as trained.")
    best_help = "Evaluate the version that the oracle found to be the best instead: of train --keep-best true."
    parser.add_argument("--best", action="store_true", help=best_help)
    test_help = "Evaluate on the test images, also where others were held back: they have chosen what --best evaluates."
    parser.add_argument("--test", action="store_true", help=test_help)
    parser.add_argument("--json", action="store_true", help="Print one JSON object instead of a sentence.")
    return parser


def _export_parser() -> jsonargparse.ArgumentParser:
    parser = _parser(
        "Write the newest good checkpoint of a run as files that other programs run, fp32 and int8; judge "
        "each in a fresh process, and describe them in a model card."
    )
    add = parser.add_argument
    add("folder", type=str, help="A run folder such as runs/NAME.")
    _add_where_data_are(parser)
    add("--into", type=str | None, default=None, help="Folder of the files. Default: export in the run's folder.")
    formats_help = "safetensors, onnx, onnx-int8, openvino, openvino-int8. Default: all whose packages are installed."
    add("--formats", nargs="+", default=[], help=formats_help)
    add("--threads", type=int, default=1, help="Threads of the runtimes that judge.")
    add("--quiet", action="store_true", help="Show no progress.")
    return parser


def _gamma_parser() -> jsonargparse.ArgumentParser:
    parser = _parser("Measure trainer, int8 engines and views on this machine: γ, alone and end to end, and a verdict.")
    _add_measuring(parser)
    parser.add_argument("--json", type=str | None, default=None, help="Write everything measured to this file.")
    return parser


def _plan_parser() -> jsonargparse.ArgumentParser:
    parser = _parser(
        "Say how many oracle workers of which kind keep γ fed, and what a step then costs: measured as by "
        "gamma, or from its file."
    )
    add = parser.add_argument
    add("--measured", type=str | None, default=None, help="What gamma --json wrote. Default: it is measured now.")
    add("--workers", type=int, nargs="+", default=[1, 2, 4, 8], help="Numbers of oracle workers to plan for.")
    add("--update-every", type=int, default=100, help="Steps between refreshes of the oracle (T).")
    add("--delay-steps", type=int, default=0, help="Extra steps of allowed staleness (D).")
    add("--link-mbit", type=float, default=1000.0, help="Between trainer and oracles (megabits a second).")
    _add_measuring(parser)
    return parser


def _add_measuring(parser: jsonargparse.ArgumentParser) -> None:
    """What gamma measures."""
    add = parser.add_argument
    add("--model", type=str | None, default=None, help="As for train. Default: resnet44, or the run's.")
    add("--data", type=str | None, default=None, help="As for train. Default: random pixels, or the run's.")
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
    add("--run", type=str | None, default=None, help="A run folder: its model, views and newest weights.")
    add("--engines", nargs="+", default=[], help="Engines to measure. Default: all that are installed.")
    add("--quiet", action="store_true", help="Show no progress.")


def _advise_parser() -> jsonargparse.ArgumentParser:
    parser = _parser("Say which methods helped and hurt trainings like a baseline's, how like, and what to try.")
    add = parser.add_argument
    add("folder", type=str | None, nargs="?", default=None, help="Run folder of a baseline, finished or running.")
    add("--view-error", type=float | None, default=None, help="Without a folder: error on random training views (%%).")
    noise_help = "Part of the training labels that are thought to be wrong (0 to 1). Default: what the run made wrong."
    add("--label-noise", type=float | None, default=None, help=noise_help)
    return parser


def _reproduce_parser() -> jsonargparse.ArgumentParser:
    from infer2train.studies.reproduce.experiments import EXPERIMENTS

    questions = "; ".join(f"{name}: {experiment.title}" for name, experiment in EXPERIMENTS.items())
    parser = _parser(
        "Train an experiment of the paper over paired seeds, and write its table and figures. It can be "
        "stopped at any moment; the same command goes on. " + questions
    )
    add = parser.add_argument
    add("experiment", type=str, help=f"{', '.join(EXPERIMENTS)}.")
    add(
        "--scale",
        type=str,
        default="mini",
        help="full: the paper's; midi: its length with ResNet-20; mini: for two cores.",
    )
    add(
        "--variant",
        type=str,
        default="clean",
        help="Training set: clean, noisy (10 % wrong), very-noisy (30 %), long-tailed or redundant.",
    )
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
    parser = _parser("Show on scikit-learn's digits, some labels wrong, what helps and what does not.")
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
    """The defaults of the regime, the method and the length that the arguments (or the --config they name) ask for."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--regime", "--method", "--config", "--epochs"):
        peek.add_argument(flag)
    named, _ = peek.parse_known_args(arguments)
    stored: dict[str, Any] = {}
    if named.config and Path(named.config).is_file():
        import yaml

        loaded = yaml.safe_load(Path(named.config).read_text(encoding="utf-8"))
        stored = loaded if isinstance(loaded, dict) else {}
    regime, method, epochs = (getattr(named, name) or stored.get(name) for name in ("regime", "method", "epochs"))
    # What is no number, the real parser refuses.
    length = int(epochs) if epochs is not None and str(epochs).isdecimal() else None
    return regime_defaults(regime or RunConfig.regime, method or RunConfig.method, epochs=length)
