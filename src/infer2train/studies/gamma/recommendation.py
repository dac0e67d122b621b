"""From what was measured to what to do: engine, γ, T, delay, and whether mining pays at all. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from infer2train.draws.versions import VersionRule
from infer2train.oracle.measurement import AFFORDABLE, EngineSpeed, end_to_end_gamma

UPDATES = (10, 50, 100)
"""T, the steps between refreshes, that is planned for."""
DEAREST = 2.0
"""A training that would take longer than this many times is not worth it: train longer instead."""
MEASURED_STEPS = 200
"""Of a trainer beside its oracle, over which a step is averaged, at least."""
TURNS = 8
"""Of all workers, over which it is, at least."""
FAITHFUL = 0.5
"""Captured gain below which an engine is recommended only where none has more: its picks are not the model's."""


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What to do on this machine."""

    engine: str
    gamma: int
    """Candidates for each trained example: what was asked for, or what fits."""
    update_every: int
    """T, the smallest at which a refresh is not noticed."""
    delay_steps: int
    """D, after which the first draw of a version has been scored when it is asked for."""
    verdict: str
    """FITS, COSTS × r or DOES NOT FIT."""
    otherwise: tuple[str, ...] = ()
    """Verdicts of another kind that a quarter of the rounds or more would have given."""


def gammas(speed: EngineSpeed, *, step_seconds: float, batch_size: int, views_per_second: float) -> dict[int, float]:
    """End-to-end γ by T."""
    return {
        update_every: end_to_end_gamma(
            speed.images_per_second,
            speed.refresh_seconds,
            step_seconds=step_seconds,
            batch_size=batch_size,
            update_every=update_every,
            views_per_second=views_per_second,
        )
        for update_every in UPDATES
    }


@dataclass(frozen=True, kw_only=True)
class Hybrid:
    """Trainer and oracle side by side, each on cores of its own."""

    oracle_cores: tuple[int, ...]
    trainer_cores: tuple[int, ...]
    alone_seconds: float
    """A step of the trainer without an oracle."""
    step_seconds: float
    """A step beside the oracle, as predicted."""

    @property
    def ratio(self) -> float:
        """How many times as long a step takes with the oracle."""
        return self.step_seconds / self.alone_seconds


def hybrid_step_seconds(
    *,
    step_seconds: float,
    draw_seconds: float,
    refresh_seconds: float,
    update_every: int,
    delay_steps: int = 0,
    queue_depth: int = 4,
    publish_seconds: float = 0.0,
    carry_seconds: float = 0.0,
    workers: int = 1,
) -> float:
    """A step of a trainer whose oracle scores ahead on a device of its own: the mean over whole versions.

    The trainer and the oracle are followed draw by draw: a draw can be scored once its version is published and no more
    than `queue_depth` draws lie before it, a refresh comes before the first draw of a version, and a step begins when
    its draw is scored. Of several workers the one that is free first takes a draw, and each is refreshed.

    Args:
        step_seconds: of the trainer alone.
        draw_seconds: in which one worker scores one draw, views included.
        refresh_seconds: in which it takes new weights.
        update_every: T.
        delay_steps: D.
        queue_depth: draws that are scored ahead.
        publish_seconds: of the trainer, for new weights.
        carry_seconds: between trainer and worker, for one draw there and back.
        workers: of the oracle, each on a device of its own.

    Example:
        >>> hybrid_step_seconds(step_seconds=1.0, draw_seconds=0.5, refresh_seconds=0.5, update_every=10)
        1.1
    """
    rule = VersionRule(update_every=update_every, delay_steps=delay_steps)
    before = update_every * (2 + -(-delay_steps // update_every))
    # Several workers take turns longer than a version.
    measured = update_every * -(-max(MEASURED_STEPS, TURNS * workers) // update_every)
    trainer = measured_from = 0.0
    begun: list[float] = []
    published = {0: 0.0}
    free, refreshed = [0.0] * workers, [-1] * workers
    for step in range(before + measured):
        if step == before:
            measured_from = trainer
        version = rule.version_of_step(step)
        asked = begun[step - queue_depth - 1] if step > queue_depth else 0.0
        at = min(range(workers), key=free.__getitem__)
        if version != refreshed[at]:
            free[at], refreshed[at] = max(free[at], published[version]) + refresh_seconds, version
        free[at] = max(free[at], published[version], asked) + draw_seconds
        begun.append(max(trainer, free[at] + carry_seconds))
        trainer = begun[-1] + step_seconds
        if rule.is_published(step + 1):
            trainer += publish_seconds
            published[step + 1] = trainer
    return (trainer - measured_from) / measured


def side_by_side(
    found: "Recommendation",
    speeds: Sequence[EngineSpeed],
    *,
    batch_size: int,
    views_per_second: float,
    step_seconds: float,
    oracle_cores: tuple[int, ...],
    trainer_cores: tuple[int, ...],
) -> Hybrid:
    """What a step takes beside the recommended engine, at the recommended settings."""
    speed = next(speed for speed in speeds if speed.name == found.engine)
    predicted = hybrid_step_seconds(
        step_seconds=step_seconds,
        draw_seconds=found.gamma * batch_size * (1 / speed.images_per_second + 1 / views_per_second),
        refresh_seconds=speed.refresh_seconds,
        update_every=found.update_every,
        delay_steps=found.delay_steps,
    )
    return Hybrid(
        oracle_cores=oracle_cores, trainer_cores=trainer_cores, alone_seconds=step_seconds, step_seconds=predicted
    )


def recommend(
    speeds: Sequence[EngineSpeed],
    *,
    gamma: int,
    step_seconds: float,
    batch_size: int,
    views_per_second: float,
    step_rounds: Sequence[float] = (),
) -> Recommendation:
    """The engine with the highest end-to-end γ at the smallest T that it can afford, and the verdict.

    Engines whose picks are not the model's are left out, as long as there are others (`FAITHFUL`).

    FITS: a device like the measured one scores γ candidates for each example while the trainer trains on it.
    COSTS × r: the trainer would wait, and take r times as long. DOES NOT FIT: more than `DEAREST` times.

    Args:
        speeds: of the engines, at least one.
        gamma: candidates asked for.
        step_seconds: of the trainer at its best, loader included.
        batch_size: examples in a step.
        views_per_second: of the candidates' views.
        step_rounds: of the trainer too, round by round, as the speeds' `rounds`; from which `otherwise` follows.
    """
    best: tuple[float, EngineSpeed, int] | None = None
    faithful = [speed for speed in speeds if speed.captured_gain is None or speed.captured_gain >= FAITHFUL]
    for speed in faithful or speeds:
        affordable = [t for t in UPDATES if speed.refresh_seconds <= AFFORDABLE * t * step_seconds]
        update_every = affordable[0] if affordable else UPDATES[-1]
        found = gammas(speed, step_seconds=step_seconds, batch_size=batch_size, views_per_second=views_per_second)
        if best is None or found[update_every] > best[0]:
            best = (found[update_every], speed, update_every)
    assert best is not None
    reached, speed, update_every = best

    def draw_seconds_of(gamma: int, images_per_second: float) -> float:
        return gamma * batch_size * (1 / images_per_second + 1 / views_per_second)

    def times_as_long(images_per_second: float, step_seconds: float) -> float:
        """What a draw and its part of a refresh take, in steps."""
        return (draw_seconds_of(gamma, images_per_second) + speed.refresh_seconds / update_every) / step_seconds

    ratio = times_as_long(speed.images_per_second, step_seconds)
    verdict = _verdict(ratio)
    by_round = [times_as_long(*measured) for measured in zip(speed.rounds, step_rounds, strict=False)]
    fitting = gamma if ratio <= DEAREST else max(1, math.floor(reached))
    draw_seconds = draw_seconds_of(fitting, speed.images_per_second)
    return Recommendation(
        engine=speed.name,
        gamma=fitting,
        update_every=update_every,
        delay_steps=math.ceil((speed.refresh_seconds + draw_seconds) / step_seconds),
        verdict=verdict,
        otherwise=_otherwise(verdict, by_round),
    )


def _verdict(ratio: float) -> str:
    return "FITS" if ratio <= 1 else f"COSTS × {ratio:.2f}" if ratio <= DEAREST else "DOES NOT FIT"


def _otherwise(verdict: str, ratios: Sequence[float]) -> tuple[str, ...]:
    """Verdicts of other kinds at the quartiles of the rounds: one round that was disturbed says nothing."""
    if len(ratios) < 2:
        return ()
    ordered = sorted(ratios)
    quarter = (len(ordered) - 1) // 4
    found = [_verdict(ordered[at]) for at in (quarter, len(ordered) - 1 - quarter)]
    return tuple(other for other in found if other.split()[0] != verdict.split()[0])
