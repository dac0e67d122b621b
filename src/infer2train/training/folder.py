"""A run's folder: who may train in it, and how what was trained there ended."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from rich.console import Console

from infer2train.checkpoint.checkpoint import Checkpoint, load_checkpoint
from infer2train.data.digest import digest
from infer2train.data.hub import NAME
from infer2train.data.images import AnySplit
from infer2train.data.load import is_gone
from infer2train.observe.runlog import CONFIG, read_config, read_rows, says_finished
from infer2train.settings import as_plain, decisive, differences, is_utf8
from infer2train.training.config import RunConfig, from_plain, unmined
from infer2train.training.evaluation import Evaluation, evaluate
from infer2train.training.setup import Run, prepare, resolved, views_of

CHECKPOINTS, BEST = "checkpoints", "best"
LOCK = ".lock"
"""Held by the process that trains in a folder; the file alone, which stays, means nothing."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a finished run ended."""

    folder: Path
    evaluation: Evaluation
    seconds: float
    scoring_share: float


def enter_folder(config: RunConfig, folder: Path, resume: bool) -> RunConfig:
    """The resolved configuration of the run that may be trained in a folder; nothing is written.

    A run whose data were moved may name where they are now: that they are the same, their digest tells later.

    Raises:
        ValueError: the folder exists and `resume` is not set, or its configuration differs, or its name is no UTF-8.
    """
    if not is_utf8(folder.name):
        raise ValueError(f"a run is called as its folder, in UTF-8: got {folder.name!r}; pass another --name")
    if (folder / CONFIG).is_file():
        if not resume:
            raise ValueError(
                f"a new run needs a new folder: got {folder}, which exists; pass --resume to go on with it, or --name "
                "for another one"
            )
        stored = as_plain(from_plain(read_config(folder)))  # settings that a newer release added have their defaults
        config = resolved(config, stored)
        if is_gone(stored["data"]):
            stored["data"] = config.data
        if differ := differences(decisive(RunConfig, stored), decisive(RunConfig, as_plain(config))):
            raise ValueError(
                f"a resumed run needs the configuration it was started with: got {'; '.join(differ)} in {folder}; pass "
                "the same settings, or another --name or --runs-dir for a new run"
            )
        return config
    # A run that was killed while it wrote its configuration leaves a hidden file.
    if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ValueError(f"a new run needs a new folder: got {folder}, which holds other files; pass another --name")
    return resolved(config)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Within, no other process trains in the folder, which is made.

    Raises:
        ValueError: one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"one process at a time trains in a folder: got {folder}, where another one does; wait for its end, or "
            "pass another --name"
        ) from error
    try:
        yield
    finally:
        lock.release()


def result_of(folder: Path) -> Result:
    """How the finished run in a folder ended, from its metrics."""
    epochs = [row for row in read_rows(folder) if row["kind"] == "epoch"]
    last = epochs[-1]
    seconds = sum(row["seconds"]["total"] for row in epochs)
    mining = sum(row["seconds"].get(name, 0.0) for row in epochs for name in ("views", "scoring", "publishing"))
    evaluation = Evaluation(
        loss=last["test_loss"],
        error=last["test_error"],
        top5_error=last["test_top5_error"],
        calibration_error=last["test_calibration_error"],
    )
    return Result(folder=folder, evaluation=evaluation, seconds=seconds, scoring_share=mining / seconds)


def is_finished(folder: Path) -> bool:
    """Whether the run in a folder came to its end."""
    return says_finished(read_rows(folder))


def config_of(folder: Path, verb: str, remedy: str, data: str | None = None) -> RunConfig:
    """The configuration of a run, for a verb that needs its weights and data.

    Args:
        folder: of the run.
        verb: who asks, for the error.
        remedy: for a loop of one's own, likewise.
        data: what its images are called now, or the folder where they are. Default: as trained.

    Raises:
        ValueError: the folder is of a loop of one's own, whose weights and data nobody but its owner has; or the images
            are no longer where they were.
    """
    plain = read_config(folder)
    if "regime" not in plain:
        raise ValueError(
            f"{verb} needs a run of `infer2train train`, whose weights and data it finds: got {folder}, the log of a "
            f"loop of your own; {remedy}"
        )
    config = from_plain(plain)
    if data is None and is_gone(config.data) and not NAME.fullmatch(config.data):
        raise ValueError(
            f"{verb} reads the images that {folder} was trained on: got {config.data}, which is not there; pass --data "
            "with the folder where they are now"
        )
    return config if data is None else replace(config, data=data)


def tell_rejected(checkpoint: Checkpoint) -> None:
    """Say on standard error which newer checkpoints were passed over, and why."""
    for rejected in checkpoint.rejected:
        Console(stderr=True).print(
            f"damaged checkpoint passed over: {rejected}", highlight=False, markup=False, soft_wrap=True
        )


def require_same_images(run: Run, state: Mapping[str, Any], rule: str, remedy: str) -> None:
    """Refuse the weights of a checkpoint that was trained on other images than the run now has.

    Args:
        run: as its configuration and the images of today have it, split as it was trained.
        state: of the checkpoint. One of an earlier release does not tell, and passes.
        rule: who needs which images, for the error.
        remedy: besides putting them back, for the error.

    Raises:
        ValueError: labels or content are others.
    """
    if state.get("data", run.digest) != run.digest:
        raise ValueError(
            f"{rule}: got others in {run.config.data}, of other labels or content; put them back, or {remedy}"
        )


def is_trained_on(folder: Path, train: AnySplit) -> bool:
    """Whether these are the images of the run in a folder, by its log; one of an earlier release does not tell: yes."""
    told = [row["data"] for row in read_rows(folder) if row["kind"] == "start" and "data" in row]
    return not told or bool(told[-1] == digest(train))


def evaluate_folder(
    folder: Path, *, device: str | None = None, best: bool = False, on_test: bool = False, data: str | None = None
) -> Evaluation:
    """Evaluate the newest good checkpoint of a run on what the run is evaluated on.

    Args:
        folder: of the run.
        device: where. Default: as trained.
        best: the version that the oracle found to be the best instead.
        on_test: on the test images, also where the run holds images back to be evaluated on.
        data: what its images are called now, or the folder where they are. Default: as trained.

    Raises:
        ValueError: there is no run or no checkpoint, or the images are not those that it was trained on.
    """
    config = config_of(folder, "eval", "your model is yours to evaluate", data)
    checkpoint = load_checkpoint(folder / (BEST if best else CHECKPOINTS))
    if checkpoint is None:
        remedy = "train it with --validation oracle --keep-best true" if best else "train the run first"
        raise ValueError(f"eval needs a checkpoint: got none in {folder}; {remedy}")
    tell_rejected(checkpoint)
    run = prepare(replace(unmined(config), device=device or config.device, compile="none"), progress=False)
    try:
        require_same_images(
            run, checkpoint.state, "eval needs the images that the run was trained on", "train another run on these"
        )
        if on_test and config.validation_split:
            home = torch.device("cpu") if config.num_workers else run.device
            run = replace(run, evaluation_images=views_of(run.data.test, run.evaluation_images.view, home))
        run.model.load_state_dict(checkpoint.state["model"])
        return evaluate(run.model, run.evaluation_images, run.evaluation_addresses(), run.device, run.view_workers)
    finally:
        run.loader.close()
