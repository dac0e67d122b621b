"""The training loop: epochs of mined draws, an evaluation after each, checkpoints on the way.

A user of `mine()` like any other. Whatever stops it (Ctrl-C, SIGKILL, a full disk) leaves the last good checkpoint,
from which `resume=True` goes on to the same final weights, bit for bit.
"""

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import NoReturn

import torch
from rich.console import Console
from torch import nn

from infer2train.audit import audit_draw
from infer2train.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from infer2train.config import RunConfig, as_plain, differences, from_plain
from infer2train.metrics import LOGGED, draws_per_second, window
from infer2train.oracle.engine import NotFiniteError
from infer2train.reporting.gallery import load_gallery, save_gallery
from infer2train.reporting.report import write_report
from infer2train.runlog import CONFIG, RunLog, read_config, read_rows, take_back, write_config
from infer2train.training.evaluation import Evaluation, evaluate
from infer2train.training.progress import RunProgress
from infer2train.training.schedule import learning_rate
from infer2train.training.setup import Run, prepare, resolved
from infer2train.training.step import EpochSums, StepResult, penalty_gradient_ratio, train_step

CHECKPOINTS = "checkpoints"
GALLERY_EPOCHS = 6
"""Contact sheets kept of a run: of its first epochs and of its last ones."""
REFRESH_SECONDS = 0.5
"""Wall-clock between updates of the live line."""


class Interrupted(Exception):  # noqa: N818 -- not an error: it did what was asked
    """The user asked the run to stop; it has finished its step and written a checkpoint."""


class DivergedError(RuntimeError):
    """The training loss, or a weight, is no longer a number."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a finished run ended."""

    folder: Path
    evaluation: Evaluation
    seconds: float
    scoring_share: float


def train(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool = False,
    quiet: bool = False,
    title: str | None = None,
    report: bool = True,
) -> Result:
    """Train a run to its end in its folder; write configuration, metrics, checkpoints and report there.

    Args:
        config: the run.
        folder: must be new, unless `resume`.
        resume: go on from the newest good checkpoint; start where there is none.
        quiet: show no progress.
        title: what the progress line calls the run. Default: the folder's name.
        report: write report.html at the end.

    Raises:
        ValueError: the folder exists, or holds another configuration, or the configuration cannot be met.
        Interrupted: Ctrl-C; everything is saved.
        DivergedError: the loss or a weight became NaN or infinite.
        CheckpointError: the disk refused a checkpoint; the earlier ones are good.
    """
    config = enter_folder(config, folder, resume)
    run = prepare(config, progress=not quiet)
    write_config(folder, as_plain(config))  # only now: a run that cannot be made leaves no folder
    sums = EpochSums()
    checkpoint = load_checkpoint(folder / CHECKPOINTS) if resume else None
    if checkpoint is not None:
        run.model.load_state_dict(checkpoint.state["model"])
        run.optimizer.load_state_dict(checkpoint.state["optimizer"])
        run.loader.load_state_dict(checkpoint.state["loader"])
        sums = EpochSums.from_state(checkpoint.state["sums"])
    take_back(folder, run.loader.steps, run.loader.epoch)
    log = RunLog(folder)
    with (
        _interruptible() as interrupt,
        RunProgress(title or folder.name, config.epochs * run.steps_per_epoch, quiet=quiet) as progress,
    ):
        log.start(str(run.device), config.threads or 1)
        _announce(run, checkpoint, log, progress)
        try:
            _train_epochs(run, folder, sums, log, progress, interrupt)
        except NotFiniteError as error:
            _stop_diverged(run, folder, "the oracle's weights must stay finite: got NaN or infinity", log, error)
        finally:
            log.close()
            run.loader.close()
    if report:
        write_report(folder)
    return result_of(folder)


def enter_folder(config: RunConfig, folder: Path, resume: bool) -> RunConfig:
    """The resolved configuration of the run that may be trained in a folder; nothing is written.

    Raises:
        ValueError: the folder exists and `resume` is not set, or its configuration differs.
    """
    if (folder / CONFIG).is_file():
        if not resume:
            raise ValueError(
                f"a new run needs a new folder: got {folder}, which exists; pass --resume to go on with it, or --name "
                "for another one"
            )
        stored = read_config(folder)
        config = resolved(config, stored)
        if differ := differences(stored, as_plain(config)):
            raise ValueError(
                f"a resumed run needs the configuration it was started with: {'; '.join(differ)}; pass the same "
                "settings, or --name for a new run"
            )
        return config
    # A run that was killed while it wrote its configuration leaves a hidden file.
    if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ValueError(f"a new run needs a new folder: got {folder}, which holds other files; pass another --name")
    return resolved(config)


