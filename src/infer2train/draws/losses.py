"""Losses that involve the oracle: the distillation penalty of equation 1.

On both ends of the way of the data: the oracle's side reduces its outputs to what equation 1 needs, the trainer's side
adds the penalty to the user's own loss, L + λ·distillation. L itself and λ are the training loop's.

Shapes: b samples, g views of each, k classes.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def mean_log_probabilities(logits: Float[Tensor, "bg k"], views: int) -> Float[Tensor, "b k"]:
    """Mean over a sample's views of the oracle's log-probabilities: all that equation 1 needs of them.

    out_b = (1/γ) Σ_i log F̃(T_i x_b). KL's first argument is the same for every view, so the views enter linearly and
    the oracle sends [b, k] instead of [b, γ, k].

    Args:
        logits: the oracle's, views of one sample next to each other: row b·γ + i is view i of sample b.
        views: γ, the number of views of each sample.

    Returns:
        Means of logarithms, at least float32 (they do not sum to 1 when exponentiated).

    Raises:
        ValueError: the rows are not a whole number of samples.

    Example:
        >>> mean_log_probabilities(torch.zeros(6, 4), views=3).exp().shape
        torch.Size([2, 4])

    Source: equation 1.
    """
    rows, num_classes = logits.shape
    if views < 1 or rows % views:
        raise ValueError(
            f"logits must hold the same number of views of each sample: got {rows} rows for views={views}; "
            "score whole slots, views of one sample next to each other"
        )
    return _at_least_float32(logits).log_softmax(1).view(rows // views, views, num_classes).mean(1)


def distillation(logits: Float[Tensor, "b k"], oracle_log_probabilities: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """Mean divergence of the trained model from the oracle's views: the penalty of equation 1, before λ.

    (1/B) Σ_b (1/γ) Σ_i KL(F(x_b) ‖ F̃(T_i x_b)) = (1/B) Σ_b Σ_k p_bk (log p_bk − (1/γ) Σ_i log p̃_bik), p = softmax(z).

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
    log_p_BK = _at_least_float32(logits).log_softmax(1)
    p_BK = log_p_BK.exp()
    gap_BK = log_p_BK - oracle_log_probabilities.detach()
    # lim p→0 of p·(log p − c) is 0; as floats, 0·∞ and ∞ − ∞ would make it NaN, forward and backward.
    return (p_BK * torch.where(p_BK > 0, gap_BK, 0.0)).sum(1).mean()


def _at_least_float32(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The logits in float32, or in float64 if that is what they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
