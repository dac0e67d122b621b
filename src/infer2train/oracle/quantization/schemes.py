"""Schemes: how S and Z are chosen, by name. `program` applies them to a graph."""

from dataclasses import dataclass

from infer2train.settings import unknown

LONG_TAILS = 3.0
"""Standard deviations by which ranges are widened where a mean over samples would cut off what makes a view hard."""


@dataclass(frozen=True)
class Scheme:
    """How S and Z are chosen.

    Args:
        per_channel: weights have one S for each output channel, around Z = 0; else one S and Z for the whole tensor.
        percentile: of activation ranges, see `measure_ranges`; None for the extremes.
        tails: of activation ranges, see `measure_ranges`; None for `LONG_TAILS` where the network's activations have
            them, and 0 elsewhere.
        source: where it is from.
    """

    per_channel: bool = True
    percentile: float | None = None
    tails: float | None = None
    source: str = "Krishnamoorthi 2018, arXiv 1806.08342"


SCHEMES = {
    "default": Scheme(),
    "paper": Scheme(per_channel=False, tails=0.0, source="paper, section 4"),
    "percentile": Scheme(percentile=99.9, tails=0.0, source="Wu et al. 2020, arXiv 2004.09602"),
    "tails": Scheme(tails=LONG_TAILS, source="docs/oracles.md"),
}


def get_scheme(name: str) -> Scheme:
    """The scheme of that name.

    Raises:
        ValueError: there is none; it names the nearest.
    """
    if name not in SCHEMES:
        raise unknown("quantisation scheme", name, SCHEMES)
    return SCHEMES[name]
