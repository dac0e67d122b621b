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


NETWORKS = {"resnet": (resnet, pixels), "vgg": (VGG, images), "shared": (Shared, images), "text": (TextEncoder, tokens)}
"""Name -> (what builds the network, what gives inputs of so many rows)."""


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
