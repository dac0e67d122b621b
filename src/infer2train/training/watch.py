"""What is measured, logged and shown while training; nothing here changes what is computed."""

from pathlib import Path
from time import perf_counter

from infer2train.draws.draw import Draw
from infer2train.observe.metrics import Totals, draws_per_second, window
from infer2train.observe.runlog import RunLog
from infer2train.reporting.audit import audit_draw
from infer2train.reporting.gallery import GalleryRow, load_gallery, save_gallery
from infer2train.reporting.runs import error_name
from infer2train.training.config import RunConfig
from infer2train.training.evaluation import evaluate
from infer2train.training.progress import RunProgress
from infer2train.training.setup import Run
from infer2train.training.step import EpochSums, StepResult, penalty_gradient_ratio

GALLERY_EPOCHS = 6
"""Contact sheets kept of a run: of its first epochs and of its last ones."""
REFRESH_SECONDS = 0.5
"""Wall-clock between updates of the live line."""


class Watch:
    """Follows one run; the loop tells it what happens."""

    def __init__(self, run: Run, sums: EpochSums, log: RunLog, progress: RunProgress) -> None:
        self._run, self._sums, self._log, self._progress = run, sums, log, progress
        self._shown = self._left = run.loader.totals()
        self._last_seconds = self._left["seconds"]
        self._mined: tuple[Draw, StepResult] | None = None
        self._seen: tuple[StepResult, float] | None = None
        run.loader.journal.write_to(lambda is_new: log, more=self._of_the_step, warn=progress.warn, report=False)

    def go_on(self) -> None:
        """After anything that is no training: go on counting from here, as if no time had passed."""
        self._run.loader.journal.go_on()
        now = self._run.loader.totals()
        self._shown = {**self._shown, "seconds": self._shown["seconds"] + now["seconds"] - self._last_seconds}
        self._left = now

    def saw(self, result: StepResult, lr: float) -> None:
        """Before each step is acknowledged: what it did."""
        last = self._run.loader.last
        assert last is not None
        self._seen = result, lr
        if last.version is not None:
            # Rows and contact sheets show the last draw that an oracle had to do with, whatever `mine_every` is.
            self._mined = last, result

    def _of_the_step(self) -> dict[str, float | None]:
        """What a row of a step has besides what the loader knows."""
        assert self._seen is not None
        result, lr = self._seen
        mined, seen = self._mined or (self._run.loader.last, result)
        assert mined is not None
        config = self._run.config
        ratio = penalty_gradient_ratio(
            config.distill_weight, mined, seen.logits, seen.targets, smoothing=config.label_smoothing
        )
        return {
            "loss": result.loss,
            "lr": lr,
            "penalty": seen.penalty,
            "penalty_gradient_ratio": ratio,
            **self._validated(),
        }

    def _validated(self) -> dict[str, float]:
        """What the oracle found of the version that it evaluated last, if it evaluates."""
        validation = self._run.loader.validation
        return {} if validation is None else validation.metrics()

    def step(self, result: StepResult) -> None:
        """After each step: the live line."""
        self._show(self._run.loader.totals(), result.loss)

    def _show(self, now: Totals, loss: float) -> None:
        if now["seconds"] - self._shown["seconds"] < REFRESH_SECONDS:
            return
        measured, self._shown = window(now, self._shown), now
        figures = {"loss": loss, "steps_per_second": draws_per_second(measured), **measured}
        self._progress.step(self._run.loader.steps, figures)

    def pause(self) -> None:
        """Before anything that is no training: add what the epoch took since `go_on`."""
        self._run.loader.journal.pause()
        now = self._run.loader.totals()
        self._last_seconds = now["seconds"]
        spent = window(now, self._left)
        parts = {name: spent[f"{name}_seconds"] for name in ("views", "scoring", "publishing")}
        parts["batches"] = spent.get("trainer_views_seconds", 0.0)
        self._sums.add_seconds(**parts, training=spent["seconds"] - sum(parts.values()))

    def epoch(self, epoch: int, folder: Path, *, is_last: bool) -> None:
        """After each epoch: evaluate where it is due, log, show."""
        self.pause()
        run, sums = self._run, self._sums
        started = perf_counter()
        errors = self._errors(epoch) if is_last or _is_due(epoch, run.config) else {}
        self._audit(folder)
        sums.add_seconds(evaluation=perf_counter() - started)
        seconds = {**sums.seconds, "total": sum(sums.seconds.values())}
        figures = {
            "loss": sums.loss / max(1, sums.steps),
            "train_error_mined": sums.wrong / max(1, sums.examples),
            **errors,
            **self._validated(),
        }
        self._log.write(
            "epoch",
            epoch=epoch,
            step=run.loader.steps,
            seconds=seconds,
            **figures,
        )
        shown = {**figures, "seconds": seconds["total"]}
        self._progress.epoch(epoch, run.config.epochs, shown, error_name(run.config.validation_split))

    def _errors(self, epoch: int) -> dict[str, float | None]:
        run = self._run
        result = evaluate(run.model, run.evaluation_images, run.evaluation_addresses(), run.device, run.view_workers)
        random_error = None
        if run.config.train_error_samples:
            addresses = run.training_error_addresses(epoch)
            random_error = evaluate(run.model, run.training_images, addresses, run.device, run.view_workers).error
        return {
            "train_error_random": random_error,
            "test_loss": result.loss,
            "test_error": result.error,
            "test_top5_error": result.top5_error,
            "test_calibration_error": result.calibration_error,
        }

    def _audit(self, folder: Path) -> None:
        run = self._run
        if self._mined is None:
            return
        new = audit_draw(self._mined[0], run.training_images, gamma=run.config.gamma, class_names=run.data.class_names)
        if new:
            old = [row for row in _gallery(folder) if row.epoch < new[0].epoch]
            epochs = sorted({row.epoch for row in old})
            kept = {*epochs[: GALLERY_EPOCHS // 2], *epochs[-(GALLERY_EPOCHS - GALLERY_EPOCHS // 2 - 1) :]}
            save_gallery(folder, [row for row in old if row.epoch in kept] + new)


def _gallery(folder: Path) -> list[GalleryRow]:
    """What it was until now; a damaged one is no reason not to go on, and is replaced."""
    try:
        return load_gallery(folder)
    except ValueError:
        return []


def _is_due(epoch: int, config: RunConfig) -> bool:
    return config.validation == "trainer" and (epoch + 1) % config.evaluate_every == 0
