"""Scores: (outputs, targets) -> one number for each candidate; the higher, the harder.

Between the engine and the pick: a scorer applies one of these to what the oracle's forward pass returned. They are
pure, take no gradient and know no class weights or label smoothing, whatever the training loss does: a score orders
candidates, and a smoothed or re-weighted one would order them by something else. What a non-finite score means is
`selection`'s business.

Those of classes take one class a candidate, or many: of each token of a sequence, logits [n, t, k] and targets [n, t],
or of each pixel of an image, logits [n, k, h, w] and targets [n, h, w]. Three dimensions are always a sequence with its
classes last, and more are torch's layout with its classes second, whatever the sizes: a rule that no batch changes. A
candidate's score is then the mean over its own tokens, those whose target is not `IGNORED`; one that has none is as
easy as can be.

Shapes: n candidates, t tokens, k classes.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64
from torch import Tensor

from infer2train.batches import logits_of
from infer2train.draws.number_scores import multi_label_loss, soft_loss, squared_error

Score = Callable[[Any, Any], Tensor]
"""(outputs, targets) -> [n]. A user's own score has this shape too; only the order of what it returns matters."""
IGNORED = -100
"""The target of a token that is not its sequence's own (padding, a prompt), as torch's cross entropy has it."""


def loss(outputs: Any, targets: Any) -> Float32[Tensor, " n"]:
    """Cross entropy of each candidate: the paper's score.

    score_i = −log softmax(z_i)[t_i], in float32 whatever the dtype of the outputs.

    Args:
        outputs: logits z, [n, k], [n, t, k] or [n, k, h, w], or what `batches.logits_of` finds them in.
        targets: class of each candidate, token or pixel, integers [n], [n, t] or [n, h, w] in [0, k), or `IGNORED` for
            a token or pixel that does not count.

    Returns:
        The scores in nats, on the device of the outputs.

    Raises:
        ValueError: the targets are not integer classes, or not classes of these logits.

    Example:
        >>> loss(torch.tensor([[0.0, 0.0], [9.0, 0.0]]), torch.tensor([0, 0])).round(decimals=2).tolist()
        [0.6899999976158142, 0.0]

    Source: section 3.1.
    """
    return _mean_over_own(outputs, targets, partial(F.cross_entropy, reduction="none"))


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

    def of_rows(logits_NK: Tensor, targets_N: Tensor) -> Tensor:
        entropy_N: Tensor = torch.special.entr(logits_NK.softmax(1)).sum(1)
        return entropy_N

    return _mean_over_own(outputs, targets, of_rows)


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

    def of_rows(logits_NK: Tensor, targets_N: Tensor) -> Tensor:
        probabilities_NK = logits_NK.softmax(1)
        others_NK = _without_target(probabilities_NK, targets_N)
        return others_NK.amax(1) - probabilities_NK.gather(1, targets_N[:, None]).squeeze(1)

    return _mean_over_own(outputs, targets, of_rows, easiest=-1.0)


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

    def of_rows(logits_NK: Tensor, targets_N: Tensor) -> Tensor:
        others_NK = _without_target(logits_NK.softmax(1), targets_N)
        # 1 − p_t is Σ of the others: written so, the order of easy candidates survives where p_t rounds to 1.
        return torch.hypot(torch.linalg.vector_norm(others_NK, dim=1), others_NK.sum(1))

    return _mean_over_own(outputs, targets, of_rows)


SCORES: dict[str, Score] = {
    "loss": loss,
    "entropy": entropy,
    "margin": margin,
    "gradient-norm-bound": gradient_norm_bound,
    "multi-label-loss": multi_label_loss,
    "soft-loss": soft_loss,
    "squared-error": squared_error,
}
"""The first four are of classes, the others of targets that are real numbers."""
OF_NUMBERS = ("multi-label-loss", "soft-loss", "squared-error")
"""Those others."""


def _without_target(probabilities_NK: Float32[Tensor, "n k"], targets_N: Int64[Tensor, " n"]) -> Float32[Tensor, "n k"]:
    """The probabilities with that of the target set to 0."""
    return probabilities_NK.scatter(1, targets_N[:, None], 0.0)


def _mean_over_own(
    outputs: Any, targets: Any, of_rows: Callable[[Tensor, Tensor], Tensor], easiest: float = 0.0
) -> Float32[Tensor, " n"]:
    """A score of rows, logits [m, k] and classes [m] -> [m], as one of candidates: the mean over their own tokens.

    Args:
        outputs: of the model.
        targets: of the same candidates.
        of_rows: the score.
        easiest: of a candidate that has no token of its own.
    """
    logits = logits_of(outputs).detach().float()
    if logits.ndim == 2:
        return of_rows(logits, _class_targets(targets, logits))
    logits = logits.movedim(1, -1) if logits.ndim > 3 else logits
    if logits.ndim < 2 or not isinstance(targets, Tensor) or targets.shape != logits.shape[:-1]:
        shape = list(targets.shape) if isinstance(targets, Tensor) else type(targets)
        raise ValueError(
            "this score needs logits [n, k] with targets [n], [n, t, k] with [n, t], or [n, k, h, w] with [n, h, w]: "
            f"got logits of shape {list(logits_of(outputs).shape)} with targets {shape}; move the classes there by a "
            "score function of your own, score(outputs, targets) -> [n]"
        )
    rows, per_candidate = logits.flatten(0, -2), math.prod(logits.shape[1:-1])
    flat = targets.to(logits.device).flatten()
    own = flat != IGNORED
    classes = _class_targets(flat.masked_fill(~own, 0), rows, are_parts=True)
    # What is not its own may be anything, also NaN, which no product with 0 takes away.
    values = of_rows(rows, classes).where(own, 0.0).view(len(logits), per_candidate)
    count = own.view(len(logits), per_candidate).sum(1)
    return (values.sum(1) / count.clamp(min=1)).where(count > 0, easiest)


def _class_targets(targets: Any, logits_NK: Tensor, *, are_parts: bool = False) -> Int64[Tensor, " n"]:
    """The targets as int64 on the device of the logits, if they are integer classes of them; of candidates or parts."""
    num_candidates, num_classes = logits_NK.shape
    if num_classes == 1:
        raise ValueError(
            "this score needs two outputs or more, one a class: got a model with one; pass score='multi-label-loss' "
            "for a label that is 0 or 1, or score='squared-error' for a number"
        )
    remedy = (
        "say what they are by score='multi-label-loss', 'soft-loss' or 'squared-error', or pass your own score "
        "function, score(outputs, targets) -> [n]"
    )
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
            got = lowest if lowest < 0 else highest
            way_out = (
                "leave such samples out, or pass a score= of your own, such as F.cross_entropy(outputs, y, "
                f"reduction='none', ignore_index={lowest})"
                if lowest < 0
                else "give the model more outputs or correct the labels"
            )
            if are_parts:
                way_out = (
                    f"if it marks what does not count, make it {IGNORED}, with which the score knows what to do: "
                    f"split=lambda batch: (batch[0], batch[1].masked_fill(batch[1] == {got}, {IGNORED})); else give "
                    "the model more outputs or correct the labels"
                )
            raise ValueError(f"every target must be a class of the model, in [0, {num_classes}): got {got}; {way_out}")
    return targets.to(device=logits_NK.device, dtype=torch.int64)
