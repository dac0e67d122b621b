"""What every method must do: an AssertionError says what one did wrong.

Candidates and selection are compared with a reference that follows the methods' table in loops, one candidate at a
time, and takes every random number from its address one by one.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conformance.views import elsewhere
from infer2train import methods
from infer2train.addresses import Addresses, Purpose, seeds, uniforms
from infer2train.methods import Method, Selection, Slots
from infer2train.selection import BALANCES

BATCH, GAMMA = 10, 4
CLASSES = 3
SHARES = (0.0, 0.05, 0.33, 0.5, 1.0)
QUANTILE = Fraction(3, 4)

Candidate = tuple[int, int]
"""(sample id, seed)"""


@dataclass(frozen=True)
class Functions:
    """What is checked; picklable, so that another process can be asked."""

    candidates: Callable[[Method, Slots, int], Addresses] = methods.candidates
    select: Callable[..., Selection] = methods.select


REAL = Functions()


def check_method(method: Method, functions: Functions = REAL) -> None:
    """Everything below.

    Args:
        method: any of `METHODS`, or built as they are.
        functions: what makes its candidates and selects.
    """
    for check in CHECKS:
        check(method, functions)


def check_candidates(method: Method, functions: Functions) -> None:
    for slots in some_slots():
        got = functions.candidates(method, slots, GAMMA)
        expected = GAMMA * BATCH if method.asks_the_pool else 0
        assert len(got) == expected, f"γ candidates for each trained example: got {len(got)} instead of {expected}"
        assert set(got.ids.tolist()) <= set(slots.epoch_ids.tolist()), "candidates must be of this epoch's ids"
        assert len(set(got)) == len(got), "no candidate stands in a draw twice"
        assert list(got) == list(_candidates(method, slots)), "the candidates are not those of the table"


def check_trained(method: Method, functions: Functions) -> None:
    wanted = BATCH * GAMMA if method.candidates == "views" and method.pick == "all" else BATCH
    for slots in some_slots():
        for share in SHARES:
            selection = _ask(method, functions, slots, share)
            assert len(selection.addresses) == wanted, f"trained are {len(selection.addresses)} instead of {wanted}"
            assert set(selection.addresses.ids.tolist()) <= set(slots.epoch_ids.tolist()), (
                "trained ids must be of this epoch"
            )
            assert len(set(selection.addresses)) == wanted, "a view is trained on twice in one batch"
            if method.candidates != "samples":
                ids = np.repeat(slots.ids, wanted // BATCH)
                assert selection.addresses.ids.tolist() == ids.tolist(), "each slot trains on its own sample, in order"


def check_baseline_view(method: Method, functions: Functions) -> None:
    """Common random numbers: what is not mined is the very view that the baseline would train on."""
    for slots in some_slots():
        baseline = [(int(i), _number(slots, seeds, Purpose.VIEW, slot)) for slot, i in enumerate(slots.ids)]
        if method.candidates == "samples":
            continue
        if method.asks_the_pool and method.candidates == "views":
            views = list(functions.candidates(method, slots, GAMMA))
            assert views[::GAMMA] == baseline, "view 0 of a slot must be the baseline's"
        trained = list(_ask(method, functions, slots, share=0.0).addresses)
        step = len(trained) // BATCH
        assert trained[::step] == baseline, "where nothing is mined, the baseline's views must be trained on"


def check_indices(method: Method, functions: Functions) -> None:
    for slots in some_slots():
        for share in SHARES:
            selection = _ask(method, functions, slots, share)
            if method.score is None:
                assert selection.chosen is None, "nothing was scored, so nothing was chosen"
                assert selection.mined is None, "nothing was scored, so nothing was mined"
                continue
            assert selection.chosen is not None
            assert selection.mined is not None
            offered = list(functions.candidates(method, slots, GAMMA))
            chosen = selection.chosen.tolist()
            assert list(selection.addresses) == [offered[i] for i in chosen], "chosen indices and addresses disagree"
            assert len(set(chosen)) == len(chosen), "a candidate was chosen twice"
            if method.candidates == "views":
                assert [i // GAMMA for i in chosen] == list(range(BATCH)), "one view of each slot, in their order"
            wanted = _share_of(share)
            mined = int(selection.mined.sum())
            assert mined == wanted, f"of {BATCH}, a share of {share} mines {wanted}: got {mined}"


def check_nothing_mined_needs_no_scores(method: Method, functions: Functions) -> None:
    for slots in some_slots():
        scored = _ask(method, functions, slots, share=0.0)
        alone = functions.select(method, slots, GAMMA, share=0.0)
        assert list(scored.addresses) == list(alone.addresses), "at a share of 0 scores must not matter"


def check_pure(method: Method, functions: Functions) -> None:
    slots, scores = next(some_slots()), next(some_scores())
    arguments: dict[str, Any] = {"scores": scores, "targets": _targets(method, slots), "share": 0.5}
    if method.score is None:
        arguments = {"share": 0.5}
    written = [*(scores,), torch.from_numpy(slots.ids), torch.from_numpy(slots.epoch_ids)]
    before = [tensor.clone() for tensor in written]
    answers = []
    for state in (1, 2):
        torch.manual_seed(state)
        np.random.seed(state)
        torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()
        answers.append(_plain(functions.select(method, slots, GAMMA, **arguments)))
        answers[-1] += tuple(functions.candidates(method, slots, GAMMA))
        assert torch.equal(torch.get_rng_state(), torch_state), "selection moved torch's random state"
        assert np.random.get_state()[1].tolist() == numpy_state, "selection moved NumPy's random state"
    assert answers[0] == answers[1], "the same draw must be selected in the same way: it is random"
    assert all(torch.equal(a, b) for a, b in zip(written, before, strict=True)), "selection must not write to arguments"
    there = elsewhere().submit(functions.select, method, slots, GAMMA, **arguments).result()
    assert _plain(there) == _plain(functions.select(method, slots, GAMMA, **arguments)), (
        "another process selects others"
    )


def check_place_in_the_run(method: Method, functions: Functions) -> None:
    """Every coordinate of a draw decides its views; a method without candidates shows it in what it trains on."""
    slots = next(some_slots())
    for other in (
        replace(slots, seed=1),
        replace(slots, epoch=8),
        replace(slots, draw=9),
        replace(slots, seed=1 << 40),
    ):
        for what, look in (
            ("candidates", lambda s: functions.candidates(method, s, GAMMA)),
            ("trained views", lambda s: _ask(method, functions, s, share=0.5).addresses),
        ):
            here, there = set(look(slots).seeds.tolist()), set(look(other).seeds.tolist())
            assert not here & there, f"{what} do not depend on the run's seed, the epoch and the draw"


def check_reference(method: Method, functions: Functions) -> None:
    balances = BALANCES if method.pick == "hardest" else BALANCES[:1]
    for slots in some_slots():
        for scores in some_scores():
            for share in SHARES:
                for balance in balances:
                    targets = _targets(method, slots)
                    said = {"scores": scores, "targets": targets} if method.score else {}
                    got = functions.select(method, slots, GAMMA, share=share, balance=balance, **said)
                    wanted = _reference(method, slots, scores.tolist(), targets.tolist(), share, balance)
                    assert _plain(got) == wanted, (
                        f"the selection is not the reference's at a share of {share}, balance {balance}"
                    )


def check_hard_ones_are_chosen(method: Method, functions: Functions) -> None:
    """What the reference says in other words: a candidate that towers above all others is trained on."""
    if not method.has_oracle or method.score is None or method.pick in ("uniform", "quantile"):
        return
    for slots in some_slots():
        for towering in (0, 5, GAMMA * BATCH - 1):
            scores = torch.full((GAMMA * BATCH,), 1e-6)
            scores[towering] = 1e6
            chosen = functions.select(
                method, slots, GAMMA, scores=scores, targets=_targets(method, slots), share=1.0, balance="none"
            ).chosen
            assert chosen is not None
            assert towering in chosen.tolist(), f"candidate {towering} is by far the hardest and was not chosen"


CHECKS = (
    check_candidates,
    check_trained,
    check_baseline_view,
    check_indices,
    check_nothing_mined_needs_no_scores,
    check_place_in_the_run,
    check_hard_ones_are_chosen,
    check_reference,
    check_pure,
)


def some_slots() -> Iterator[Slots]:
    """Draws of an epoch whose ids are neither consecutive nor in order."""
    epoch_ids = np.random.default_rng(0).permutation(np.arange(7, 107, 3))
    for draw, epoch, seed in ((3, 0, 0), (5, 2, 11), (4_000_000_000, 89, (1 << 63) - 1)):
        ids = epoch_ids[draw % 7 : draw % 7 + BATCH]
        yield Slots(seed=seed, epoch=epoch, draw=draw, ids=ids, epoch_ids=epoch_ids)


def some_scores() -> Iterator[Tensor]:
    """Of all candidates: different, with many ties, and with non-finite ones among them."""
    chance = np.random.default_rng(1)
    yield torch.from_numpy(chance.random(GAMMA * BATCH).astype(np.float32))
    ties = torch.from_numpy(chance.integers(0, 3, GAMMA * BATCH).astype(np.float32))
    yield ties
    messy = ties.clone()
    messy[::3] = torch.nan
    messy[1:8] = torch.inf
    messy[-4:] = -torch.inf
    yield messy


def _ask(method: Method, functions: Functions, slots: Slots, share: float) -> Selection:
    said = {"scores": next(some_scores()), "targets": _targets(method, slots)} if method.score else {}
    return functions.select(method, slots, GAMMA, share=share, **said)


def _targets(method: Method, slots: Slots) -> Tensor:
    """Classes of the candidates, one of them rare."""
    ids = [sample_id for sample_id, _ in _candidates(method, slots)]
    return torch.tensor([2 if i % 5 == 0 else i % 2 for i in ids], dtype=torch.int64)


def _plain(selection: Selection) -> tuple[Any, ...]:
    chosen, mined = selection.chosen, selection.mined
    return (
        list(selection.addresses),
        None if chosen is None else chosen.tolist(),
        None if mined is None else mined.tolist(),
    )


# The reference


def _number(slots: Slots, make: Callable[..., Any], purpose: Purpose, slot: int, view: int = 0) -> Any:
    return _number_at(make, slots.seed, purpose, slots.epoch, slots.draw, slot, view)


@functools.cache
def _number_at(
    make: Callable[..., Any], seed: int, purpose: Purpose, epoch: int, draw: int, slot: int, view: int
) -> Any:
    return make(seed, purpose, epoch=epoch, draw=draw, slot=slot, view=view).item()


def _share_of(share: float) -> int:
    return math.floor(Fraction(str(share)) * BATCH + Fraction(1, 2))


def _candidates(method: Method, slots: Slots) -> Iterator[Candidate]:
    if not method.asks_the_pool:
        return
    if method.candidates == "samples":
        for slot in range(GAMMA * BATCH):
            which = _number(slots, seeds, Purpose.CANDIDATE, slot) % len(slots.epoch_ids)
            yield int(slots.epoch_ids[which]), _number(slots, seeds, Purpose.VIEW, slot)
    else:
        first = 1 if method.candidates == "anchors" else 0
        yield from _views(slots, range(first, first + GAMMA))


def _views(slots: Slots, views: range) -> Iterator[Candidate]:
    for slot, sample_id in enumerate(slots.ids.tolist()):
        for view in views:
            yield sample_id, _number(slots, seeds, Purpose.VIEW, slot, view)


def _reference(
    method: Method, slots: Slots, scores: list[float], targets: list[int], share: float, balance: str
) -> tuple[Any, ...]:
    if method.pick in ("all", "anchors"):
        all_views = method.pick == "all" and method.candidates == "views"
        return list(_views(slots, range(GAMMA if all_views else 1))), None, None
    if method.score == "uniform":
        scores = [_number(slots, uniforms, Purpose.UNIFORM_SCORE, i) for i in range(len(scores))]
    mined = _share_of(share)
    if method.pick == "hardest":
        chosen = _hardest(slots, scores, targets, mined, balance)
        by_key = sorted(range(len(scores)), key=lambda i: (_number(slots, seeds, Purpose.FILL, i), i))
        chosen += [i for i in by_key if i not in chosen][: BATCH - mined]
        flags = [place < mined for place in range(BATCH)]
    else:
        by_key = sorted(range(BATCH), key=lambda slot: (_number(slots, seeds, Purpose.MINED_SLOTS, slot), slot))
        flags = [slot in by_key[:mined] for slot in range(BATCH)]
        chosen = []
        for slot in range(BATCH):
            own = scores[slot * GAMMA : (slot + 1) * GAMMA]
            view = REFERENCE_PICKS[method.pick](own, _number(slots, uniforms, Purpose.PICK, slot))
            chosen.append(slot * GAMMA + (view if flags[slot] else 0))
    offered = list(_candidates(method, slots))
    return [offered[i] for i in chosen], chosen, flags


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
"""A new pick needs its reference here."""


def _hardest(slots: Slots, scores: list[float], targets: list[int], mined: int, balance: str) -> list[int]:
    """Classes take turns; in each turn a class gives its hardest candidate that is left. Non-finite ones come last."""
    classes = [0] * len(scores) if balance == "none" else targets
    turn = sorted(set(classes), key=lambda c: (_number(slots, seeds, Purpose.CLASSES, c), c))
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
