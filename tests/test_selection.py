"""Selection against references that deal one candidate at a time."""

import itertools
import math
from collections import Counter
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from infer2train.draws.addresses import Purpose, seeds
from infer2train.draws.selection import (
    BALANCES,
    PICKS,
    count_nonfinite,
    fill,
    hardness,
    num_mined,
    pick_hardest,
    pick_max,
    pick_proportional,
    pick_quantile,
    pick_uniform,
)

NAN, INF = math.nan, math.inf
UNIFORM_STEPS = 1 << 24

# Few distinct values, so that ties are the rule.
FINITE = st.integers(-4, 4).map(lambda n: n / 2)
MESSY = st.one_of(FINITE, st.sampled_from([NAN, INF, -INF]))
WEIGHTS = st.integers(0, 1 << 16).map(lambda n: n / 256)
UNIFORMS = st.integers(0, UNIFORM_STEPS - 1)


def slots(elements: st.SearchStrategy[float]) -> st.SearchStrategy[list[list[float]]]:
    """Scores of 1 to 4 slots with the same number of views."""
    return st.integers(1, 7).flatmap(
        lambda g: st.lists(st.lists(elements, min_size=g, max_size=g), min_size=1, max_size=4)
    )


def picked(pick: Callable[..., Tensor], scores: list[float], step: int = 0) -> int:
    """The view picked in one slot with the uniform step / 2^24."""
    return int(pick(torch.tensor([scores]), torch.tensor([step / UNIFORM_STEPS])).item())


def first_past(weights: list[Fraction], step: int) -> int:
    """Inverse CDF, in exact arithmetic, one view at a time."""
    threshold = Fraction(step, UNIFORM_STEPS) * sum(weights)
    total = Fraction(0)
    for index, weight in enumerate(weights):
        total += weight
        if total > threshold:
            return index
    raise AssertionError("u < 1, so some sum is above u times the last")


def weights_of(scores: list[float]) -> list[Fraction]:
    """What the proportional pick weighs a slot's views by."""
    finite = [math.isfinite(score) for score in scores]
    if not any(finite):
        return [Fraction(1)] * len(scores)
    weights = [Fraction(score) if ok else Fraction(0) for score, ok in zip(scores, finite, strict=True)]
    return weights if sum(weights) else [Fraction(int(ok)) for ok in finite]


def hardest_in_slot(scores: list[float]) -> int:
    best = 0
    for index, score in enumerate(scores):
        if math.isfinite(score) and (not math.isfinite(scores[best]) or score > scores[best]):
            best = index
    return best


class TestNonFinite:
    def test_is_below_every_finite_score(self) -> None:
        lowest = torch.finfo(torch.float32).min
        assert hardness(torch.tensor([NAN, INF, -INF, lowest])).tolist() == [-INF, -INF, -INF, lowest]

    def test_is_counted(self) -> None:
        assert count_nonfinite(torch.tensor([[NAN, 1.0], [INF, -INF]])) == 3
        assert count_nonfinite(torch.zeros(3)) == 0

    @pytest.mark.parametrize("name", PICKS)
    @given(scores=st.lists(st.one_of(WEIGHTS, st.sampled_from([NAN, INF, -INF])), min_size=1), step=UNIFORMS)
    def test_view_is_never_picked_while_a_finite_one_is_left(self, name: str, scores: list[float], step: int) -> None:
        view = picked(PICKS[name], scores, step)
        assert math.isfinite(scores[view]) or not any(map(math.isfinite, scores))

    @pytest.mark.parametrize("name", ["max", "quantile"])
    def test_slot_falls_back_to_the_view_of_the_baseline(self, name: str) -> None:
        assert picked(PICKS[name], [NAN, INF, -INF]) == 0


