"""The loader of picked draws: what `mine()` returns and a training loop iterates.

It yields exactly what the user's `collate_fn` returns. Around each draw it knows the step that the draw belongs to, the
version that may score it, and what was picked (`loader.last`). The host tells it when a step is done; asking for a draw
whose version needs a step that is not done raises, and never blocks.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from time import perf_counter
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from infer2train.batches import logits_of
from infer2train.draws.draw import Draw
from infer2train.draws.methods.method import Method
from infer2train.draws.mining import Mining
from infer2train.draws.randomness import restore_rng, rng_state
from infer2train.loader.admission import refuse_ranks
from infer2train.loader.course import REMEDIES, Course
from infer2train.loader.journal import Journal
from infer2train.loader.order import OwnOrder
from infer2train.loader.picking import Picker, planned
from infer2train.loader.publisher import Publisher
from infer2train.observe.metrics import Meter, Totals, window
from infer2train.observe.timeline import TRAINER, Span, Timeline
from infer2train.oracle.live import LiveModel
from infer2train.pool.pool import Pool
from infer2train.settings import as_plain, decisive, differences
from infer2train.sources.pipeline import AddressPipeline

PASSED_ON = (
    *("dataset", "batch_size", "sampler", "drop_last", "num_workers", "collate_fn", "pin_memory", "timeout"),
    *("worker_init_fn", "multiprocessing_context", "generator", "prefetch_factor", "persistent_workers"),
    "pin_memory_device",
)
"""What hosts and loops read of a loader, and find here as it is in the DataLoader that this one was made from."""


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
        mining: Mining,
        method: Method,
        pool: Pool,
        trainer: AddressPipeline,
        live: LiveModel | None = None,
    ) -> None:
        self.mining, self._method = mining, method
        self._has_oracle = method.choices.has_oracle
        self._dataloader, self._pool = dataloader, pool
        self._meter = Meter()
        self._course = Course(self.mining, self._has_oracle)
        self._publisher = Publisher(model, pool, self.mining, live, self._meter)
        self._picker = Picker(method, pool, trainer, self._meter)
        self._iteration = 0
        self._is_step_due = False
        self._handed_out: float | None = None
        # Who is asked for totals must not keep the loader: one that is let go of counts no more steps.
        self._totals = partial(running_totals, self._meter, pool, perf_counter())
        self._mark: Totals = self.totals()
        self.journal = Journal(mining, partial(len, dataloader), self.timeline, self._totals)
        """What is written of the run, if that was asked for."""
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
        return self._course.epoch

    @property
    def steps(self) -> int:
        """Steps acknowledged so far."""
        return self._course.steps

    def __len__(self) -> int:
        """Draws in an epoch."""
        return len(self._dataloader)

    def __iter__(self) -> Iterator[Any]:
        self._begin_epoch()
        iteration = self._iteration
        try:
            while self._course.left:
                yield self._next_batch()
        finally:
            if iteration == self._iteration:
                self._picker.stop()
        self._settle()
        self.journal.end_epoch()
        self._course.end_epoch()

    def _begin_epoch(self) -> None:
        refuse_ranks()
        self._picker.stop()
        self._count_what_is_due()
        self._handed_out = None
        self._iteration += 1
        is_another = self._course.read_order(self._dataloader)
        self.journal.begin(self._course.is_new)
        self.journal.go_on()
        self._course.warn_of_stale_weights()
        if self._course.begin_epoch() and is_another:
            self._method.begin_epoch(self._course.epoch)
        if self._has_oracle:
            self._publisher.publish_if_due(self._course.steps)

    # One draw

    def _next_batch(self) -> Any:
        started = perf_counter()
        self._note_training()
        self._settle()
        if not len(self._picker):
            draw = self._planned()
            self._require_version(draw)
            self._picker.submit(draw)
        self._submit_ahead()
        self.last, batch = self._picker.take()
        assert self.last.number == self._course.draws, (self.last.number, self._course.draws)
        self._publisher.saw(self.last)
        self._method.observe(self.last)
        self._course.hand_out()
        # A loop may break off before it trains on its last draw; the next epoch then begins at the steps done.
        self._publisher.retire(min(self._course.step_of(self._course.draws), self._course.steps))
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

    def _planned(self, ahead: int = 0) -> Draw:
        """The draw that comes after so many others of the epoch."""
        course = self._course
        step = course.step_of(course.draws + ahead)
        return planned(
            self._method,
            number=course.draws + ahead,
            epoch=course.epoch,
            step=step,
            ids=course.ids(ahead),
            epoch_ids=course.epoch_ids,
            version=self._publisher.version_for(step),
        )

    def _require_version(self, draw: Draw) -> None:
        if self._publisher.has(draw):
            return
        ahead = draw.step - self.steps
        raise RuntimeError(
            f"a draw of step {draw.step} is scored by the weights after step {draw.version}: got {self.steps} steps "
            f"done, the loop fetches {ahead} steps ahead. Pass delay_steps={ahead} to mine() if it prefetches; "
            f"{REMEDIES}"
        )

    def _submit_ahead(self) -> None:
        """Put every draw on its way whose version is published, as far ahead as views are made."""
        while len(self._picker) < min(self._picker.depth, self._course.left):
            draw = self._planned(ahead=len(self._picker))
            if not self._publisher.has(draw):
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
        if self._course.has_skipped():
            self._meter.add(skipped_steps=1)
            self._course.warn_of_skips()
            self.step_done()

    def step_done(self) -> None:
        """Acknowledge one step: call it after each optimiser attempt, unless `mine()` was given the optimiser.

        Raises:
            RuntimeError: more steps were done than draws were handed out for.
        """
        self._course.step_done()
        self._note_training()
        if self._has_oracle:
            self._publisher.publish_if_due(self.steps)
        if self.last is not None:
            self.journal.step(self.steps, self.last)

    # The loss

    def penalty(self, outputs: Any, draw: Draw | None = None) -> Tensor:
        """What the method adds to the loss of a draw: λ·(1/γ)·Σ KL(F(x) ‖ F̃(T_i x)), or 0.

        Call it before the next draw is fetched, also between the micro-batches of one step; or keep `last` of each
        draw, and say which.

        Args:
            outputs: the model's outputs for that draw, logits [b, k].
            draw: the one trained on. Default: the one handed out last.

        Raises:
            RuntimeError: another draw was fetched before this one was trained on.

        Example:
            >>> loss = criterion(outputs, y) + loader.penalty(outputs)
        """
        last = self.last if draw is None else draw
        if last is None:
            return logits_of(outputs).new_zeros(())
        if last.log_probabilities is not None and last.step > self.steps:
            raise RuntimeError(
                f"the draw handed out last must be the one trained on: got draw {last.number} of step {last.step} and "
                f"{self.steps} steps done; turn off what fetches ahead to train with a penalty"
            )
        return self._method.penalty(outputs, last)

    # What was measured

    @property
    def timeline(self) -> Timeline:
        """What trainer and oracles did when."""
        return self._pool.timeline

    def totals(self) -> Totals:
        """Running totals since the loader was made, for `infer2train.observe.metrics.window`."""
        return self._totals()

    def metrics(self) -> dict[str, float]:
        """Plain floats over what came since the last call; `infer2train.observe.metrics.window` lists them."""
        now = self.totals()
        measured = window(now, self._mark)
        self._mark = now
        return {
            "epoch": float(self.epoch),
            "steps": float(self.steps),
            "gamma": float(self.mining.gamma),
            **self._method.metrics(),
            **measured,
        }

    def on_close(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when the loader is closed."""
        self._closing.append(callback)

    def close(self) -> None:
        """Stop workers and the counting of steps; write the report where `log_dir` was given. May be called twice."""
        self._picker.close()
        self._pool.close()
        while self._closing:
            self._closing.pop()()
        self.journal.close()

    # Resume

    def state_dict(self) -> dict[str, Any]:
        """Everything that going on exactly needs besides model, optimiser and scheduler: counters, the published
        records still needed, and the random state of torch, NumPy and `random`. Tensors and plain values only.

        Take it after a step and before the next draw. A loop that goes on from it first finishes the epoch under way,
        also where the saved loop had left it by a `break`.
        """
        self._count_what_is_due()
        return {
            **self._course.state_dict(),
            **self._publisher.state_dict(),
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
        self._is_step_due = False
        self._course.load_state_dict(state)
        self._method.load_state_dict(state["method"])
        self.journal.begin(self._course.is_new)
        self.journal.take_back(self.steps, self.epoch)
        self._publisher.load_state_dict(state)
        restore_rng(state["rng"])


def running_totals(meter: Meter, pool: Pool, started: float) -> Totals:
    """What a loader, and its pool, have measured since it was made at `started`, on the performance counter."""
    timeline, spent, own = pool.timeline, pool.seconds(), meter.totals(seconds=perf_counter() - started)
    return {
        **own,
        **pool.totals(),
        "views_seconds": spent["views"],
        "scoring_seconds": spent["scoring"],
        "publishing_seconds": spent["publishing"] + own.get("copying_seconds", 0.0),
        **{f"trainer_{name}_seconds": value for name, value in timeline.seconds(TRAINER).items()},
        **{f"oracle_{name}_seconds": value for name, value in timeline.oracle_seconds().items()},
    }
