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

from conformance.method import BATCH, GAMMA, IDS, check_method, draw_at, made
from infer2train.draws.addresses import Addresses
from infer2train.draws.draw import Draw
from infer2train.draws.methods.method import Method
from infer2train.draws.methods.samples import class_targets
from infer2train.draws.methods.table import METHODS, choices_of, get_method, get_score
from infer2train.draws.mining import Mining
from infer2train.draws.ramp import Ramp
from infer2train.draws.scores import SCORES
from infer2train.draws.selection import BALANCES, PICKS


@pytest.mark.parametrize("name", METHODS)
def test_conformance(name: str) -> None:
    check_method(made(name))


@pytest.mark.parametrize("pick", PICKS)
def test_conformance_under_every_pick(pick: str) -> None:
    check_method(made("nm-augment", pick=pick))


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("name", [name for name, choices in METHODS.items() if choices.candidates == "samples"])
def test_conformance_under_every_balance(name: str, balance: str) -> None:
    check_method(made(name, balance=balance))


class Broken(Method):
    """Another method, with one thing wrong."""

    def __init__(self, inner: Method, select: Any = None, candidates: Any = None) -> None:
        super().__init__(inner.mining, inner.choices)
        self.inner, self.by_select, self.by_candidates = inner, select, candidates

    def candidates(self, draw: Draw) -> Addresses:
        return self.by_candidates(self.inner, draw) if self.by_candidates else self.inner.candidates(draw)

    def select(self, draw: Draw, scores: Any, targets: Any) -> Draw:
        args = (draw, scores, targets)
        return self.by_select(self.inner, *args) if self.by_select else self.inner.select(*args)


def ignores_scores(method: Method, draw: Draw, scores: Any, targets: Any) -> Draw:
    return method.select(draw, None if scores is None else torch.zeros_like(scores), targets)


def prefers_the_easy(method: Method, draw: Draw, scores: Any, targets: Any) -> Draw:
    return method.select(draw, None if scores is None else 2 - scores, targets)


def one_slot_twice(method: Method, draw: Draw, scores: Any, targets: Any) -> Draw:
    picked = method.select(draw, scores, targets)
    order = [0, 0, *range(2, len(picked.addresses))]
    chosen, mined = picked.chosen, picked.mined
    return replace(
        picked,
        addresses=picked.addresses[order],
        chosen=None if chosen is None else chosen[order],
        mined=None if mined is None else mined[order],
    )


def other_ids(method: Method, draw: Draw, scores: Any, targets: Any) -> Draw:
    picked = method.select(draw, scores, targets)
    return replace(picked, addresses=Addresses(picked.addresses.ids - 1, picked.addresses.seeds))


def too_few(method: Method, draw: Draw, scores: Any, targets: Any) -> Draw:
    picked = method.select(draw, scores, targets)
    chosen, mined = picked.chosen, picked.mined
    return replace(
        picked,
        addresses=picked.addresses[:-1],
        chosen=None if chosen is None else chosen[:-1],
        mined=None if mined is None else mined[:-1],
    )


def another_view_for_the_unmined(method: Method, draw: Draw, scores: Any, targets: Any) -> Draw:
    picked = method.select(draw, scores, targets)
    if picked.mined is None or picked.chosen is None:
        return replace(picked, addresses=draw.views(1, 1))
    chosen = np.where(picked.mined, picked.chosen, picked.chosen + 1)
    return replace(picked, chosen=chosen, addresses=draw.candidates[chosen])


def mask_of_another_order(method: Method, draw: Draw, scores: Any, targets: Any) -> Draw:
    picked = method.select(draw, scores, targets)
    return picked if picked.mined is None else replace(picked, mined=picked.mined[::-1].copy())


def mines_more(method: Method, draw: Draw, scores: Any, targets: Any) -> Draw:
    return method.select(replace(draw, share=min(1.0, draw.share + 0.1)), scores, targets)


