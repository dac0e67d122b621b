"""All that `infer2train gamma` times, built once, so that it can take turns: trainer, views, engines."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from torch import Tensor, nn

from infer2train.machine.place import Place
from infer2train.oracle.engines import missing_packages
from infer2train.oracle.measurement import EngineSpeed, EngineTrial
from infer2train.oracle.rounds import WALL, Contestant, clocks_of, fastest
from infer2train.oracle.samples import Samples
from infer2train.studies.gamma.busyness import Busyness
from infer2train.studies.gamma.trainer import StepParts, TrainerSpeed, step_calls, step_parts, training_ways

MEASURED = ("torch:fp32", "torch:bf16", "openvino:int8", "onnxruntime:int8")
"""Engines that are measured, where they are installed."""
TRAINER = "trainer"
PART_ROUNDS = 3
"""In which the parts of a step are timed: nothing is planned with them."""


class Contest:
    """Builds what is timed.

    Args:
        network: the model; not changed.
        images: a batch, [b c h w].
        targets: its classes, [b].
        views: makes the views of a batch.
        samples: the engines' inputs.
        engines: to measure. Default: every one of `MEASURED` that is installed.
        compiled: try torch.compile for the trainer too.
        trainer: where the trainer runs.
        oracle: where the engines run.
        say: called with what is being built.

    Raises:
        ValueError: no engine runs the model.
    """

    def __init__(
        self,
        network: nn.Module,
        images: Tensor,
        targets: Tensor,
        *,
        views: Callable[[], object],
        samples: Samples,
        engines: Sequence[str],
        compiled: bool,
        trainer: Place,
        oracle: Place,
        say: Callable[[str], None],
    ) -> None:
        self._oracle = oracle
        # The same for both: CPU time of the one beside wall-clock of the other would favour the first.
        self.clocks = clocks_of(max(trainer.num_threads, oracle.num_threads))
        self.busyness = Busyness()
        say("the trainer: building")
        with trainer():
            self.views = Contestant(name="views", call=views, work=len(images))
            self.ways = [
                Contestant(name=name, call=call, group=TRAINER, work=len(images))
                for name, call in training_ways(network, images, targets, compiled=compiled)
            ]
            self.parts = [
                Contestant(name=name, call=call, seconds=0.0, most_rounds=PART_ROUNDS)
                for name, call in step_calls(network, images, targets).items()
            ]
        for one in (self.views, *self.ways, *self.parts):
            one.clocks, one.place = self.clocks, trainer
        self.failed: dict[str, str] = {}
        """Engines that cannot run the model, and why."""
        self.trials = list(self._trials(network, samples, engines, say))
        if not self.trials:
            raise ValueError(f"gamma needs an engine that runs the model: got {self.failed}; add torch:fp32")

    @property
    def contestants(self) -> list[Contestant]:
        """All that take turns."""
        others = Contestant(name="what others take", call=self.busyness, seconds=0.0)
        own = (others, self.views, *self.ways, *self.parts)
        return [*own, *chain.from_iterable(trial.contestants for trial in self.trials)]

    def training(self) -> list[TrainerSpeed]:
        """What the rounds have shown of the trainer."""
        return [
            TrainerSpeed(name=way.name, images_per_second=way.rate, step_seconds=way.fastest_seconds, rounds=way.rates)
            for way in self.ways
        ]

    def step_rounds(self) -> list[float]:
        """Seconds of a step at its best, with its views, round by round."""
        step = fastest(self.ways)
        return [sum(seconds) for seconds in zip(step.rounds, self.views.rounds, strict=False)]

    def parts_of_a_step(self) -> StepParts:
        """What the rounds have shown of a step's parts."""
        return step_parts(*(part.fastest_seconds for part in self.parts))

    def speeds(self, score: Callable[..., Tensor]) -> list[EngineSpeed]:
        """What the rounds have shown of the engines."""
        with self._oracle():
            return [trial.speed(score) for trial in self.trials]

    def _trials(
        self, network: nn.Module, samples: Samples, engines: Sequence[str], say: Callable[[str], None]
    ) -> Iterator[EngineTrial]:
        for spec in engines or [spec for spec in MEASURED if not missing_packages(spec)]:
            say(f"{spec}: building")
            clocks = WALL if "@" in spec else self.clocks  # another device works while this one's CPU waits
            try:
                yield EngineTrial(spec, network, samples, clocks=clocks, place=self._oracle)
            except ValueError as error:
                self.failed[spec] = str(error)
