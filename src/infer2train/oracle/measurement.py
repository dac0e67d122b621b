"""How fast an engine is here: images per second, and seconds from a publication to its first verified score."""

import copy
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import nn

from infer2train.batches import call_model, tensors_of, to_device
from infer2train.draws.scores import Score
from infer2train.machine.device import device_of, wait_for_gpu
from infer2train.oracle.engines import INT8, build_engine, missing_packages
from infer2train.oracle.fidelity import fidelity
from infer2train.oracle.live import asked_copy
from infer2train.oracle.lowered_engine import LoweredEngine
from infer2train.oracle.reduced_engine import ReducedEngine
from infer2train.oracle.rounds import WALL, Clock, Contestant, fastest, take_turns
from infer2train.oracle.samples import PROBE_VIEWS, Samples
from infer2train.oracle.snapshot import snapshot

CHUNKS = (8, 16, 32, 64, 128)
"""Rows of a call that are tried."""
MEASURED_SECONDS = 0.5
"""Time in which a call is measured that takes no turns with others, at least three calls."""
GAIN_SAMPLES = 32
"""Samples, of `PROBE_VIEWS` views each, on which the captured gain is measured."""
AUTO_ROUNDS = 3
"""Rounds in which `auto` times its engines."""
AFFORDABLE = 0.1
"""Part of the T steps between two refreshes that a refresh may take."""
CANDIDATES = (*INT8, "torch:fp32")
"""Engines that `auto` chooses from, where they are installed."""


@dataclass(frozen=True, kw_only=True)
class EngineSpeed:
    """What one engine does on this machine, with the threads that torch has now."""

    name: str
    images_per_second: float
    """At the best chunk, in its fastest round."""
    chunk: int
    """Rows of a call at which it is fastest."""
    refresh_seconds: float
    """From the publication of a version to its first verified score, in the fastest round."""
    captured_gain: float | None
    """See `fidelity.Fidelity`; None for an engine that does not round, or without targets."""
    rounds: tuple[float, ...] = ()
    """Images per second at the best chunk, round by round."""


def timed(call: Callable[[], object], seconds: float | None = None, least: int = 3) -> float:
    """Median seconds of a call, after one that is not counted; over `MEASURED_SECONDS` unless told."""
    seconds = MEASURED_SECONDS if seconds is None else seconds
    call()
    taken: list[float] = []
    while len(taken) < least or sum(taken) < seconds:
        wait_for_gpu()
        started = perf_counter()
        call()
        wait_for_gpu()
        taken.append(perf_counter() - started)
    return statistics.median(taken)


class EngineTrial:
    """An engine with the model's weights of now: its refresh, and a call at each chunk, to be timed in turns.

    Args:
        spec: the engine.
        model: whose weights it runs.
        samples: where its inputs come from.
        chunks: rows of a call to try. Default: `CHUNKS`.
        clocks: that time it.
        place: that it runs in.
        device: where a torch engine runs that does not say it. Default: the model's.

    Raises:
        ValueError: the engine cannot run the model, or its package is missing.
    """

    def __init__(
        self,
        spec: str,
        model: nn.Module,
        samples: Samples,
        *,
        chunks: Sequence[int] | None = None,
        clocks: tuple[Clock, ...] = WALL,
        place: Callable[[], AbstractContextManager[object]] = nullcontext,
        device: torch.device | None = None,
    ) -> None:
        chunks = chunks or CHUNKS
        self.name, self._model, self._samples = spec, model, samples
        self._first = 32 if 32 in chunks else chunks[0]
        self._inputs = {rows: samples.calibration(0, rows) for rows in {self._first, *chunks}}
        with place():
            self._engine = build_engine(spec, model, device, samples=samples, rows=self._first)
            self._refresh()
            calls = {rows: self._call_of(rows) for rows in chunks if rows == self._first or self._takes(rows)}
        self.refresh = Contestant(name=f"{spec}: refresh", call=self._refresh, seconds=0.0, clocks=clocks, place=place)
        self.calls = {
            rows: Contestant(name=f"{spec} by {rows}", call=call, group=spec, work=rows, clocks=clocks, place=place)
            for rows, call in calls.items()
        }

    @property
    def contestants(self) -> tuple[Contestant, ...]:
        """All that takes turns."""
        return (self.refresh, *self.calls.values())

    def speed(self, score: Score | None = None) -> EngineSpeed:
        """What the rounds have shown; the captured gain too, by a score."""
        best = fastest(self.calls.values())
        return EngineSpeed(
            name=self.name,
            images_per_second=best.rate,
            chunk=int(best.work),
            refresh_seconds=self.refresh.fastest_seconds,
            captured_gain=None if score is None else self._captured_gain(score),
            rounds=best.rates,
        )

    def _takes(self, rows: int) -> bool:
        return not isinstance(self._engine, LoweredEngine) or self._engine.graph.takes_any_rows

    def _refresh(self) -> None:
        engine = self._engine
        if isinstance(engine, LoweredEngine):
            engine.rows = self._first
        engine.refresh(engine.calibrated(snapshot(self._model, (engine.version or 0) + 1)))
        engine.outputs(self._inputs[self._first])

    def _call_of(self, rows: int) -> Callable[[], object]:
        engine, inputs = self._engine, self._inputs[rows]
        if not isinstance(engine, LoweredEngine):
            return lambda: engine.outputs(inputs)
        engine.rows = rows
        prepared = engine.prepared(engine.calibrated(snapshot(self._model, engine.version or 0)))

        def call() -> None:  # programs are compiled for their rows: whoever's turn it is puts its own in
            engine.rows = rows
            engine.use(prepared)
            engine.outputs(inputs)

        return call

    def _reference(self) -> Callable[[Any], Any] | None:
        """What an engine's outputs are compared with; None where they are torch's own."""
        if isinstance(self._engine, LoweredEngine):
            return self._engine.reference
        if not isinstance(self._engine, ReducedEngine):
            return None
        model = asked_copy(self._model)

        @torch.no_grad()
        def whole(inputs: Any) -> Any:
            return call_model(model, inputs)

        return whole

    def _captured_gain(self, score: Score) -> float | None:
        reference = self._reference()
        inputs, targets = self._samples.probe(GAIN_SAMPLES * PROBE_VIEWS)
        if targets is None or reference is None:
            return None
        runs = (self._engine.outputs, reference)
        return fidelity(*(score(run(inputs), targets).view(-1, PROBE_VIEWS) for run in runs)).captured_gain