def at_random(method: Method, draw: Draw, scores: Any, targets: Any) -> Draw:
    if scores is not None:
        scores = scores + 1e-6 * torch.rand(len(scores), generator=torch.Generator().manual_seed(torch.seed()))
    return method.select(draw, scores, targets)


def another_draw(method: Method, draw: Draw, scores: Any, targets: Any) -> Draw:
    return replace(method.select(draw, scores, targets), number=0)


SUITED = ["nm-sample", "nm-augment", "rho"]
ALL = [name for name in METHODS if name != "baseline"]
BROKEN = [
    *[(ignores_scores, name, "by far the hardest") for name in SUITED],
    *[(prefers_the_easy, name, "by far the hardest") for name in SUITED],
    *[(one_slot_twice, name, "trained on twice") for name in ALL],
    *[(other_ids, name, "trained ids must be of this epoch") for name in ALL],
    *[(too_few, name, "instead of|has a weight") for name in ALL],
    *[(another_draw, name, "another draw") for name in ALL],
    *[(another_view_for_the_unmined, name, "the baseline's views") for name in ("nm-augment", "self-distill")],
    *[(mask_of_another_order, name, "not the reference's") for name in SUITED],
    *[(mines_more, name, "a share of 0.05 mines 1") for name in SUITED],
    *[(at_random, name, "moved torch's|it is random|not the reference's") for name in SUITED],
]


