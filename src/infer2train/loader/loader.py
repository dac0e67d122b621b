"""The loader of picked draws: what `mine()` returns and a training loop iterates.

It yields exactly what the user's `collate_fn` returns. Around each draw it knows the step that the draw belongs to, the
version that may score it, and what was picked (`loader.last`). The host tells it when a step is done; asking for a draw
whose version needs a step that is not done raises, and never blocks.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from infer2train.batches import logits_of, to_device
from infer2train.draws.draw import Draw
from infer2train.draws.methods.method import Method
from infer2train.draws.mining import Mining
from infer2train.loader.accumulation import Gradients
from infer2train.loader.admission import require_group
from infer2train.loader.course import Course
from infer2train.loader.handing import LOADED, Handing
from infer2train.loader.journal import Journal
from infer2train.loader.likeness import LikeDataLoader
from infer2train.loader.measured import Measured
from infer2train.loader.order import draws_in_epoch, require_same_run
from infer2train.loader.parts import Parts
from infer2train.loader.passes import Passes
from infer2train.loader.picking import Picker
from infer2train.loader.planning import Planner
from infer2train.loader.progress import Counted, Progress
from infer2train.loader.publisher import Publisher
from infer2train.loader.ranks import Ranks
from infer2train.loader.saving import RunState
from infer2train.loader.sharding import Weights
from infer2train.loader.surroundings import OwnLoop, Surroundings
from infer2train.loader.validation import Validation
from infer2train.observe.metrics import Meter
from infer2train.oracle.live import LiveModel
from infer2train.pool.pool import Pool, at_exit
from infer2train.sources.pipeline import AddressPipeline

UNASKED = 3
"""Steps, or weighted draws, after which a loop that has not asked for the penalty, or the weights, is told of it."""


class MinedLoader(LikeDataLoader, Measured, Counted, Handing):
    """A loader of picked draws; made by `mine()`.

    Iterate it once an epoch, as the DataLoader it was made from. `last` tells of the draw handed out last, `metrics()`
    of what was measured, `state_dict()` is all that exact resumption needs besides model and optimiser.
    """

    made_by = "mine()"
    notes: tuple[str, ...] = ()
    """What was decided when the loader was made that its user did not say, one line each."""

    def __init__(
        self,
        dataloader: "DataLoader[Any]",
        weights: Weights,
        mining: Mining,
        method: Method,
        pool: Pool,
        trainer: AddressPipeline,
        live: LiveModel | None = None,
        surroundings: Surroundings | None = None,
        passes: Passes | None = None,
    ) -> None:
        assert mining.oracle_chunk is not None
        self.mining, self._method, self._pool = mining, method, pool
        self._has_oracle = method.choices.has_oracle
        # Of a stream, oracles elsewhere read the items that were read here.
        has_copies = self._has_oracle and pool.runs_beside and passes is None
        LikeDataLoader.__init__(self, dataloader, has_copies=has_copies)
        Measured.__init__(self, meter := Meter(), pool)
        self._surroundings, self._ranks = surroundings or OwnLoop(weights.model), Ranks.here()
        course = Course(mining, self._has_oracle, self._ranks, passes)
        is_shared = passes is None  # of a stream, each rank has its own draws, and its own probe
        self._publisher = publisher = Publisher(
            weights, pool, mining, live, meter, self._ranks, has_one_probe=is_shared
        )
        planner = Planner(method, course, publisher, mining.seed if passes is None else passes.seed)
        parts = Parts(self._ranks if is_shared else Ranks(), method.choices, mining.oracle_chunk)
        self._picker = Picker(method, pool, trainer, meter, parts)
        Handing.__init__(self, planner, self._picker)
        self.validation: Validation | None = None
        """How good versions are on the data that was given to `mine()` as `validation`."""
        gradients = Gradients(weights.model, is_accumulated=mining.accumulation_steps > 1)
        self._state = RunState(dataloader, mining, self._ranks, course, publisher, method, gradients)
        self._is_stream = passes is not None
        self._draws_in_epoch = draws_in_epoch(dataloader, self._ranks) if passes is None else None
        draws_per_epoch = partial(course.draws_per_epoch, self._draws_in_epoch)
        self.journal = Journal(mining, method.choices, draws_per_epoch, self.timeline, self._totals)
        """What is written of the run, if that was asked for."""
        scored = publisher if self._has_oracle else None
        Counted.__init__(self, course, Progress(course, scored, gradients, self.journal, meter, self.timeline))
        self._is_penalty_asked, self._is_last_asked, self._unasked_weights = False, False, 0
        self._closing: list[Callable[[], None]] = [at_exit(self._leave)]

    # The epoch

    def __len__(self) -> int:
        """Draws in an epoch: in the one that was read last, or as many as can be foreseen before the first."""
        return len(self._dataloader) if self._is_stream else self._course.draws_per_epoch(self._draws_in_epoch)

    def __iter__(self) -> Iterator[Any]:
        iteration = self._begun()
        try:
            self._begin_epoch()
            while self._course.left:
                self._remind_of_the_penalty()
                self._remind_of_the_weights()
                batch = self._next_batch()
                yield self._surroundings.placed(batch, is_last=not self._course.left)
                self._require_under_way(iteration)
        finally:
            if iteration == self._iteration:
                self._leave()
        self.end_epoch()

    def end_epoch(self) -> None:
        """Have the epoch under way end here, also one that a resumed loop does not finish: the next iteration begins
        another. A loop that takes all draws, or breaks off, need not call it."""
        if self._course.is_open:
            self._progress.ask()
            self.journal.end_epoch()
            self._course.end_epoch()
            if self.validation is not None:
                self.validation.share()

    def take_back(self) -> None:
        """Have a resumed epoch hand out its last draw again: the saved loop had it, but did not train on it."""
        self._course.take_back()

    def _leave(self) -> None:
        """End the iteration under way, if there is one."""
        self._iteration += 1
        self._course.leave()
        self._picker.stop()
        self._surroundings.end()

    def _begin_epoch(self) -> None:
        self._require_open()
        require_group()
        self._surroundings.begin()
        self._picker.stop()
        self._progress.begin()
        require_same_run(self._dataloader, self._ranks, {**self._state.settings, **self._course.place})
        if self._surroundings.tells_epochs:
            self.set_epoch(self._course.next_epoch)
        is_another = self._course.read_order(self._dataloader)
        self.journal.begin(self._course.is_new, self._course.draws)
        self.journal.go_on()
        self._course.warn_of_stale_weights()
        if self._course.begin_epoch() and is_another:
            self._method.begin_epoch(self._course.epoch)
        if self._has_oracle:
            self._publisher.publish_if_due(self._course.steps)

    # The loss

    def _remind_of_the_penalty(self) -> None:
        """Tell the user, once, of a loop that leaves it out."""
        last = self._progress.last
        if last is None or last.log_probabilities is None or self._is_penalty_asked or self.steps < UNASKED:
            return
        self._is_penalty_asked = True
        warnings.warn(
            f"{self.mining.method} adds a penalty to the loss, which the loop has not asked for in {self.steps} steps: "
            "loss = criterion(outputs, y) + loader.penalty(outputs)",
            RuntimeWarning,
            stacklevel=3,
        )

    @property
    def last(self) -> Draw | None:
        self._is_last_asked = True
        return self._progress.last

    def _remind_of_the_weights(self) -> None:
        """Tell the user, once, of a loop that has never looked at them."""
        last = self._progress.last
        if self._is_last_asked or last is None or last.weights is None:
            return
        self._unasked_weights += 1
        if self._unasked_weights == UNASKED:
            warnings.warn(
                f"{self.mining.method} weights the examples of a batch, which the loop has not looked at in {UNASKED} "
                "of them: losses = criterion(outputs, y), one for each example, and loss = (losses * "
                "loader.last.weights).mean()",
                RuntimeWarning,
                stacklevel=3,
            )

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
        self._is_penalty_asked = True
        last = self._progress.last if draw is None else draw
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
        that no step has used yet. Tensors and plain values only.

        Take it after a step, or a micro-batch of one, and before the next draw. A loop that goes on from it first
        finishes the epoch under way, also where the saved loop had left it by a `break`; where its last draw was
        trained on already, that is an epoch of no batches, behind which the loop evaluates, say. Every rank has the
        same but for its random state and unfinished gradients, so after a step one of them may save it for all; another
        number of ranks goes on from it where the global batch is the same.
        """
        self._progress.count_due()
        self.journal.flush()
        validated = {} if self.validation is None else {"validation": self.validation.state_dict()}
        return {**self._state.state_dict(), **validated}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`: the next iteration continues the epoch where it stood.

        Random state is taken back by the rank that saved it; others keep their own.

        Raises:
            ValueError: the state is of a loader with other settings, or of ranks with another global batch; or it has
                gradients of another rank.
        """
        state = to_device(state, "cpu")  # however it was loaded; what belongs elsewhere is taken there
        self._state.check(state)
        self._leave()
        self._ended_by = LOADED
        self._progress.forget_due()
        self._state.load_state_dict(state)
        if self.validation is not None and "validation" in state:
            self.validation.load_state_dict(state["validation"])
        self.journal.begin(self._course.is_new, self._course.draws)
        self.journal.take_back(self.steps, self.epoch, self._course.draws)
