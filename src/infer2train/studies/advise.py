"""`infer2train advise`: does mining pay for this training, by what was measured before, before anybody spends a day.

It reads how far a baseline has come (the folder of a finished or running run, or two numbers given by hand), looks up
what was measured nearest to it (`reporting.evidence`), and says how near that is.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from infer2train.observe.runlog import read_config, read_rows, says_finished
from infer2train.reporting.evidence import FAR, NOISY, Evidence, Fitted, evidence, nearest
from infer2train.training.config import RunConfig, from_plain

COSTS, EVEN = 2.0, 1.0
"""Errors on random training views (%) from which the hardest view has cost test error, and below which it was even."""


def read_baseline(folder: Path, label_noise: float | None) -> Fitted:
    """The run in a folder, as far as it is.

    Args:
        folder: of a run of `train`.
        label_noise: part of the labels that are thought to be wrong. Default: what the run itself made wrong.

    Raises:
        ValueError: there is no run, or it has not measured its error on random training views yet.
    """
    config, rows = from_plain(read_config(folder)), read_rows(folder)
    seen = [row for row in rows if row["kind"] == "epoch" and row.get("train_error_random") is not None]
    if not seen:
        raise ValueError(
            f"advise reads the error on random training views: got none in {folder}; wait for the first evaluation, "
            "train with --train-error-samples 2000, or pass --view-error"
        )
    last = seen[-1]
    return Fitted(
        view_error=100 * last["train_error_random"],
        label_noise=config.label_noise if label_noise is None else label_noise,
        progress=1.0 if says_finished(rows) else (last["epoch"] + 1) / config.epochs,
        name=f"{folder}: {config.model}, epoch {last['epoch'] + 1} of {config.epochs}",
        method=config.method,
    )


def advice(baseline: Fitted, found: Sequence[tuple[Evidence, float]]) -> list[str]:
    """What to do, in sentences."""
    said = []
    if baseline.method != RunConfig.method:
        said.append(f"This is a run of {baseline.method}: the table is about what a baseline's figures would be.")
    if baseline.progress < 1:
        said.append(
            f"The run is at {baseline.progress:.0%}: its error on training views will fall further; ask again at the "
            "end, or before its learning rate has dropped take this as the worst case for mining views."
        )
    helpful = [(entry, away) for entry, away in found if entry.verdict == "helps" and away <= FAR]
    if helpful:
        best, away = helpful[0]
        labels = f"{best.label_noise:.0%} of the labels were wrong and " if best.label_noise else ""
        both = " and that part" if labels else ""
        said.append(
            f"Try {best.method}: {best.difference:+.1f} points where {labels}the error on training views{both} within "
            f"{away:.1f} times yours. Compare it over 5 seeds (infer2train compare) before you believe it."
        )
        said += [
            f"It was {entry.difference:+.1f} [{entry.low:+.1f}, {entry.high:+.1f}] points elsewhere, which is as much "
            f"like yours: {entry.where}."
            for entry, _ in found
            if entry.method == best.method and entry is not best
        ]
        if best.on_equal_hardware is not None and best.on_equal_hardware > 0:
            said.append(
                "That was at equal steps. The same hardware did as well or better there by training longer "
                f"({best.method} {best.on_equal_hardware:+.1f} points from it): do that first, where it can train."
            )
    elif not found:
        said.append("Nothing was measured with labels like these yet: compare over 5 seeds (infer2train compare).")
    else:
        said.append("Mining has helped nowhere near here: keep the baseline, and train longer if the hardware is idle.")
    if baseline.label_noise < NOISY:
        said += [rule] if (rule := rule_of_views(baseline.view_error)) else []
        said.append("If some of your labels are wrong, say how many: --label-noise 0.1.")
    else:
        said.append(rule_of_labels(baseline))
    said.append("What γ this machine can afford, and what it costs: infer2train gamma --run FOLDER.")
    return said


def rule_of_labels(baseline: Fitted) -> str:
    """What the rule for wrong labels says of a baseline, some of whose labels are wrong."""
    page, wrong = (
        "docs/results/2026-11-30-by-heart.md",
        f"the {100 * baseline.label_noise:.0f} % of labels that are wrong",
    )
    if baseline.view_error < 100 * baseline.label_noise:
        return (
            f"By the rule of {page} {wrong} are being learned by heart, since its error on training views is below "
            "that: leave out what models of the other half do not believe (trusted-random), or stop earlier."
        )
    return (
        f"By the rule of {page} nothing of {wrong} has been learned by heart yet, since its error on training views "
        "is not below that: training longer comes first."
    )


def rule_of_views(view_error: float) -> str:
    """What the rule for picking views says of a baseline's error on random training views (%); empty between."""
    page = "docs/results/2026-11-29-demo-and-map.md"
    if view_error >= COSTS:
        return f"By the rule of {page} the hardest view costs test error here; how much, it does not say."
    if view_error < EVEN:
        return f"By the rule of {page} it makes hardly a difference here which view is taken."
    return ""


def print_advice(baseline: Fitted, console: Console) -> None:
    """The table of what was measured nearest, and what follows."""
    found = nearest(baseline, evidence())
    noise = f", {baseline.label_noise:.0%} of the labels wrong" if baseline.label_noise else ""
    console.print(
        f"{baseline.name}, {baseline.view_error:.1f} % error on random training views{noise}",
        highlight=False,
        soft_wrap=True,
    )
    places = list(dict.fromkeys((entry.where, entry.view_error, entry.page) for entry, _ in found))
    table = Table("method", "points [95 %]", "verdict", "on equal hardware", "seeds", "measured in", "like yours")
    for entry, away in found:
        table.add_row(
            entry.method,
            f"{entry.difference:+.2f} [{entry.low:+.2f}, {entry.high:+.2f}]",
            entry.verdict,
            "–" if entry.on_equal_hardware is None else f"{entry.on_equal_hardware:+.2f}",
            str(entry.seeds),
            f"({places.index((entry.where, entry.view_error, entry.page)) + 1})",
            "rather" if away <= FAR else "hardly",
        )
    if found:
        console.print(table)
    for number, (where, view_error, page) in enumerate(places, start=1):
        console.print(
            f"({number}) {where}; {view_error:.1f} % error on random training views; {page}",
            highlight=False,
            soft_wrap=True,
        )
    for sentence in advice(baseline, found):
        console.print(sentence, highlight=False, soft_wrap=True)