def end_to_end_gamma(
    images_per_second: float,
    refresh_seconds: float,
    *,
    step_seconds: float,
    batch_size: int,
    update_every: int,
    views_per_second: float = torch.inf,
) -> float:
    """Candidates for each trained example that a device like the measured one scores while the trainer does T steps.

    Making views and the refresh are counted to the device that scores.

    Args:
        images_per_second: of the engine alone.
        refresh_seconds: of each of its refreshes.
        step_seconds: of the trainer.
        batch_size: examples in a step (B).
        update_every: T.
        views_per_second: how many candidates' views are made in a second.

    Example:
        >>> end_to_end_gamma(2000, 0.5, step_seconds=0.3, batch_size=64, update_every=50)
        9.0625
    """
    seconds = max(0.0, update_every * step_seconds - refresh_seconds)
    rate = 1 / (1 / images_per_second + 1 / views_per_second)
    return seconds * rate / (update_every * batch_size)


def trained_copy(model: nn.Module) -> nn.Module:
    """A copy of the model in training mode."""
    trained = copy.deepcopy(model)
    trained.train()  # a user's own may return nothing
    return trained


def step_seconds(model: nn.Module, inputs: Any) -> float:
    """Seconds of a forward and backward pass of the model as it is, on a copy."""
    trained = trained_copy(model)
    inputs = to_device(inputs, device_of(model))

    def step() -> None:
        outputs = tensors_of(call_model(trained, inputs))
        torch.autograd.backward(torch.stack([o.float().square().mean() for o in outputs if o.requires_grad]).sum())
        trained.zero_grad()

    with torch.random.fork_rng():  # dropout draws
        return timed(step)


def fastest_engine(
    model: nn.Module,
    samples: Samples,
    *,
    step_seconds: float,
    batch_size: int,
    update_every: int,
    rows: int,
    place: Callable[[], AbstractContextManager[object]] = nullcontext,
    device: torch.device | None = None,
) -> tuple[str, list[str]]:
    """What `auto` is here: the engine with the highest end-to-end γ at T, and one line on each engine tried.

    An engine whose refresh takes more than `AFFORDABLE` of T steps is refused, unless none is left.

    Args:
        model: the trainer's.
        samples: where its inputs come from.
        step_seconds: of the trainer.
        batch_size: examples in a step.
        update_every: T.
        rows: of a call.
        place: that an oracle will have.
        device: where a torch engine runs that does not say it. Default: the model's.
    """
    found: dict[str, tuple[bool, float]] = {}
    lines: list[str] = []
    trials: list[EngineTrial] = []
    for spec in [spec for spec in CANDIDATES if not missing_packages(spec)]:
        try:
            trials.append(EngineTrial(spec, model, samples, chunks=(rows,), place=place, device=device))
        except ValueError as error:
            lines.append(f"{spec}: cannot run this model ({error})")
    take_turns([one for trial in trials for one in trial.contestants], rounds=AUTO_ROUNDS)
    for trial in trials:
        spec, speed = trial.name, trial.speed()
        gamma = end_to_end_gamma(
            speed.images_per_second,
            speed.refresh_seconds,
            step_seconds=step_seconds,
            batch_size=batch_size,
            update_every=update_every,
        )
        share = speed.refresh_seconds / (update_every * step_seconds)
        line = f"{spec}: {speed.images_per_second:.0f} images/s, refresh {speed.refresh_seconds:.3f} s, γ {gamma:.1f}"
        if share > AFFORDABLE:
            line += f"; refused: a refresh takes {share:.0%} of {update_every} steps, {AFFORDABLE:.0%} are allowed"
        found[spec] = share <= AFFORDABLE, gamma
        lines.append(line)
    assert found, "the torch engine runs every model"
    return max(found, key=found.__getitem__), lines
