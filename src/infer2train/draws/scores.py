"""Scores: (outputs, targets) -> one number for each candidate; the higher, the harder.

Between the engine and the pick: a scorer applies one of these to what the oracle's forward pass returned. They are
pure, take no gradient and know no class weights or label smoothing, whatever the training loss does: a score orders
candidates, and a smoothed or re-weighted one would order them by something else. What a non-finite score means is
`selection`'s business.

Shapes: n candidates, k classes.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64
from torch import Tensor

from infer2train.batches import logits_of

Score = Callable[[Any, Any], Tensor]
"""(outputs, targets) -> [n]. A user's own score has this shape too; only the order of what it returns matters."""


def loss(outputs: Any, targets: Any) -> Float32[Tensor, " n"]:
    """Cross entropy of each candidate: the paper's score.

    score_i = −log softmax(z_i)[t_i], in float32 whatever the dtype of the outputs.

    Args:
        outputs: logits z, [n, k], or what `batches.logits_of` finds them in.
        targets: class of each candidate, integers [n] in [0, k).

    Returns:
        The scores in nats, on the device of the outputs.

    Raises:
        ValueError: the targets are not integer classes, or not classes of these logits.

    Example:
        >>> loss(torch.tensor([[0.0, 0.0], [9.0, 0.0]]), torch.tensor([0, 0])).round(decimals=2).tolist()
        [0.6899999976158142, 0.0]

    Source: section 3.1.
    """
    logits_NK, targets_N = _checked(outputs, targets)
    return F.cross_entropy(logits_NK, targets_N, reduction="none")


def entropy(outputs: Any, targets: Any) -> Float32[Tensor, " n"]:
    """Entropy of the oracle's prediction: how undecided it is, whatever the label.

    score_i = −Σ_k p_ik log p_ik, p = softmax(z).

    Args:
        outputs: as for `loss`.
        targets: as for `loss`; checked, not used.

    Returns:
        The scores in nats, in [0, log k].

    Raises:
        ValueError: as `loss`.

    Example:
        >>> entropy(torch.tensor([[0.0, 0.0], [99.0, 0.0]]), torch.tensor([0, 0])).gt(0.5).tolist()
        [True, False]

    Source: uncertainty sampling (Settles, "Active learning literature survey", 2009, section 3.1).
    """
    logits_NK, _ = _checked(outputs, targets)
    entropy_N: Tensor = torch.special.entr(logits_NK.softmax(1)).sum(1)
    return entropy_N


def margin(outputs: Any, targets: Any) -> Float32[Tensor, " n"]:
    """How far the strongest wrong class is ahead of the right one.

    score_i = max_{k ≠ t_i} p_ik − p_i,t_i, p = softmax(z): above 0 where the prediction is wrong.

    Args:
        outputs: as for `loss`.
        targets: as for `loss`.

    Returns:
        The scores, in [−1, 1].

    Raises:
        ValueError: as `loss`.

    Example:
        >>> margin(torch.tensor([[99.0, 0.0], [99.0, 0.0]]), torch.tensor([0, 1])).tolist()
        [-1.0, 1.0]
    """
    logits_NK, targets_N = _checked(outputs, targets)
    probabilities_NK = logits_NK.softmax(1)
    others_NK = _without_target(probabilities_NK, targets_N)
    return others_NK.amax(1) - probabilities_NK.gather(1, targets_N[:, None]).squeeze(1)


def gradient_norm_bound(outputs: Any, targets: Any) -> Float32[Tensor, " n"]:
    """Norm of the loss's gradient at the logits: up to a constant, a bound on its norm at the weights.

    score_i = ‖softmax(z_i) − onehot(t_i)‖₂.

    Args:
        outputs: as for `loss`.
        targets: as for `loss`.

    Returns:
        The scores, in [0, √2].

    Raises:
        ValueError: as `loss`.

    Example:
        >>> gradient_norm_bound(torch.tensor([[0.0, 0.0]]), torch.tensor([1])).round(decimals=4).tolist()
        [0.707099974155426]

    Source: Katharopoulos & Fleuret 2018 (arXiv 1803.00942), equation 20.
    """
    logits_NK, targets_N = _checked(outputs, targets)
    others_NK = _without_target(logits_NK.softmax(1), targets_N)
    # 1 − p_t is Σ of the others: written so, the order of easy candidates survives where p_t rounds to 1.
    return torch.hypot(torch.linalg.vector_norm(others_NK, dim=1), others_NK.sum(1))


SCORES: dict[str, Score] = {
    "loss": loss,
    "entropy": entropy,
    "margin": margin,
    "gradient-norm-bound": gradient_norm_bound,
}


def _without_target(probabilities_NK: Float32[Tensor, "n k"], targets_N: Int64[Tensor, " n"]) -> Float32[Tensor, "n k"]:
    """The probabilities with that of the target set to 0."""
    return probabilities_NK.scatter(1, targets_N[:, None], 0.0)


def _checked(outputs: Any, targets: Any) -> tuple[Float32[Tensor, "n k"], Int64[Tensor, " n"]]:
    """Logits in float32 and targets in int64 on their device, of one length, every target a class."""
    logits = logits_of(outputs)
    if logits.ndim != 2:
        raise ValueError(
            f"this score needs logits [n, k], one row a candidate: got shape {list(logits.shape)}; "
            "pass your own score function, score(outputs, targets) -> [n]"
        )
    return logits.detach().float(), _class_targets(targets, logits)


def _class_targets(targets: Any, logits_NK: Tensor) -> Int64[Tensor, " n"]:
    """The targets as int64 on the device of the logits, if they are integer classes of them."""
    num_candidates, num_classes = logits_NK.shape
    if num_classes == 1:
        raise ValueError(
            "this score needs two outputs or more, one a class: got a model with one; pass a score= of your own, such "
            "as F.binary_cross_entropy_with_logits(outputs.squeeze(1), y.float(), reduction='none')"
        )
    remedy = "pass your own score function, score(outputs, targets) -> [n]"
    if not isinstance(targets, Tensor):
        raise ValueError(f"this score needs a tensor of integer classes as targets: got {type(targets)}; {remedy}")
    if targets.dtype == torch.bool or targets.is_floating_point() or targets.is_complex():
        raise ValueError(f"this score needs integer classes as targets: got {targets.dtype}; {remedy}")
    if targets.shape != (num_candidates,):
        raise ValueError(
            f"this score needs one integer class for each candidate: got targets of shape {list(targets.shape)} "
            f"for {num_candidates} candidates; {remedy}"
        )
    if num_candidates:
        # Before the kernel: on CUDA a label out of range kills the context instead of raising.
        lowest, highest = (int(extreme) for extreme in targets.aminmax())
        if lowest < 0 or highest >= num_classes:
            way_out = (
                "leave such samples out, or pass a score= of your own, such as F.cross_entropy(outputs, y, "
                f"reduction='none', ignore_index={lowest})"
                if lowest < 0
                else "give the model more outputs or correct the labels"
            )
            raise ValueError(
                f"every target must be a class of the model, in [0, {num_classes}): got "
                f"{lowest if lowest < 0 else highest}; {way_out}"
            )
    return targets.to(device=logits_NK.device, dtype=torch.int64)
