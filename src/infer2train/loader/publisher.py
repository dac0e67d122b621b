"""Versions of the weights on their way from the model to the pool: when they are published, how long they are kept."""

from collections.abc import Mapping
from dataclasses import replace
from time import perf_counter
from typing import Any

from infer2train.draws.draw import Draw
from infer2train.draws.mining import Mining
from infer2train.loader.course import REMEDIES
from infer2train.loader.ranks import Ranks
from infer2train.loader.sharding import Weights
from infer2train.machine.device import device_of
from infer2train.observe.metrics import Meter
from infer2train.observe.timeline import TRAINER
from infer2train.oracle.live import LiveModel
from infer2train.oracle.snapshot import Record, snapshot
from infer2train.pool.pool import Pool


class Publisher:
    """Copies weights out of the model into records.

    Args:
        weights: of the trainer's model.
        pool: gets the records.
        mining: says when.
        live: asks the model for its own scores; None where nobody compares.
        meter: where the time that it takes is counted.
        ranks: of the run; all publish what the first of them has.
        has_one_probe: whether oracles of all ranks are measured on the same samples.
    """

    def __init__(
        self,
        weights: Weights,
        pool: Pool,
        mining: Mining,
        live: LiveModel | None,
        meter: Meter,
        ranks: Ranks,
        *,
        has_one_probe: bool = True,
    ) -> None:
        self._weights, self._pool, self._rule, self._live, self._meter = weights, pool, mining.rule, live, meter
        self._ranks, self._has_one_probe = ranks, has_one_probe
        self._is_freshest = mining.staleness == "freshest"
        self._newest_scored = -1

    def version_for(self, step: int) -> int:
        """The version that scores the draws of a step."""
        return max(self._pool.records, default=0) if self._is_freshest else self._rule.version_of_step(step)

    def has(self, draw: Draw) -> bool:
        """Whether the version that a draw waits for is published."""
        return draw.version is None or draw.version in self._pool.records

    def require(self, draw: Draw, steps: int) -> None:
        """Refuse to wait for weights that only the loop can make.

        Raises:
            RuntimeError: so many steps are done, and the version needs more.
        """
        if self.has(draw):
            return
        ahead = draw.step - steps
        raise RuntimeError(
            f"a draw of step {draw.step} is scored by the weights after step {draw.version}: got {steps} steps "
            f"done, the loop fetches {ahead} steps ahead. Pass delay_steps={ahead} to mine() if it prefetches; "
            f"{REMEDIES}"
        )

    def publish_if_due(self, steps: int) -> None:
        """Publish the weights after so many steps, where they are a version and are not there yet."""
        if not self._rule.is_published(steps) or steps in self._pool.records:
            return
        with self._pool.timeline.span(TRAINER, "publish", version=steps):
            started = perf_counter()
            self._weights.gather()
            record = snapshot(self._weights.whole, steps, self._pool.room)
            if self._live is not None:
                record = replace(record, probe_scores=self._live.scores(steps))
                self._meter.add(outgrown_versions=self._live.is_outgrown)
            self._take_from_first(record)
            self._meter.add(copying_seconds=perf_counter() - started)
            self._pool.publish(record)

    def _take_from_first(self, record: Record) -> None:
        """Make a record that nobody has seen yet that of rank 0: buffers of other ranks saw other batches."""
        probe = () if record.probe_scores is None or not self._has_one_probe else (record.probe_scores,)
        self._ranks.take_from_first([*record.tensors.values(), *probe])

    def saw(self, draw: Draw) -> None:
        """Take note of a draw that was handed out."""
        self._newest_scored = max(self._newest_scored, -1 if draw.version is None else draw.version)

    def retire(self, step: int) -> None:
        """Let go of the versions that no draw from this step on may have."""
        records = self._pool.records
        oldest = max(records, default=0) if self._is_freshest else self._rule.version_of_step(step)
        if any(version < oldest for version in records):
            self._pool.retire(oldest)

    # Resume

    def state_dict(self) -> dict[str, Any]:
        """The records that are still needed, and the newest that has scored."""
        return {
            "newest_scored": self._newest_scored,
            "records": {
                str(version): {
                    "tensors": dict(record.tensors),
                    "ranges": dict(record.ranges),
                    # An oracle is measured once at each version, when it first scores.
                    "probe_scores": record.probe_scores if version > self._newest_scored else None,
                }
                for version, record in self._pool.records.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Publish these records instead of what there is."""
        self._newest_scored = state["newest_scored"]
        self._pool.retire(max(self._pool.records, default=0) + 1)
        device = device_of(self._weights.whole)
        for version, saved in sorted(state["records"].items(), key=lambda item: int(item[0])):
            tensors = {name: tensor.to(device) for name, tensor in saved["tensors"].items()}
            self._pool.publish(Record(int(version), tensors, saved["ranges"], saved["probe_scores"]))
