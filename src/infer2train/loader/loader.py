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
from infer2train.loader.accumulation import gradients_of, restore_gradients
from infer2train.loader.admission import require_group
from infer2train.loader.course import Course
from infer2train.loader.journal import Journal
from infer2train.loader.likeness import LikeDataLoader
from infer2train.loader.measured import Measured
from infer2train.loader.order import draws_in_epoch, global_batch_size, require_same_global_batch, require_same_run
from infer2train.loader.parts import Parts
from infer2train.loader.passes import Passes
from infer2train.loader.picking import Picker, planned
from infer2train.loader.publisher import Publisher
from infer2train.loader.ranks import Ranks
from infer2train.loader.surroundings import OwnLoop, Surroundings
from infer2train.loader.validation import Validation
from infer2train.observe.metrics import Meter
from infer2train.observe.timeline import TRAINER, Span
from infer2train.oracle.live import LiveModel
from infer2train.pool.pool import Pool, at_exit
from infer2train.settings import as_plain, decisive, differences
from infer2train.sources.pipeline import AddressPipeline


class MinedLoader(LikeDataLoader, Measured):
    """A loader of picked draws; made by `mine()`.

    Iterate it once an epoch, as the DataLoader it was made from. `last` tells of the draw handed out last, `metrics()`
    of what was measured, `state_dict()` is all that exact resumption needs besides model and optimiser.
    """

    notes: tuple[str, ...] = ()
    """What was decided when the loader was made that its user did not say, one line each."""
    last: Draw | None = None
    """The draw handed out last; of several ranks, this one's part of it. Its `candidates` and `scores` are those of all
    ranks where picks are among all (samples), and those of its own slots where picks are within a slot (views)."""

    def __init__(
        self,
        dataloader: "DataLoader[Any]",
        model: nn.Module,
        mining: Mining,
        method: Method,
        pool: Pool,
        trainer: AddressPipeline,
        live: LiveModel | None = None,
        surroundings: Surroundings | None = None,
        passes: Passes | None = None,
    ) -> None:
        self.mining, self._method = mining, method
        self._has_oracle = method.choices.has_oracle
        self._pool, self._model = pool, model
        LikeDataLoader.__init__(self, dataloader, has_copies=self._has_oracle and pool.runs_beside)
        self._surroundings = surroundings or OwnLoop(model)
        self._meter, self._ranks = Meter(), Ranks.here()
        self._course = Course(self.mining, self._has_oracle, self._ranks, passes)
        self._publisher = Publisher(model, pool, self.mining, live, self._meter, self._ranks)
        assert mining.oracle_chunk is not None
        parts = Parts(self._ranks, method.choices, mining.oracle_chunk)
        self._picker = Picker(method, pool, trainer, self._meter, parts)
        self.validation: Validation | None = None
        """How good versions are on the data that was given to `mine()` as `validation`."""
        self._iteration = 0
        self._is_step_due = False
        self._handed_out: float | None = None
        Measured.__init__(self, self._meter, pool)
        draws_per_epoch = partial(self._course.draws_per_epoch, dataloader)
        self.journal = Journal(mining, draws_per_epoch, self.timeline, self._totals)
        """What is written of the run, if that was asked for."""
        self._closing: list[Callable[[], None]] = [at_exit(self._leave)]
        self._is_closed = False

    # The epoch

    @property
    def epoch(self) -> int:
        """The epoch under way, or the next one (counted from 0): start `for epoch in range(loader.epoch, n)` here."""
        return self._course.epoch

    @property
    def position(self) -> int:
        """Draws of that epoch that were handed out."""
        return self._course.position

    @property
    def steps(self) -> int:
        """Steps acknowledged so far."""
        return self._course.steps

    def __len__(self) -> int:
        """Draws in an epoch."""
        return draws_in_epoch(self._dataloader, self._ranks)

    def __iter__(self) -> Iterator[Any]:
        self._iteration += 1
        iteration = self._iteration
        try:
            self._begin_epoch()
            while self._course.left:
                batch = self._next_batch()
                yield self._surroundings.placed(batch, is_last=not self._course.left)
        finally:
            if iteration == self._iteration:
                self._leave()
        self.end_epoch()

    def end_epoch(self) -> None:
        """Have the epoch under way end here, also one that a resumed loop does not finish: the next iteration begins
        another. A loop that takes all draws, or breaks off, need not call it."""
        if self._course.is_open:
            self._settle()
            self.journal.end_epoch()
            self._course.end_epoch()

    def take_back(self) -> None:
        """Have a resumed epoch hand out its last draw again: the saved loop had it, but did not train on it."""
        self._course.take_back()

    def _leave(self) -> None:
        """End the iteration under way, if there is one."""
        self._iteration += 1
        self._picker.stop()
        self._surroundings.end()

    def _begin_epoch(self) -> None:
        self._require_open()
        require_group()
        self._surroundings.begin()
        self._picker.stop()
        self._count_what_is_due()
        self._handed_out = None
        require_same_run(self._dataloader, self._ranks, {**self._settings(), **self._course.place})
        if self._surroundings.tells_epochs:
            self.set_epoch(self._course.next_epoch)
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
        self._require_open()
        self._note_training()
        self._settle()
        if not len(self._picker):
            draw = self._planned()
            self._publisher.require(draw, self.steps)
            self._picker.submit(draw)
        self._submit_ahead()
        self.last, batch = self._picker.take()
        assert self.last.number == self._course.draws, (self.last.number, self._course.draws)
        self._publisher.saw(self.last)
        self._course.hand_out()
        # A loop may break off before it trains on its last draw; the next epoch then begins at the steps done.
        self._publisher.retire(min(self._course.step_of(self._course.draws), self._course.steps))
        self._handed_out = perf_counter()
        self._meter.add(draws=1, examples=len(self.last.addresses), waiting_seconds=self._handed_out - started)
        return batch

    def _require_open(self) -> None:
        if self._is_closed:
            raise RuntimeError(
                "a loader that is closed has no more batches: got one that was closed, by close() or by mine() being "
                "called again with its optimizer; iterate the loader made last, or call mine() again"
            )

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
            epoch_ids=course.offered(ahead),
            version=self._publisher.version_for(step),
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

    def metrics(self) -> dict[str, float]:
        """Plain floats over what came since the last call; `infer2train.observe.metrics.window` lists them."""
        place = {"epoch": float(self.epoch), "steps": float(self.steps), "gamma": float(self.mining.gamma)}
        validated = {} if self.validation is None else self.validation.metrics()
        return {**place, **self._method.metrics(), **self._since_last(), **validated}

    def validate_by(self, validation: Validation) -> None:
        """Have the oracle evaluate versions in its idle time, from the first draw on."""
        self.validation = self._picker.validation = validation

    # The end

    def on_close(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when the loader is closed."""
        self._closing.append(callback)

    def close(self) -> None:
        """Stop workers and the counting of steps; write the report where `log_dir` was given. May be called twice."""
        self._is_closed = True
        self._leave()
        self._picker.close()
        self._pool.close()
        while self._closing:
            self._closing.pop()()
        self.journal.close()

    # Resume

    def state_dict(self) -> dict[str, Any]:
        """Everything that going on exactly needs besides model, optimiser and scheduler: counters, the published
        records still needed, the random state of torch, NumPy and `random`, and where gradients are accumulated those
        that there are. Tensors and plain values only.

        Take it after a step, or a micro-batch of one, and before the next draw. A loop that goes on from it first
        finishes the epoch under way, also where the saved loop had left it by a `break`. Where gradients are
        accumulated, take it after `zero_grad()`: those that a step has used would be added to again. Every rank has
        the same but for its random state and unfinished gradients, so after a step one of them may save it for all;
        another number of ranks goes on from it where the global batch is the same.
        """
        self._count_what_is_due()
        return {
            **self._course.state_dict(),
            **self._publisher.state_dict(),
            "mining": self._settings(),
            "method": self._method.state_dict(),
            "ranks": self._ranks.world,
            "global_batch": global_batch_size(self._dataloader, self._ranks),
            "rank": self._ranks.rank,
            "rng": rng_state(),
            # Whether a step is unfinished is the host's to know: some carry gradients into the next epoch.
            "gradients": gradients_of(self._model) if self.mining.accumulation_steps > 1 else {},
            **({} if self.validation is None else {"validation": self.validation.state_dict()}),
        }

    def _settings(self) -> dict[str, Any]:
        """What a result depends on, by which two loaders are compared."""
        return decisive(Mining, as_plain(self.mining, Mining))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`: the next iteration continues the epoch where it stood.

        Random state is taken back by the rank that saved it; others keep their own.

        Raises:
            ValueError: the state is of a loader with other settings, or of ranks with another global batch.
        """
        differ = differences(state["mining"], self._settings())
        if differ:
            raise ValueError(
                f"a resumed loader needs the settings it was saved with: got {'; '.join(differ)}; restore them"
            )
        require_same_global_batch(self._dataloader, self._ranks, state["ranks"], state["global_batch"])
        self._picker.stop()
        self._is_step_due = False
        self._course.load_state_dict(state)
        self._method.load_state_dict(state["method"])
        self.journal.begin(self._course.is_new)
        self.journal.take_back(self.steps, self.epoch)
        self._publisher.load_state_dict(state)
        restore_gradients(self._model, state["gradients"])
        if self.validation is not None and "validation" in state:
            self.validation.load_state_dict(state["validation"])
        if state["rank"] == self._ranks.rank:
            restore_rng(state["rng"])
