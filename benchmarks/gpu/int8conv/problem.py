"""A layer with random data in both precisions: the integers of the kernel, and the same real numbers in bf16.

Shape suffixes: B batch, H height, W width, C channels, O output channels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from infer2train.quantization.affine import Affine, affine_of_range, symmetric
from int8conv.arithmetic import Prepared, Sites, expected, prepare
from int8conv.layers import Layer

CACHES = 3
"""All sets of inputs together are at least so many times the L2 cache …"""
SETS = (2, 24)
"""… but no fewer and no more than these."""
CHECKED_IMAGES = 8


@dataclass(frozen=True)
class Inputs:
    """What one call reads, and where the kernel writes.

    Args:
        x: stored integers, [b h w c].
        residual: stored integers [b oh ow o], or None.
        y: where the kernel writes.
        real_x: the real numbers of x in bf16, [b c h w] with channels last.
        real_residual: likewise.
    """

    x: Tensor
    residual: Tensor | None
    y: Tensor
    real_x: Tensor
    real_residual: Tensor | None


@dataclass(frozen=True)
class Problem:
    """A layer, its weights and its sets of inputs.

    Args:
        layer: which.
        weight: real numbers, float32, [o c r s].
        bias: likewise, [o].
        sites: how the tensors round it are put into integers.
        prepared: its integers.
        inputs: one for each set.
    """

    layer: Layer
    weight: Tensor
    bias: Tensor
    sites: Sites
    prepared: Prepared
    inputs: list[Inputs]

    def expected(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """The numbers of some images, the first and the last among them, and what the layer must give for those."""
        last = self.layer.batch - 1
        images = torch.linspace(0, last, min(last + 1, CHECKED_IMAGES)).round().long().to(inputs.x.device)
        residual = None if inputs.residual is None else inputs.residual[images]
        return images, expected(
            inputs.x[images],
            self.weight,
            self.bias,
            self.sites,
            residual,
            stride=self.layer.stride,
            padding=self.layer.padding,
            relu=self.layer.relu,
        )


def random_problem(layer: Layer, device: torch.device, cache_bytes: int, seed: int) -> Problem:
    """A layer whose inputs are what ReLUs give and whose sites have the ranges that a first image shows.

    Args:
        layer: which.
        device: where its tensors are.
        cache_bytes: size of the L2 cache.
        seed: of its random numbers.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    fan_in = layer.window**2 * layer.channels
    weight = normal(layer.outputs, layer.channels, layer.window, layer.window) * (2 / fan_in) ** 0.5
    bias = normal(layer.outputs) * 0.1
    sites = _sites(layer, weight, bias, normal)
    least, most = SETS
    num_sets = min(most, max(least, -(-CACHES * cache_bytes // layer.num_bytes(1))))
    prepared = prepare(weight, bias, sites, stride=layer.stride, padding=layer.padding, relu=layer.relu)
    return Problem(layer, weight, bias, sites, prepared, [_inputs(layer, sites, normal) for _ in range(num_sets)])


def _sites(layer: Layer, weight: Tensor, bias: Tensor, normal: Callable[..., Tensor]) -> Sites:
    bound = weight.flatten(1).abs().amax(1)
    x = normal(1, layer.channels, layer.size, layer.size).relu()
    own = F.conv2d(x, weight, bias, layer.stride, layer.padding)
    skipped = normal(*own.shape).relu()
    real = own + skipped if layer.residual else own
    return Sites(
        input=_site(x),
        weight=symmetric(-bound, bound),
        output=_site(real.relu() if layer.relu else real),
        own=_site(own) if layer.residual else None,
        residual=_site(skipped) if layer.residual else None,
    )


def _site(x: Tensor) -> Affine:
    return affine_of_range(x.min(), x.max())


def _inputs(layer: Layer, sites: Sites, normal: Callable[..., Tensor]) -> Inputs:
    def stored(affine: Affine, size: int, channels: int) -> tuple[Tensor, Tensor]:
        found = torch.empty(layer.batch, size, size, channels, dtype=torch.int8, device=affine.scale.device)
        for image in range(0, layer.batch, 64):  # float32 of all of them at once would be four times the memory
            part = found[image : image + 64]
            part.copy_(affine.quantize(normal(*part.shape).relu()))
        real = torch.empty(found.shape, dtype=torch.bfloat16, device=found.device)
        for image in range(0, layer.batch, 64):
            real[image : image + 64] = affine.dequantize(found[image : image + 64].int())
        return found, real.permute(0, 3, 1, 2)

    x, real_x = stored(sites.input, layer.size, layer.channels)
    residual, real_residual = (None, None)
    if sites.residual is not None:
        residual, real_residual = stored(sites.residual, layer.output_size, layer.outputs)
    y = torch.empty(layer.batch, layer.output_size, layer.output_size, layer.outputs, dtype=torch.int8, device=x.device)
    return Inputs(x, residual, y, real_x, real_residual)
