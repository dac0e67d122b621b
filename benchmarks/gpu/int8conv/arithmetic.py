"""What an int8 convolution must give, by the project's own quantisation, and the integers that a kernel needs for it.

Between two sites of `infer2train.quantization.sites` stands a layer, and perhaps an addition. With one, what the
convolution gives is rounded too:

    x ─ site ─► convolution + bias ─► (ReLU) ─► site
    x ─ site ─► convolution + bias ─► site ─► + residual ─► ReLU ─► site

`expected` is that in float64 by `Affine`, slow and readable; `prepare` is the same folded into what one pass over int32
sums needs: a bias, one factor for each channel and a few numbers.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int8, Int32
from torch import Tensor
from torch.nn import functional as F

from infer2train.quantization.affine import Affine
from infer2train.quantization.program import BIAS_LIMIT

SUM_BITS = 24
"""A bias whose layer has only zeros for weights is put into integers of this width: a float32 holds them all."""


@dataclass(frozen=True)
class Sites:
    """How the tensors round a layer are put into integers.

    Args:
        input: what it reads.
        weight: its weight, one S for each output channel and Z = 0, or one S.
        output: what the next layer reads.
        own: what the convolution itself gives, where a residual is added to it; else None.
        residual: what is added, or None.
    """

    input: Affine
    weight: Affine
    output: Affine
    own: Affine | None = None
    residual: Affine | None = None

    def steps(self) -> int:
        """The most by which a right result may differ from `expected`: one step of the coarsest rounding it passes.

        Both round the same real number, which float32 and float64 may see on two sides of a half. One step of the
        convolution's own site is S_own / S_output steps of what the next layer reads.
        """
        return 1 if self.own is None else max(1, int(torch.ceil(self.own.scale / self.output.scale)))


@dataclass(frozen=True)
class Prepared:
    """A layer as its kernel takes it.

    Args:
        weight: stored integers [o r s c]; a window's products lie one behind the other.
        bias: b / (S_x·S_w) − Z_x·Σ w, so that stored integers of x are multiplied as they are, and 0 outside the image.
            Σ is over what is inside; its row v says how much of the window the image's borders cut off: above, below,
            left and right, as the digits of v in base padding + 1.
        factor: S_x·S_w / S, S that of the convolution's own site, or of the output without a residual.
        stride: of the window.
        padding: rows and columns of zeros round the image.
        own_limits: Q_min − Z and Q_max − Z of the convolution's own site.
        own_factor: S_own / S_output.
        residual_zero: Z of the residual.
        residual_factor: S_residual / S_output.
        limits: Q_min − Z and Q_max − Z of the output; with a ReLU the first is at least 0.
        zero: Z of the output.
        has_residual: whether something is added.
    """

    weight: Int8[Tensor, "o r s c"]
    bias: Int32[Tensor, "v o"]
    factor: Float32[Tensor, " o"]
    stride: int
    padding: int
    own_limits: tuple[float, float]
    own_factor: float
    residual_zero: int
    residual_factor: float
    limits: tuple[float, float]
    zero: int
    has_residual: bool


def prepare(
    weight: Float[Tensor, "o c r s"],
    bias: Float[Tensor, " o"],
    sites: Sites,
    *,
    stride: int = 1,
    padding: int = 0,
    relu: bool = True,
) -> Prepared:
    """A layer's integers.

    Args:
        weight: real numbers, folded.
        bias: likewise.
        sites: round the layer.
        stride: of the window.
        padding: rows and columns of zeros round the image.
        relu: whether a ReLU comes last, before the output's site.

    Raises:
        ValueError: a weight has Z other than 0, or a sum may need more than 32 bits.
    """
    if bool(sites.weight.zero_point.any()):
        raise ValueError("weights must have Z = 0: got a scheme with another; use the scheme 'default' or 'percentile'")
    stored = sites.weight.quantize(weight)
    scale = _sum_scale(stored, bias, sites)
    steps = (bias.double() / scale).round().clamp(-BIAS_LIMIT, BIAS_LIMIT)
    reach = float((steps.abs() + 256 * stored.double().abs().sum((1, 2, 3))).max())
    if reach > BIAS_LIMIT:
        raise ValueError(f"sums must fit 32 bits: got up to {reach:.3g}; run this layer in floating point")
    behind = sites.own or sites.output
    low, high = _limits(sites.output)
    return Prepared(
        weight=stored.to(torch.int8).permute(0, 2, 3, 1).contiguous(),
        bias=(steps - int(sites.input.zero_point) * _window_sums(stored, padding)).to(torch.int32),
        factor=(scale / behind.scale.double()).float().expand(len(bias)).contiguous(),
        stride=stride,
        padding=padding,
        own_limits=_limits(behind),
        own_factor=float(behind.scale.double() / sites.output.scale.double()),
        residual_zero=int(sites.residual.zero_point) if sites.residual else 0,
        residual_factor=float(sites.residual.scale.double() / sites.output.scale.double()) if sites.residual else 0.0,
        limits=(max(low, 0.0) if relu else low, high),
        zero=int(sites.output.zero_point),
        has_residual=sites.residual is not None,
    )


def expected(
    x: Int8[Tensor, "b h w c"],
    weight: Float[Tensor, "o c r s"],
    bias: Float[Tensor, " o"],
    sites: Sites,
    residual: Int8[Tensor, "b oh ow o"] | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    relu: bool = True,
) -> Int8[Tensor, "b oh ow o"]:
    """The stored integers that the layer gives, in float64, where every product and sum of integers is exact.

    Args:
        x: stored integers of the input.
        weight: as of `prepare`, like those that follow.
        bias: likewise.
        sites: likewise.
        residual: stored integers of what is added, where `sites.residual` says how.
        stride: likewise.
        padding: likewise.
        relu: likewise.
    """
    stored = sites.weight.quantize(weight)
    scale = _sum_scale(stored, bias, sites)
    integers = (x.int() - sites.input.zero_point).double().permute(0, 3, 1, 2)
    sums = F.conv2d(integers, stored.double(), (bias.double() / scale).round(), stride, padding)
    real = (sums * scale.view(-1, 1, 1)).permute(0, 2, 3, 1)
    if residual is not None:
        assert sites.own is not None
        assert sites.residual is not None
        own = (sites.own.quantize(real) - sites.own.zero_point).double() * sites.own.scale.double()
        skipped = (residual.int() - sites.residual.zero_point).double() * sites.residual.scale.double()
        real = own + skipped
    return sites.output.quantize(real.relu() if relu else real).to(torch.int8).contiguous()


def _sum_scale(stored: Int32[Tensor, "o c r s"], bias: Float[Tensor, " o"], sites: Sites) -> Float[Tensor, " o"]:
    """What one step of the int32 sum stands for: S_x·S_w; what suits the bias where all weights are 0."""
    if not bool(stored.any()):  # S_w is then 1, and says nothing of the bias
        scale = (bias.double().abs().max() / 2 ** (SUM_BITS - 1)).clamp(min=torch.finfo(torch.float32).tiny)
    else:
        scale = sites.input.scale.double() * sites.weight.scale.double()
    return scale.expand(len(bias))


def _window_sums(stored: Int32[Tensor, "o c r s"], padding: int) -> Float[Tensor, "v o"]:
    """Σ w over what is left of a window, for each way in which the borders of an image cut it."""

    def left(length: int) -> Tensor:
        before, behind = torch.meshgrid(*[torch.arange(padding + 1, device=stored.device)] * 2, indexing="ij")
        place = torch.arange(length, device=stored.device)
        return ((place >= before.reshape(-1, 1)) & (place < length - behind.reshape(-1, 1))).double()

    rows, columns = left(stored.shape[2]), left(stored.shape[3])
    return torch.einsum("ors,vr,us->vuo", stored.double().sum(1), rows, columns).flatten(0, 1)


def _limits(affine: Affine) -> tuple[float, float]:
    return float(affine.low - affine.zero_point), float(affine.high - affine.zero_point)
