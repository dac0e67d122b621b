"""How well the oracle picks: its scores against those of the model itself, on views that never change.

What matters is not how close the scores are, but what is lost by following them. Measured on a few samples with a few
views each, so it is cheap enough to stay on. The model's own scores come with its weights (`live`): an engine's own
float32 reference would be as old as the engine where it misses a change.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from infer2train.batches import batch_size, map_tensors, tensors_of, to_device
from infer2train.draws.scores import Score
from infer2train.oracle.engine import Engine
from infer2train.oracle.samples import PROBE_VIEWS, Samples
from infer2train.oracle.scorer import one_each

PROBE_SAMPLES = 8
"""Samples of the probe."""
LEAST_GAIN = 0.5
"""Captured gain below which the oracle is said to be of little use."""
LEAST_SPREAD = 0.01
"""Spread of the fresh scores within a sample, relative to their mean, below which views hardly differ."""
PATIENCE = 5
"""Refreshes in a row before anything is said."""


@dataclass(frozen=True)
class Fidelity:
    """Of one version's scores, on views of the same samples.

    Args:
        captured_gain: (L_chosen − L_mean) / (L_max − L_mean), L from the model itself, sums over samples: 1 where the
            oracle picks as the model would, 0 where it might as well pick at random.
        same_view: share of samples for which the same view has the highest score.
        rank_correlation: Spearman's ρ of the two scores within each sample's views, mean over samples.
        spread: mean over samples of L_max − L_mean, relative to the mean of |L|.
    """

    captured_gain: float
    same_view: float
    rank_correlation: float
    spread: float


def fidelity(oracle: Float[Tensor, "s v"], fresh: Float[Tensor, "s v"]) -> Fidelity:
    """Compare an oracle's scores of `v` views of each of `s` samples with the scores that it should have given.

    Samples with a score that is NaN or infinite are left out; NaN of all where none is left.

    Example:
        >>> found = fidelity(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([[1.0, 2.0, 3.0]]))
        >>> found.captured_gain, found.same_view, round(found.rank_correlation, 3), found.spread
        (0.0, 0.0, 0.5, 0.5)
    """
    # Scores that are no numbers are never picked; samples that have some say nothing of the others.
    is_known = oracle.isfinite().all(1) & fresh.isfinite().all(1)
    if not bool(is_known.any()):
        return Fidelity(captured_gain=math.nan, same_view=math.nan, rank_correlation=math.nan, spread=math.nan)
    oracle, fresh = oracle[is_known], fresh[is_known]
    mean, best = fresh.mean(1), fresh.amax(1)
    chosen = fresh.gather(1, oracle.argmax(1, keepdim=True))[:, 0]
    possible = float((best - mean).sum())
    level = float(fresh.abs().mean())
    return Fidelity(
        captured_gain=float((chosen - mean).sum()) / possible if possible > 0 else 1.0,
        same_view=float((oracle.argmax(1) == fresh.argmax(1)).float().mean()),
        rank_correlation=float(_correlation(_ranks(oracle), _ranks(fresh)).mean()),
        spread=possible / len(fresh) / level if level > 0 else 0.0,
    )


def _ranks(scores: Float[Tensor, "s v"]) -> Float[Tensor, "s v"]:
    """Ranks within each row; equal scores share the mean of theirs."""
    below = (scores[:, :, None] > scores[:, None, :]).sum(2)
    equal = (scores[:, :, None] == scores[:, None, :]).sum(2)
    return below + (equal - 1) / 2


def _correlation(a: Float[Tensor, "s v"], b: Float[Tensor, "s v"]) -> Float[Tensor, " s"]:
    """Pearson's of each row; 1 where both are constant, 0 where one is."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    norms = a.norm(dim=1) * b.norm(dim=1)
    both_constant = ((a == 0).all(1) & (b == 0).all(1)).float()
    return torch.where(norms > 0, (a * b).sum(1) / norms.clamp(min=1e-30), both_constant).clamp(-1, 1)


def _are_all_the_same(inputs: Any) -> bool:
    """Whether no view of a probe differs from the first one of its sample."""
    by_sample = [tensor.view(-1, PROBE_VIEWS, *tensor.shape[1:]) for tensor in tensors_of(inputs)]
    return all(bool((views == views[:, :1]).all()) for views in by_sample)


class FidelityMonitor:
    """Measures an engine after its refreshes.

    Args:
        samples: where the probe comes from.
        score: (outputs, targets) -> [n], the run's own.
        device: where the engine's outputs are.
        mines_views: whether the run picks among views of a sample, which then must differ.
    """

    def __init__(self, samples: Samples, score: Score, device: torch.device, *, mines_views: bool = True) -> None:
        self._score, self._mines_views = score, mines_views
        self.inputs, self._targets = to_device(samples.probe(PROBE_SAMPLES * PROBE_VIEWS), device)
        self._totals: dict[str, float] = {}
        self._low, self._flat = 0, 0
        self._has_warned = mines_views and _are_all_the_same(self.inputs)
        if self._has_warned:
            warnings.warn(
                f"the views of a sample are all the same: {PROBE_VIEWS} of each of {PROBE_SAMPLES} samples were looked "
                "at; mining views needs a random transform, in the data set or as transform=; or use "
                "method='nm-sample'",
                RuntimeWarning,
            )

    def scores(self, outputs: Any) -> Float[Tensor, " n"]:
        """The probe's scores by these outputs."""
        targets = to_device(self._targets, tensors_of(outputs)[0].device)
        return one_each(self._score(outputs, targets), batch_size(self.inputs))

    def measure(self, engine: Engine, live: Float[Tensor, " n"]) -> Fidelity:
        """Compare the engine with what the model itself said, `scores` of its outputs, and keep count."""
        own = map_tensors(torch.clone, self.inputs)  # a model may write to them
        views = self.scores(engine.outputs(own)).view(-1, PROBE_VIEWS)
        found = fidelity(views, live.to(views.device).view(-1, PROBE_VIEWS))
        if math.isnan(found.captured_gain):
            return found
        figures = {"captured_gain_sum": found.captured_gain, "same_view_sum": found.same_view}
        figures |= {"rank_correlation_sum": found.rank_correlation, "fidelity_count": 1.0}
        for name, value in figures.items():
            self._totals[name] = self._totals.get(name, 0.0) + value
        self._warn(engine, found)
        return found

    def totals(self) -> dict[str, float]:
        """Running sums, for `infer2train.observe.metrics.window`."""
        return dict(self._totals)

    def _warn(self, engine: Engine, found: Fidelity) -> None:
        self._low = self._low + 1 if found.captured_gain < LEAST_GAIN else 0
        self._flat = self._flat + 1 if self._mines_views and found.spread < LEAST_SPREAD else 0
        if self._has_warned or max(self._low, self._flat) < PATIENCE:
            return
        self._has_warned = True
        if self._flat >= PATIENCE:
            message = (
                f"the views of a sample hardly differ for the model: its highest score is {found.spread:.2%} above the "
                "mean; mining views needs a stronger random transform, or use method='nm-sample'"
            )
        else:
            message = (
                f"{engine.name} captured less than {LEAST_GAIN:.0%} of what mining could gain at {PATIENCE} refreshes "
                f"in a row (now {found.captured_gain:.0%}); take an oracle of higher precision, such as torch:fp32, or "
                "see that forward reads nothing that changes but parameters and buffers"
            )
        warnings.warn(message, RuntimeWarning)
