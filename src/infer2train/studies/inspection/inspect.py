"""`infer2train inspect`: one self-contained page about what a run picked, and a list of probably wrong labels."""

import csv
import io
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from infer2train.batches import Split, split_batch
from infer2train.reporting.gallery import replace_file
from infer2train.reporting.report import page_template
from infer2train.studies.inspection.entries import Gaze, beside, most_extreme, suspect_entries
from infer2train.studies.inspection.findings import CONCENTRATED, TOP, class_shares, concentration
from infer2train.studies.inspection.judge import Losses
from infer2train.studies.inspection.shown import Show
from infer2train.studies.inspection.subject import Subject, subject
from infer2train.studies.inspection.suspects import Suspects, suspects
from infer2train.studies.inspection.tokens import CHANCES, TokenText, has_tokens

PAGE, TABLE, TEMPLATE = "inspect.html", "suspects.csv", "inspect.html.j2"


def inspect(
    folder: str | Path,
    data: Any = None,
    *,
    transform: Callable[[Any], Any] | None = None,
    split: Split = split_batch,
    model: nn.Module | None = None,
    losses: Losses | None = None,
    show: Show | None = None,
    token_text: TokenText | None = None,
    class_names: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write `inspect.html` and `suspects.csv` into the folder of a run.

    Views are made again from their addresses; nothing but those was kept.

    Args:
        folder: of `train`, or the `log_dir` of `mine()`; of a run that is under way or done.
        data: what `mine()` was given, a DataLoader; of a run of `train`, what its images are called now, or the folder
            where they are. Default: what the run's configuration names.
        transform: what `mine()` was given.
        split: likewise.
        model: with the run's weights, for the losses of what is shown: one for each sample or token. Default: none.
        losses: (outputs, targets) -> [n] or, of tokens, [n, t], NaN for those that do not count. Default: those that
            the run's score is the mean of, as a rule cross entropy.
        show: makes an image or a text of the inputs of one sample. Default: images, texts, tokens and rows of numbers.
        token_text: what a token says, by its id, such as `lambda token: tokenizer.decode([token])`; spaces are its own.
            Default: the id.
        class_names: by label. Default: those of the run's data.
        say: called with what is being done.

    Returns:
        The path of the page.

    Raises:
        ValueError: nothing was kept of what the run picked, or its data are not known, or cannot be shown.

    Example:
        >>> inspect("runs/first")
        PosixPath('runs/first/inspect.html')
    """
    _check(model, losses, show, token_text)
    gaze = Gaze(show, token_text)
    say("what was picked, and the data")
    run = subject(
        Path(folder), data, transform=transform, split=split, class_names=class_names, model=model, losses=losses
    )
    say("labels")
    labels = run.labels(run.source.ids)
    ranked = suspects(run.rows, run.is_of_views)
    say("views")
    context = {**_facts(run), **_entries(run, gaze, ranked), **_spreads(run, labels)}
    source = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    from markupsafe import Markup

    page = page_template(source, {"element": Markup, "loss": _loss}).render(context)
    replace_file(run.folder / PAGE, page.encode())
    replace_file(run.folder / TABLE, _table(run, ranked, labels).encode())
    return run.folder / PAGE


def _check(model: Any, losses: Any, show: Any, token_text: Any) -> None:
    if losses is not None and model is None:
        raise ValueError("losses= are of what a model gives: got no model; pass model=, with the run's weights, too")
    if show is not None and token_text is not None:
        raise ValueError("show= says all that is seen of a sample: got token_text= too; pass one of them")


def _facts(run: Subject) -> dict[str, Any]:
    rows = run.rows
    lags = (rows["step"] - rows["version"])[rows["version"] >= 0]
    return {
        "title": run.folder.resolve().name,
        "method": run.mining.method,
        "of_views": run.is_of_views,
        "has_losses": run.has_losses,
        "num_samples": len(run.source.ids),
        "num_rows": int(rows["is_trained"].sum()),
        "num_picks": int(rows["is_picked"].sum()),
        "median_lag": float(np.median(lags)) if len(lags) else None,
        "is_judged": run.judge is not None,
        "chances": CHANCES,
        "top": TOP,
        "concentrated": CONCENTRATED,
    }


def _spreads(run: Subject, labels: dict[int, int]) -> dict[str, Any]:
    return {
        "classes": [(run.class_name(share.label), share) for share in class_shares(run.rows, labels)],
        "concentration": concentration(run.rows, len(run.source.ids)),
    }


def _entries(run: Subject, gaze: Gaze, ranked: Suspects) -> dict[str, Any]:
    picks, extremes, doubtful = beside(run, gaze), most_extreme(run, gaze), suspect_entries(run, ranked, gaze)
    return {
        "picks": picks,
        "extremes": extremes,
        "suspects": doubtful,
        "num_ranked": len(ranked.ids),
        "names": sorted(({entry.label for entry in picks + extremes} | {entry.label for entry in doubtful}) - {""}),
        "has_tokens": any(has_tokens(view.element) for pick in extremes for view in pick.views),
    }


def _loss(value: float | None) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:.2f}"


def _table(run: Subject, ranked: Suspects, labels: dict[int, int]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    what = "loss" if run.has_losses else "score"
    writer.writerow(["rank", "id", "label", what, "looks", *(["file"] if run.file_of else [])])
    columns = (ranked.ids.tolist(), ranked.losses.tolist(), ranked.looks.tolist())
    for rank, (sample, loss, looks) in enumerate(zip(*columns, strict=True), start=1):
        label = run.class_name(labels[sample]) if sample in labels else ""
        writer.writerow([rank, sample, label, f"{loss:.4f}", looks, *([run.file_of(sample)] if run.file_of else [])])
    return file.getvalue()
