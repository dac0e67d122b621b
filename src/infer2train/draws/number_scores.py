"""Scores of targets that are no classes: several labels, soft labels, numbers. Each has a name: none is guessed.

Between the engine and the pick, as `scores`, which lists them. A batch of many-hot labels may happen to look like
one of probabilities; so the user names what targets are, and a batch of which that is not true is refused.

Shapes: n candidates, k labels or classes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float32
from torch import Tensor

from infer2train.batches import logits_of

SUM_TOLERANCE = 1e-2
"""By which the probabilities of a row may miss 1: those of a mixed batch in bfloat16 do."""


def multi_label_loss(outputs: Any, targets: Any) -> Float32[Tensor, " n"]:
    """Binary cross entropy of each candidate, mean over its labels.

    score_i = −(1/k) Σ_j [t_ij log σ(z_ij) + (1 − t_ij) log(1 − σ(z_ij))], in float32.

    Args:
        outputs: logits z, [n, k] or one for each candidate, or what `batches.logits_of` finds them in.
        targets: 0 or 1 for each label, or in between, of the same shape; integers, booleans or floats.

    Returns:
        The scores in nats.

    Raises:
        ValueError: the shapes differ, or a target is not in [0, 1].

    Example:
        >>> multi_label_loss(torch.tensor([[9.0, -9.0], [9.0, -9.0]]), torch.tensor([[1, 0], [0, 1]])).round().tolist()
        [0.0, 9.0]
    """
    z, t = _alike(outputs, targets, "multi-label-loss")
    if t.numel() and not bool(((t >= 0) & (t <= 1)).all()):
        raise ValueError(
            f"multi-label-loss needs 0 or 1 for each label: got numbers from {t.min():g} to {t.max():g}; use "
            "score='squared-error' where they are not labels, or a score function of your own"
        )
    return F.binary_cross_entropy_with_logits(z, t, reduction="none").flatten(1).mean(1)


def soft_loss(outputs: Any, targets: Any) -> Float32[Tensor, " n"]:
    """Cross entropy of each candidate with the probabilities that are its target (mixed or smoothed labels).

    score_i = −Σ_j t_ij log softmax(z_i)_j, in float32.

    Args:
        outputs: logits z, [n, k], or what `batches.logits_of` finds them in.
        targets: probabilities, [n, k], each row of sum 1.

    Returns:
        The scores in nats.

    Raises:
        ValueError: the shapes differ, or a row is no distribution.

    Example:
        >>> soft_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.25, 0.75]])).round(decimals=2).tolist()
        [0.6899999976158142]
    """
    z, t = _alike(outputs, targets, "soft-loss")
    if z.ndim != 2:
        raise ValueError(
            f"soft-loss needs logits [n, k]: got shape {list(z.shape)}; pass a score function of your own, "
            "score(outputs, targets) -> [n]"
        )
    if t.numel() and (bool((t < 0).any()) or float((t.sum(1) - 1).abs().max()) > SUM_TOLERANCE):
        furthest = t[(t.sum(1) - 1).abs().argmax()]
        raise ValueError(
            "soft-loss needs probabilities that sum to 1 for each candidate: got numbers from "
            f"{t.min():g}, a row of sum {furthest.sum():g}; use score='multi-label-loss' where a sample may have "
            "several labels or none"
        )
    return F.cross_entropy(z, t, reduction="none")


def squared_error(outputs: Any, targets: Any) -> Float32[Tensor, " n"]:
    """Squared error of each candidate, mean over all that is predicted of it (regression).

    score_i = (1/d) Σ_j (z_ij − t_ij)², in float32.

    Args:
        outputs: z, [n] or [n, …], or what `batches.logits_of` finds them in.
        targets: numbers of the same shape; [n] for outputs [n, 1] too.

    Returns:
        The scores, in the square of the targets' unit.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> squared_error(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 5.0])).tolist()
        [0.0, 9.0]
    """
    z, t = _alike(outputs, targets, "squared-error")
    return (z - t).square().flatten(1).mean(1)


def _alike(outputs: Any, targets: Any, name: str) -> tuple[Float32[Tensor, "n ..."], Float32[Tensor, "n ..."]]:
    """Outputs and targets in float32 on one device, of one shape with at least two dimensions."""
    z = logits_of(outputs).detach().float()
    if not isinstance(targets, Tensor):
        raise ValueError(f"{name} needs a tensor of targets: got {type(targets)}; pass a score function of your own")
    t = targets.detach().to(device=z.device, dtype=torch.float32)
    if z.ndim and t.ndim and len(z) == len(t) == z.numel() == t.numel():
        return z.reshape(-1, 1), t.reshape(-1, 1)  # [n] and [n, 1] would be combined with each other
    if z.shape != t.shape or z.ndim < 2:
        raise ValueError(
            f"{name} needs targets of the outputs' shape: got {list(t.shape)} for outputs {list(z.shape)}; make them "
            "alike in split=, or pass a score function of your own, score(outputs, targets) -> [n]"
        )
    return z, t
