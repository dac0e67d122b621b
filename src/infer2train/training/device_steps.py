"""Steps that are made on the device altogether: candidates, scores, picks and updates, without waiting for the host.

The fast path beside `loop`'s ordinary one, for images that are on the device. What is selected and trained on is the
same, bit for bit where the arithmetic is (on a CPU it is). On CUDA the oracle scores the next draw on a stream of its
own while the trainer trains on this one, as far as its version is published. The host learns of losses, scores and
picks only where something is logged or saved.
"""

from collections.abc import Iterator
from functools import partial
from time import perf_counter

from jaxtyping import UInt8
from torch import Tensor

from infer2train.draw import Draw
from infer2train.methods import views_selected
from infer2train.metrics import Totals
from infer2train.oracle.scorer import Scores
from infer2train.picking import Planned, finished_draw, score_amounts, unscored_selection
from infer2train.pool.inline import LANE, InlinePool
from infer2train.timeline import TRAINER, Span
from infer2train.training.device_tables import EpochTables
from infer2train.training.device_work import ScoringWork, TrainingWork
from infer2train.training.interrupt import Interrupt
from infer2train.training.schedule import learning_rate
from infer2train.training.setup import Run
from infer2train.training.step import EpochSums, StepResult
from infer2train.training.streams import Streams
from infer2train.views.image_views import ImageViews


