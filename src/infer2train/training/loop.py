"""The training loop: epochs of mined draws, an evaluation after each, checkpoints on the way.

A user of `mine()` like any other. Whatever stops it (Ctrl-C, SIGKILL, a full disk) leaves the last good checkpoint,
from which `resume=True` goes on to the same final weights, bit for bit.
"""

import math
from contextlib import closing, nullcontext, suppress
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import NoReturn

import torch

from infer2train.checkpoint.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from infer2train.draws.methods.table import choices_of
from infer2train.machine.cores import on_cores
from infer2train.observe.runlog import RunLog, take_back, write_config
from infer2train.observe.trace import Trace
from infer2train.oracle.snapshot import NotFiniteError
from infer2train.pool.pool import OracleLostError
from infer2train.reporting.report import write_report
from infer2train.settings import as_plain
from infer2train.training.config import RunConfig
from infer2train.training.decoding_rate import decoding_warning
from infer2train.training.folder import (
    BEST,
    CHECKPOINTS,
    LOCK,
    Result,
    alone_in,
    enter_folder,
    require_same_images,
    result_of,
)
from infer2train.training.interrupt import Interrupt, Interrupted, interruptible
from infer2train.training.irreducible import irreducible_losses
from infer2train.training.progress import RunProgress
from infer2train.training.schedule import learning_rate
from infer2train.training.setup import Run, cores, prepare
from infer2train.training.step import EpochSums, train_step
from infer2train.training.watch import Watch


class DivergedError(RuntimeError):
    """The training loss, or a weight, is no longer a number."""


def train(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool = False,
    quiet: bool = False,
    title: str | None = None,
    report: bool = True,
    trace: Path | None = None,
) -> Result:
    """Train a run to its end in its folder; write configuration, metrics, checkpoints and report there.

    Args:
        config: the run.
        folder: must be new, unless `resume`.
        resume: go on from the newest good checkpoint; start where there is none.
        quiet: show no progress.
        title: what the progress line calls the run. Default: the folder's name.
        report: write report.html at the end.
        trace: file to write a trace to, see `infer2train.observe.trace`.

    Raises:
        ValueError: the folder exists, or holds another configuration, or another process trains in it, or the
            configuration cannot be met.
        Interrupted: Ctrl-C; everything is saved.
        DivergedError: the loss or a weight became NaN or infinite.
        CheckpointError: the disk refused a checkpoint; the earlier ones are good.
    """
    config = enter_folder(config, folder, resume)
    if (folder / LOCK).exists():
        with alone_in(folder):
            pass  # or it would be said only once the data are read
    given = None
    if choices_of(config).needs_irreducible and config.irreducible is None:
        given = irreducible_losses(
            config, partial(train, resume=True, quiet=quiet, title="irreducible model", report=False)
        )
    oracles, trainers = cores(config)
    with Trace(trace) if trace else nullcontext() as tracing, on_cores(trainers if oracles else ()):
        run = prepare(config, progress=not quiet, irreducible=None if given is None else given.file)
        run.loader.notes += (given.note,) if given else ()
        if tracing is not None:
            run.loader.timeline.listen(tracing.add)
        # What comes before may take long and has nothing to save.
        with interruptible() as interrupt, closing(run.loader), alone_in(folder):
            enter_folder(config, folder, resume)  # again: another process may have begun a run there meanwhile
            _train(run, folder, interrupt, resume, quiet, title, before_seconds=given.seconds if given else 0.0)
        if report:
            write_report(folder)
    if interrupt.is_set:  # in the last evaluation: whoever called is not to begin another run
        raise Interrupted(f"interrupted when {folder.name} was finished; everything is saved")
    return result_of(folder)


def _train(
    run: Run,
    folder: Path,
    interrupt: Interrupt,
    resume: bool,
    quiet: bool,
    title: str | None,
    before_seconds: float,
) -> None:
    config = run.config
    sums = EpochSums()
    checkpoint = load_checkpoint(folder / CHECKPOINTS) if resume else None
    if checkpoint is not None:
        sums = _go_on(run, checkpoint, folder)
    write_config(folder, as_plain(config))  # only now: a run that cannot be made leaves no folder, or its own as it was
    take_back(folder, run.loader.steps, run.loader.epoch)
    total = config.epochs * run.steps_per_epoch
    with RunProgress(title or folder.name, total, quiet=quiet) as progress, closing(RunLog(folder)) as log:
        log.start(str(run.device), config.threads or 1, data=run.digest, before_seconds=before_seconds)
        _announce(run, checkpoint, log, progress)
        try:
            _train_epochs(run, folder, sums, log, progress, interrupt)
        except OracleLostError as error:
            _checkpoint(run, folder, sums, log)
            log.write("event", event="oracle-lost", step=run.loader.steps, message=str(error))
            raise
        except NotFiniteError as error:
            _stop_diverged(run, folder, "the oracle's weights must stay finite: got NaN or infinity", log, error)


