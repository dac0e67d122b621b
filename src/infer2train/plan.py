"""What a loader mines, resolved, and what each of its draws was: the nouns that the loader speaks in."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from infer2train.addresses import Addresses
from infer2train.methods import Method
from infer2train.selection import Balance
from infer2train.versions import VersionRule

Staleness = Literal["strict", "freshest"]
"""Whether a draw is scored by the version that the rule says, or by the newest that the oracle has by then."""
WhenLate = Literal["wait", "skip"]
"""What becomes of a draw whose scores are not there when it is needed: it is waited for, or trained on unmined."""
OnOracleLoss = Literal["stop", "continue"]
"""What becomes of a run that no oracle can score for any more: it stops with an error, or goes on unmined."""


@dataclass(frozen=True, kw_only=True)
class MiningPlan:
    """What a loader mines, resolved: nothing in it depends on data, weights or time."""

    method: Method
    score: str | None
    """Name of the score: one of ours, or of the user's own function."""
    oracle: str
    quantization: str
    oracle_chunk: int
    gamma: int
    rule: VersionRule
    mine_every: int
    balance: Balance
    distill_weight: float
    accumulation_steps: int
    epochs: int | None
    seed: int
    staleness: Staleness = "strict"
    when_late: WhenLate = "wait"
    on_oracle_loss: OnOracleLoss = "stop"

    def is_mined(self, step: int) -> bool:
        """Whether draws of this step are mined."""
        return self.method.asks_the_pool and step % self.mine_every == 0


def plan_fields(plan: MiningPlan) -> dict[str, Any]:
    """The plan as a flat mapping of plain values, by which two plans are compared."""
    method, rule = plan.method, plan.rule
    return {
        "candidates": method.candidates,
        "score": plan.score,
        "pick": method.pick,
        "ramp": [method.schedule.rate, method.schedule.start, method.schedule.stop],
        "loss": method.loss,
        "oracle": plan.oracle,
        "quantization": plan.quantization,
        "oracle_chunk": plan.oracle_chunk,
        "gamma": plan.gamma,
        "update_every": rule.update_every,
        "delay_steps": rule.delay_steps,
        "mine_every": plan.mine_every,
        "balance": plan.balance,
        "distill_weight": plan.distill_weight,
        "accumulation_steps": plan.accumulation_steps,
        "epochs": plan.epochs,
        "seed": plan.seed,
        "staleness": plan.staleness,
        "when_late": plan.when_late,
        "on_oracle_loss": plan.on_oracle_loss,
    }


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One batch handed to the training loop, and how it came about."""

    draw: int
    """Counted from 0 over the whole run."""
    epoch: int
    step: int
    """The step that trains on it."""
    version: int | None
    """Version of the weights that scored it; None where no oracle did."""
    addresses: Addresses
    """The trained examples, in the order of the batch."""
    candidates: Addresses
    """What the oracle looked at; empty where nothing was scored."""
    scores: Float[Tensor, " n"] | None
    """One number for each candidate."""
    chosen: Int64[np.ndarray, " t"] | None
    """For each trained example its index among the candidates."""
    mined: Bool[np.ndarray, " t"] | None
    """Whether each trained example was picked for its score."""
    log_probabilities: Float[Tensor, "b k"] | None
    """The oracle's mean log-probabilities, for distillation."""

    @property
    def lag(self) -> int | None:
        """Step of the draw minus the version that scored it (steps)."""
        return None if self.version is None else self.step - self.version
