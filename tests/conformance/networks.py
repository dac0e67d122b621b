"""Networks as users write them, small: what engines and folding must cope with beside our own ResNets."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infer2train.models.cifar_resnet import resnet8
from infer2train.models.pixels import Pixels

NUM_CLASSES = 7


class VGG(nn.Module):
    """Convolutions in a Sequential, a `view` that needs contiguous tensors, linear batch-norm, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.hidden = nn.Linear(12 * 4 * 4, 16)
        self.norm = nn.BatchNorm1d(16)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(16, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images)
        hidden = F.relu(self.norm(self.hidden(features.view(features.size(0), -1))))
        return self.classifier(self.dropout(hidden))  # type: ignore[no-any-return]


class Shared(nn.Module):
    """Functional residuals; one convolution and one batch-norm called twice; one convolution whose weight is read too.

    Only `stem` may be folded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.stem_norm = nn.BatchNorm2d(8)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.norm_a, self.norm_b, self.norm_both = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.read, self.norm_read = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.branch, self.norm_branch = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.classifier = nn.Linear(8, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(images)))
        x = x + self.norm_b(self.twice(F.relu(self.norm_a(self.twice(x)))))
        x = self.norm_both(self.one(x)) + self.norm_both(self.two(x))
        x = x + self.norm_read(self.read(x)) + F.conv2d(x, self.read.weight)
        y = self.branch(x)
        return self.classifier((y + F.relu(self.norm_branch(y))).mean((2, 3)))  # type: ignore[no-any-return]


class TextEncoder(nn.Module):
    """Takes a dictionary, gives a dictionary; padded attention; the output layer shares the embedding's weight."""

    causal: Tensor

    def __init__(self, vocabulary: int = 20, width: int = 16, length: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.register_buffer("causal", torch.full((length, length), -torch.inf).triu(1))
        self.attention = nn.MultiheadAttention(width, 4, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, width)
        self.layer = nn.TransformerEncoderLayer(width, 2, 32, batch_first=True)
        self.language_head = nn.Linear(width, vocabulary, bias=False)
        self.language_head.weight = self.embedding.weight
        self.classifier = nn.Linear(width, NUM_CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        x = self.embedding(input_ids)
        padding = None if attention_mask is None else torch.zeros(x.shape[:2]).masked_fill(attention_mask == 0, -1e9)
        attended, _ = self.attention(x, x, x, key_padding_mask=padding, attn_mask=self.causal, need_weights=False)
        x = self.norm(x + F.gelu(self.hidden(attended)))
        x = self.layer(x)
        return {"logits": self.classifier(x[:, 0]), "tokens": self.language_head(x)}


class ViT(nn.Module):
    """Patches from a strided convolution, a class token and learned positions that are bare parameters, pre-norm."""

    def __init__(self, width: int = 16, patch: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, (16 // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.ModuleList(ViTBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.norm(x)[:, 0])  # type: ignore[no-any-return]


class ViTBlock(nn.Module):
    """Pre-norm; attention by hand, its queries, keys and values from one linear layer."""

    def __init__(self, width: int, num_heads: int = 2) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        heads = self.qkv(self.norm1(x)).reshape(n, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*heads.unbind(0))
        x = x + self.project(attended.transpose(1, 2).reshape(n, length, width))
        return x + self.mlp(self.norm2(x))


class DepthwiseSeparable(nn.Module):
    """As MobileNet: a convolution of each channel alone, then one of all channels at each pixel; ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = self._block(3, 8, stride=2)
        self.depthwise, self.pointwise = self._block(8, 8, groups=8), self._block(8, 12, size=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(12, NUM_CLASSES)

    @staticmethod
    def _block(c_in: int, c_out: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
        conv = nn.Conv2d(c_in, c_out, size, stride=stride, padding=size // 2, groups=groups, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU6())

    def forward(self, images: Tensor) -> Tensor:
        x = self.pointwise(self.depthwise(self.stem(images)))
        return self.classifier(self.pool(x).flatten(1))  # type: ignore[no-any-return]


class InPlace(nn.Module):
    """ReLU and additions that overwrite what they read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.conv1, self.norm1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.classifier = nn.Linear(8, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.stem_norm(self.stem(images)))
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        y += x
        return self.classifier(F.relu_(y).mean((2, 3)))  # type: ignore[no-any-return]


class Gate(nn.Module):
    """Squeeze and excite: the channels, each multiplied by a number between 0 and 1 that all pixels decide."""

    def __init__(self, width: int, activation: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)
        self.activation, self.gate = activation, gate

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.excite(self.activation(self.squeeze(x.mean((2, 3), keepdim=True))))) * x  # type: ignore[no-any-return]


class Inverted(nn.Module):
    """Wide in the middle, where each channel is convolved alone and gated."""

    def __init__(self, c_in: int, width: int, c_out: int, stride: int, hard: bool) -> None:
        super().__init__()
        self.is_residual = stride == 1 and c_in == c_out
        gate = Gate(width, *((nn.ReLU(), nn.Hardsigmoid()) if hard else (nn.SiLU(), nn.Sigmoid())))
        self.block = nn.Sequential(
            *normed(c_in, width, 1, hard=hard),
            *normed(width, width, 3, stride=stride, groups=width, hard=hard),
            gate,
            *normed(width, c_out, 1)[:2],
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return y + x if self.is_residual else y  # type: ignore[no-any-return]


def normed(
    c_in: int, c_out: int, size: int, stride: int = 1, groups: int = 1, hard: bool = True
) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(c_in, c_out, size, stride=stride, padding=size // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(c_out, momentum=0.01 if hard else 0.1), nn.Hardswish() if hard else nn.SiLU()


def inverted_residuals(hard: bool, num_classes: int = 10) -> nn.Module:
    """As MobileNetV3 (`hard`: hardswish, hard gates) or EfficientNet (SiLU): deep, gated, no ReLU where it matters."""
    widths = [(16, 64, 24, 2), (24, 72, 24, 1), (24, 96, 40, 2), (40, 120, 40, 1), (40, 120, 40, 1), (40, 240, 96, 2)]
    return nn.Sequential(
        *normed(3, 16, 3, hard=hard),
        *(Inverted(*width, hard=hard) for width in widths),
        *normed(96, 256, 1, hard=hard),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(256, num_classes),
    )


def mobilenet() -> nn.Module:
    return inverted_residuals(hard=True)


def efficientnet() -> nn.Module:
    return inverted_residuals(hard=False)


def resnet() -> nn.Module:
    return Pixels(resnet8(NUM_CLASSES), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def pixels(rows: int = 12, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randint(0, 256, (rows, 3, 2, 2), generator=generator).float()
    return F.interpolate(coarse, size=(size, size), mode="bilinear").byte()


def images(rows: int = 12) -> Tensor:
    return pixels(rows).float() / 64 - 2


def tokens(rows: int = 12) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    mask = torch.ones(rows, 6, dtype=torch.int64)
    mask[::2, 4:] = 0
    return {"input_ids": torch.randint(0, 20, (rows, 6), generator=generator), "attention_mask": mask}


NETWORKS = {
    "resnet": (resnet, pixels),
    "vgg": (VGG, images),
    "shared": (Shared, images),
    "text": (TextEncoder, tokens),
    "vit": (ViT, images),
    "depthwise": (DepthwiseSeparable, images),
    "inplace": (InPlace, images),
}
"""Name -> (what builds the network, what gives inputs of so many rows)."""


GATED = {"mobilenet": mobilenet, "efficientnet": efficientnet}
"""Name -> what builds the network, for images of 32 pixels: slow to convert, so apart from `NETWORKS`."""


def experienced(model: nn.Module, inputs: Any, seed: int = 0) -> nn.Module:
    """The model, changed in place to one whose weights, γ, β and statistics are nowhere at their initial values."""
    from infer2train.batches import call_model

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for name, parameter in model.named_parameters():
            noise = torch.empty_like(parameter).normal_(generator=generator)
            if parameter.ndim > 1:
                spread = parameter.std() if seed == 0 and parameter.std() > 0.02 else parameter[0].numel() ** -0.5
                parameter.add_(noise * 0.5 * spread)
            else:
                parameter.copy_(noise * 0.3 + name.endswith("weight"))
        training = model.training
        for _ in range(3):
            call_model(model.train(), inputs)
        model.train(training)
    return model