def _go_on(run: Run, checkpoint: Checkpoint, folder: Path) -> EpochSums:
    """Have the run stand where it was saved."""
    require_same_images(
        run,
        checkpoint.state,
        "a resumed run needs the images that it was started with",
        f"train anew in another folder than {folder} (--name)",
    )
    run.model.load_state_dict(checkpoint.state["model"])
    run.optimizer.load_state_dict(checkpoint.state["optimizer"])
    try:
        run.loader.load_state_dict(checkpoint.state["loader"])
    except ValueError as error:  # of an earlier release, perhaps in a cache that nobody thinks of
        raise ValueError(
            f"the run in {folder} cannot be resumed: {error}. To train it anew, remove that folder"
        ) from error
    return EpochSums.from_state(checkpoint.state["sums"])


def _announce(run: Run, checkpoint: Checkpoint | None, log: RunLog, progress: RunProgress) -> None:
    """Log and show what the reader must know before the first step."""
    step = run.loader.steps
    if run.data.skipped:
        message = f"images left out because they could not be decoded: {run.data.skipped}"
        log.write("event", event="images-skipped", step=step, message=message)
        progress.say(message)
    for decided in run.loader.notes:
        log.write("event", event="decided", step=step, message=decided)
        progress.say(decided)
    if (slow := decoding_warning(run)) is not None:
        log.write("event", event="decoding-too-slow", step=step, message=slow)
        progress.warn(slow)
    if checkpoint is None:
        return
    for rejected in checkpoint.rejected:
        log.write("event", event="checkpoint-rejected", step=step, message=rejected)
        progress.warn(f"damaged checkpoint passed over: {rejected}")
    log.write("event", event="resumed", step=step, message=f"resumed at step {step}")
    progress.say(f"resumed at step {step}")


def _train_epochs(
    run: Run, folder: Path, sums: EpochSums, log: RunLog, progress: RunProgress, interrupt: Interrupt
) -> None:
    """Algorithm 1: the loader refreshes the oracle and picks, we optimise."""
    watch = Watch(run, sums, log, progress)
    has_stopped = run.loader.steps % run.steps_per_epoch == 0 and _is_enough(run)  # before it was resumed
    for epoch in range(run.loader.epoch, run.loader.epoch if has_stopped else run.config.epochs):
        watch.go_on()
        for images, targets in run.loader:
            lr = learning_rate(run.config, run.loader.steps, run.steps_per_epoch)
            for group in run.optimizer.param_groups:
                group["lr"] = lr
            result = train_step(run, images, targets, sums, saw=partial(watch.saw, lr=lr))
            watch.step(result)
            if not math.isfinite(result.loss):
                _stop_diverged(run, folder, f"the training loss must stay finite: got {result.loss}", log)
            if interrupt.is_set or run.loader.steps % run.config.checkpoint_every == 0:
                watch.pause()
                _checkpoint(run, folder, sums, log)
                watch.go_on()
            if interrupt.is_set:
                _stop_interrupted(run.loader.steps, log)
        _require_finite(run, folder, log)
        is_enough = _is_enough(run)
        watch.epoch(epoch, folder, is_last=is_enough or epoch + 1 == run.config.epochs)
        sums.reset()
        _checkpoint(run, folder, sums, log)
        if is_enough:
            break
        if interrupt.is_set and epoch + 1 < run.config.epochs:
            _stop_interrupted(run.loader.steps, log)
    _keep_best(run, folder, log)
    log.write("event", event="finished", step=run.loader.steps, message=f"finished after {run.loader.steps} steps")


def _is_enough(run: Run) -> bool:
    """Whether so many versions were no better than the best one that the training ends with its epoch."""
    enough, validation = run.config.stop_after, run.loader.validation
    return enough is not None and validation is not None and validation.versions_since_best >= enough


def _keep_best(run: Run, folder: Path, log: RunLog) -> None:
    """The best version, where that was asked for and one was evaluated to the end."""
    if not run.config.keep_best or run.loader.validation is None or (best := run.loader.validation.best) is None:
        return
    tensors = {name: best.tensors[name] for name in run.model.state_dict()}  # a record has buffers that no state has
    state = {"model": tensors, "loss": best.loss, "error": best.error, "data": run.digest}
    path = save_checkpoint(folder / BEST, best.version, state, keep=1)
    message = f"the best version is that of step {best.version}, by the oracle: loss {best.loss:.4f}, kept in {path}"
    log.write("event", event="best-kept", step=run.loader.steps, message=message)


def _checkpoint(run: Run, folder: Path, sums: EpochSums, log: RunLog) -> None:
    _require_finite(run, folder, log)
    started = perf_counter()
    state = {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "loader": run.loader.state_dict(),
        "sums": sums.state_dict(),
        "data": run.digest,
    }
    try:
        save_checkpoint(folder / CHECKPOINTS, run.loader.steps, state)
    except CheckpointError as error:
        with suppress(OSError):  # the disk may be too full for this as well
            log.write("event", event="checkpoint-failed", step=run.loader.steps, message=str(error))
        raise
    sums.add_seconds(checkpoint=perf_counter() - started)


def _require_finite(run: Run, folder: Path, log: RunLog) -> None:
    """Stop before weights that are no longer numbers are evaluated or kept."""
    if not all(bool(torch.isfinite(parameter).all()) for parameter in run.model.parameters()):
        _stop_diverged(run, folder, "the weights must stay finite: got NaN or infinity", log)


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
