"""The loader of picked draws: what `mine()` returns and a training loop iterates.

It yields exactly what the user's `collate_fn` returns. Around each draw it knows the step that the draw belongs to, the
version that may score it, and what was picked (`loader.last`). The host tells it when a step is done; asking for a draw
whose version needs a step that is not done raises, and never blocks.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import DataLoader

from infer2train.batches import logits_of
from infer2train.draws.draw import Draw
from infer2train.draws.methods.method import Method
from infer2train.draws.mining import Mining
from infer2train.draws.randomness import restore_rng, rng_state
from infer2train.draws.versions import EpochSteps
from infer2train.loader.acknowledgement import Pace
from infer2train.loader.admission import refuse_ranks
from infer2train.loader.journal import Journal
from infer2train.loader.order import Batches, OwnOrder, epoch_batches, fingerprint
from infer2train.loader.picking import Picker, planned
from infer2train.machine.device import device_of
from infer2train.observe.metrics import Meter, Totals, window
from infer2train.observe.runlog import RunLog
from infer2train.observe.timeline import TRAINER, Span, Timeline
from infer2train.oracle.live import LiveModel
from infer2train.oracle.snapshot import Record, snapshot
from infer2train.pool.pool import Pool
from infer2train.settings import as_plain, decisive, differences
from infer2train.sources.pipeline import AddressPipeline

REMEDIES = (
    "pass accumulation_steps= if the loop accumulates gradients, scaler= if a GradScaler skips steps, or call "
    "loader.step_done() after each step if mine() was given no optimizer. If a step was skipped (a loss that was not "
    "finite), the optimizer was replaced, or a second one trains too: pass all of them as optimizer=[…], or leave it "
    "out and call loader.step_done() once for every draw, skipped ones too"
)
"""What a loop can do whose steps were not all counted."""
PASSED_ON = (
    *("dataset", "batch_size", "sampler", "drop_last", "num_workers", "collate_fn", "pin_memory", "timeout"),
    *("worker_init_fn", "multiprocessing_context", "generator", "prefetch_factor", "persistent_workers"),
    "pin_memory_device",
)
"""What hosts and loops read of a loader, and find here as it is in the DataLoader that this one was made from."""
STALE_EPOCHS = 2
"""An oracle that is refreshed less often than this is worth a warning."""


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)


class MinedLoader:
    """A loader of picked draws; made by `mine()`.

    Iterate it once an epoch, as the DataLoader it was made from. `last` tells of the draw handed out last, `metrics()`
    of what was measured, `state_dict()` is all that exact resumption needs besides model and optimiser.
    """

    notes: tuple[str, ...] = ()
    """What was decided when the loader was made that its user did not say, one line each."""
    last: Draw | None = None
    """The draw handed out last."""

    def __init__(
        self,
        dataloader: "DataLoader[Any]",
        model: nn.Module,
        method: Method,
        pool: Pool,
        trainer: AddressPipeline,
        live: LiveModel | None = None,
    ) -> None:
        self.mining, self._method, self._rule = method.mining, method, method.mining.rule
        self._has_oracle = method.choices.has_oracle
        self._dataloader, self._model, self._pool, self._live = dataloader, model, pool, live
        self._epoch, self._position, self._draws, self._steps = 0, 0, 0, 0
        self._is_open, self._is_resumed, self._has_warned = False, False, False
        self._epoch_steps: EpochSteps | None = None
        self._order: str | None = None
        self._batches: Batches = []
        self._epoch_ids = np.empty(0, dtype=np.int64)
        self._iteration = 0
        self._pace = Pace()
        self._is_step_due, self._has_warned_of_skips = False, False
        self._handed_out: float | None = None
        self._newest_scored = -1
        self._meter = Meter()
        self._picker = Picker(method, pool, trainer, self._meter)
        self._started = perf_counter()
        self._mark: Totals = self.totals()
        self._journal: Journal | None = None
        self._begin_journal: Callable[[bool], Journal] | None = None
        self._writes_report = True
        self._closing: list[Callable[[], None]] = []

    # As the DataLoader that it was made from

    def __getattr__(self, name: str) -> Any:
        if name in PASSED_ON:
            return getattr(self._dataloader, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def batch_sampler(self) -> "OwnOrder":
        """The user's, to be asked for anything but batches."""
        return OwnOrder(self._dataloader.batch_sampler)

    # The epoch

    @property
    def epoch(self) -> int:
        """The epoch under way, or the next one (counted from 0): start `for epoch in range(loader.epoch, n)` here."""
        return self._epoch

    @property
    def steps(self) -> int:
        """Steps acknowledged so far."""
        return self._steps

    def __len__(self) -> int:
        """Draws in an epoch."""
        return len(self._dataloader)

    def __iter__(self) -> Iterator[Any]:
        self._begin_epoch()
        iteration = self._iteration
        try:
            while self._position < len(self._batches):
                yield self._next_batch()
        finally:
            if iteration == self._iteration:
                self._picker.stop()
        self._settle()
        self.leave()
        if self._journal is not None:
            self._journal.end_epoch()
        self._epoch, self._position, self._is_open = self._epoch + 1, 0, False

    def _begin_epoch(self) -> None:
        refuse_ranks()
        self._picker.stop()
        self._count_what_is_due()
        self._handed_out = None
        self._iteration += 1
        is_peeked = self._is_peeked()
        if is_peeked:
            # Nothing was trained on: as if nobody had looked. The sampler is not asked again.
            assert self._epoch_steps is not None
            self._warn_of_a_long_look(self._draws - self._epoch_steps.first_draw)
            self._draws, self._position = self._epoch_steps.first_draw, 0
        else:
            if self._is_open and not self._is_resumed:
                self._epoch, self._position = self._epoch + 1, 0
            self._batches = epoch_batches(self._dataloader, self.mining.seed, self._epoch)
            self._epoch_ids = np.concatenate(self._batches)
        self._start_log()
        self.come_back()
        self._warn_of_stale_weights()
        order = fingerprint(self._batches)
        if not self._is_resumed or self._epoch_steps is None:
            self._epoch_steps = EpochSteps(
                first_draw=self._draws, first_step=self._steps, accumulation_steps=self.mining.accumulation_steps
            )
            if not is_peeked:
                self._method.begin_epoch(self._epoch)
        elif order != self._order:
            raise ValueError(
                "a resumed epoch needs a sampler that gives the same order again: got another one; sample from the "
                "global state of torch, NumPy or random, which mine() seeds, and leave the data as it was"
            )
        self._order, self._is_resumed, self._is_open = order, False, True
        if self._has_oracle and self._steps not in self._pool.records and self._rule.is_published(self._steps):
            self._publish()

    def _is_peeked(self) -> bool:
        """Whether the epoch under way was only looked at: `next(iter(loader))`, or a loop broken off at once."""
        steps = self._epoch_steps
        if not self._is_open or self._is_resumed or steps is None or self._steps > steps.first_step:
            return False
        # Where nobody counts steps, two draws may have been trained on.
        return self._has_oracle or self._draws - steps.first_draw <= 1

    def _warn_of_a_long_look(self, draws: int) -> None:
        if draws > 1:
            warnings.warn(
                f"{draws} draws were handed out and no step was done: the epoch begins again. If they were trained on: "
                f"{REMEDIES}",
                RuntimeWarning,
                stacklevel=4,
            )

    def _start_log(self) -> None:
        """Begin to write, unless the folder holds another run: nothing of that is touched."""
        if self._begin_journal is not None:
            self._journal = self._begin_journal(self._epoch_steps is None)
            self._begin_journal = None

    def _warn_of_stale_weights(self) -> None:
        """Tell the user, once, of an oracle that sees new weights hardly ever or never."""
        mining, steps = self.mining, self._epoch_steps
        if self._is_resumed or self._has_warned or not self._has_oracle:
            return
        steps_per_epoch = -(-len(self._batches) // mining.accumulation_steps)
        message = None
        if steps is None and mining.update_every > STALE_EPOCHS * steps_per_epoch:
            message = (
                f"the oracle gets new weights every {mining.update_every} steps, an epoch has {steps_per_epoch}: "
                f"lower update_every, to {max(1, steps_per_epoch // 2)} for example"
            )
        elif steps is not None and self._steps < self._step_of(max(self._draws - 1, 0)) - mining.delay_steps:
            message = f"{self._steps} steps were done after {self._draws} draws. If these were trained on: {REMEDIES}"
        if message is not None:
            self._has_warned = True
            warnings.warn(message, RuntimeWarning, stacklevel=4)

    # One draw

    def _next_batch(self) -> Any:
        started = perf_counter()
        self._note_training()
        self._settle()
        if not len(self._picker):
            self._require_version(self._planned())
        self._submit_ahead()
        self.last, batch = self._picker.take()
        assert self.last.number == self._draws, (self.last.number, self._draws)
        self._newest_scored = max(self._newest_scored, -1 if self.last.version is None else self.last.version)
        self._method.observe(self.last)
        self._draws, self._position = self._draws + 1, self._position + 1
        self._retire_records()
        self._handed_out = perf_counter()
        self._meter.add(draws=1, examples=len(self.last.addresses), waiting_seconds=self._handed_out - started)
        return batch

    def _note_training(self) -> None:
        """What the host did with the draw that it was handed last."""
        if self._handed_out is not None and self.last is not None:
            details = {"draw": self.last.number, "step": self.last.step}
            seconds = perf_counter() - self._handed_out
            self._pool.timeline.add(Span(TRAINER, "train", self._handed_out, seconds, details))
        self._handed_out = None

    def _step_of(self, draw: int) -> int:
        assert self._epoch_steps is not None
        return self._epoch_steps.step_of(draw)

    def _planned(self, ahead: int = 0) -> Draw:
        """The draw that comes after so many others of the epoch."""
        number = self._draws + ahead
        step = self._step_of(number)
        is_freshest = self.mining.staleness == "freshest"
        return planned(
            self._method,
            number=number,
            epoch=self._epoch,
            step=step,
            ids=self._batches[self._position + ahead],
            epoch_ids=self._epoch_ids,
            version=max(self._pool.records, default=0) if is_freshest else self._rule.version_of_step(step),
        )

    def _is_published(self, draw: Draw) -> bool:
        return draw.version is None or draw.version in self._pool.records

    def _require_version(self, draw: Draw) -> None:
        if self._is_published(draw):
            return
        ahead = draw.step - self._steps
        raise RuntimeError(
            f"a draw of step {draw.step} is scored by the weights after step {draw.version}: got {self._steps} steps "
            f"done, the loop fetches {ahead} steps ahead. Pass delay_steps={ahead} to mine() if it prefetches; "
            f"{REMEDIES}"
        )

    def _submit_ahead(self) -> None:
        """Put every draw on its way whose version is published, as far ahead as views are made."""
        while len(self._picker) < min(self._picker.depth, len(self._batches) - self._position):
            draw = self._planned(ahead=len(self._picker))
            if not self._is_published(draw):
                return
            self._picker.submit(draw)

    # Steps and versions

    def step_due(self) -> None:
        """Take note of a step that goes on, by another optimiser: it is counted when the next draw is asked for."""
        self._is_step_due = True

    def _count_what_is_due(self) -> None:
        if self._is_step_due:
            self._is_step_due = False
            self.step_done()

    def _settle(self) -> None:
        """Count the step before the draw that the host asks for, where it is over without an acknowledgement."""
        self._count_what_is_due()
        assert self._epoch_steps is not None
        first = self._epoch_steps.first_step
        if self.mining.delay_steps == 0 and self._pace.has_skipped(
            self._step_of(self._draws) - first, self._steps - first
        ):
            self._meter.add(skipped_steps=1)
            self._warn_of_skips()
            self.step_done()

    def _warn_of_skips(self) -> None:
        if not self._has_warned_of_skips:
            self._has_warned_of_skips = True
            warnings.warn(
                f"draw {self._draws - 1} was followed by another one without a step in between: that and others like "
                "it are counted as skipped steps (metrics: skipped_steps). If they were not skipped, the optimizer was "
                "replaced, or a second one trains too: pass all of them to mine() as optimizer=[…]",
                RuntimeWarning,
                stacklevel=4,
            )

    def step_done(self) -> None:
        """Acknowledge one step: call it after each optimiser attempt, unless `mine()` was given the optimiser.

        Raises:
            RuntimeError: more steps were done than draws were handed out for.
        """
        if self._has_oracle and (self._epoch_steps is None or self._steps > self._step_of(self._draws - 1)):
            raise RuntimeError(
                f"a step trains on at least one draw: got step {self._steps + 1} after {self._draws} draws of "
                f"accumulation_steps={self.mining.accumulation_steps}; pass the accumulation_steps= of the loop or, if "
                "the optimizer steps more than once a draw or elsewhere too, leave it out of mine() and call "
                "loader.step_done() once"
            )
        self._note_training()
        self._steps += 1
        if self._has_oracle and self._rule.is_published(self._steps):
            self._publish()
        if self._journal is not None and self.last is not None:
            self._journal.step(self._steps, self.last, self.totals())

    def _publish(self) -> None:
        with self._pool.timeline.span(TRAINER, "publish", version=self._steps):
            started = perf_counter()
            record = snapshot(self._model, self._steps, self._pool.room)
            if self._live is not None:
                record = replace(record, probe_scores=self._live.scores(self._steps))
                self._meter.add(outgrown_versions=self._live.is_outgrown)
            self._meter.add(copying_seconds=perf_counter() - started)
            self._pool.publish(record)

    def _retire_records(self) -> None:
        # A loop may break off before it trains on its last draw; the next epoch then begins at the steps done.
        oldest = self._rule.version_of_step(min(self._step_of(self._draws), self._steps))
        records = self._pool.records
        if self.mining.staleness == "freshest":
            oldest = max(records, default=0)
        if any(version < oldest for version in records):
            self._pool.retire(oldest)

    # The loss

    def penalty(self, outputs: Any) -> Tensor:
        """What the method adds to the loss of the draw handed out last: λ·(1/γ)·Σ KL(F(x) ‖ F̃(T_i x)), or 0.

        Call it before the next draw is fetched, also between the micro-batches of one step.

        Args:
            outputs: the model's outputs for that draw, logits [b, k].

        Raises:
            RuntimeError: another draw was fetched before this one was trained on.

        Example:
            >>> loss = criterion(outputs, y) + loader.penalty(outputs)
        """
        last = self.last
        if last is None:
            return logits_of(outputs).new_zeros(())
        if last.log_probabilities is not None and last.step > self._steps:
            raise RuntimeError(
                f"the draw handed out last must be the one trained on: got draw {last.number} of step {last.step} and "
                f"{self._steps} steps done; turn off what fetches ahead to train with a penalty"
            )
        return self._method.penalty(outputs, last)

    # What was measured

    @property
    def timeline(self) -> Timeline:
        """What trainer and oracles did when."""
        return self._pool.timeline

    def totals(self) -> Totals:
        """Running totals since the loader was made, for `infer2train.observe.metrics.window`."""
        timeline, spent = self._pool.timeline, self._pool.seconds()
        own = self._meter.totals(seconds=perf_counter() - self._started)
        return {
            **own,
            **self._pool.totals(),
            "views_seconds": spent["views"],
            "scoring_seconds": spent["scoring"],
            "publishing_seconds": spent["publishing"] + own.get("copying_seconds", 0.0),
            **{f"trainer_{name}_seconds": value for name, value in timeline.seconds(TRAINER).items()},
            **{f"oracle_{name}_seconds": value for name, value in timeline.oracle_seconds().items()},
        }

    def metrics(self) -> dict[str, float]:
        """Plain floats over what came since the last call; `infer2train.observe.metrics.window` lists them."""
        now = self.totals()
        measured = window(now, self._mark)
        self._mark = now
        return {
            "epoch": float(self._epoch),
            "steps": float(self._steps),
            "gamma": float(self.mining.gamma),
            **self._method.metrics(),
            **measured,
        }

    def log_to(
        self,
        open_log: Callable[[bool], RunLog],
        *,
        more: Callable[[], Mapping[str, Any]] = dict,
        warn: Callable[[str], None] = _warn,
        report: bool = True,
    ) -> None:
        """Write rows, events and the timeline to what `open_log` opens, when the first epoch begins or goes on.

        Args:
            open_log: called once, told whether the run is a new one; it may refuse.
            more: what the loop adds to each row of a step, such as its loss; asked while a step is acknowledged.
            warn: tells the user of an oracle that is too slow, and the like.
            report: write report.html on `close()`.
        """

        def begin(is_new: bool) -> Journal:
            log = open_log(is_new)
            return Journal(log, self.mining, len(self), self.timeline, self.totals(), more=more, warn=warn)

        self._begin_journal, self._writes_report = begin, report

    def leave(self) -> None:
        """Before anything in the midst of an epoch that is no training, an evaluation or a checkpoint: rows leave its
        time out. What comes between epochs is left out anyway."""
        if self._journal is not None:
            self._journal.leave(self.totals()["seconds"])

    def come_back(self) -> None:
        """After it."""
        if self._journal is not None:
            self._journal.come_back(self.totals()["seconds"])

    def on_close(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when the loader is closed."""
        self._closing.append(callback)

    def close(self) -> None:
        """Stop workers and the counting of steps; write the report where `log_dir` was given. May be called twice."""
        self._picker.close()
        self._pool.close()
        while self._closing:
            self._closing.pop()()
        if self._journal is not None:
            journal, self._journal = self._journal, None
            journal.close(with_report=self._writes_report)

    # Resume

    def state_dict(self) -> dict[str, Any]:
        """Everything that going on exactly needs besides model, optimiser and scheduler: counters, the published
        records still needed, and the random state of torch, NumPy and `random`. Tensors and plain values only.

        Take it after a step and before the next draw. A loop that goes on from it first finishes the epoch under way,
        also where the saved loop had left it by a `break`.
        """
        self._count_what_is_due()
        steps = self._epoch_steps
        return {
            "epoch": self._epoch,
            "position": self._position,
            "draws": self._draws,
            "steps": self._steps,
            "is_open": self._is_open,
            "is_one_by_one": self._pace.is_one_by_one,
            "newest_scored": self._newest_scored,
            "order": self._order,
            "first_draw": steps.first_draw if steps else 0,
            "first_step": steps.first_step if steps else 0,
            "records": {
                str(version): {
                    "tensors": dict(record.tensors),
                    "ranges": dict(record.ranges),
                    # An oracle is measured once at each version, when it first scores.
                    "probe_scores": record.probe_scores if version > self._newest_scored else None,
                }
                for version, record in self._pool.records.items()
            },
            "mining": self._settings(),
            "method": self._method.state_dict(),
            "rng": rng_state(),
        }

    def _settings(self) -> dict[str, Any]:
        """What a result depends on, by which two loaders are compared."""
        return decisive(Mining, as_plain(self.mining, Mining))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`: the next iteration continues the epoch where it stood.

        Raises:
            ValueError: the state is of a loader with other settings.
        """
        differ = differences(state["mining"], self._settings())
        if differ:
            raise ValueError(
                f"a resumed loader needs the settings it was saved with: got {'; '.join(differ)}; restore them"
            )
        self._picker.stop()
        self._is_step_due, self._pace.is_one_by_one = False, state["is_one_by_one"]
        self._newest_scored = state["newest_scored"]
        self._epoch, self._position = state["epoch"], state["position"]
        self._draws, self._steps = state["draws"], state["steps"]
        self._order, self._is_open, self._is_resumed = state["order"], state["is_open"], state["is_open"]
        self._epoch_steps = EpochSteps(
            first_draw=state["first_draw"],
            first_step=state["first_step"],
            accumulation_steps=self.mining.accumulation_steps,
        )
        self._method.load_state_dict(state["method"])
        self._start_log()
        if self._journal is not None:
            self._journal.log.take_back(self._steps, self._epoch)
        self._pool.retire(max(self._pool.records, default=0) + 1)
        device = device_of(self._model)
        for version, saved in sorted(state["records"].items(), key=lambda item: int(item[0])):
            tensors = {name: tensor.to(device) for name, tensor in saved["tensors"].items()}
            self._pool.publish(Record(int(version), tensors, saved["ranges"], saved["probe_scores"]))
        restore_rng(state["rng"])
