"""b-bit affine quantisation: q = clamp(round(x / S) + Z, Q_min, Q_max), x̂ = S·(q − Z).

The paper prints quantize(x) = ⌊(x − T_min) / S⌋ + Z with Z = ⌈Q_min − T_min / S⌋, which subtracts T_min twice: on
[−1, 1] at 8 bits it maps 0, 0.5 and 1 all to 127. What it cites (Jacob et al., arXiv 1712.05877, section 2.1) does not,
and is what stands here. A range is widened to hold 0, so that 0 (padding, ReLU) is exact.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

BITS = (2, 3, 4, 5, 6, 7, 8, 16)
"""Widths for which everything here is exact in float32 arithmetic."""


@dataclass(frozen=True)
class Affine:
    """How a tensor is put into integers.

    Args:
        scale: S, float32 above 0; one number, or one for each channel (the tensor's first dimension).
        zero_point: Z, int32, of the same shape.
        low: Q_min.
        high: Q_max.
    """

    scale: Float[Tensor, ""] | Float[Tensor, " c"]
    zero_point: Int[Tensor, ""] | Int[Tensor, " c"]
    low: int
    high: int

    def quantize(self, x: Float[Tensor, "..."]) -> Int[Tensor, "..."]:
        """The integers q of real numbers, int32. Halves go to the even integer."""
        scale, zero_point = self._for(x)
        return (torch.round(x / scale) + zero_point).clamp_(self.low, self.high).to(torch.int32)

    def dequantize(self, q: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The real numbers x̂ that integers stand for, float32."""
        scale, zero_point = self._for(q)
        return (q - zero_point) * scale

    def fake(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """`dequantize(quantize(x))` without leaving float32."""
        scale, zero_point = self._for(x)
        low, high = self.low - zero_point, self.high - zero_point
        if scale.ndim == 0 and scale.device.type == "cpu":  # plain numbers are clamped to faster, but wait for a GPU
            return (x / scale).round_().clamp_(int(low), int(high)).mul_(scale)
        return (x / scale).round_().clamp_(low, high).mul_(scale)

    def clip(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Real numbers held to `limits`, but not rounded."""
        scale, zero_point = self._for(x)
        return torch.clamp(x, (self.low - zero_point) * scale, (self.high - zero_point) * scale)

    def limits(self) -> tuple[Float[Tensor, "*c"], Float[Tensor, "*c"]]:
        """The least and the greatest real number that has an integer of its own."""
        return (self.low - self.zero_point) * self.scale, (self.high - self.zero_point) * self.scale

    def _for(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.scale.ndim == 0:
            return self.scale, self.zero_point
        shape = (-1, *[1] * (x.ndim - 1))
        return self.scale.view(shape), self.zero_point.view(shape)


def affine_of_range(low: Float[Tensor, "*c"] | float, high: Float[Tensor, "*c"] | float, bits: int = 8) -> Affine:
    """The signed b-bit quantisation whose range is [low, high], widened to hold 0.

    Args:
        low: T_min, one number or one for each channel.
        high: T_max, likewise.
        bits: b, one of `BITS`.

    Returns:
        S = (T_max − T_min) / (2^b − 1) and Z = round(Q_min − T_min / S), for Q in [−2^(b−1), 2^(b−1) − 1]. A constant
        zero, whose range is empty, has S = 1 and Z = 0.

    Raises:
        ValueError: the width is not one of `BITS`, or a range is not finite or upside down.

    Example:
        >>> affine_of_range(-1.0, 1.0).quantize(torch.tensor([-1.0, 0.0, 0.5, 1.0]))
        tensor([-127,    0,   64,  127], dtype=torch.int32)

    Source: Jacob et al., arXiv 1712.05877, sections 2.1 and 3.
    """
    q_min, q_max = _levels(bits)
    t_min, t_max = _range(low, high)
    t_min, t_max = t_min.clamp(max=0.0), t_max.clamp(min=0.0)
    # Below the least normal number a float32 scale would lose its precision, and on some devices be 0.
    scale = (t_max.double() - t_min.double()) / (q_max - q_min)
    empty = scale < torch.finfo(torch.float32).tiny
    scale = torch.where(empty, 1.0, scale)
    zero_point = torch.where(empty, 0.0, torch.round(q_min - t_min / scale))
    return Affine(scale.float(), zero_point.clamp(q_min, q_max).to(torch.int32), q_min, q_max)


def symmetric(low: Float[Tensor, "*c"] | float, high: Float[Tensor, "*c"] | float, bits: int = 8) -> Affine:
    """The b-bit quantisation of [−a, a], a the greater of |low| and |high|, with Z = 0 and the least integer unused.

    What integer hardware wants of weights: products need no correction for Z.

    Args:
        low: one number, or one for each channel.
        high: likewise.
        bits: b, one of `BITS`.

    Raises:
        ValueError: as `affine_of_range`.

    Example:
        >>> symmetric(-0.5, 1.0).quantize(torch.tensor([-1.0, 0.0, 0.5]))
        tensor([-127,    0,   64], dtype=torch.int32)
    """
    _, q_max = _levels(bits)
    t_min, t_max = _range(low, high)
    bound = torch.maximum(t_min.abs(), t_max.abs())
    scale = bound / q_max
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)
    return Affine(scale, torch.zeros_like(scale, dtype=torch.int32), -q_max, q_max)


def _levels(bits: int) -> tuple[int, int]:
    if bits not in BITS:
        raise ValueError(f"bits must be one of {', '.join(map(str, BITS))}: got {bits}; 8 is what int8 devices run")
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def _range(low: Tensor | float, high: Tensor | float) -> tuple[Tensor, Tensor]:
    t_min, t_max = torch.as_tensor(low, dtype=torch.float32), torch.as_tensor(high, dtype=torch.float32)
    if not bool((torch.isfinite(t_min) & torch.isfinite(t_max)).all()):
        raise ValueError(f"a range must be finite: got [{low}, {high}]; look for NaN or infinity in the weights")
    if bool((t_min > t_max).any()):
        raise ValueError(f"a range must not end below its beginning: got [{low}, {high}]; swap the two")
    return t_min, t_max
