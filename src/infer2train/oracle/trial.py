"""How much of a model an engine runs in integers, and how well its program keeps the order of what float32 says.

Counted and measured once when an engine is built, on the model's weights of then; the order again at every refresh.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infer2train.oracle.fidelity import fidelity
from infer2train.oracle.quantization.graph import WeightGraph
from infer2train.oracle.samples import PROBE_VIEWS

REAL = ("fp32", "bf16", "fp16")
"""Precisions that are not integers."""
LEAST_SHARE = 0.9
"""Share of the multiply-adds that an int8 engine should run in integers."""
MOST_COLUMNS = 64
"""Outputs of a row whose order is looked at."""
VISIBLE = 2.0**-23
"""What float32 tells from 0 beside 1: a score does not see outputs that are all smaller."""
FLAT = 1e-3
"""Spread within a sample, relative to the greatest output, below which its views have no order that 8 bits could keep,
and none that mining would gain from."""


@dataclass(frozen=True)
class Trial:
    """What an engine did with the weights that the model had when it was built.

    Args:
        precision: of its integers, as `Engine.precisions` says it.
        layers: how many there are.
        in_integers: how many of them it runs in integers.
        int8_share: share of the multiply-adds that integers make.
        has_passed: whether its program was sound; else the version would have been scored in fp32.
        rank_correlation: of its outputs with those of float32, see `rank_correlation`.
    """

    precision: str
    layers: int
    in_integers: int
    int8_share: float
    has_passed: bool
    rank_correlation: float

    @property
    def is_good(self) -> bool:
        """Whether there is no reason to try another engine."""
        return self.has_passed and self.int8_share >= LEAST_SHARE

    def note(self, name: str) -> str:
        """In words."""
        return (
            f"{name} runs {self.in_integers} of {self.layers} layers, {self.int8_share:.1%} of the multiply-adds, "
            f"in {self.precision}"
        )


def judged(graph: WeightGraph, ran_in: Mapping[str, str], has_passed: bool, rank_correlation: float) -> Trial:
    """What a program makes of a model.

    Args:
        graph: of the model; products of two activations are real.
        ran_in: the precision of each layer, from `Engine.precisions`; a layer that is not there is real.
        has_passed: whether the program was sound.
        rank_correlation: of its outputs with those of float32.
    """
    integers = {name: precision for name, precision in ran_in.items() if precision not in REAL}
    in_integers = [layer for layer in graph.layers if layer.name in integers]
    multiply_adds = graph.other_products + sum(layer.multiply_adds for layer in graph.layers)
    return Trial(
        precision=" and ".join(sorted({*integers.values()})) or "int8",
        layers=len({layer.name for layer in graph.layers}),
        in_integers=len({layer.name for layer in in_integers}),
        int8_share=sum(layer.multiply_adds for layer in in_integers) / multiply_adds if multiply_adds else 0.0,
        has_passed=has_passed,
        rank_correlation=rank_correlation,
    )


def rank_correlation(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Spearman's ρ of two runs' outputs within each sample's views, mean over samples and outputs.

    It needs no score: an oracle that orders every output of the views as float32 does orders their scores so as well.
    Outputs that say the same of all views are left out; where none is left, there is nothing to get wrong: 1.

    Args:
        got: [n ...], each `PROBE_VIEWS` rows in a row are views of one sample.
        expected: likewise, of float32.
    """
    found: list[float] = []
    for g, e in zip(got, expected, strict=True):
        if not e.is_floating_point() or e.ndim == 0 or len(e) < 2:
            continue
        views = PROBE_VIEWS if len(e) % PROBE_VIEWS == 0 else len(e)
        oracle, fresh = (_columns(tensor, views) for tensor in (g, e))
        spread = fresh.amax(1) - fresh.amin(1)
        told = spread.isfinite() & (spread > 0)  # a masked logit is neither ranked nor the greatest output
        seen = told & (spread > FLAT * fresh[told].abs().amax()) if bool(told.any()) else told
        if bool(seen.any()):
            found.append(fidelity(oracle[seen].nan_to_num(), fresh[seen]).rank_correlation)
    return min(found, default=1.0)


def is_visible(outputs: Sequence[Tensor]) -> bool:
    """Whether a score in float32 can tell the outputs from zeros: those of deep networks at their start it cannot."""
    return any(not t.is_floating_point() or bool((t.abs() >= VISIBLE).any()) or bool(t.isnan().any()) for t in outputs)


def _columns(outputs: Tensor, views: int) -> Tensor:
    """[n ...] -> [samples · outputs, views], of at most `MOST_COLUMNS` outputs."""
    flat = outputs.detach().float().flatten(1) if outputs.ndim > 1 else outputs.detach().float()[:, None]
    step = max(1, flat.shape[1] // MOST_COLUMNS)
    return torch.unflatten(flat[:, ::step], 0, (-1, views)).transpose(1, 2).flatten(0, 1)
