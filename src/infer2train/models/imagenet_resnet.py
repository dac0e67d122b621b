"""Residual networks for photographs: ResNet-18 (basic blocks) and ResNet-50 (bottlenecks, stride in the 3x3).

He et al., arXiv 1512.03385, table 1, with the initialisation of Goyal et al., arXiv 1706.02677. Average pooling is
global, so that 64x64 works as well as 224x224. They take normalised images; `Pixels` wraps one so that it takes pixels.

Shape suffixes: B batch, C channels, H height, W width, K classes.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from infer2train.models.cifar_resnet import BasicBlock, shortcut
from infer2train.models.initialisation import initialise_resnet

WIDTHS = (64, 128, 256, 512)


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided) and 1x1 convolutions round a shortcut; the result has four times `width` channels.

    Args:
        in_channels: channels of x.
        width: channels of the 3x3 convolution.
        stride: of the 3x3 convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        channels = 4 * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(channels)
        self.shortcut = shortcut(in_channels, channels, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The batch-norm whose γ starts at 0."""
        return self.norm3

    def forward(self, x_BCHW: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        y_BCHW = F.relu(self.norm1(self.conv1(x_BCHW)))
        y_BCHW = F.relu(self.norm2(self.conv2(y_BCHW)))
        y_BCHW = self.norm3(self.conv3(y_BCHW))
        return F.relu(y_BCHW + self.shortcut(x_BCHW))


class ImageNetResNet(nn.Module):
    """A residual network for images of 64x64 to 224x224 and more.

    Args:
        block: BasicBlock or Bottleneck.
        num_blocks: blocks in each of the four stages.
        num_classes: logits.
        in_channels: channels of the images.

    Example:
        >>> import torch
        >>> resnet18(num_classes=200)(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 200])
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        num_blocks: Sequence[int],
        num_classes: int,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        expansion = 4 if block is Bottleneck else 1
        self.conv = nn.Conv2d(in_channels, WIDTHS[0], 7, stride=2, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(WIDTHS[0])
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        blocks: list[BasicBlock | Bottleneck] = []
        channels = WIDTHS[0]
        for stage, (width, count) in enumerate(zip(WIDTHS, num_blocks, strict=True)):
            for index in range(count):
                blocks.append(block(channels, width, 2 if stage > 0 and index == 0 else 1))
                channels = expansion * width
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, num_classes)
        initialise_resnet(self, [block.last_norm for block in blocks])

    def forward(self, images_BCHW: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        x_BCHW = self.pool(F.relu(self.norm(self.conv(images_BCHW))))
        return self.classifier(self.blocks(x_BCHW).mean((2, 3)))  # type: ignore[no-any-return]  # what a module returns is Any


def resnet18(num_classes: int, in_channels: int = 3) -> ImageNetResNet:
    """ResNet-18: two basic blocks a stage."""
    return ImageNetResNet(BasicBlock, (2, 2, 2, 2), num_classes, in_channels)


def resnet50(num_classes: int, in_channels: int = 3) -> ImageNetResNet:
    """ResNet-50: 3, 4, 6 and 3 bottlenecks; the network of the paper's ImageNet experiments."""
    return ImageNetResNet(Bottleneck, (3, 4, 6, 3), num_classes, in_channels)
