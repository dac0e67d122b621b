"""What an oracle costs the trainer, measured in seconds: a step alone, with the oracle in its time, and beside it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.data import DataLoader

from infer2train.loader.mine import mine
from infer2train.machine.cores import as_text, on_cores, shared_out
from infer2train.sources.views.crops import PadCropFlip
from infer2train.sources.views.image_views import ImageViews
from infer2train.training.config import RunConfig
from infer2train.training.setup import pixel_model

UPDATE_EVERY = 25
"""T: one refresh of the oracle is among the steps that are measured."""
TURN_STEPS, TURNS = 5, 5
"""Steps of one way before it is the next one's turn, and turns of each: a machine's speed drifts within seconds."""
DELAY_STEPS = 5
"""D, so that a refresh is over before its first draw is asked for."""
IMAGES, PIXELS = 6_400, 32


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Means over the steps of all turns, in seconds."""

    alone: float
    inline: float
    """With the oracle in the trainer's time."""
    hybrid: float | None
    """With the oracle on a core of its own; None where there is only one core."""


def step_times(
    *,
    model: str = "resnet20",
    oracle: str = "int8",
    gamma: int = 10,
    batch_size: int = 64,
    say: Callable[[str], None] = lambda line: None,
) -> StepTimes:
    """Train a model on random pixels in three ways, in turns, and time its steps.

    The trainer has the same cores in all three: all but one, or the only one.

    Args:
        model: an entry of `MODELS`.
        oracle: engine that scores.
        gamma: candidates for each example.
        batch_size: examples in a step.
        say: called with what is under way.
    """
    oracles, trainers = shared_out(None, 1)
    has_own_core = set(oracles).isdisjoint(trainers)
    hybrid = {"method": "nm-augment", "pool": "process", "oracle_cores": as_text(oracles)}
    ways: dict[str, dict[str, Any]] = {"alone": {"method": "baseline"}, "inline": {"method": "nm-augment"}}
    if has_own_core:
        ways["hybrid"] = hybrid
    threads = torch.get_num_threads()
    with on_cores(trainers):
        torch.set_num_threads(len(trainers))
        made = {}
        for name, settings in ways.items():
            say(f"{name}: building")
            made[name] = _Trainer(model, batch_size, oracle=oracle, gamma=gamma, **settings)
            made[name].steps()
        seconds = dict.fromkeys(ways, 0.0)
        for turn in range(TURNS):
            say(f"turn {turn + 1} of {TURNS}")
            for name, trainer in made.items():
                seconds[name] += trainer.steps() / TURNS
        for trainer in made.values():
            trainer.loader.close()
        torch.set_num_threads(threads)
    return StepTimes(alone=seconds["alone"], inline=seconds["inline"], hybrid=seconds.get("hybrid"))


class _Trainer:
    def __init__(self, model: str, batch_size: int, **settings: Any) -> None:
        generator = np.random.default_rng(0)
        pixels = generator.integers(0, 256, (IMAGES, PIXELS, PIXELS, 3), dtype=np.uint8)
        source = ImageViews(pixels, generator.integers(0, 10, IMAGES), PadCropFlip(4))
        network = pixel_model(RunConfig(model=model), 10, 3)
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types lack it
        self._optimizer = SGD(self._network.parameters(), lr=0.01, momentum=0.9)
        base: DataLoader[Any] = DataLoader(source, batch_size=batch_size, shuffle=True, drop_last=True)
        self.loader = mine(
            base, self._network, self._optimizer, update_every=UPDATE_EVERY, delay_steps=DELAY_STEPS, **settings
        )
        self._batches = self._endless()

    def _endless(self) -> Iterator[Any]:
        while True:
            yield from self.loader

    def steps(self) -> float:
        """Seconds a step, over one turn."""
        started = perf_counter()
        for images, targets in islice(self._batches, TURN_STEPS):
            torch.autograd.backward(F.cross_entropy(self._network(images), targets))
            self._optimizer.step()
            self._optimizer.zero_grad()
        return (perf_counter() - started) / TURN_STEPS
