"""The kernel: an implicit-GEMM int8 convolution, NHWC, with its whole epilogue in registers.

    y = q_next(relu(q_own(Σ (x − Z_x)·w + b) + r̂))

One program computes `rows` output pixels times `columns` output channels. A row of the product's left side is a pixel's
window, R·S·C long and never written anywhere. Stored integers are multiplied as they are, and what lies outside the
image counts as 0, so the loop holds loads and products only; what that leaves out, `Z_x·Σ w` over the part of the
window that is inside, is in a bias for each way in which a border cuts the window. Only builtins of Triton are called:
the interpreter (TRITON_INTERPRET=1) has no others if Triton was imported before it was asked for.

Shape suffixes: B batch, H height, W width, C channels, OC output channels, R and S rows and columns of the window.
"""

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from jaxtyping import Int8
from torch import Tensor

from int8conv.arithmetic import Prepared

OFFSET_LIMIT = 2**31
"""Offsets are 32 bits wide."""


@dataclass(frozen=True)
class Configuration:
    """How the work is cut.

    Args:
        rows: output pixels of a program, 16 or more.
        columns: output channels of a program, 16 or more.
        depth: products added up in one turn of the loop, 32 or more.
        warps: of a program.
        stages: turns whose loads are under way at once; with 1 they go through the L1 cache.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


def configurations(outputs: int, depth: int) -> list[Configuration]:
    """Those worth trying for a layer with so many output channels, whose windows are so long."""
    columns = sorted({min(max(16, triton.next_power_of_2(outputs)), most) for most in (64, 128)})
    found = [Configuration(rows, n, 32, 4, 1) for n in columns for rows in (64, 128)]
    if depth > 32:
        found += [Configuration(128, n, 64, 4, stages) for n in columns for stages in (1, 3)]
    if depth > 64:
        found += [Configuration(128, n, 128, 8, 3) for n in columns]
    if columns[0] < 64:
        found.append(Configuration(256, columns[0], 64, 4, 1))
    return found


@triton.jit
def _rounded(x, low, high):  # type: ignore[no-untyped-def]  # Triton reads the annotations
    """clamp(round(x), low, high) for whole bounds below 2²², halves to even: the sum keeps no bit behind the point."""
    return (tl.minimum(tl.maximum(x, low), high) + 12582912.0) - 12582912.0


@triton.jit
def _cut(first, length: tl.constexpr, size: tl.constexpr, PADDING: tl.constexpr):  # type: ignore[no-untyped-def]  # Triton reads the annotations
    """How an image cuts windows that begin at `first`: how much of them before it, and how much behind."""
    return tl.maximum(-first, 0) * (PADDING + 1) + tl.maximum(first + length - size, 0)


@triton.jit
def _convolution(  # type: ignore[no-untyped-def]  # Triton reads the annotations
    x, weight, bias, factor, residual, y, num_pixels,
    own_low, own_high, own_factor, residual_zero, residual_factor, low, high, zero,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, OC: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    R: tl.constexpr, S: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    K: tl.constexpr = R * S * C
    num_columns: tl.constexpr = (OC + COLUMNS - 1) // COLUMNS
    # Neighbours share their rows of x, which are many, and find them in the L2 cache.
    pixel = (tl.program_id(0) // num_columns) * ROWS + tl.arange(0, ROWS)
    o = (tl.program_id(0) % num_columns) * COLUMNS + tl.arange(0, COLUMNS)
    top = (pixel // OW) % OH * STRIDE - PADDING
    left = pixel % OW * STRIDE - PADDING
    corner = ((pixel // (OH * OW) * H + top) * W + left) * C
    total = tl.full((ROWS, COLUMNS), 0, tl.int32)
    for start in range(0, K, DEPTH):
        k = start + tl.arange(0, DEPTH)
        inside, kept = pixel[:, None] < num_pixels, o[None, :] < OC
        if K % DEPTH > 0:
            inside, kept = inside & (k[None, :] < K), kept & (k[:, None] < K)
        if PADDING > 0:
            h, w = top[:, None] + (k // (S * C))[None, :], left[:, None] + (k // C % S)[None, :]
            inside = inside & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        window = tl.load(x + corner[:, None] + (k // (S * C) * (W * C) + k % (S * C))[None, :], mask=inside, other=0)
        weights = tl.load(weight + o[None, :] * K + k[:, None], mask=kept, other=0)
        total = tl.dot(window, weights, total, out_dtype=tl.int32)
    if PADDING > 0:
        cut = _cut(top, R, H, PADDING) * ((PADDING + 1) * (PADDING + 1)) + _cut(left, S, W, PADDING)
        total += tl.load(bias + cut[:, None] * OC + o[None, :], mask=o[None, :] < OC, other=0)
    else:
        total += tl.load(bias + o, mask=o < OC, other=0)[None, :]
    value = total.to(tl.float32) * tl.load(factor + o, mask=o < OC, other=0.0)[None, :]
    place = pixel[:, None] * OC + o[None, :]
    written = (pixel[:, None] < num_pixels) & (o[None, :] < OC)
    if HAS_RESIDUAL:
        skipped = tl.load(residual + place, mask=written, other=0).to(tl.int32) - residual_zero
        value = _rounded(value, own_low, own_high) * own_factor + skipped.to(tl.float32) * residual_factor
    tl.store(y + place, (_rounded(value, low, high).to(tl.int32) + zero).to(tl.int8), mask=written)


def convolve(
    x: Int8[Tensor, "b h w c"],
    prepared: Prepared,
    residual: Int8[Tensor, "b oh ow o"] | None,
    y: Int8[Tensor, "b oh ow o"],
    configuration: Configuration,
) -> Any:
    """Writes y. Allocates nothing and waits for nothing, so that a CUDA graph can hold it.

    Args:
        x: stored integers of the input, contiguous.
        prepared: the layer.
        residual: stored integers of what is added, or None, as `prepared` was made for.
        y: where the result goes.
        configuration: how the work is cut.

    Returns:
        What Triton gives of the launch: the compiled kernel, or nothing in the interpreter.

    Raises:
        ValueError: the tensors do not fit one another or the layer.
    """
    arguments, constants, num_pixels = _arguments(x, prepared, residual, y)
    num_rows, num_columns = (
        -(-n // part) for n, part in ((num_pixels, configuration.rows), (y.shape[3], configuration.columns))
    )
    return _convolution[(num_rows * num_columns,)](
        *arguments,
        **constants,
        ROWS=configuration.rows,
        COLUMNS=configuration.columns,
        DEPTH=configuration.depth,
        num_warps=configuration.warps,
        num_stages=configuration.stages,
    )


def _arguments(
    x: Tensor, prepared: Prepared, residual: Tensor | None, y: Tensor
) -> tuple[tuple[Any, ...], dict[str, int | bool], int]:
    """What the kernel takes, what it is compiled for, and how many pixels there are."""
    (b, h, w, c), (o, r, s, depth), stride, padding = x.shape, prepared.weight.shape, prepared.stride, prepared.padding
    shape = (b, (h + 2 * padding - r) // stride + 1, (w + 2 * padding - s) // stride + 1, o)
    if (residual is not None) != prepared.has_residual or c != depth:
        raise ValueError(
            f"x, weight and residual must fit: got {c} channels of x for {depth}; prepare the layer for them"
        )
    for name, tensor, wanted in (("x", x, x.shape), ("y", y, shape), ("residual", residual, shape)):
        if tensor is not None and not (
            tensor.shape == wanted and tensor.is_contiguous() and tensor.numel() < OFFSET_LIMIT
        ):
            raise ValueError(
                f"{name} must be contiguous, {tuple(wanted)} and below 2^31 numbers: got {tuple(tensor.shape)} with "
                f"strides {tensor.stride()}; pass channels last, and fewer images at once"
            )
    constants = {"H": h, "W": w, "C": c, "OC": o, "OH": shape[1], "OW": shape[2], "R": r, "S": s}
    constants |= {"STRIDE": stride, "PADDING": padding, "HAS_RESIDUAL": prepared.has_residual}
    own = (*prepared.own_limits, prepared.own_factor)
    numbers = (*own, prepared.residual_zero, prepared.residual_factor, *prepared.limits, prepared.zero)
    num_pixels = b * shape[1] * shape[2]
    tensors = (x, prepared.weight, prepared.bias, prepared.factor, y if residual is None else residual, y)
    return (*tensors, num_pixels, *numbers), constants, num_pixels
