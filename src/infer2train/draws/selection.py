"""Selection: scores, targets and pre-drawn numbers in, indices of the chosen candidates out.

Between the scores and the training batch. Everything here is a pure function of its arguments, on any device: the
uniforms and keys that decide what chance decides are drawn by the caller from `addresses`. Which method uses which pick
is `methods`' business. Two rules hold throughout: a NaN or infinite score is never picked while a finite one is left,
and ties go to the lower candidate index.

Shapes: b slots, g views of each; n candidates, m of them mined, k classes among them.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Float32, Int, Int64, Num
from torch import Tensor

Pick = Callable[[Float[Tensor, "b g"], Float32[Tensor, " b"]], Int64[Tensor, " b"]]
"""(scores, uniforms in [0, 1)) -> the chosen view of each slot."""

ClassKeys = Callable[[Int64[Tensor, " k"]], Int64[Tensor, " k"]]
"""Class labels -> a sort key for each, e.g. `lambda c: seeds(seed, Purpose.CLASSES, draw=draw, slot=c)`."""

Balance = Literal["none", "stratified", "uniform"]
BALANCES: tuple[str, ...] = get_args(Balance)


def hardness(scores: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The scores, with −∞ for every one that is NaN or infinite: below every finite one, and so picked last.

    Example:
        >>> hardness(torch.tensor([1.0, torch.nan, torch.inf])).tolist()
        [1.0, -inf, -inf]
    """
    return torch.where(scores.isfinite(), scores, -torch.inf)


def count_nonfinite(scores: Float[Tensor, "*shape"]) -> int:
    """How many scores are NaN or infinite, for the metrics.

    Example:
        >>> count_nonfinite(torch.tensor([1.0, torch.nan, -torch.inf]))
        2
    """
    return int(scores.numel() - scores.isfinite().sum())


def pick_max(scores: Float[Tensor, "b g"], uniforms: Float32[Tensor, " b"]) -> Int64[Tensor, " b"]:
    """The hardest view of each slot: the paper's pick.

    î_b = argmax_i score_bi.

    Args:
        scores: one a view.
        uniforms: not used.

    Returns:
        View indices in [0, g). Where no score of a slot is finite it is 0, the view that the baseline would train on.

    Example:
        >>> pick_max(torch.tensor([[0.1, 0.7, 0.7]]), torch.zeros(1)).tolist()
        [1]

    Source: section 3.1 (NM-augment).
    """
    return hardness(scores).argmax(1)


def require_probable(weights: Float[Tensor, "*n"], pick: str, otherwise: str) -> None:
    """Refuse what nothing can be drawn in proportion to.

    Args:
        weights: finite scores.
        pick: whose they are.
        otherwise: what helps besides another score.

    Raises:
        ValueError: one is negative.
    """
    if bool((weights < 0).any()):
        raise ValueError(
            f"the pick {pick!r} makes probabilities of scores, so they must be at least 0: got "
            f"{weights.min().item():.4g}; use the score 'loss' or 'gradient-norm-bound', or {otherwise}"
        )


def pick_proportional(scores: Float[Tensor, "b g"], uniforms: Float32[Tensor, " b"]) -> Int64[Tensor, " b"]:
    """One view of each slot, with probability proportional to its score.

    P(i) = score_bi / Σ_j score_bj, by inverse CDF: the first i with Σ_{j ≤ i} score_bj > u_b · Σ_j score_bj.

    Args:
        scores: one a view, at least 0 where finite.
        uniforms: u, one a slot, in [0, 1).

    Returns:
        View indices in [0, g). Where the finite scores of a slot are all 0 they are equally likely; where none is
        finite, all views are.

    Raises:
        ValueError: a score is negative.

    Example:
        >>> pick_proportional(torch.tensor([[1.0, 3.0], [1.0, 3.0]]), torch.tensor([0.24, 0.25])).tolist()
        [0, 1]

    Source: Wu et al. 2020 (arXiv 2005.00695).
    """
    finite_BG = scores.isfinite()
    weights_BG = torch.where(finite_BG, scores, 0.0)
    require_probable(weights_BG, "proportional", "the pick 'max'")
    nothing_to_weigh_B1 = (weights_BG == 0).all(1, keepdim=True)
    return _inverse_cdf(torch.where(nothing_to_weigh_B1, _eligible(finite_BG), weights_BG), uniforms)


def pick_quantile(
    scores: Float[Tensor, "b g"], uniforms: Float32[Tensor, " b"], *, q: float = 0.75
) -> Int64[Tensor, " b"]:
    """The view at a quantile of each slot's scores: hard, but not the extreme that is so often an outlier.

    With the f finite scores of a slot in ascending order, the one at place ⌊q·(f − 1) + ½⌋: q = 1 is `pick_max`, q = 0
    the easiest view.

    Args:
        scores: one a view.
        uniforms: not used.
        q: quantile in [0, 1].

    Returns:
        View indices in [0, g); 0 where no score of a slot is finite.

    Raises:
        ValueError: q is not in [0, 1].

    Example:
        >>> pick_quantile(torch.tensor([[5.0, 1.0, 4.0, 2.0, 3.0]]), torch.zeros(1)).tolist()
        [2]
    """
    if not 0 <= q <= 1:
        raise ValueError(f"q must be in [0, 1]: got {q}; use 0.75 for the upper quartile")
    ascending_BG = torch.where(scores.isfinite(), scores, torch.inf)
    places = torch.tensor([max(0, _nearest(q * (f - 1))) for f in range(scores.shape[1] + 1)], device=scores.device)
    place_B1 = places[scores.isfinite().sum(1, keepdim=True)]
    value_B1 = ascending_BG.sort(1).values.gather(1, place_B1)
    return (ascending_BG == value_B1).to(torch.uint8).argmax(1)


