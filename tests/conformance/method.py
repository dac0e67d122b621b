"""What every method must do: an AssertionError says what one did wrong.

Candidates and picks are compared with a reference that follows the methods' table in loops, one candidate at a time,
and takes every random number from its address one by one. Methods whose pick has no reference here are held to what is
promised of all.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conformance.views import elsewhere
from infer2train.draws.addresses import Addresses, Purpose, seeds, uniforms
from infer2train.draws.draw import Draw, Kind
from infer2train.draws.methods.method import Method
from infer2train.draws.methods.table import METHODS, get_method
from infer2train.draws.mining import Mining

BATCH, GAMMA = 10, 4
CLASSES = 3
SHARES = (0.0, 0.05, 0.33, 0.5, 1.0)
QUANTILE = Fraction(3, 4)
IDS = np.random.default_rng(0).permutation(np.arange(7, 107, 3))
"""Of an epoch: neither consecutive nor in order."""
IRREDUCIBLE = np.linspace(0.9, 0.1, 107).astype(np.float32)
TRUST = 0.6

PREFERS_THE_HARD = ("max", "proportional", "hardest", "learnable", "pruned")
"""Picks that never leave out a candidate that towers above all others."""

Candidate = tuple[int, int]
"""(sample id, seed)"""


def made(name: str, **settings: Any) -> Method:
    """A method as the suite takes it."""
    own: dict[str, Any] = {"irreducible": IRREDUCIBLE, "trust": TRUST} if METHODS[name].needs_irreducible else {}
    return get_method(Mining(**{"method": name, "gamma": GAMMA, "epochs": 90, **own, **settings}))


def check_method(method: Method) -> None:
    """Everything below.

    Args:
        method: as `made` makes it, with any settings but γ and the number of epochs.
    """
    for check in CHECKS:
        check(method)


def check_candidates(method: Method) -> None:
    for draw in some_draws(method):
        got, wanted = draw.candidates, list(_candidates(method, draw))
        assert len(got) == len(wanted), f"candidates of a draw: got {len(got)} instead of {len(wanted)}"
        assert set(got.ids.tolist()) <= set(draw.epoch_ids.tolist()), "candidates must be of this epoch's ids"
        assert len(set(got)) == len(got), "no candidate stands in a draw twice"
        assert list(got) == wanted, "the candidates are not those of the table"


def check_trained(method: Method) -> None:
    choices = method.choices
    most = BATCH * GAMMA if choices.kind is Kind.UNSCORED else BATCH
    for draw in some_draws(method):
        picked = answer(method, draw)
        assert (picked.number, picked.ids.tolist()) == (draw.number, draw.ids.tolist()), "it is another draw"
        ids, count = picked.addresses.ids.tolist(), len(picked.addresses)
        assert 0 < count <= most, f"trained are {count} instead of at most {most}"
        assert set(ids) <= set(draw.epoch_ids.tolist()), "trained ids must be of this epoch"
        assert len(set(picked.addresses)) == count, "a view is trained on twice in one batch"
        if choices.loss == "weighted" and draw.kind is Kind.MINED:
            assert picked.weights is not None
            assert picked.weights.shape == (count,), "every trained example has a weight"
            continue
        assert picked.weights is None
        assert count == most, f"trained are {count} instead of {most}"
        if choices.candidates != "samples":
            assert ids == np.repeat(draw.ids, most // BATCH).tolist(), "each slot trains on its own sample, in order"


def check_baseline_view(method: Method) -> None:
    """Common random numbers: what is not mined is the very view that the baseline would train on."""
    if method.choices.candidates == "samples":
        return
    for draw in some_draws(method, shares=(0.0,)):
        baseline = [(int(i), _number(draw, seeds, Purpose.VIEW, slot)) for slot, i in enumerate(draw.ids)]
        trained = list(answer(method, draw).addresses)
        step = len(trained) // BATCH
        assert trained[::step] == baseline, "where nothing is mined, the baseline's views must be trained on"
    if method.choices.candidates == "views" and method.choices.kind is Kind.MINED:
        for draw in some_draws(method):
            views = [*_views(draw, range(1))]
            assert [*draw.candidates][::GAMMA] == (views if draw.kind.is_scored else []), "view 0 is the baseline's"


def check_indices(method: Method) -> None:
    for draw in some_draws(method):
        picked = answer(method, draw)
        if draw.kind is not Kind.MINED:
            assert picked.chosen is None, "nothing was scored, so nothing was chosen"
            assert picked.mined is None, "nothing was scored, so nothing was mined"
            continue
        assert picked.chosen is not None
        assert picked.mined is not None
        chosen = picked.chosen.tolist()
        assert list(picked.addresses) == [[*draw.candidates][i] for i in chosen], (
            "chosen indices and addresses disagree"
        )
        assert len(set(chosen)) == len(chosen), "a candidate was chosen twice"
        if method.choices.candidates == "views":
            assert [i // GAMMA for i in chosen] == list(range(BATCH)), "one view of each slot, in their order"
        if method.choices.loss != "weighted":
            wanted, mined = _share_of(draw.share), int(picked.mined.sum())
            assert mined == wanted, f"of {BATCH}, a share of {draw.share} mines {wanted}: got {mined}"


def check_pure(method: Method) -> None:
    draw, scores = next(some_draws(method, shares=(1.0,))), next(some_scores(method))
    written = [scores, torch.from_numpy(draw.ids), torch.from_numpy(draw.epoch_ids)]
    before = [tensor.clone() for tensor in written]
    answers = []
    for state in (1, 2):
        torch.manual_seed(state)
        np.random.seed(state)
        torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()
        answers.append((*_plain(answer(method, draw, scores)), *method.candidates(draw)))
        assert torch.equal(torch.get_rng_state(), torch_state), "the pick moved torch's random state"
        assert np.random.get_state()[1].tolist() == numpy_state, "the pick moved NumPy's random state"
    assert answers[0] == answers[1], "the same draw must be picked in the same way: it is random"
    assert all(torch.equal(a, b) for a, b in zip(written, before, strict=True)), "a pick must not write to arguments"
    there = elsewhere().submit(answer, method, draw, scores).result()
    assert _plain(there) == _plain(answer(method, draw, scores)), "another process picks others"


def check_place_in_the_run(method: Method) -> None:
    """Every coordinate of a draw decides its views, those offered and those trained on."""
    here = draw_at(method, share=1.0)
    for other in ({"seed": 1}, {"epoch": 8}, {"number": 9}, {"seed": 1 << 40}):
        there = draw_at(method, share=1.0, **other)
        for what, (a, b) in {
            "candidates": (here.candidates, there.candidates),
            "trained views": (answer(method, here).addresses, answer(method, there).addresses),
        }.items():
            shared = set(a.seeds.tolist()) & set(b.seeds.tolist())
            assert not shared, f"{what} do not depend on the run's seed, the epoch and the draw"


def check_reference(method: Method) -> None:
    if method.choices.pick not in REFERENCED:
        return
    for draw in some_draws(method):
        for scores in some_scores(method):
            targets = _targets(draw)
            wanted = _reference(method, draw, scores.tolist(), targets.tolist())
            got = _plain(answer(method, draw, scores))
            if draw.kind is not Kind.MINED:
                got, wanted = got[:1], wanted[:1]
            assert got == wanted, f"the pick is not the reference's at a share of {draw.share}"


def check_hard_ones_are_chosen(method: Method) -> None:
    """What the reference says in other words: a candidate that towers above all others is trained on."""
    choices = method.choices
    if choices.kind is not Kind.MINED or not choices.has_oracle or choices.pick not in PREFERS_THE_HARD:
        return
    for draw in some_draws(method, shares=(1.0,)):
        for towering in (0, 5, len(draw.candidates) - 1):
            scores = torch.full((len(draw.candidates),), 1e-6)
            scores[towering] = 1e6
            chosen = answer(method, draw, scores).chosen
            assert chosen is not None
            assert towering in chosen.tolist(), f"candidate {towering} is by far the hardest and was not chosen"


def check_memory(method: Method) -> None:
    """A pick changes nothing; what was observed counts from the next epoch on, and survives its state."""
    draws = list(some_draws(method, shares=(1.0,)))
    before = [_plain(answer(method, draw)) for draw in draws]
    again = made(method.mining.method, **_own(method.mining))
    for draw in draws:
        picked = answer(method, draw)
        method.observe(picked)
        again.observe(picked)
        assert [_plain(answer(method, draw)) for draw in draws] == before, "a pick follows from what was there before"
    for one in (method, again):
        one.begin_epoch(1)
    later = [_plain(answer(method, draw)) for draw in draws]
    assert [_plain(answer(again, draw)) for draw in draws] == later, "the same draws leave the same memory"
    resumed = made(method.mining.method, **_own(method.mining))
    resumed.load_state_dict(method.state_dict())
    assert [_plain(answer(resumed, draw)) for draw in draws] == later, "the memory does not survive its state"
    for value in method.metrics().values():
        assert math.isfinite(value)


CHECKS = (
    check_candidates,
    check_trained,
    check_baseline_view,
    check_indices,
    check_place_in_the_run,
    check_hard_ones_are_chosen,
    check_reference,
    check_pure,
    check_memory,
)


def _own(mining: Mining) -> dict[str, Any]:
    return {"score": mining.score, "pick": mining.pick, "balance": mining.balance}


def draw_at(
    method: Method,
    share: float,
    *,
    number: int = 3,
    epoch: int = 0,
    seed: int = 0,
    ids: Any = None,
    epoch_ids: Any = IDS,
) -> Draw:
    """A planned draw at a place of a run, of which a share may be mined."""
    ids = IDS[number % 7 : number % 7 + BATCH] if ids is None else ids
    slot = np.arange(len(ids))
    given = Addresses(ids, seeds(seed, Purpose.VIEW, epoch=epoch, draw=number, slot=slot))
    draw = Draw(
        number=number,
        epoch=epoch,
        step=number,
        kind=method.kind_of(0, share, len(ids)),
        share=share,
        seed=seed,
        ids=ids,
        epoch_ids=epoch_ids,
        version=0,
        candidates=given[:0],
        addresses=given,
    )
    return replace(draw, candidates=method.candidates(draw)) if draw.kind.is_scored else draw


def some_draws(method: Method, shares: tuple[float, ...] = SHARES) -> Iterator[Draw]:
    """Draws all over a run, with different shares mined."""
    for number, epoch, seed in ((3, 0, 0), (5, 2, 11), (4_000_000_000, 89, (1 << 63) - 1)):
        for share in shares:
            yield draw_at(method, share, number=number, epoch=epoch, seed=seed)


def some_scores(method: Method) -> Iterator[Tensor]:
    """Of all candidates of a draw: different, with many ties, and with non-finite ones among them."""
    chance, count = np.random.default_rng(1), len(draw_at(method, 1.0).candidates)
    yield torch.from_numpy(chance.random(count).astype(np.float32))
    ties = torch.from_numpy(chance.integers(0, 3, count).astype(np.float32))
    yield ties
    messy = ties.clone()
    messy[::3] = torch.nan
    messy[1:8] = torch.inf
    messy[-4:] = -torch.inf
    yield messy


def answer(method: Method, draw: Draw, scores: Tensor | None = None) -> Draw:
    """The draw as the method picks it; given no scores, the first of `some_scores`."""
    if draw.kind is Kind.GIVEN:
        return draw
    if draw.kind is not Kind.MINED:
        return method.select(draw, None, None)
    scores = next(some_scores(method)) if scores is None else scores
    if not method.choices.has_oracle:
        return method.select(draw, None, _targets(draw))
    return method.select(replace(draw, scores=scores), scores, _targets(draw))


def _targets(draw: Draw) -> Tensor:
    """Classes of the candidates, one of them rare."""
    return torch.tensor([2 if i % 5 == 0 else i % 2 for i in draw.candidates.ids.tolist()], dtype=torch.int64)


def _plain(draw: Draw) -> tuple[Any, ...]:
    chosen, mined, weights = draw.chosen, draw.mined, draw.weights
    return (
        list(draw.addresses),
        None if chosen is None else chosen.tolist(),
        None if mined is None else mined.tolist(),
        None if weights is None else weights.tolist(),
    )


# The reference


def _number(draw: Draw, make: Callable[..., Any], purpose: Purpose, slot: int, view: int = 0) -> Any:
    return _number_at(make, draw.seed, purpose, draw.epoch, draw.number, slot, view)


@functools.cache
def _number_at(
    make: Callable[..., Any], seed: int, purpose: Purpose, epoch: int, number: int, slot: int, view: int
) -> Any:
    return make(seed, purpose, epoch=epoch, draw=number, slot=slot, view=view).item()


def _share_of(share: float) -> int:
    return math.floor(Fraction(str(share)) * BATCH + Fraction(1, 2))


def _candidates(method: Method, draw: Draw) -> Iterator[Candidate]:
    if not draw.kind.is_scored:
        return
    if method.choices.candidates == "samples":
        for slot in range(GAMMA * BATCH):
            which = _number(draw, seeds, Purpose.CANDIDATE, slot) % len(draw.epoch_ids)
            yield int(draw.epoch_ids[which]), _number(draw, seeds, Purpose.VIEW, slot)
    else:
        views = {"one-view": range(1), "views": range(GAMMA), "anchors": range(1, 1 + GAMMA)}
        yield from _views(draw, views[method.choices.candidates])


def _views(draw: Draw, views: range) -> Iterator[Candidate]:
    for slot, sample_id in enumerate(draw.ids.tolist()):
        for view in views:
            yield sample_id, _number(draw, seeds, Purpose.VIEW, slot, view)


def _reference(method: Method, draw: Draw, scores: list[float], targets: list[int]) -> tuple[Any, ...]:
    choices, mined = method.choices, _share_of(draw.share)
    if choices.pick in ("all", "anchors"):
        return list(_views(draw, range(GAMMA if choices.kind is Kind.UNSCORED else 1))), None, None, None
    if choices.candidates == "samples" and not draw.kind.is_scored:
        offered = [*_candidates(method, replace(draw, kind=Kind.MINED))]
        by_key = _fillers(method, draw, [sample_id for sample_id, _ in offered])
        return ([offered[i] for i in by_key[:BATCH]],)
    if not draw.kind.is_scored:
        return (list(_views(draw, range(1))),)
    if choices.pick == "trusted":
        scores = _trusted(draw, None if choices.score == "uniform" else scores)
    elif choices.score == "uniform":
        scores = [_number(draw, uniforms, Purpose.UNIFORM_SCORE, i) for i in range(len(scores))]
    if choices.pick == "learnable":
        ids = draw.candidates.ids.tolist()
        scores = [
            float(np.float32(score) - IRREDUCIBLE[sample_id]) for score, sample_id in zip(scores, ids, strict=True)
        ]
    if choices.candidates == "samples":
        chosen = _hardest(draw, scores, targets, mined, method.mining.balance)
        by_key = _fillers(method, draw, draw.candidates.ids.tolist())
        chosen += [i for i in by_key if i not in chosen][: BATCH - mined]
        flags = [place < mined for place in range(BATCH)]
    else:
        by_key = sorted(range(BATCH), key=lambda slot: (_number(draw, seeds, Purpose.MINED_SLOTS, slot), slot))
        flags = [slot in by_key[:mined] for slot in range(BATCH)]
        chosen = []
        for slot in range(BATCH):
            own = scores[slot * GAMMA : (slot + 1) * GAMMA]
            view = REFERENCE_PICKS[choices.pick](own, _number(draw, uniforms, Purpose.PICK, slot))
            chosen.append(slot * GAMMA + (view if flags[slot] else 0))
    offered = list(_candidates(method, draw))
    return [offered[i] for i in chosen], chosen, flags, None


def _max(scores: list[float], uniform: float) -> int:
    best = None
    for view, score in enumerate(scores):
        if math.isfinite(score) and (best is None or score > scores[best]):
            best = view
    return best or 0


def _quantile(scores: list[float], uniform: float) -> int:
    finite = sorted((score, view) for view, score in enumerate(scores) if math.isfinite(score))
    if not finite:
        return 0
    value = finite[math.floor(QUANTILE * (len(finite) - 1) + Fraction(1, 2))][0]
    return next(view for score, view in finite if score == value)


def _uniform(scores: list[float], uniform: float) -> int:
    eligible = [view for view, score in enumerate(scores) if math.isfinite(score)] or list(range(len(scores)))
    return eligible[math.floor(uniform * len(eligible))]


def _proportional(scores: list[float], uniform: float) -> int:
    weights = [score if math.isfinite(score) else 0.0 for score in scores]
    total = sum(weights)
    if total == 0:
        return _uniform(scores, uniform)
    cumulated = 0.0
    for view, weight in enumerate(weights):
        cumulated += weight
        if cumulated > uniform * total:
            return view
    raise AssertionError(weights)


REFERENCE_PICKS = {"max": _max, "proportional": _proportional, "quantile": _quantile, "uniform": _uniform}
"""A new pick among views needs its reference here."""
REFERENCED = (*REFERENCE_PICKS, "all", "anchors", "hardest", "learnable", "trusted")


def _fillers(method: Method, draw: Draw, ids: list[int]) -> list[int]:
    """Candidates by chance; those whose label is not believed behind all others."""
    doubted = [method.choices.pick == "trusted" and IRREDUCIBLE[sample_id] > TRUST for sample_id in ids]
    return sorted(range(len(ids)), key=lambda i: (doubted[i], _number(draw, seeds, Purpose.FILL, i), i))


def _trusted(draw: Draw, scores: list[float] | None) -> list[float]:
    """Keys whose highest are a draw without replacement, in proportion to the scores; of the untrusted none."""
    keys = []
    for i, sample_id in enumerate(draw.candidates.ids.tolist()):
        u = _number(draw, uniforms, Purpose.UNIFORM_SCORE, i)
        score = 1.0 if scores is None else scores[i]
        is_out = IRREDUCIBLE[sample_id] > TRUST or not math.isfinite(score) or u == 0
        keys.append(-math.inf if is_out else float(np.float32(math.log(max(score, 1e-30)) - math.log(-math.log(u)))))
    return keys


def _hardest(draw: Draw, scores: list[float], targets: list[int], mined: int, balance: str) -> list[int]:
    """Classes take turns; in each turn a class gives its hardest candidate that is left. Non-finite ones come last."""
    classes = [0] * len(scores) if balance == "none" else targets
    turn = sorted(set(classes), key=lambda c: (_number(draw, seeds, Purpose.CLASSES, c), c))
    queues = {
        c: sorted(
            (i for i in range(len(scores)) if classes[i] == c),
            key=lambda i: (not math.isfinite(scores[i]), -scores[i] if math.isfinite(scores[i]) else 0, i),
        )
        for c in turn
    }
    quotas = _quotas(queues, mined) if balance == "stratified" else dict.fromkeys(turn, 0)
    rounds = [(c, rank, queues[c][rank]) for rank in range(len(scores)) for c in turn if rank < len(queues[c])]
    finite = [entry for entry in rounds if math.isfinite(scores[entry[2]])]
    deal = [entry for entry in finite if entry[1] < quotas[entry[0]]]
    deal += [entry for entry in finite if entry[1] >= quotas[entry[0]]]
    deal += [entry for entry in rounds if not math.isfinite(scores[entry[2]])]
    return [i for _, _, i in deal[:mined]]


def _quotas(queues: dict[int, list[int]], mined: int) -> dict[int, int]:
    """Proportional to how many candidates each class has, rounded by largest remainder, ties by turn."""
    total = sum(map(len, queues.values()))
    exact = {c: Fraction(mined * len(queue), total) for c, queue in queues.items()}
    quotas = {c: math.floor(share) for c, share in exact.items()}
    by_remainder = sorted(quotas, key=lambda c: quotas[c] - exact[c])
    for c in by_remainder[: mined - sum(quotas.values())]:
        quotas[c] += 1
    return quotas
