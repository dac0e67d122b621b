import math

import numpy as np
import pytest
from scipy import stats

from infer2train.reporting.statistics import MOST_SEEDS, Verdict, mean_std, paired_difference, seeds_needed


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_interval_and_verdict_agree_with_scipys_paired_test(n):
    generator = np.random.default_rng(n)
    verdicts = set()
    for shift in (-1.0, -0.2, 0.0, 0.2, 1.0):
        baseline = generator.normal(7.0, 0.3, n)
        treatment = baseline + shift + generator.normal(0.0, 0.1, n)
        result = paired_difference(treatment.tolist(), baseline.tolist())
        reference = stats.ttest_rel(treatment, baseline)
        interval = reference.confidence_interval(0.95)
        assert result.low == pytest.approx(interval.low, abs=1e-9)
        assert result.high == pytest.approx(interval.high, abs=1e-9)
        assert (result.verdict is Verdict.INCONCLUSIVE) == (reference.pvalue >= 0.05)
        if result.verdict is not Verdict.INCONCLUSIVE:
            assert result.verdict is (Verdict.HELPS if treatment.mean() < baseline.mean() else Verdict.HURTS)
            assert result.seeds_needed is None
        verdicts.add(result.verdict)
    assert len(verdicts) > 1 or n == 2


def test_less_error_helps_and_more_hurts():
    low, high = [5.9, 6.1, 6.0], [6.9, 7.0, 7.1]
    assert paired_difference(low, high).verdict is Verdict.HELPS
    assert paired_difference(high, low).verdict is Verdict.HURTS


def test_pairing_removes_what_the_seeds_share():
    baseline = [6.0, 7.0, 8.0, 9.0]
    treatment = [5.71, 6.69, 7.7, 8.7]
    assert paired_difference(treatment, baseline).verdict is Verdict.HELPS
    assert stats.ttest_ind(treatment, baseline).pvalue > 0.5


@pytest.mark.parametrize("n", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 5))])
def test_the_interval_covers_the_truth_95_times_in_100(n):
    generator = np.random.default_rng(7)
    trials, truth = 4000, -0.4
    errors = generator.normal(7.0, 0.5, (trials, n))
    treated = errors + truth + generator.normal(0.0, 0.3, (trials, n))
    results = [paired_difference(a.tolist(), b.tolist()) for a, b in zip(treated, errors, strict=True)]
    covered = sum(r.low <= truth <= r.high for r in results) / trials
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials)


def test_one_seed_is_never_conclusive():
    result = paired_difference([1.0], [9.0])
    assert (result.mean, result.std, result.low, result.high, result.n) == (-8.0, None, None, None, 1)
    assert (result.verdict, result.seeds_needed) == (Verdict.INCONCLUSIVE, 2)


def test_equal_differences_and_equal_errors():
    same = paired_difference([0.2, 0.3, 0.4], [0.1, 0.2, 0.3])  # rounding noise must not make a variance
    assert (same.mean, same.std, same.low, same.high) == (0.1, 0.0, None, None)
    assert (same.verdict, same.seeds_needed) == (Verdict.INCONCLUSIVE, 4), "no width is no certainty"
    nothing = paired_difference([0.3, 0.2], [0.1 + 0.2, 0.2])
    assert (nothing.mean, nothing.verdict, nothing.seeds_needed) == (0.0, Verdict.INCONCLUSIVE, None)


def test_two_seeds_on_few_test_images_are_rarely_conclusive_where_nothing_differs():
    rng, images = np.random.default_rng(0), 20
    errors = rng.binomial(images, 0.3, (2000, 2, 2)) / images
    found = [paired_difference(list(a), list(b)).verdict for a, b in errors]
    assert sum(verdict is not Verdict.INCONCLUSIVE for verdict in found) / len(found) < 0.07


@pytest.mark.parametrize("ratio", [0.4, 1.0, 2.5])
def test_the_seeds_asked_for_have_the_power_promised(ratio):
    n = seeds_needed(1.0, ratio)
    samples = np.random.default_rng(0).normal(1.0, ratio, (20_000, n))
    found = stats.ttest_1samp(samples, 0.0, axis=1).pvalue < 0.05
    assert 0.78 < found.mean() < 0.92
    assert seeds_needed(-1.0, ratio) == n


def test_more_seeds_are_asked_for_than_were_inconclusive():
    generator = np.random.default_rng(3)
    for _ in range(200):
        differences = generator.normal(0.3, 1.0, int(generator.integers(2, 8))).tolist()
        result = paired_difference(differences, [0.0] * len(differences))
        if result.verdict is Verdict.INCONCLUSIVE:
            assert result.seeds_needed is None or result.seeds_needed > result.n


def test_a_difference_too_small_needs_many():
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(1e-300, 1.0) is None
    edge = 1.0 / math.sqrt(MOST_SEEDS)
    assert seeds_needed(edge, 0.3) is not None
    assert seeds_needed(edge, 0.4) is None


def test_mean_std_is_numpys_sample_deviation():
    values = [0.061, 0.059, 0.064]
    assert mean_std(values) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert mean_std([0.5]) == (0.5, None)


@pytest.mark.parametrize(
    ("treatment", "baseline", "message"),
    [
        ([1.0], [1.0, 2.0], "same seeds on both sides: got 1 and 2"),
        ([], [], "at least one value"),
        ([math.nan, 1.0], [1.0, 1.0], "all finite"),
    ],
)
def test_refusals(treatment, baseline, message):
    with pytest.raises(ValueError, match=message):
        paired_difference(treatment, baseline)