class DeviceSteps:
    """Makes the steps of one run on its device.

    Args:
        run: one that `ways.way_of` allows here.
        images: of the training set, on the device.
        sums: of the epoch.
        interrupt: the user's wish to stop, before which everything must be known.
        is_recorded: replay the work as CUDA graphs; else it is done as it is written.
    """

    def __init__(
        self, run: Run, images: UInt8[Tensor, "n h w c"], sums: EpochSums, interrupt: Interrupt, *, is_recorded: bool
    ) -> None:
        assert isinstance(run.loader.pool, InlinePool)
        self._run, self._sums, self._interrupt = run, sums, interrupt
        self._plan, self._pool = run.loader.plan, run.loader.pool
        source = run.training_images
        assert isinstance(source, ImageViews), "checked by `way_of`"
        self._tables = EpochTables(
            self._plan,
            images,
            source.targets.to(images.device),
            source.view,
            num_draws=run.steps_per_epoch,
            batch_size=run.config.batch_size,
        )
        self._scoring = ScoringWork(self._plan, self._pool, self._tables)
        self._training = TrainingWork(run, self._tables)
        self._streams = Streams(images.device, is_recorded=is_recorded)
        self._first_draw, self._scored = 0, -1
        self._unmeasured: list[Planned] = []
        self._began = perf_counter()

    def epoch(self) -> Iterator[tuple[StepResult | None, float]]:
        """The steps of an epoch, as Algorithm 1 has them: what each saw, if it is asked for, and its learning rate."""
        run, loader = self._run, self._run.loader
        is_begun = False
        for planned in loader.elsewhere():
            if not is_begun:
                self._begin(planned)
                is_begun = True
            lr = learning_rate(run.config, loader.steps, run.steps_per_epoch)
            self._set_learning_rate(lr)
            self._score(planned)
            self._train(planned)
            if (following := loader.planned()) is not None:
                self._score(following)  # beside the step just begun
            loader.step_done()
            self._unmeasured.append(planned)
            yield self._measured() if self._is_due(planned) else None, lr

    def _begin(self, first: Planned) -> None:
        loader = self._run.loader
        self._first_draw, self._scored = first.slots.draw - (loader.position - 1), -1
        self._tables.fill(first.slots.epoch, self._first_draw, first.share, loader.batches)
        self._streams.oracle_waits()
        self._began = perf_counter()

    def _row_of(self, planned: Planned) -> int:
        return planned.slots.draw - self._first_draw

    def _set_learning_rate(self, lr: float) -> None:
        for group in self._run.optimizer.param_groups:
            group["lr"] = lr
        self._training.lr.fill_(lr)

    def _score(self, planned: Planned) -> None:
        """Score and pick a draw, unless that is done."""
        row = self._row_of(planned)
        if not planned.scored or row <= self._scored:
            return
        engine, version = self._pool.engine, planned.version
        assert engine is not None
        assert version is not None
        if engine.version != version:
            self._streams.oracle_waits()  # for the copy of the weights
        with self._streams.oracle():
            self._pool.use(version)
            self._scoring.row.fill_(row)
        self._streams.score(self._scoring)
        self._scored = row

    def _train(self, planned: Planned) -> None:
        """Train on a draw, as soon as it is picked."""
        if planned.scored:
            self._streams.trainer_waits()
        self._training.row.fill_(self._row_of(planned))
        is_distilled = planned.scored and self._plan.method.loss == "distillation"
        work = partial(self._training, is_whole=self._is_whole(planned), is_distilled=is_distilled)
        self._streams.train(tuple(work.keywords.items()), work, self._training.changed)

    def _is_whole(self, planned: Planned) -> bool:
        """Whether all views of the draw are trained on, as batch-augment does."""
        method = self._plan.method
        return method.candidates == "views" and method.pick == "all" and planned.step % self._plan.mine_every == 0

    # What the host learns

    def _is_due(self, planned: Planned) -> bool:
        """Whether the step just made must be known: it is logged or saved, or the last mined one before such a step."""
        config, loader = self._run.config, self._run.loader
        until_next_mined = self._plan.mine_every if planned.scored else 1
        after = range(loader.steps, loader.steps + until_next_mined)
        left = self._tables.num_draws - loader.position
        is_noted = any(step % config.log_every == 0 or step % config.checkpoint_every == 0 for step in after)
        return is_noted or left < until_next_mined or self._interrupt.is_set

    def _measured(self) -> StepResult:
        """What the last step saw; takes in all since the last time. Waits for the device."""
        tables, steps, loader = self._tables, self._unmeasured, self._run.loader
        rows = slice(self._row_of(steps[0]), self._row_of(steps[-1]) + 1)
        loss, penalty, wrong = (tables.found(name)[rows].tolist() for name in ("loss", "penalty", "wrong"))
        examples = [tables.batch_size * (self._plan.gamma if self._is_whole(planned) else 1) for planned in steps]
        for seen in zip(loss, wrong, examples, strict=True):
            self._sums.add(*seen)
        draw = self._draw(steps[-1])
        loader.note(draw, draws=len(steps), examples=sum(examples), **self._amounts(rows))
        self._note_time(draw)
        steps.clear()
        return StepResult(
            loss=loss[-1],
            penalty=penalty[-1] if self._plan.method.loss == "distillation" else None,
            logits=None if draw.log_probabilities is None else tables.found("logits")[rows.stop - 1].clone(),
            targets=tables.targets(rows.stop - 1).clone(),
        )

    def _draw(self, planned: Planned) -> Draw:
        """The draw as it was made."""
        tables, row, slots = self._tables, self._row_of(planned), planned.slots
        if not planned.scored:
            return finished_draw(self._plan, planned, unscored_selection(self._plan, planned), None)
        if self._plan.method.loss == "distillation":
            found = {"log_probabilities": tables.found("log_probabilities")[row].clone()}
            selection = unscored_selection(self._plan, planned)
        else:
            found = {"values": tables.found("scores")[row].clone()}
            selection = views_selected(slots, self._plan.gamma, *tables.picks(row))
        scores = Scores(draw=slots.draw, version=planned.version, targets=None, **found)
        return finished_draw(self._plan, planned, selection, scores)

    def _amounts(self, rows: slice) -> Totals:
        """What is added up of the draws of these rows, all in one epoch."""
        mined = [planned for planned in self._unmeasured if planned.scored]
        if not mined:
            return {}
        lags = [planned.step - (planned.version or 0) for planned in mined]
        amounts: Totals = {"mined_draws": len(mined), "lag_sum": sum(lags)}
        if self._plan.method.score is None:
            return amounts
        every = slice(self._row_of(mined[0]), rows.stop, self._plan.mine_every)
        return amounts | score_amounts(self._tables.found("scores")[every], self._tables.picked_scores(every))

    def _note_time(self, last: Draw) -> None:
        """A span for the whole stretch of steps since the last time: what was when within it only the device knows."""
        now, timeline = perf_counter(), self._run.loader.timeline
        timeline.add(Span(TRAINER, "train", self._began, now - self._began, {"draw": last.draw, "step": last.step}))
        if scoring := self._streams.scoring_seconds():
            details = {"draw": last.draw, "version": last.version}
            timeline.add(Span(LANE, "forward", self._began, scoring, details))
        self._began = now