class TestPickMax:
    @given(slots(MESSY))
    def test_is_the_hardest_of_each_slot_and_the_first_among_equals(self, scores: list[list[float]]) -> None:
        expected = [hardest_in_slot(slot) for slot in scores]
        assert pick_max(torch.tensor(scores), torch.zeros(len(scores))).tolist() == expected

    @given(st.permutations(range(6)))
    def test_follows_its_view_wherever_it_stands(self, order: list[int]) -> None:
        scores = torch.tensor([[0.3, 0.1, 0.9, 0.4, 0.2, 0.8]])
        assert order[int(pick_max(scores[:, order], torch.zeros(1)))] == 2


class TestPickProportional:
    @given(slots(st.one_of(WEIGHTS, st.sampled_from([0.0, NAN, INF, -INF]))), st.data())
    def test_is_the_exact_inverse_cdf(self, scores: list[list[float]], data: st.DataObject) -> None:
        steps = data.draw(st.lists(UNIFORMS, min_size=len(scores), max_size=len(scores)))
        expected = [first_past(weights_of(slot), step) for slot, step in zip(scores, steps, strict=True)]
        uniforms = torch.tensor(steps) / UNIFORM_STEPS
        assert pick_proportional(torch.tensor(scores), uniforms).tolist() == expected

    def test_picks_in_proportion_to_the_scores(self) -> None:
        scores = torch.tensor([0.7, 0.0, 2.1, NAN, 4.2])
        uniforms = (torch.arange(10_000) + 0.5) / 10_000  # every stratum once: frequencies without luck
        counts = torch.bincount(pick_proportional(scores.expand(10_000, -1), uniforms), minlength=5)
        assert counts.tolist() == pytest.approx([1000, 0, 3000, 0, 6000], abs=1)

    def test_is_uniform_where_all_losses_are_zero(self) -> None:
        uniforms = (torch.arange(30) + 0.5) / 30
        scores = torch.tensor([0.0, 0.0, NAN, 0.0]).expand(30, -1)
        assert torch.bincount(pick_proportional(scores, uniforms), minlength=4).tolist() == [10, 10, 0, 10]

    def test_a_view_without_loss_is_out_even_at_the_ends_of_the_unit_interval(self) -> None:
        scores = [0.0, 1.0, 0.0]
        assert picked(pick_proportional, scores, 0) == 1
        assert picked(pick_proportional, scores, UNIFORM_STEPS - 1) == 1

    @pytest.mark.parametrize("size", [1e-38, 3e38])
    def test_neither_tiny_nor_huge_losses_upset_it(self, size: float) -> None:
        scores = [size, size, size, size]
        assert [picked(pick_proportional, scores, i * UNIFORM_STEPS // 4) for i in range(4)] == [0, 1, 2, 3]

    def test_refuses_negative_scores_with_the_remedy(self) -> None:
        with pytest.raises(ValueError, match=r"'proportional'.* at least 0: got -0\.5; use the score 'loss'"):
            picked(pick_proportional, [1.0, -0.5])
        assert picked(pick_proportional, [1.0, -INF]) == 0


class TestPickQuantile:
    @given(slots(MESSY), st.integers(0, 20))
    def test_is_the_view_at_that_place_of_the_sorted_slot(self, scores: list[list[float]], twentieths: int) -> None:
        expected = []
        for slot in scores:
            finite = sorted(filter(math.isfinite, slot))
            place = math.floor(Fraction(twentieths, 20) * (len(finite) - 1) + Fraction(1, 2))
            expected.append(slot.index(finite[place]) if finite else 0)
        chosen = pick_quantile(torch.tensor(scores), torch.zeros(len(scores)), q=twentieths / 20)
        assert chosen.tolist() == expected

    @given(slots(MESSY))
    def test_at_one_is_the_max(self, scores: list[list[float]]) -> None:
        arguments = torch.tensor(scores), torch.zeros(len(scores))
        assert torch.equal(pick_quantile(*arguments, q=1.0), pick_max(*arguments))

    def test_defaults_to_the_upper_quartile(self) -> None:
        assert picked(pick_quantile, [0.0, 1.0, 2.0, 3.0, 4.0]) == 3

    def test_refuses_a_percentage(self) -> None:
        with pytest.raises(ValueError, match=r"q must be in \[0, 1\]: got 75"):
            pick_quantile(torch.zeros(1, 2), torch.zeros(1), q=75.0)


class TestPickUniform:
    @given(st.integers(1, 12), UNIFORMS)
    def test_is_blind_to_the_scores(self, views: int, step: int) -> None:
        assert picked(pick_uniform, [float(-i) for i in range(views)], step) == step * views // UNIFORM_STEPS


def deal(scores: list[float], targets: list[int], keys: dict[int, int]) -> list[int]:
    """Every candidate in the order of the deal: rounds over the classes, one candidate at a time."""
    by_key = sorted(set(targets), key=lambda label: (keys[label], label))
    queues: dict[int, list[int]] = {label: [] for label in by_key}
    for index in sorted(range(len(scores)), key=lambda i: (-scores[i] if math.isfinite(scores[i]) else INF, i)):
        queues[targets[index]].append(index)
    dealt = []
    for wants_finite in (True, False):
        for turn in range(len(scores)):
            for label in by_key:
                if turn < len(queues[label]) and math.isfinite(scores[queues[label][turn]]) is wants_finite:
                    dealt.append(queues[label][turn])  # noqa: PERF401 (one at a time is the point)
    return dealt


def stratify(scores: list[float], targets: list[int], keys: dict[int, int], num: int) -> list[int]:
    """Quotas by largest remainder in fractions, then a deal that passes over full classes, then whoever is left."""
    counts = Counter(targets)
    exact = {label: Fraction(num * count, len(targets)) for label, count in counts.items()}
    quotas = {label: math.floor(share) for label, share in exact.items()}
    ranking = sorted(counts, key=lambda label: (quotas[label] - exact[label], keys[label], label))
    for label in ranking[: num - sum(quotas.values())]:
        quotas[label] += 1
    taken: list[int] = []
    left: list[int] = []
    for index in deal(scores, targets, keys):
        if quotas[targets[index]] and math.isfinite(scores[index]):
            quotas[targets[index]] -= 1
            taken.append(index)
        else:
            left.append(index)
    return (taken + left)[:num]


def hardest(scores: list[float], targets: list[int], num: int, balance: str, keys: dict[int, int]) -> list[int]:
    def class_keys(labels: Tensor) -> Tensor:
        return torch.tensor([keys[label] for label in labels.tolist()])

    chosen = pick_hardest(
        torch.tensor(scores),
        torch.tensor(targets),
        num,
        balance=balance,
        class_keys=class_keys,  # type: ignore[arg-type]
    )
    return [int(index) for index in chosen]


@st.composite
def draws(
    draw: st.DrawFn, elements: st.SearchStrategy[float] = MESSY
) -> tuple[list[float], list[int], int, dict[int, int]]:
    """(scores, targets, m, key of each class): few classes of unequal size, some keys equal."""
    scores = draw(st.lists(elements, min_size=1, max_size=24))
    targets = draw(st.lists(st.sampled_from([0, 0, 0, 1, 4, 9]), min_size=len(scores), max_size=len(scores)))
    keys = {label: draw(st.integers(0, 3)) for label in (0, 1, 4, 9)}
    return scores, targets, draw(st.integers(0, len(scores))), keys


class TestPickHardest:
    @given(draws())
    def test_uniform_deals_one_at_a_time(self, case: tuple[list[float], list[int], int, dict[int, int]]) -> None:
        scores, targets, num, keys = case
        assert hardest(scores, targets, num, "uniform", keys) == deal(scores, targets, keys)[:num]

    @given(draws())
    def test_stratified_keeps_the_shares_of_the_classes(
        self, case: tuple[list[float], list[int], int, dict[int, int]]
    ) -> None:
        scores, targets, num, keys = case
        assert hardest(scores, targets, num, "stratified", keys) == stratify(scores, targets, keys, num)

    @given(draws())
    def test_none_takes_the_highest(self, case: tuple[list[float], list[int], int, dict[int, int]]) -> None:
        scores, targets, num, keys = case
        expected = deal(scores, [0] * len(scores), {0: 0})[:num]
        assert hardest(scores, targets, num, "none", keys) == expected

    @pytest.mark.parametrize("balance", BALANCES)
    @given(case=draws())
    def test_takes_m_different_ones_and_never_a_nan_for_a_number(
        self, balance: str, case: tuple[list[float], list[int], int, dict[int, int]]
    ) -> None:
        scores, targets, num, keys = case
        chosen = hardest(scores, targets, num, balance, keys)
        assert len(set(chosen)) == len(chosen) == num
        num_finite = sum(map(math.isfinite, scores))
        assert sum(math.isfinite(scores[i]) for i in chosen) == min(num, num_finite)

    @pytest.mark.parametrize("balance", BALANCES)
    @given(order=st.permutations(range(12)))
    def test_does_not_depend_on_where_a_candidate_stands(self, balance: str, order: list[int]) -> None:
        scores = [math.sin(i) for i in range(12)]
        targets = [0, 0, 0, 0, 0, 1, 1, 1, 4, 4, 9, 9]
        keys = {0: 2, 1: 1, 4: 0, 9: 3}
        shuffled = hardest([scores[i] for i in order], [targets[i] for i in order], 7, balance, keys)
        assert [order[i] for i in shuffled] == hardest(scores, targets, 7, balance, keys)

    def test_quota_is_the_same_for_every_class_and_the_remainder_goes_by_key(self) -> None:
        targets = [label for label in range(4) for _ in range(10)]
        scores = [float(i) for i in range(40)]
        chosen = hardest(scores, targets, 14, "uniform", {0: 7, 1: 1, 2: 9, 3: 4})
        assert Counter(targets[i] for i in chosen) == {1: 4, 3: 4, 0: 3, 2: 3}
        assert {i for i in chosen if targets[i] == 1} == {19, 18, 17, 16}

    def test_quota_that_a_class_cannot_fill_goes_to_the_others(self) -> None:
        targets = [0] * 1 + [1] * 2 + [2] * 20
        chosen = hardest([0.0] * 23, targets, 12, "uniform", {0: 0, 1: 1, 2: 2})
        assert Counter(targets[i] for i in chosen) == {0: 1, 1: 2, 2: 9}

    def test_more_classes_than_places_is_legal(self) -> None:
        keys = {label: -label for label in range(100)}
        assert hardest([0.0] * 100, list(range(100)), 3, "uniform", keys) == [99, 98, 97]

    def test_absent_classes_make_no_difference(self) -> None:
        scores, few, far = [1.0, 2.0, 3.0, 4.0, 5.0], [0, 1, 1, 2, 2], [3, 70, 70, 999, 999]
        keys = {0: 5, 1: 4, 2: 6, 3: 5, 70: 4, 999: 6}
        assert hardest(scores, few, 4, "uniform", keys) == hardest(scores, far, 4, "uniform", keys)

    def test_stratified_follows_an_imbalanced_data_set(self) -> None:
        targets = [0] * 90 + [1] * 10
        scores = [0.0] * 90 + [9.0] * 10
        assert Counter(targets[i] for i in hardest(scores, targets, 20, "stratified", {0: 0, 1: 1})) == {0: 18, 1: 2}
        assert Counter(targets[i] for i in hardest(scores, targets, 20, "uniform", {0: 0, 1: 1})) == {0: 10, 1: 10}

    def test_seeded_keys_favour_no_class_over_many_draws(self) -> None:
        targets = torch.arange(10).repeat(4)
        scores = torch.zeros(40)
        extra: Counter[int] = Counter()
        for number in range(200):

            def class_keys(labels: Tensor, number: int = number) -> Tensor:
                return torch.from_numpy(seeds(0, Purpose.CLASSES, draw=number, slot=labels.numpy()))

            chosen = pick_hardest(scores, targets, 5, balance="uniform", class_keys=class_keys)
            extra.update(targets[chosen].tolist())
        # Binomial(200, ½): 100 ± 7; five standard deviations.
        assert all(65 < extra[label] < 135 for label in range(10)), extra

    def test_refuses_what_it_cannot_do(self) -> None:
        with pytest.raises(ValueError, match="got 3 of 2; raise gamma"):
            hardest([1.0, 2.0], [0, 0], 3, "none", {0: 0})
        with pytest.raises(ValueError, match="integer classes as targets: got none; use balance='none'"):
            pick_hardest(torch.zeros(2), None, 1, balance="uniform", class_keys=lambda labels: labels)
        with pytest.raises(ValueError, match=r"got torch\.float32; use balance='none'"):
            pick_hardest(torch.zeros(2), torch.zeros(2), 1, balance="stratified", class_keys=lambda labels: labels)

    @pytest.mark.gpu
    @pytest.mark.parametrize("balance", BALANCES)
    def test_device_makes_no_difference(self, balance: str) -> None:
        generator = torch.Generator().manual_seed(0)
        scores = torch.rand(640, generator=generator).mul(50).round()
        targets = torch.randint(10, (640,), generator=generator)
        on_cpu, on_gpu = (
            pick_hardest(scores.to(d), targets.to(d), 64, balance=balance, class_keys=lambda c: 5 - c)  # type: ignore[arg-type]
            for d in ("cpu", "cuda")
        )
        assert on_cpu.tolist() == on_gpu.tolist()


class TestFill:
    @given(st.data())
    def test_takes_the_lowest_keys_of_the_others(self, data: st.DataObject) -> None:
        keys = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=15))
        chosen = data.draw(st.lists(st.integers(0, len(keys) - 1), unique=True))
        num_total = data.draw(st.integers(len(chosen), len(keys)))
        expected = list(chosen)
        while len(expected) < num_total:
            free = [i for i in range(len(keys)) if i not in expected]
            expected.append(min(free, key=lambda i: (keys[i], i)))
        batch = fill(torch.tensor(chosen, dtype=torch.int64), len(keys), num_total, torch.tensor(keys))
        assert batch.tolist() == expected

    def test_every_other_candidate_is_as_likely(self) -> None:
        counts: Counter[int] = Counter()
        for keys in itertools.permutations(range(5)):
            counts.update(fill(torch.tensor([3]), 5, 3, torch.tensor(keys)).tolist()[1:])
        assert counts == {0: 60, 1: 60, 2: 60, 4: 60}

    def test_refuses_a_batch_that_cannot_be(self) -> None:
        with pytest.raises(ValueError, match="num_total=6 for 1 chosen of 5 candidates"):
            fill(torch.tensor([0]), 5, 6, torch.arange(5))
        with pytest.raises(ValueError, match="num_total=1 for 2 chosen"):
            fill(torch.tensor([0, 1]), 5, 1, torch.arange(5))