def pick_uniform(scores: Float[Tensor, "b g"], uniforms: Float32[Tensor, " b"]) -> Int64[Tensor, " b"]:
    """One view of each slot, all views with a finite score equally likely: the baseline, in distribution.

    Args:
        scores: one a view; looked at only for NaN and infinities.
        uniforms: one a slot, in [0, 1).

    Returns:
        View indices in [0, g): ⌊u·g⌋ where all scores are finite, or none is.

    Example:
        >>> pick_uniform(torch.zeros(2, 10), torch.tensor([0.39, 0.41])).tolist()
        [3, 4]
    """
    return _inverse_cdf(_eligible(scores.isfinite()), uniforms)


PICKS: dict[str, Pick] = {
    "max": pick_max,
    "proportional": pick_proportional,
    "quantile": pick_quantile,
    "uniform": pick_uniform,
}


def pick_hardest(
    scores: Float[Tensor, " n"],
    targets: Num[Tensor, " n"] | None,
    num_mined: int,
    *,
    balance: Balance,
    class_keys: ClassKeys,
) -> Int64[Tensor, " m"]:
    """The candidates with the highest scores, balanced over their classes.

    All three balances are one deal: in each round every class that still has candidates, in the order of the classes'
    keys, gives its hardest one that is left.

    - `uniform`, the paper's: the first m dealt. That is ⌊m/K⌋ of each of the K classes present, the remainder to the
      first classes by key, and quota that a class cannot fill passed on, round by round, to those that can.
    - `stratified`: of each class as many as its share of the candidates, m·count/n, rounded by largest remainder (ties
      by key). Quota that finite scores cannot fill goes to the other candidates in the order of the deal.
    - `none`: the m highest, as if there were one class.

    Only after the last finite score are the others dealt.

    Args:
        scores: one a candidate.
        targets: integer class of each candidate; None only with `none`.
        num_mined: m, at most n.
        balance: how m is shared among the classes that occur.
        class_keys: a sort key for each class that occurs, the same whichever classes occur beside it; equal keys are
            ordered by label.

    Returns:
        m different indices in the order of the deal (the quota first, then what was passed on). Indices of candidates:
        nm-sample draws with replacement, so two of them may be of one sample.

    Raises:
        ValueError: more is mined than there are candidates; the balance is unknown; it needs integer classes and
            has none.

    Example:
        >>> scores, targets = torch.tensor([9.0, 8.0, 7.0, 1.0]), torch.tensor([0, 0, 0, 1])
        >>> pick_hardest(scores, targets, 3, balance="uniform", class_keys=lambda labels: labels).tolist()
        [0, 3, 1]

    Source: section 5.1 ("balanced subsets of samples with the highest loss for each category").
    """
    if not 0 <= num_mined <= len(scores):
        raise ValueError(
            f"num_mined must be at most the number of candidates: got {num_mined} of {len(scores)}; raise gamma"
        )
    hardest_first_N = hardness(scores).argsort(descending=True, stable=True)
    if balance == "none":
        return hardest_first_N[:num_mined]
    if balance not in BALANCES:
        raise ValueError(f"balance must be one of {', '.join(BALANCES)}: got {balance!r}; 'uniform' is the paper's")
    if targets is None or targets.is_floating_point():
        got = "none" if targets is None else str(targets.dtype)
        raise ValueError(f"balance '{balance}' needs integer classes as targets: got {got}; use balance='none'")
    counts_K, classes_N = _classes_by_key(targets, class_keys)
    deal_N, ranks_N = _deal(hardest_first_N, classes_N, counts_K, scores.isfinite())
    if balance == "stratified":
        quotas_K = _largest_remainder(counts_K, num_mined)
        within_N = (ranks_N < quotas_K[classes_N[deal_N]]) & scores.isfinite()[deal_N]
        deal_N = deal_N[within_N.argsort(descending=True, stable=True)]
    return deal_N[:num_mined]


