"""Models and scores of the fuzz, and what each score is in NumPy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from fuzzed.data import CLASSES, SIZE, VOCABULARY, Form

OUTPUTS = {"class": CLASSES, "hot": CLASSES, "number": 1, "self": SIZE}


class Counting(nn.Module):
    """A buffer that each batch of the training changes, and that what comes out depends on."""

    def __init__(self, outputs: int, persistent: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(SIZE, outputs)
        self.register_buffer("seen", torch.zeros(()), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        return self.layer(x) * (1 + 0.2 * self.seen)  # type: ignore[no-any-return]


class Tied(nn.Module):
    """One weight at two places."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE), nn.Linear(SIZE, outputs)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).relu()).relu())  # type: ignore[no-any-return]


BODIES: dict[str, Callable[[int], nn.Module]] = {
    "plain": lambda n: nn.Sequential(nn.Linear(SIZE, 8), nn.Tanh(), nn.Linear(8, n)),
    "batch-norm": lambda n: nn.Sequential(
        nn.Linear(SIZE, 8), nn.Unflatten(1, (2, 4)), nn.BatchNorm1d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, n)
    ),
    "dropout": lambda n: nn.Sequential(nn.Linear(SIZE, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, n)),
    "convolution": lambda n: nn.Sequential(
        nn.Unflatten(1, (1, 4, 4)),
        nn.Conv2d(1, 2, 3, padding=1),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, n),
    ),
    "buffer": lambda n: Counting(n, persistent=True),
    "hidden buffer": lambda n: Counting(n, persistent=False),
    "tied": Tied,
    "weight norm": lambda n: weight_norm(nn.Linear(SIZE, n)),
}
"""Name -> network of 16 numbers and so many outputs."""


class OfTensor(nn.Module):
    """Takes a tensor."""

    def __init__(self, body: nn.Module, is_number: bool) -> None:
        super().__init__()
        self.body, self.is_number = body, is_number

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.body(x)
        return outputs.squeeze(1) if self.is_number else outputs  # type: ignore[no-any-return]


class OfTwo(nn.Module):
    """Takes two tensors."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.body(torch.cat([first, second], 1))  # type: ignore[no-any-return]


class OfKeyword(nn.Module):
    """Takes a keyword, gives a mapping."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.body(x)}


class OfTokens(nn.Module):
    """Takes words and a mask: the mean of what is not padding."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.words, self.body = nn.Embedding(VOCABULARY, SIZE), body

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        weights = mask[:, :, None].float()
        return self.body((self.words(tokens) * weights).sum(1) / weights.sum(1))  # type: ignore[no-any-return]


TAKES: dict[str, Callable[[nn.Module], nn.Module]] = {"two": OfTwo, "keyword": OfKeyword, "tokens": OfTokens}


def model_for(form: Form, body: str) -> nn.Module:
    """A model of this body for batches of this form."""
    network = BODIES[body](OUTPUTS[form.targets])
    return TAKES[form.takes](network) if form.takes in TAKES else OfTensor(network, form.targets == "number")


def rows_of(outputs: Any) -> Tensor:
    return outputs["logits"] if isinstance(outputs, dict) else outputs  # type: ignore[no-any-return]


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "class": F.cross_entropy,
    "hot": F.binary_cross_entropy_with_logits,
    "number": F.mse_loss,
    "self": F.mse_loss,
}
"""What the training loop minimises, for each kind of targets."""


def unsure(outputs: Any, targets: Any) -> Tensor:
    """The user's own: 1 − the probability of the predicted class."""
    return 1 - rows_of(outputs).softmax(1).amax(1)


def now_and_then(outputs: Any, targets: Any) -> Tensor:
    """The user's own: NaN or infinite for some."""
    z = rows_of(outputs)
    return torch.where(z[:, 0] > 0.3, torch.nan, torch.where(z[:, 0] < -0.5, torch.inf, z[:, 1]))


def always_the_same(outputs: Any, targets: Any) -> Tensor:
    """The user's own: ties everywhere."""
    return torch.ones(len(targets))


def squared(outputs: Any, targets: Any) -> Tensor:
    return (outputs - targets).square().flatten(1).mean(1) if outputs.dim() > 1 else (outputs - targets).square()


def of_each_class(outputs: Any, targets: Any) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(1)


Rows = np.ndarray[Any, Any]


def _p(z: Rows) -> Rows:
    powers = np.exp(z - z.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _loss(z: Rows, y: Rows) -> Rows:
    return -np.log(_p(z)[np.arange(len(z)), y])


def _margin(z: Rows, y: Rows) -> Rows:
    right = np.eye(CLASSES, dtype=bool)[y]
    return np.where(right, -np.inf, _p(z)).max(1) - _p(z)[right]


def _now_and_then(z: Rows, y: Rows) -> Rows:
    return np.where(z[:, 0] > 0.3, np.nan, np.where(z[:, 0] < -0.5, np.inf, z[:, 1]))


def _squared(z: Rows, y: Rows) -> Rows:
    return ((z - y) ** 2).reshape(len(z), -1).mean(1)


SCORES: dict[str, tuple[Any, Callable[[Rows, Rows], Rows], str]] = {
    "default": (None, _loss, "class"),
    "loss": ("loss", _loss, "class"),
    "entropy": ("entropy", lambda z, y: -(_p(z) * np.log(_p(z))).sum(1), "class"),
    "margin": ("margin", _margin, "class"),
    "gradient-norm-bound": (
        "gradient-norm-bound",
        lambda z, y: np.sqrt(((_p(z) - np.eye(CLASSES)[y]) ** 2).sum(1)),
        "class",
    ),
    "unsure": (unsure, lambda z, y: 1 - _p(z).max(1), "class"),
    "now and then": (now_and_then, _now_and_then, "class"),
    "always the same": (always_the_same, lambda z, y: np.ones(len(z)), "class"),
    "squared": (squared, _squared, "number"),
    "squared rows": (squared, _squared, "self"),
    "of each class": (
        of_each_class,
        lambda z, y: (np.logaddexp(0, z) - z * y).mean(1),
        "hot",
    ),
}
"""Name -> (what `mine(score=)` is given, the same on outputs [n, …] and targets in float64, for which targets)."""
NOT_NEGATIVE = (
    "default",
    "loss",
    "entropy",
    "gradient-norm-bound",
    "unsure",
    "always the same",
    "squared",
    "squared rows",
)