def _announce(run: Run, checkpoint: Checkpoint | None, log: RunLog, progress: RunProgress) -> None:
    """Log and show what the reader must know before the first step."""
    step = run.loader.steps
    if run.data.skipped:
        message = f"images left out because they could not be decoded: {run.data.skipped}"
        log.write("event", event="images-skipped", step=step, message=message)
        progress.say(message)
    if checkpoint is None:
        return
    for rejected in checkpoint.rejected:
        log.write("event", event="checkpoint-rejected", step=step, message=rejected)
        progress.warn(f"damaged checkpoint passed over: {rejected}")
    log.write("event", event="resumed", step=step, message=f"resumed at step {step}")
    progress.say(f"resumed at step {step}")


def _train_epochs(
    run: Run, folder: Path, sums: EpochSums, log: RunLog, progress: RunProgress, interrupt: "_Interrupt"
) -> None:
    """Algorithm 1: the loader refreshes the oracle and picks, we optimise."""
    watch = _Watch(run, sums, log, progress)
    for epoch in range(run.loader.epoch, run.config.epochs):
        watch.come_back()
        for images, targets in run.loader:
            lr = learning_rate(run.config, run.loader.steps, run.steps_per_epoch)
            for group in run.optimizer.param_groups:
                group["lr"] = lr
            result = train_step(run, images, targets, sums)
            watch.step(result, lr)
            is_due = run.loader.steps % run.config.checkpoint_every == 0
            if not math.isfinite(result.loss):
                _stop_diverged(run, folder, f"the training loss must stay finite: got {result.loss}", log)
            is_kept = is_due or interrupt.is_set or run.loader.steps % run.steps_per_epoch == 0
            if is_kept and not _is_finite(run.model):
                _stop_diverged(run, folder, "the weights must stay finite: got NaN or infinity", log)
            if is_due or interrupt.is_set:
                watch.leave()
                _checkpoint(run, folder, sums, log)
                watch.come_back()
            if interrupt.is_set:
                _stop_interrupted(run.loader.steps, log)
        watch.epoch(epoch, folder)
        sums.reset()
        _checkpoint(run, folder, sums, log)
    log.write("event", event="finished", step=run.loader.steps, message=f"finished after {run.loader.steps} steps")


