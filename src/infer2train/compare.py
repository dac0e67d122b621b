"""Methods × seeds: the same run under several methods, paired by seed, and what the differences can be trusted for."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from infer2train.config import RunConfig
from infer2train.reporting.report import write_report
from infer2train.reporting.summary import MethodSummary, summarise
from infer2train.reporting.tables import comparison_table
from infer2train.runlog import CONFIG
from infer2train.training.loop import is_finished, train

COMPARISON = "comparison.json"
BASELINE = "baseline"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared: a run for every method and seed."""

    runs: dict[tuple[str, int], RunConfig]
    """By (method, seed), in the order in which they are trained."""

    @property
    def methods(self) -> list[str]:
        """Methods in the order asked for."""
        return list(dict.fromkeys(method for method, _ in self.runs))

    @property
    def seeds(self) -> list[int]:
        """Seeds in the order asked for."""
        return list(dict.fromkeys(seed for _, seed in self.runs))


def compare(comparison: Comparison, folder: Path, *, resume: bool = False, quiet: bool = False) -> list[MethodSummary]:
    """Train every run of a comparison in its own sub-folder, then write the comparison's report.

    Finished runs are not repeated. Seeds are the outer loop, so that an interrupted comparison has whole pairs.

    Raises:
        ValueError: the folder exists and `resume` is not set, or a run in it has another configuration.
        Interrupted: Ctrl-C.
    """
    if folder.exists() and not resume:
        raise ValueError(
            f"a new comparison needs a new folder: got {folder}, which exists; pass --resume to go on with it, or "
            "--name for another one"
        )
    folder.mkdir(parents=True, exist_ok=True)
    contents = {"methods": comparison.methods, "seeds": comparison.seeds, "baseline": BASELINE}
    (folder / COMPARISON).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    for number, ((method, seed), config) in enumerate(comparison.runs.items(), start=1):
        target = folder / f"{method}-seed{seed}"
        if (target / CONFIG).is_file() and is_finished(target):
            continue
        title = f"[{number}/{len(comparison.runs)}] {method}, seed {seed}"
        result = train(config, target, resume=target.exists(), quiet=quiet, title=title, report=False)
        if not quiet:
            Console(stderr=True).print(
                f"{title}: test error {result.evaluation.error:.2%} in {result.seconds:.1f} s", highlight=False
            )
    write_report(folder)
    return summarise(folder)


def print_comparison(summaries: Sequence[MethodSummary], folder: Path, console: Console) -> None:
    """The table, and where the report is."""
    console.print(comparison_table(summaries))
    console.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)
