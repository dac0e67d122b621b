"""Every method against the suite, the suite against selections that are broken on purpose, and the ramp."""

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from conformance.method import GAMMA, Functions, check_method, some_slots
from infer2train import methods
from infer2train.addresses import Addresses
from infer2train.methods import METHODS, Method, Selection, Slots, class_targets, get_method, get_score, unmined
from infer2train.mining import Mining
from infer2train.ramp import Ramp
from infer2train.scores import SCORES
from infer2train.selection import PICKS


@pytest.mark.parametrize("name", METHODS)
def test_conformance(name: str) -> None:
    check_method(METHODS[name])


@pytest.mark.parametrize("pick", PICKS)
def test_conformance_under_every_pick(pick: str) -> None:
    check_method(get_method(Mining(pick=pick)))


def ignores_scores(method: Method, slots: Slots, gamma: int, *, scores: Any = None, **others: Any) -> Selection:
    return methods.select(method, slots, gamma, scores=None if scores is None else torch.zeros_like(scores), **others)


def prefers_the_easy(method: Method, slots: Slots, gamma: int, *, scores: Any = None, **others: Any) -> Selection:
    return methods.select(method, slots, gamma, scores=None if scores is None else 2 - scores, **others)


def ignores_the_seed(method: Method, slots: Slots, gamma: int, **others: Any) -> Selection:
    return methods.select(method, replace(slots, seed=0, epoch=0), gamma, **others)


def one_slot_twice(method: Method, slots: Slots, gamma: int, **others: Any) -> Selection:
    selection = methods.select(method, slots, gamma, **others)
    order = [0, 0, *range(2, len(selection.addresses))]
    chosen, mined = selection.chosen, selection.mined
    return Selection(
        addresses=selection.addresses[order],
        chosen=None if chosen is None else chosen[order],
        mined=None if mined is None else mined[order],
    )


def other_ids(method: Method, slots: Slots, gamma: int, **others: Any) -> Selection:
    selection = methods.select(method, slots, gamma, **others)
    return replace(selection, addresses=Addresses(selection.addresses.ids - 1, selection.addresses.seeds))


def too_few(method: Method, slots: Slots, gamma: int, **others: Any) -> Selection:
    selection = methods.select(method, slots, gamma, **others)
    if selection.chosen is None or selection.mined is None:
        return Selection(addresses=selection.addresses[:-1])
    return Selection(addresses=selection.addresses[:-1], chosen=selection.chosen[:-1], mined=selection.mined[:-1])


def another_view_for_the_unmined(method: Method, slots: Slots, gamma: int, **others: Any) -> Selection:
    selection = methods.select(method, slots, gamma, **others)
    if selection.mined is None or selection.chosen is None:
        return replace(selection, addresses=slots.views(1, 1))
    chosen = np.where(selection.mined, selection.chosen, selection.chosen + 1)
    return replace(selection, chosen=chosen, addresses=slots.views(0, gamma)[chosen])


def mask_of_another_order(method: Method, slots: Slots, gamma: int, **others: Any) -> Selection:
    selection = methods.select(method, slots, gamma, **others)
    return selection if selection.mined is None else replace(selection, mined=selection.mined[::-1].copy())


def mines_more(method: Method, slots: Slots, gamma: int, *, share: float = 1.0, **others: Any) -> Selection:
    return methods.select(method, slots, gamma, share=min(1.0, share + 0.1) if others else share, **others)


def at_random(method: Method, slots: Slots, gamma: int, *, scores: Any = None, **others: Any) -> Selection:
    if scores is not None:
        scores = scores + 1e-6 * torch.rand(len(scores), generator=torch.Generator().manual_seed(torch.seed()))
    return methods.select(method, slots, gamma, scores=scores, **others)


