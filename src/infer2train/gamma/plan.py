"""From what was measured to what to do: engine, γ, T, delay, and whether mining pays at all. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from infer2train.oracle.measurement import AFFORDABLE, EngineSpeed, end_to_end_gamma

UPDATES = (10, 50, 100)
"""T, the steps between refreshes, that is planned for."""
DEAREST = 2.0
"""A training that would take longer than this many times is not worth it: train longer instead."""


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


def recommend(
    speeds: Sequence[EngineSpeed], *, gamma: int, step_seconds: float, batch_size: int, views_per_second: float
) -> Recommendation:
    """The engine with the highest end-to-end γ at the smallest T that it can afford, and the verdict.

    FITS: a device like the measured one scores γ candidates for each example while the trainer trains on it.
    COSTS × r: the trainer would wait, and take r times as long. DOES NOT FIT: more than `DEAREST` times.

    Args:
        speeds: of the engines, at least one.
        gamma: candidates asked for.
        step_seconds: of the trainer at its best, loader included.
        batch_size: examples in a step.
        views_per_second: of the candidates' views.
    """
    best: tuple[float, EngineSpeed, int] | None = None
    for speed in speeds:
        affordable = [t for t in UPDATES if speed.refresh_seconds <= AFFORDABLE * t * step_seconds]
        update_every = affordable[0] if affordable else UPDATES[-1]
        found = gammas(speed, step_seconds=step_seconds, batch_size=batch_size, views_per_second=views_per_second)
        if best is None or found[update_every] > best[0]:
            best = (found[update_every], speed, update_every)
    assert best is not None
    reached, speed, update_every = best
    ratio = gamma / reached if reached > 0 else math.inf
    verdict = "FITS" if ratio <= 1 else f"COSTS × {ratio:.2f}" if ratio <= DEAREST else "DOES NOT FIT"
    fitting = gamma if ratio <= DEAREST else max(1, math.floor(reached))
    draw_seconds = fitting * batch_size * (1 / speed.images_per_second + 1 / views_per_second)
    return Recommendation(
        engine=speed.name,
        gamma=fitting,
        update_every=update_every,
        delay_steps=math.ceil((speed.refresh_seconds + draw_seconds) / step_seconds),
        verdict=verdict,
    )