class _Watch:
    """What is measured, logged and shown while training; nothing here changes what is computed."""

    def __init__(self, run: Run, sums: EpochSums, log: RunLog, progress: RunProgress) -> None:
        self._run, self._sums, self._log, self._progress = run, sums, log, progress
        self._row = self._shown = self._left = run.loader.totals()

    def come_back(self) -> None:
        """After anything that is no training: count the epoch's time from here."""
        self._left = self._run.loader.totals()

    def step(self, result: StepResult, lr: float) -> None:
        """After each step: a row now and then, a live line, one audited draw an epoch."""
        loader, config = self._run.loader, self._run.config
        if loader.steps % config.log_every == 0:
            now = loader.totals()
            measured, self._row = window(now, self._row), now
            assert loader.last is not None
            self._log.write(
                "step",
                step=loader.steps,
                draw=loader.last.draw,
                epoch=loader.last.epoch,
                version=loader.last.version,
                loss=result.loss,
                lr=lr,
                steps_per_second=draws_per_second(measured),
                penalty=result.penalty,
                penalty_gradient_ratio=penalty_gradient_ratio(loader, result.logits, result.targets),
                **{name: measured[name] for name in LOGGED},
            )
        self._show(result.loss)

    def _show(self, loss: float) -> None:
        now = self._run.loader.totals()
        if now["seconds"] - self._shown["seconds"] < REFRESH_SECONDS:
            return
        measured, self._shown = window(now, self._shown), now
        figures = {"loss": loss, "steps_per_second": draws_per_second(measured), **measured}
        self._progress.step(self._run.loader.steps, figures)

    def leave(self) -> None:
        """Before anything that is no training: add what the epoch took since `come_back`."""
        spent = window(self._run.loader.totals(), self._left)
        mining = {name: spent[f"{name}_seconds"] for name in ("views", "scoring", "publishing")}
        self._sums.add_seconds(**mining, training=spent["seconds"] - sum(mining.values()))

    def epoch(self, epoch: int, folder: Path) -> None:
        """After each epoch: evaluate, log, show."""
        self.leave()
        run, sums = self._run, self._sums
        started = perf_counter()
        result = evaluate(run.model, run.evaluation_images, run.evaluation_addresses(), run.device)
        random_error = None
        if run.config.train_error_samples:
            addresses = run.training_error_addresses(epoch)
            random_error = evaluate(run.model, run.training_images, addresses, run.device).error
        self._audit(folder)
        sums.add_seconds(evaluation=perf_counter() - started)
        seconds = {**sums.seconds, "total": sum(sums.seconds.values())}
        figures = {
            "loss": sums.loss / max(1, sums.steps),
            "train_error_mined": sums.wrong / max(1, sums.examples),
            "test_loss": result.loss,
            "test_error": result.error,
        }
        self._log.write(
            "epoch",
            epoch=epoch,
            step=run.loader.steps,
            train_error_random=random_error,
            test_top5_error=result.top5_error,
            seconds=seconds,
            **figures,
        )
        self._progress.epoch(epoch, run.config.epochs, {**figures, "seconds": seconds["total"]})

    def _audit(self, folder: Path) -> None:
        run = self._run
        if run.loader.last is None:
            return
        new = audit_draw(run.loader.last, run.training_images, gamma=run.config.gamma, class_names=run.data.class_names)
        if new:
            old = [row for row in load_gallery(folder) if row.epoch < new[0].epoch]
            epochs = sorted({row.epoch for row in old})
            kept = {*epochs[: GALLERY_EPOCHS // 2], *epochs[-(GALLERY_EPOCHS - GALLERY_EPOCHS // 2 - 1) :]}
            save_gallery(folder, [row for row in old if row.epoch in kept] + new)


def _checkpoint(run: Run, folder: Path, sums: EpochSums, log: RunLog) -> None:
    started = perf_counter()
    state = {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "loader": run.loader.state_dict(),
        "sums": sums.state_dict(),
    }
    try:
        save_checkpoint(folder / CHECKPOINTS, run.loader.steps, state)
    except CheckpointError as error:
        with suppress(OSError):  # the disk may be too full for this as well
            log.write("event", event="checkpoint-failed", step=run.loader.steps, message=str(error))
        raise
    sums.add_seconds(checkpoint=perf_counter() - started)


def _is_finite(model: nn.Module) -> bool:
    """Whether a checkpoint of the weights is of any use."""
    return all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


def _stop_diverged(run: Run, folder: Path, what: str, log: RunLog, cause: Exception | None = None) -> NoReturn:
    good = load_checkpoint(folder / CHECKPOINTS)
    last = f"the last good checkpoint is {good.path}" if good else "there is no checkpoint yet"
    lr = run.optimizer.param_groups[0]["lr"]
    message = f"{what} at step {run.loader.steps} with lr {lr:g}; {last}; lower --lr"
    log.write("event", event="diverged", step=run.loader.steps, message=message)
    raise DivergedError(message) from cause


def _stop_interrupted(step: int, log: RunLog) -> NoReturn:
    message = f"interrupted after step {step}; everything is saved"
    log.write("event", event="interrupted", step=step, message=message)
    raise Interrupted(message)


@dataclass
class _Interrupt:
    is_set: bool = False


@contextmanager
def _interruptible() -> Iterator[_Interrupt]:
    """Turns Ctrl-C (and SIGTERM) into a wish that the loop fulfils after its step; a second one stops at once."""
    interrupt = _Interrupt()

    def wish(number: int, _frame: FrameType | None) -> None:
        if interrupt.is_set:
            raise KeyboardInterrupt
        interrupt.is_set = True

    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {number: signal.signal(number, wish) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def result_of(folder: Path) -> Result:
    """How the finished run in a folder ended, from its metrics."""
    epochs = [row for row in read_rows(folder) if row["kind"] == "epoch"]
    last = epochs[-1]
    seconds = sum(row["seconds"]["total"] for row in epochs)
    mining = sum(row["seconds"].get(name, 0.0) for row in epochs for name in ("views", "scoring", "publishing"))
    evaluation = Evaluation(loss=last["test_loss"], error=last["test_error"], top5_error=last["test_top5_error"])
    return Result(folder=folder, evaluation=evaluation, seconds=seconds, scoring_share=mining / seconds)


def is_finished(folder: Path) -> bool:
    """Whether the run in a folder came to its end."""
    return any(row["kind"] == "event" and row["event"] == "finished" for row in read_rows(folder))


def evaluate_folder(folder: Path, *, device: str | None = None) -> Evaluation:
    """Evaluate the newest good checkpoint of a run on what the run is evaluated on.

    Raises:
        ValueError: there is no run or no checkpoint.
    """
    config = from_plain(read_config(folder))
    checkpoint = load_checkpoint(folder / CHECKPOINTS)
    if checkpoint is None:
        raise ValueError(f"eval needs a checkpoint: got none in {folder}; train the run first")
    for rejected in checkpoint.rejected:
        Console(stderr=True).print(
            f"damaged checkpoint passed over: {rejected}", highlight=False, markup=False, soft_wrap=True
        )
    run = prepare(replace(config, device=device or config.device), progress=False)
    run.model.load_state_dict(checkpoint.state["model"])
    return evaluate(run.model, run.evaluation_images, run.evaluation_addresses(), run.device)