def fill(chosen: Int64[Tensor, " m"], n: int, num_total: int, keys: Int64[Tensor, " n"]) -> Int64[Tensor, " total"]:
    """The chosen, followed by others taken uniformly from the candidates that were not chosen.

    Args:
        chosen: m different indices in [0, n).
        n: number of candidates.
        num_total: how many indices to return, between m and n.
        keys: a random sort key for each candidate; those with the lowest fill (equal keys by index).

    Returns:
        The chosen in their order, then num_total − m others in the order of their keys.

    Raises:
        ValueError: there are not that many candidates, or more are chosen than asked for.

    Example:
        >>> fill(torch.tensor([2]), 4, 3, torch.tensor([30, 10, 20, 40])).tolist()
        [2, 1, 0]

    Source: section 5.1 ("only r·B samples were mined, and the rest were randomly selected").
    """
    if not len(chosen) <= num_total <= n:
        raise ValueError(
            f"a batch must hold the chosen and at most all candidates: got num_total={num_total} for {len(chosen)} "
            f"chosen of {n} candidates; lower the batch size or raise gamma"
        )
    assert keys.shape == (n,), (keys.shape, n)
    free_N = torch.ones(n, dtype=torch.bool, device=chosen.device).index_fill(0, chosen, False)
    by_key_N = keys.argsort(stable=True)
    others = by_key_N[free_N[by_key_N]]
    assert len(others) == n - len(chosen), "a candidate was chosen twice"
    return torch.cat([chosen, others[: num_total - len(chosen)]])


def num_mined(rate: float, batch_size: int) -> int:
    """How many of a batch are mined at this point of the ramp.

    m = ⌊r·B + ½⌋.

    Args:
        rate: r, in [0, 1].
        batch_size: B.

    Raises:
        ValueError: the rate is not in [0, 1].

    Example:
        >>> num_mined(0.5, 5), num_mined(0.57, 50)   # 0.57 · 50 is 28.499999999999996 as a float
        (3, 29)

    Source: section 5.1, r = min{1, 0.01·T}.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"the rate of mined candidates must be in [0, 1]: got {rate}; clip the ramp to 1")
    return _nearest(rate * batch_size)


def _nearest(x: float) -> int:
    """⌊x + ½⌋, with halves that binary rounding left a hair below counted as halves."""
    return math.floor(round(x, 9) + 0.5)


def _eligible(finite_BG: Bool[Tensor, "b g"]) -> Float[Tensor, "b g"]:
    """Equal weights for the finite views of a slot, or for all where none is finite."""
    return (finite_BG | ~finite_BG.any(1, keepdim=True)).double()


def _inverse_cdf(weights_BG: Float[Tensor, "b g"], uniforms_B: Float32[Tensor, " b"]) -> Int64[Tensor, " b"]:
    """The first view of each slot whose cumulated weight exceeds u times the total; weights of 0 are never it.

    In float64, sums of float32 weights and their products with a 24-bit uniform are exact unless the weights differ by
    many orders of magnitude, so devices agree and the last sum is always above u times itself.
    """
    cumulated_BG = weights_BG.double().cumsum(1)
    thresholds_B1 = uniforms_B.double()[:, None] * cumulated_BG[:, -1:]
    return (cumulated_BG <= thresholds_B1).sum(1)


def _classes_by_key(
    targets_N: Int[Tensor, " n"], class_keys: ClassKeys
) -> tuple[Int64[Tensor, " k"], Int64[Tensor, " n"]]:
    """The classes that occur, numbered in the order of their keys: the count of each, and each candidate's number."""
    labels_K, labelled_N, counts_K = torch.unique(targets_N.long(), return_inverse=True, return_counts=True)
    by_key_K = class_keys(labels_K).argsort(stable=True)
    number_K = torch.empty_like(by_key_K)
    number_K[by_key_K] = torch.arange(len(by_key_K), device=by_key_K.device)
    return counts_K[by_key_K], number_K[labelled_N]


def _deal(
    hardest_first_N: Int64[Tensor, " n"],
    classes_N: Int64[Tensor, " n"],
    counts_K: Int64[Tensor, " k"],
    finite_N: Bool[Tensor, " n"],
) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]:
    """All candidates in the order of the deal, and each one's rank in its class.

    Dealing in rounds is sorting by (rank in the class, number of the class): no loop. Non-finite scores, which stand
    last in their class, go behind all others.
    """
    by_class_N = hardest_first_N[classes_N[hardest_first_N].argsort(stable=True)]
    starts_K = counts_K.cumsum(0) - counts_K
    ranks_N = torch.arange(len(by_class_N), device=by_class_N.device) - starts_K[classes_N[by_class_N]]
    # Candidates already stand by class, so a stable sort by rank leaves equal ranks in the order of the classes.
    rounds_N = ranks_N + len(ranks_N) * (~finite_N[by_class_N])
    order_N = rounds_N.argsort(stable=True)
    return by_class_N[order_N], ranks_N[order_N]


def _largest_remainder(counts_K: Int64[Tensor, " k"], total: int) -> Int64[Tensor, " k"]:
    """Quotas proportional to the counts that add up to total: rounded down, then one more for the largest remainders.

    In integers, so exact; ties go to the class that stands first. No quota exceeds its count.
    """
    shares_K = counts_K * total
    num_candidates = counts_K.sum()
    quotas_K, remainders_K = shares_K // num_candidates, shares_K % num_candidates
    by_remainder_K = remainders_K.argsort(descending=True, stable=True)
    places_K = torch.arange(len(counts_K), device=counts_K.device)
    quotas_K[by_remainder_K] += (places_K < total - quotas_K.sum()).long()
    return quotas_K
