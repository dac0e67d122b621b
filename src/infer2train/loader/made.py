"""The loader of made batches: what `generate()` returns and a training loop iterates.

Epochs, steps, versions and resume are those of a mined loader, kept by the same `Course` and `Publisher`; what is on
its way to the pool is inputs, and what comes back is the batch itself. Nothing is picked, and no data of the trainer's
own is read.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from infer2train.batches import to_device
from infer2train.draws.methods.table import choices_of
from infer2train.draws.mining import Mining
from infer2train.draws.randomness import restore_rng, rng_state
from infer2train.loader.accumulation import Gradients
from infer2train.loader.course import Course
from infer2train.loader.handing import LOADED, Handing
from infer2train.loader.journal import Journal
from infer2train.loader.making import MadePlan, Maker
from infer2train.loader.measured import Measured
from infer2train.loader.progress import Counted, Progress
from infer2train.loader.publisher import Publisher
from infer2train.loader.ranks import Ranks
from infer2train.loader.sharding import Weights
from infer2train.machine.device import device_of
from infer2train.observe.metrics import LOGGED, Meter
from infer2train.pool.pool import Pool, at_exit
from infer2train.settings import as_plain, decisive, differences

OF_SCORES = ("mined_draws", "mined_share", "score_mean", "score_chosen", "nonfinite_scores", "duplicates")
"""Of `metrics()`, what there is only where candidates are scored."""


class MadeLoader(Measured, Counted, Handing):
    """A loader of batches that a model in inference mode makes; made by `generate()`.

    Iterate it once an epoch, as the DataLoader of its inputs. `last` tells of the draw handed out last, `metrics()` of
    what was measured, `state_dict()` is all that exact resumption needs besides models and optimisers.
    """

    made_by = "generate()"
    notes: tuple[str, ...] = ()
    """What was decided when the loader was made that its user did not say, one line each."""

    def __init__(self, inputs: "DataLoader[Any]", generator: nn.Module, mining: Mining, pool: Pool) -> None:
        self.mining, self._inputs, self._pool = mining, inputs, pool
        Measured.__init__(self, meter := Meter(), pool)
        course = Course(mining, True, ranks := Ranks())
        self._publisher = Publisher(Weights(generator), pool, mining, None, meter, ranks)
        self._maker = Maker(pool, meter, device_of(generator), is_strict=mining.staleness == "strict")
        Handing.__init__(self, MadePlan(course, self._publisher, mining.seed), self._maker)
        unpicked = replace(mining, method="baseline")  # of what is made there are no scores and no picks to write
        logged = [name for name in LOGGED if name not in OF_SCORES]
        self.journal = Journal(
            unpicked, choices_of(unpicked), partial(len, inputs), self.timeline, self._totals, logged
        )
        """What is written of the run, if that was asked for."""
        gradients = Gradients(generator, is_accumulated=False)
        Counted.__init__(self, course, Progress(course, self._publisher, gradients, self.journal, meter, self.timeline))
        self._closing: list[Callable[[], None]] = [at_exit(self._leave)]

    def __len__(self) -> int:
        """Draws in an epoch."""
        return len(self._inputs)

    # The epoch

    def __iter__(self) -> Iterator[Any]:
        iteration = self._begun()
        try:
            self._begin_epoch()
            while self._course.left:
                yield self._next_batch()
                self._require_under_way(iteration)
        finally:
            if iteration == self._iteration:
                self._leave()
        self._progress.ask()
        self.journal.end_epoch()
        self._course.end_epoch()

    def _leave(self) -> None:
        """End the iteration under way, if there is one."""
        self._iteration += 1
        self._course.leave()
        self._maker.stop()

    def _begin_epoch(self) -> None:
        self._require_open()
        self._maker.stop()
        self._progress.begin()
        self._course.read_order(self._inputs)
        self.journal.begin(self._course.is_new, self._course.draws)
        self.journal.go_on()
        self._course.warn_of_stale_weights()
        self._course.begin_epoch()
        self._publisher.publish_if_due(self.steps)

    def metrics(self) -> dict[str, float]:
        """Plain floats over what came since the last call; `infer2train.observe.metrics.window` lists them."""
        found = {name: value for name, value in self._since_last().items() if name not in OF_SCORES}
        return {"epoch": float(self.epoch), "steps": float(self.steps), **found}

    # The end

    def on_close(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when the loader is closed."""
        self._closing.append(callback)

    def close(self) -> None:
        """Stop workers and the counting of steps; close what is written. May be called twice."""
        self._is_closed = True
        self._leave()
        self._pool.close()
        while self._closing:
            self._closing.pop()()
        self.journal.close()

    # Resume

    def state_dict(self) -> dict[str, Any]:
        """Everything that going on exactly needs besides models and optimisers: counters, the published records still
        needed, and the random state of torch, NumPy and `random`. Tensors and plain values only.

        Take it after a step and before the next draw.
        """
        self._progress.count_due()
        return {
            **self._course.state_dict(is_mid_step=self.mining.accumulation_steps > 1),
            **self._publisher.state_dict(),
            "mining": self._settings(),
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
        state = to_device(state, "cpu")  # however it was loaded; what belongs elsewhere is taken there
        if differ := differences(state["mining"], self._settings()):
            raise ValueError(
                f"a resumed loader needs the settings it was saved with: got {'; '.join(differ)}; restore them"
            )
        self._leave()
        self._ended_by = LOADED
        self._progress.forget_due()
        self._course.load_state_dict(state)
        self._publisher.load_state_dict(state)
        self.journal.begin(self._course.is_new, self._course.draws)
        self.journal.take_back(self.steps, self.epoch, self._course.draws)
        restore_rng(state["rng"])