@pytest.mark.parametrize(("select", "name", "said"), BROKEN)
def test_the_suite_sees_a_broken_pick(select: Any, name: str, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_method(Broken(made(name), select=select))


def views_of_the_draw_before(method: Method, draw: Draw) -> Addresses:
    return method.candidates(replace(draw, number=0))


def views_of_seed_0(method: Method, draw: Draw) -> Addresses:
    return method.candidates(replace(draw, seed=0))


def anchors_among_the_views(method: Method, draw: Draw) -> Addresses:
    return draw.views(0, GAMMA)


def samples_of_the_batch_only(method: Method, draw: Draw) -> Addresses:
    return method.candidates(replace(draw, epoch_ids=draw.ids))


def half_as_many(method: Method, draw: Draw) -> Addresses:
    return method.candidates(draw)[::2]


@pytest.mark.parametrize(
    ("candidates", "name", "said"),
    [
        (views_of_the_draw_before, "nm-augment", "not those of the table"),
        (views_of_seed_0, "infobatch", "not those of the table"),
        (anchors_among_the_views, "self-distill", "not those of the table"),
        (samples_of_the_batch_only, "nm-sample", "not those of the table"),
        (half_as_many, "random-sample", "got 20 instead of 40"),
    ],
)
def test_the_suite_sees_broken_candidates(candidates: Any, name: str, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_method(Broken(made(name), candidates=candidates))


class Forgetful(Broken):
    """Its memory does not survive a resume."""

    def observe(self, draw: Draw) -> None:
        self.inner.observe(draw)

    def begin_epoch(self, epoch: int) -> None:
        self.inner.begin_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        return made("infobatch").state_dict()


class Hasty(Forgetful):
    """Takes over at once what it is told."""

    def observe(self, draw: Draw) -> None:
        self.inner.observe(draw)
        self.inner.begin_epoch(draw.epoch)


@pytest.mark.parametrize(
    ("kind", "said"), [(Forgetful, "does not survive its state"), (Hasty, "what was there before")]
)
def test_the_suite_sees_a_broken_memory(kind: type[Broken], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_method(kind(made("infobatch")))


@pytest.mark.parametrize(
    "own", [{"method": "nm-augment-soft"}, {"method": "nm-augment", "pick": "proportional"}, {"method": "trusted"}]
)
def test_scores_below_0_are_no_probabilities(own: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"needs scores of at least 0: got score='margin' .*pass score='loss'"):
        choices_of(Mining(**own, score="margin"))


def test_samples_are_drawn_uniformly_with_replacement_from_the_whole_epoch() -> None:
    method, drawn = made("nm-sample"), Counter()
    repeated = 0
    for number in range(200):
        ids = method.candidates(draw_at(method, 1.0, number=number, ids=IDS[:BATCH])).ids.tolist()
        repeated += len(ids) - len(set(ids))
        drawn.update(ids)
    assert drawn.keys() == set(IDS.tolist())
    assert stats.chisquare(list(drawn.values())).pvalue > 1e-3
    assert repeated > 0


def test_distillation_never_shows_the_oracle_the_anchor() -> None:
    """Equation 1 compares a sample with *other* views of it."""
    method = made("self-distill")
    draw = draw_at(method, 1.0)
    assert not set(method.select(draw, None, None).addresses) & set(draw.candidates)


def test_picking_views_uniformly_is_the_baseline_in_distribution() -> None:
    """Which view is trained on follows chance alone, whatever the scores: no view is preferred."""
    method, seen = made("nm-augment", pick="uniform"), Counter()
    scores = torch.arange(GAMMA * BATCH).float()
    for number in range(300):
        chosen = method.select(draw_at(method, 1.0, number=number, ids=IDS[:BATCH]), scores, None).chosen
        assert chosen is not None
        seen.update((chosen % GAMMA).tolist())
    assert stats.chisquare(list(seen.values())).pvalue > 1e-3


@given(
    seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 500), number=st.integers(0, 2**32 - 1), gamma=st.integers(1, 6)
)
def test_any_two_methods_share_the_baselines_views(seed: int, epoch: int, number: int, gamma: int) -> None:
    def at(name: str) -> tuple[Method, Draw]:
        method = made(name, gamma=gamma)
        return method, draw_at(method, 1.0, seed=seed, epoch=epoch, number=number)

    _, draw = at("baseline")
    every, views = at("batch-augment")
    baseline = list(draw.addresses)
    assert list(every.select(views, None, None).addresses)[::gamma] == baseline
    for name in ("nm-augment", "nm-augment-soft"):
        assert list(at(name)[1].candidates)[::gamma] == baseline
    assert list(at("infobatch")[1].candidates) == baseline
    assert len(set(draw.views(0, gamma + 1))) == (gamma + 1) * len(draw.ids), "every view has a seed of its own"


# What a method asks for


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_needs_follows_from_its_choices(name: str) -> None:
    method = METHODS[name]
    wanted = {  # oracle's forward pass, a look at candidates, a ramp
        "baseline": (False, False, False),
        "batch-augment": (False, False, False),
        "random-sample": (False, True, True),
        "trusted-random": (False, True, True),
        "self-distill": (True, True, False),
        "infobatch": (True, True, False),
    }
    assert (method.has_oracle, method.looks_at_candidates, method.is_rampable) == wanted.get(name, (True, True, True))
    assert method.source


@pytest.mark.parametrize("name", METHODS)
def test_a_method_as_it_is(name: str) -> None:
    assert choices_of(Mining(method=name, epochs=3)) == METHODS[name]


def test_what_the_user_chose_replaces_the_methods_own() -> None:
    ramp = Ramp(rate=0.1)
    method = choices_of(Mining(method="nm-augment", score="entropy", pick="quantile", ramp_rate=0.1))
    assert method == replace(METHODS["nm-augment"], score="entropy", pick="quantile", schedule=ramp)
    assert choices_of(Mining(method="nm-sample", score="margin", epochs=3)).schedule == METHODS["nm-sample"].schedule
    assert choices_of(Mining(method="random-sample", ramp_rate=0.1)).schedule == ramp


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
    assert choices_of(Mining(score=own)).score == own.__qualname__
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
    method = made("nm-sample", balance="none")
    draw, scores = draw_at(method, 1.0), torch.arange(GAMMA * BATCH).float()
    for targets in (None, torch.zeros(len(scores), 2), {"boxes": torch.zeros(len(scores), 4)}):
        chosen = method.select(draw, scores, targets).chosen
        assert chosen is not None
        assert sorted(chosen.tolist()) == list(range(len(scores) - BATCH, len(scores)))


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
