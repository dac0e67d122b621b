"""Losses that involve the oracle: the distillation penalty of equation 1.

On both ends of the way of the data: the oracle's side reduces its outputs to what equation 1 needs, the trainer's side
adds the penalty to the user's own loss, L + λ·distillation. L itself and λ are the training loop's.

Of sequences the oracle sends the log-probabilities of each token, and NaN for one that is not its sequence's own: so
the penalty knows which tokens count without the targets, which the trainer's side may hold in any form.

Shapes: b samples, g views of each, t tokens of each (or none: one prediction a sample), k classes.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from infer2train.draws.scores import IGNORED


def mean_log_probabilities(logits: Float[Tensor, "bg *t k"], views: int) -> Float[Tensor, "b *t k"]:
    """Mean over a sample's views of the oracle's log-probabilities: all that equation 1 needs of them.

    out_b = (1/γ) Σ_i log F̃(T_i x_b). KL's first argument is the same for every view, so the views enter linearly and
    the oracle sends [b, k] instead of [b, γ, k].

    Args:
        logits: the oracle's, views of one sample next to each other: row b·γ + i is view i of sample b. Those of a
            token that does not count are NaN, see `own_tokens`.
        views: γ, the number of views of each sample.

    Returns:
        Means of logarithms, at least float32 (they do not sum to 1 when exponentiated); NaN for a token that does not
        count in one of the views.

    Raises:
        ValueError: the rows are not a whole number of samples.

    Example:
        >>> mean_log_probabilities(torch.zeros(6, 4), views=3).exp().shape
        torch.Size([2, 4])

    Source: equation 1.
    """
    rows = len(logits)
    if views < 1 or rows % views:
        raise ValueError(
            f"logits must hold the same number of views of each sample: got {rows} rows for views={views}; "
            "score whole slots, views of one sample next to each other"
        )
    return _at_least_float32(logits).log_softmax(-1).view(rows // views, views, *logits.shape[1:]).mean(1)


def own_tokens(logits: Float[Tensor, "n *t k"], targets: Any) -> Float[Tensor, "n *t k"]:
    """The oracle's logits in float32, those of tokens that are not their sequence's own NaN.

    Args:
        logits: of each candidate, [n, k], or of each of its tokens, [n, t, k].
        targets: of the same candidates; of tokens integers [n, t], `scores.IGNORED` for those that do not count.

    Raises:
        ValueError: logits of other shapes, or targets that do not tell which tokens count.
    """
    if logits.ndim == 2:
        return logits.float().clone()
    if logits.ndim != 3 or not isinstance(targets, Tensor) or targets.shape != logits.shape[:2]:
        shape = tuple(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
        raise ValueError(
            f"self-distill needs logits [n, k], or [n, t, k] with targets [n, t] that tell which tokens count: got "
            f"shape {tuple(logits.shape)} with targets {shape}; use another method"
        )
    ignored = targets.to(logits.device) == IGNORED
    return logits.float().masked_fill(ignored[..., None], torch.nan)


def distillation(
    logits: Float[Tensor, "b *t k"], oracle_log_probabilities: Float[Tensor, "b *u k"]
) -> Float[Tensor, ""]:
    """Mean divergence of the trained model from the oracle's views: the penalty of equation 1, before λ.

    (1/B) Σ_b (1/γ) Σ_i KL(F(x_b) ‖ F̃(T_i x_b)) = (1/B) Σ_b Σ_k p_bk (log p_bk − (1/γ) Σ_i log p̃_bik), p = softmax(z).

    Of sequences, the divergence of one is the mean over its own tokens, and 0 where it has none; the batch may be
    padded to another length than the oracle's were, since what lies beyond is nobody's own. A sample of which the
    oracle says NaN (its float16 overflows) adds 0.

    The trained model is KL's *first* argument, the reverse of usual distillation, and gradients flow through it only.
    Computed in float32 or better. That does not rescue a model whose logits are bfloat16: at the paper's λ = 1e-5 the
    penalty's gradient rounds away there, so self-distillation is trained in float32.

    Args:
        logits: z, the trained model's on the anchors.
        oracle_log_probabilities: `mean_log_probabilities` of the same samples.

    Returns:
        The penalty in nats, at least 0 up to rounding; infinite where the oracle excludes a class that the model does
        not, never NaN where a probability underflows.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> distillation(logits, mean_log_probabilities(logits, views=1)).item()
        0.0

    Source: section 3.2, equation 1.
    """
    said = oracle_log_probabilities.detach()
    if logits.ndim == 3:
        shared = min(logits.shape[1], said.shape[1])
        logits, said = logits[:, :shared], said[:, :shared]
    own = ~said.isnan().any(-1)
    divergences = _divergences(logits, said.where(own[..., None], 0.0)).where(own, 0.0)
    if logits.ndim == 2:
        return divergences.mean()
    return (divergences.sum(1) / own.sum(1).clamp(min=1)).mean()


def _divergences(logits: Float[Tensor, "*b k"], log_probabilities: Float[Tensor, "*b k"]) -> Float[Tensor, "*b"]:
    """Σ_k p_k (log p_k − c_k) of each row."""
    log_p = _at_least_float32(logits).log_softmax(-1)
    p = log_p.exp()
    gap = log_p - log_probabilities
    # lim p→0 of p·(log p − c) is 0; as floats, 0·∞ and ∞ − ∞ would make it NaN, forward and backward.
    return (p * torch.where(p > 0, gap, 0.0)).sum(-1)


def _at_least_float32(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The logits in float32, or in float64 if that is what they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
