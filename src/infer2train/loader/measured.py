"""What was measured of a loader: running totals of its own and of its pool, and what came since it was last asked."""

from functools import partial
from time import perf_counter

from infer2train.observe.metrics import Meter, Totals, window
from infer2train.observe.timeline import TRAINER, Timeline
from infer2train.pool.pool import Pool


class Measured:
    """Something that is measured while it runs.

    Args:
        meter: its own counts.
        pool: what scores for it.
    """

    def __init__(self, meter: Meter, pool: Pool) -> None:
        self.timeline: Timeline = pool.timeline
        """What trainer and oracles did when."""
        # Who is asked for totals must not keep the loader: one that is let go of counts no more steps.
        self._totals = partial(running_totals, meter, pool, perf_counter())
        self._mark: Totals = self.totals()

    def totals(self) -> Totals:
        """Running totals since the loader was made, for `infer2train.observe.metrics.window`."""
        return self._totals()

    def _since_last(self) -> dict[str, float]:
        """What came since this was last called."""
        before, self._mark = self._mark, self.totals()
        return window(self._mark, before)


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
