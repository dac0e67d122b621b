"""Residual networks for small images: ResNet-8 to ResNet-56, with 6n + 2 layers.

He et al., arXiv 1512.03385, section 4.2: a 3x3 convolution, then n blocks of 16, 32 and 64 channels. Where the shape
changes the shortcut is a 1x1 convolution with batch-norm, as the paper's experiments have it (He's own are parameter
free). They take normalised images; `Pixels` wraps one so that it takes pixels.

Shape suffixes: B batch, C channels, H height, W width, K classes.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from infer2train.models.initialisation import initialise_resnet

WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)).

    Args:
        in_channels: channels of x.
        channels: channels of the result.
        stride: of the first convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = shortcut(in_channels, channels, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The batch-norm whose γ starts at 0."""
        return self.norm2

    def forward(self, x_BCHW: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        y_BCHW = F.relu(self.norm1(self.conv1(x_BCHW)))
        y_BCHW = self.norm2(self.conv2(y_BCHW))
        return F.relu(y_BCHW + self.shortcut(x_BCHW))


def shortcut(in_channels: int, channels: int, stride: int) -> nn.Module:
    """The way round a block: the identity, or a 1x1 convolution with batch-norm where the shape changes."""
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


class CifarResNet(nn.Module):
    """A residual network for images of about 32x32.

    Args:
        num_blocks: blocks in each of the three stages (n); the network has 6n + 2 layers.
        num_classes: logits.
        in_channels: channels of the images.

    Example:
        >>> import torch
        >>> CifarResNet(1, num_classes=10)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_blocks: int, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, WIDTHS[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTHS[0])
        blocks: list[BasicBlock] = []
        channels = WIDTHS[0]
        for stage, width in enumerate(WIDTHS):
            for index in range(num_blocks):
                blocks.append(BasicBlock(channels, width, stride=2 if stage > 0 and index == 0 else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, num_classes)
        initialise_resnet(self, [block.last_norm for block in blocks])

    def forward(self, images_BCHW: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        x_BCHW = self.blocks(F.relu(self.norm(self.conv(images_BCHW))))
        return self.classifier(x_BCHW.mean((2, 3)))  # type: ignore[no-any-return]  # what a module returns is Any


def resnet8(num_classes: int, in_channels: int = 3) -> CifarResNet:
    """ResNet-8, n = 1."""
    return CifarResNet(1, num_classes, in_channels)


def resnet14(num_classes: int, in_channels: int = 3) -> CifarResNet:
    """ResNet-14, n = 2."""
    return CifarResNet(2, num_classes, in_channels)


def resnet20(num_classes: int, in_channels: int = 3) -> CifarResNet:
    """ResNet-20, n = 3."""
    return CifarResNet(3, num_classes, in_channels)


def resnet32(num_classes: int, in_channels: int = 3) -> CifarResNet:
    """ResNet-32, n = 5."""
    return CifarResNet(5, num_classes, in_channels)


def resnet44(num_classes: int, in_channels: int = 3) -> CifarResNet:
    """ResNet-44, n = 7: the network of the paper's CIFAR-10 experiments."""
    return CifarResNet(7, num_classes, in_channels)


def resnet56(num_classes: int, in_channels: int = 3) -> CifarResNet:
    """ResNet-56, n = 9."""
    return CifarResNet(9, num_classes, in_channels)
