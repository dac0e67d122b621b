"""Typical layers of the paper's two networks, what each must move and multiply, and the time that a card needs for it.

The floor of a layer is max(bytes / bandwidth, 2·MACs / peak), every input read and every output written once. Windows
overlap, so a kernel reads more than that from its caches.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """A convolution with bias, and what follows it.

    Args:
        network: it is part of.
        batch: images.
        channels: of what it reads.
        outputs: channels of what it gives.
        size: rows and columns of what it reads.
        window: rows and columns of the window; padding keeps the size.
        stride: of the window.
        residual: whether something is added before the ReLU.
        relu: whether there is one.
        count: how many such layers the network has.
    """

    network: str
    batch: int
    channels: int
    outputs: int
    size: int
    window: int = 3
    stride: int = 1
    residual: bool = False
    relu: bool = True
    count: int = 1

    @property
    def name(self) -> str:
        """As the table prints it: `3×3 64→128 /2 +r 56² b64`."""
        marks = f" /{self.stride}" * (self.stride > 1) + " +r" * self.residual + " no relu" * (not self.relu)
        return f"{self.window}×{self.window} {self.channels}→{self.outputs}{marks} {self.size}² b{self.batch}"

    @property
    def padding(self) -> int:
        """Rows of zeros round the image."""
        return self.window // 2

    @property
    def output_size(self) -> int:
        """Rows and columns of what it gives."""
        return (self.size + 2 * self.padding - self.window) // self.stride + 1

    @property
    def macs(self) -> int:
        """Multiplications and additions."""
        return self.batch * self.output_size**2 * self.outputs * self.window**2 * self.channels

    def num_bytes(self, bytes_each: int) -> int:
        """What is read and written, biases left out."""
        rows = min(self.size, self.output_size * self.window)  # a window smaller than its stride leaves some out
        read = self.batch * rows**2 * self.channels + self.outputs * self.window**2 * self.channels
        written = self.batch * self.output_size**2 * self.outputs
        return bytes_each * (read + written * (2 if self.residual else 1))


@dataclass(frozen=True)
class Card:
    """What a card can do at most: its vendor's data sheet, dense, or what was measured.

    Args:
        bandwidth: of its memory, bytes/s.
        int8: operations/s, a multiplication and an addition being two.
        bf16: likewise.
    """

    bandwidth: float
    int8: float
    bf16: float

    def floor_seconds(self, layer: Layer, precision: str) -> float:
        """The least time in which the layer can be done in `int8` or `bf16`."""
        bytes_each, peak = (1, self.int8) if precision == "int8" else (2, self.bf16)
        return max(layer.num_bytes(bytes_each) / self.bandwidth, 2 * layer.macs / peak)


CARDS = {"H100": Card(3.35e12, 1979e12, 989e12), "H200": Card(4.8e12, 1979e12, 989e12)}
"""By a part of the device's name; SXM modules."""


def resnet44() -> list[Layer]:
    """The 44 convolutions behind the first, which reads 3 channels of pixels, for 64 samples of γ = 10 views."""
    found: list[Layer] = []
    for channels, size, before in ((16, 32, None), (32, 16, 16), (64, 8, 32)):
        if before is not None:
            found.append(Layer("ResNet-44", 640, before, channels, 2 * size, stride=2))
            found.append(Layer("ResNet-44", 640, before, channels, 2 * size, window=1, stride=2, relu=False))
        found.append(Layer("ResNet-44", 640, channels, channels, size, count=7 if before is None else 6))
        found.append(Layer("ResNet-44", 640, channels, channels, size, residual=True, count=7))
    return found


def resnet50(batch: int) -> list[Layer]:
    """The three convolutions of a bottleneck of each stage, those that change the shape left out."""
    found: list[Layer] = []
    for width, size, count in ((64, 56, 3), (128, 28, 4), (256, 14, 6), (512, 7, 3)):
        found.append(Layer(f"ResNet-50 b{batch}", batch, 4 * width, width, size, window=1, count=count - 1))
        found.append(Layer(f"ResNet-50 b{batch}", batch, width, width, size, count=count if width == 64 else count - 1))
        found.append(Layer(f"ResNet-50 b{batch}", batch, width, 4 * width, size, window=1, residual=True, count=count))
    return found
