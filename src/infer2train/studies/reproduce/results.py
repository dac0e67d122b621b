"""What the finished runs of an experiment say, a line for each arm: errors, differences, likelihood, cost.

An arm that asks an oracle is also compared with what the oracle's device could have done instead, where the experiment
has trained that: an arm that was given the hybrid's devices and wall-clock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from infer2train.draws.methods.table import METHODS
from infer2train.reporting.runs import Run
from infer2train.reporting.statistics import PairedDifference
from infer2train.reporting.summary import difference_from, final_errors, mean_of
from infer2train.studies.reproduce.arms import Arm
from infer2train.studies.reproduce.costs import Cost
from infer2train.studies.reproduce.diagnosis import EVENT


@dataclass(frozen=True, kw_only=True)
class Line:
    """One arm. Errors are fractions, losses in nats, times relative to the first arm's.

    Args:
        arm: which.
        errors: final test error by seed, of the finished runs.
        difference: from the arm that it is compared with, over common seeds; None where there is none.
        on_equal_hardware: the same from the arm that has the hybrid's devices and wall-clock; None for an arm without
            an oracle, and where there is no such arm.
        loss: mean final test loss (negative log-likelihood).
        calibration_error: mean expected calibration error.
        recalibrated: mean test error with batch-norm statistics of random views; None where it was not measured.
        num_devices: cores, or GPUs, that it occupies; None where its cost was not measured, as the next two.
        wall: wall-clock, divided by the first arm's.
        device_seconds: wall-clock times devices, divided by the first arm's.
    """

    arm: Arm
    errors: Mapping[int, float]
    difference: PairedDifference | None
    on_equal_hardware: PairedDifference | None
    loss: float | None
    calibration_error: float | None
    recalibrated: float | None
    num_devices: int | None
    wall: float | None
    device_seconds: float | None

    def as_plain(self) -> dict[str, Any]:
        """As JSON types."""
        plain = asdict(self)  # a verdict is a string
        return plain | {
            "arm": self.arm.name,
            "against": self.arm.against,
            "errors": {str(seed): error for seed, error in self.errors.items()},
        }


def lines(arms: Sequence[Arm], runs: Mapping[tuple[str, int], Run], costs: Mapping[str, Cost]) -> list[Line]:
    """A line for each arm of which a run is finished, in order.

    Args:
        arms: of the experiment, the baseline first.
        runs: by name of the arm and seed.
        costs: of each arm by name; empty where none were measured.
    """
    finished: dict[str, list[Run]] = {arm.name: [] for arm in arms}
    for (name, _), run in sorted(runs.items()):
        if name in finished and run.finished:
            finished[name].append(run)
    errors = {name: final_errors(done) for name, done in finished.items()}
    instead = next((errors[arm.name] for arm in arms if arm.wall_clock_of is not None), {})
    first = costs.get(arms[0].name)
    return [
        _line(arm, finished[arm.name], errors, instead, costs.get(arm.name), first)
        for arm in arms
        if finished[arm.name]
    ]


def _line(
    arm: Arm,
    runs: Sequence[Run],
    errors: Mapping[str, Mapping[int, float]],
    instead: Mapping[int, float],
    cost: Cost | None,
    first: Cost | None,
) -> Line:
    has_oracle = METHODS[arm.method].has_oracle
    return Line(
        arm=arm,
        errors=errors[arm.name],
        difference=difference_from(errors.get(arm.against or "", {}), errors[arm.name]),
        on_equal_hardware=difference_from(instead, errors[arm.name]) if has_oracle else None,
        loss=mean_of([run.epochs[-1].get("test_loss") for run in runs]),
        calibration_error=mean_of([run.epochs[-1].get("test_calibration_error") for run in runs]),
        recalibrated=mean_of([row["test_error"] for run in runs for row in run.events if row["event"] == EVENT]),
        num_devices=cost.devices if cost is not None else None,
        wall=cost.wall / first.wall if cost is not None and first is not None else None,
        device_seconds=cost.device_seconds / first.device_seconds if cost is not None and first is not None else None,
    )