SUITED = ["nm-sample", "nm-augment"]
BROKEN = [
    *[(ignores_scores, name, "by far the hardest") for name in SUITED],
    *[(prefers_the_easy, name, "by far the hardest") for name in SUITED],
    *[(ignores_the_seed, name, "disagree|baseline's views|do not depend on the run's seed") for name in METHODS],
    *[(one_slot_twice, name, "trained on twice") for name in METHODS],
    *[(other_ids, name, "trained ids must be of this epoch") for name in METHODS],
    *[(too_few, name, "instead of") for name in METHODS],
    *[
        (another_view_for_the_unmined, name, "the baseline's views")
        for name in ("baseline", "nm-augment", "self-distill")
    ],
    *[(mask_of_another_order, name, "not the reference's") for name in SUITED],
    *[(mines_more, name, "a share of 0.0 mines 0|the baseline's views") for name in SUITED],
    *[(at_random, name, "moved torch's|it is random|not the reference's") for name in SUITED],
]


@pytest.mark.parametrize(("select", "name", "said"), BROKEN)
def test_the_suite_sees_a_broken_selection(select: Any, name: str, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_method(METHODS[name], Functions(select=select))


def views_of_the_draw_before(method: Method, slots: Slots, gamma: int) -> Addresses:
    return methods.candidates(method, replace(slots, draw=0), gamma)


def anchors_among_the_views(method: Method, slots: Slots, gamma: int) -> Addresses:
    return slots.views(0, gamma)


def samples_of_the_batch_only(method: Method, slots: Slots, gamma: int) -> Addresses:
    return methods.candidates(method, replace(slots, epoch_ids=slots.ids), gamma)


def half_as_many(method: Method, slots: Slots, gamma: int) -> Addresses:
    return methods.candidates(method, slots, gamma // 2)


@pytest.mark.parametrize(
    ("candidates", "name", "said"),
    [
        (views_of_the_draw_before, "nm-augment", "not those of the table"),
        (anchors_among_the_views, "self-distill", "not those of the table"),
        (samples_of_the_batch_only, "nm-sample", "not those of the table"),
        (half_as_many, "random-sample", "got 20 instead of 40"),
    ],
)
def test_the_suite_sees_broken_candidates(candidates: Any, name: str, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_method(METHODS[name], Functions(candidates=candidates))


def test_samples_are_drawn_uniformly_with_replacement_from_the_whole_epoch() -> None:
    slots, drawn = next(some_slots()), Counter()
    repeated = 0
    for draw in range(200):
        ids = methods.candidates(METHODS["nm-sample"], replace(slots, draw=draw), GAMMA).ids.tolist()
        repeated += len(ids) - len(set(ids))
        drawn.update(ids)
    assert drawn.keys() == set(slots.epoch_ids.tolist())
    assert stats.chisquare(list(drawn.values())).pvalue > 1e-3
    assert repeated > 0


def test_distillation_never_shows_the_oracle_the_anchor() -> None:
    """Equation 1 compares a sample with *other* views of it."""
    slots = next(some_slots())
    anchors = set(methods.select(METHODS["self-distill"], slots, GAMMA).addresses)
    assert not anchors & set(methods.candidates(METHODS["self-distill"], slots, GAMMA))


def test_picking_views_uniformly_is_the_baseline_in_distribution() -> None:
    """Which view is trained on follows chance alone, whatever the scores: no view is preferred."""
    method, slots, seen = get_method(Mining(pick="uniform")), next(some_slots()), Counter()
    scores = torch.arange(GAMMA * len(slots.ids)).float()
    for draw in range(300):
        chosen = methods.select(method, replace(slots, draw=draw), GAMMA, scores=scores).chosen
        assert chosen is not None
        seen.update((chosen % GAMMA).tolist())
    assert stats.chisquare(list(seen.values())).pvalue > 1e-3


@given(
    seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 500), draw=st.integers(0, 2**32 - 1), gamma=st.integers(1, 6)
)
def test_any_two_methods_share_the_baselines_views(seed: int, epoch: int, draw: int, gamma: int) -> None:
    slots = replace(next(some_slots()), seed=seed, epoch=epoch, draw=draw)
    baseline = list(unmined(slots).addresses)
    assert list(methods.select(METHODS["baseline"], slots, gamma).addresses) == baseline
    assert list(methods.select(METHODS["batch-augment"], slots, gamma).addresses)[::gamma] == baseline
    assert list(methods.candidates(METHODS["nm-augment"], slots, gamma))[::gamma] == baseline
    assert len(set(slots.views(0, gamma + 1))) == (gamma + 1) * len(slots.ids), "every view has a seed of its own"


# What a method asks for


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_needs_follows_from_its_choices(name: str) -> None:
    method = METHODS[name]
    wanted = {  # oracle's forward pass, a look at candidates, a ramp
        "baseline": (False, False, False),
        "batch-augment": (False, False, False),
        "random-sample": (False, True, True),
        "self-distill": (True, True, False),
    }
    assert (method.has_oracle, method.asks_the_pool, method.is_rampable) == wanted.get(name, (True, True, True))
    assert method.source


@pytest.mark.parametrize("name", METHODS)
def test_a_method_as_it_is(name: str) -> None:
    assert get_method(Mining(method=name, epochs=3)) == METHODS[name]


def test_what_the_user_chose_replaces_the_methods_own() -> None:
    ramp = Ramp(rate=0.1)
    method = get_method(Mining(method="nm-augment", score="entropy", pick="quantile", ramp_rate=0.1))
    assert method == replace(METHODS["nm-augment"], score="entropy", pick="quantile", schedule=ramp)
    assert get_method(Mining(method="nm-sample", score="margin", epochs=3)).schedule == METHODS["nm-sample"].schedule
    assert get_method(Mining(method="random-sample", ramp_rate=0.1)).schedule == ramp


@pytest.mark.parametrize(
    ("name", "choice", "said"),
    [
        ("nm-agument", {}, "did you mean 'nm-augment'"),
        ("nm-augment", {"score": "los"}, "did you mean 'loss'"),
        ("nm-augment", {"pick": "hardest"}, "unknown pick 'hardest'"),
        ("nm-sample", {"pick": "max"}, "got 'max' for nm-sample; use nm-augment"),
        ("random-sample", {"score": "loss"}, "got 'loss' for random-sample; drop it"),
        ("self-distill", {"score": "loss"}, "got 'loss' for self-distill"),
        ("self-distill", {"pick": "max"}, "got 'max' for self-distill"),
        ("self-distill", {"ramp_rate": 1.0}, "got one for self-distill"),
        *[(name, {"score": "loss"}, "where nothing is scored") for name in ("baseline", "batch-augment")],
        *[(name, {"pick": "max"}, "where no view is picked") for name in ("baseline", "batch-augment")],
        *[(name, {"ramp_stop": 0.0}, "where nothing is mined") for name in ("baseline", "batch-augment")],
    ],
)
def test_a_choice_without_effect_is_refused(name: str, choice: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        get_method(Mining(method=name, epochs=3, **choice))


def test_the_score_is_the_users_or_ours_by_name() -> None:
    def own(outputs: Any, targets: Any) -> torch.Tensor:
        return outputs

    assert get_score(Mining(method="nm-augment", score="entropy")) is SCORES["entropy"]
    assert get_score(Mining(method="nm-sample", score=own, epochs=3)) is own
    assert get_method(Mining(score=own)).score == own.__qualname__
    for name in ("baseline", "batch-augment", "random-sample", "self-distill"):
        assert get_score(Mining(method=name, epochs=3)) is None
        with pytest.raises(ValueError, match="where nothing is scored"):
            get_method(Mining(method=name, score=own, epochs=3))


@pytest.mark.parametrize(
    ("targets", "got"),
    [
        (torch.zeros(4), "torch.float32 of shape"),
        (torch.zeros(4, 2, dtype=torch.int64), r"torch.int64 of shape \(4, 2\)"),
        ([0, 1, 2, 3], "list"),
        ({"labels": torch.zeros(4)}, "dict"),
    ],
)
def test_balancing_needs_one_class_a_sample(targets: Any, got: str) -> None:
    with pytest.raises(ValueError, match=f"got {got}.*pass balance='none'"):
        class_targets(targets)


def test_classes_may_be_of_any_integer_type() -> None:
    for dtype in (torch.uint8, torch.int32, torch.int64):
        assert class_targets(torch.tensor([3, 0], dtype=dtype)).tolist() == [3, 0]


def test_without_balance_any_targets_will_do() -> None:
    slots = next(some_slots())
    scores = torch.arange(GAMMA * len(slots.ids)).float()
    for targets in (None, torch.zeros(len(scores), 2), {"boxes": torch.zeros(len(scores), 4)}):
        selection = methods.select(
            METHODS["nm-sample"], slots, GAMMA, scores=scores, targets=targets, balance="none", share=1.0
        )
        assert selection.chosen is not None
        assert sorted(selection.chosen.tolist()) == list(range(len(scores) - len(slots.ids), len(scores)))


# The ramp


@given(rate=st.integers(1, 200).map(lambda n: Fraction(n, 100)), epoch=st.integers(0, 200))
def test_the_papers_ramp(rate: Fraction, epoch: int) -> None:
    wanted = min(Fraction(1), rate * epoch)
    for epochs in (None, 90):
        assert Ramp(rate=float(rate)).share(epoch, epochs) == pytest.approx(float(wanted))
    assert not Ramp(rate=float(rate)).needs_length


PARTS = st.integers(0, 20).map(lambda n: Fraction(n, 20))


@given(parts=st.tuples(PARTS, PARTS).map(sorted), epochs=st.integers(1, 100), epoch=st.integers(0, 99))
def test_a_ramp_over_part_of_the_training(parts: list[Fraction], epochs: int, epoch: int) -> None:
    start, stop = parts
    ramp = Ramp(start=float(start), stop=float(stop))
    assert ramp.needs_length == (stop > 0)
    progress = Fraction(epoch, epochs)
    if progress < start or (progress == start and start < stop):
        wanted = Fraction(0)
    elif progress >= stop:
        wanted = Fraction(1)
    else:
        wanted = (progress - start) / (stop - start)
    if progress != start or start < stop:  # a step exactly at an epoch may round either way as floats
        assert ramp.share(epoch, epochs) == pytest.approx(float(wanted), abs=1e-12)


def test_mining_always_is_the_default_and_needs_no_length() -> None:
    assert not Ramp().needs_length
    assert [Ramp().share(epoch, None) for epoch in (0, 1, 89)] == [1.0, 1.0, 1.0]
    assert [Ramp(start=0.5, stop=0.5).share(epoch, 4) for epoch in range(4)] == [0.0, 0.0, 1.0, 1.0]
    assert METHODS["nm-augment"].schedule == Ramp()
    assert METHODS["nm-sample"].schedule.needs_length
    assert METHODS["nm-sample"].schedule.share(0, 90) == 0.0


@given(epochs=st.integers(1, 300))
def test_a_ramp_never_falls(epochs: int) -> None:
    for ramp in (Ramp(rate=0.01), Ramp(start=0.2, stop=0.9), Ramp(start=0.0, stop=1.0), Ramp(start=0.3, stop=0.3)):
        shares = [ramp.share(epoch, epochs) for epoch in range(epochs)]
        assert shares == sorted(shares)
        assert all(0 <= share <= 1 for share in shares)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rate": 0.0}, "ramp_rate must be positive: got 0.0"),
        ({"rate": -0.1}, "ramp_rate must be positive"),
        ({"rate": float("nan")}, "ramp_rate must be positive: got nan"),
        ({"start": 0.5, "stop": 0.2}, "0 <= start <= stop <= 1, parts of the whole training: got start 0.5, stop"),
        ({"start": -0.1, "stop": 0.2}, "got start -0.1"),
        ({"start": 0.0, "stop": float("nan")}, "stop nan"),
        ({"start": 0.5}, "got start 0.5, stop 0.0"),
        ({"rate": 0.1, "stop": 1.0}, "got both"),
        ({"rate": 0.1, "start": 0.2, "stop": 1.0}, "got both"),
    ],
)
def test_a_ramp_that_means_nothing_is_refused(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Ramp(**settings)