class TestNumMined:
    @pytest.mark.parametrize("percent", [1, 10])
    def test_rounds_half_up_whatever_binary_rounding_did_to_the_ramp(self, percent: int) -> None:
        for epoch in range(100 // percent + 10):
            rate = min(1.0, percent / 100 * epoch)
            exact = min(Fraction(1), Fraction(percent * epoch, 100))
            for batch_size in range(1, 257):
                assert num_mined(rate, batch_size) == math.floor(exact * batch_size + Fraction(1, 2))

    def test_spans_the_batch(self) -> None:
        assert [num_mined(rate, 64) for rate in (0.0, 0.01, 0.5, 1.0)] == [0, 1, 32, 64]

    @pytest.mark.parametrize("rate", [-0.1, 1.01, NAN])
    def test_refuses_a_rate_outside_the_unit_interval(self, rate: float) -> None:
        with pytest.raises(ValueError, match="clip the ramp to 1"):
            num_mined(rate, 64)


def test_nothing_is_drawn_in_hiding() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    for pick in PICKS.values():
        pick(torch.rand(4, 5, generator=torch.Generator().manual_seed(0)), torch.full((4,), 0.5))
    pick_hardest(torch.zeros(4), torch.arange(4), 2, balance="uniform", class_keys=lambda labels: labels)
    fill(torch.tensor([0]), 4, 2, torch.arange(4))
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # type: ignore[index]
