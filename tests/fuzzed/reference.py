"""What a draw must be, told slowly: samples one at a time, copies of the model in evaluation mode, NumPy in float64."""

import copy
import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fuzzed.cases import CHEAP, Case
from fuzzed.data import ids_of
from fuzzed.loaders import CHANGING
from fuzzed.models import SCORES, rows_of
from infer2train import Replay
from infer2train.batches import call_model
from infer2train.draws.addresses import Addresses
from infer2train.draws.draw import Draw
from mined_runs import equal

EXACT = {"rtol": 1e-4, "atol": 1e-5}
"""Of fp32 scores against one sample at a time."""
OF_THE_SPREAD = {"bf16": 0.005, "b8": 0.12, "int8": 0.12}
"""How far scores of a low precision may be off on average over a run, in parts of how much they differ.

Measured: at most 0.001 in 39 runs with bf16, 0.078 in 122 with 8 bits; scores of other candidates: 0.24 (median).
"""
ENOUGH = 12
"""Scores, from which on their spread is a measure; a draw may have but two."""


@dataclass
class Reference:
    """The versions of a model, the baseline's draws, and what is counted of the draws that were checked."""

    case: Case
    epochs: list[list[Addresses]]
    """The addresses that the baseline trains on, by epoch and draw: the slots of every method."""
    oracle: str = CHEAP
    """What scores, once `mine()` has decided."""
    versions: dict[int, nn.Module] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    chosen: list[float] = field(default_factory=list)
    """Scores of the mined."""
    deviations: list[float] = field(default_factory=list)
    """Of scores in low precision."""
    expected: list[float] = field(default_factory=list)
    lags: list[int] = field(default_factory=list)
    num_draws: int = 0

    def __post_init__(self) -> None:
        case = self.case
        self.baseline = [slots for epoch in self.epochs for slots in epoch]
        self.source = Replay(case.data(), case.collate_fn(), transform=case.transform(), check=False, may_mix=True)
        self.scored_by = case.settings().get("score_collate", case.collate_fn())

    def keep(self, version: int, model: nn.Module) -> None:
        """The weights of a version, buffers of both kinds with them."""
        self.versions[version] = copy.deepcopy(model).eval()

    def check(self, batch: Any, draw: Draw, step: int, epoch: int) -> None:
        """Everything below, of one draw."""
        case = self.case
        assert (draw.number, draw.epoch, draw.step) == (self.num_draws, epoch, step)
        slots = self.baseline[draw.number]
        is_mined = case.asks_the_oracle and step % case.mine_every == 0
        self.check_batch(batch, draw)
        if is_mined and case.num_mined(epoch, len(slots)):
            self.check_candidates(draw)
            if case.method != "random-sample":
                delayed = max(0, step - case.delay_steps)
                assert draw.version == case.update_every * (delayed // case.update_every)
                assert draw.lag == step - draw.version
                self.lags.append(draw.lag)
                self.check_outputs(draw)
            else:
                assert draw.version is None
            if case.method != "self-distill":
                self.check_pick(draw)
        else:
            assert draw.version is None
            assert draw.scores is None
            assert draw.log_probabilities is None
            assert len(draw.candidates) == 0
        if case.method == "batch-augment" and step % case.mine_every == 0:
            self.check_views(draw.addresses)
        elif case.method == "self-distill" or not is_mined:
            assert same(draw.addresses, slots)
        elif not case.is_of_views:
            assert len(draw.addresses) == len(slots)
            there = {sample for batch in self.epochs[epoch] for sample in batch.ids.tolist()}
            assert there.issuperset(draw.addresses.ids.tolist() + draw.candidates.ids.tolist())
        self.num_draws += 1

    def check_batch(self, batch: Any, draw: Draw) -> None:
        """What the loop got is what stands at the addresses, read one at a time."""
        addresses = draw.addresses
        if self.case.collate in CHANGING:
            assert equal(batch, self.source.batch(addresses))
            return
        alone = [self.source.items(addresses[i : i + 1])[0] for i in range(len(addresses))]
        assert equal(batch, self.case.collate_fn()(alone))
        bare = self.case.collate_fn()([self.source.dataset[i] for i in addresses.ids.tolist()])
        assert kinds(batch) == kinds(bare)
        assert self.case.randomness != "none" or equal(batch, bare)
        inside = batch["batch"] if self.case.collate == "with extras" else batch
        assert ids_of(self.case.of, inside) == addresses.ids.tolist()

    def check_candidates(self, draw: Draw) -> None:
        """As many as were asked for, of the right samples, no view twice."""
        count = len(self.baseline[draw.number])
        assert len(draw.candidates) == count * self.case.gamma
        if self.case.is_of_views:
            self.check_views(draw.candidates, has_first=self.case.method != "self-distill")
        self.seeds += draw.candidates.seeds.tolist()

    def check_views(self, addresses: Addresses, has_first: bool = True) -> None:
        """γ views of each slot, the first of them the baseline's."""
        slots = self.baseline[self.num_draws]
        assert addresses.ids.tolist() == np.repeat(slots.ids, self.case.gamma).tolist()
        if has_first:
            assert same(addresses[:: self.case.gamma], slots)

    def check_outputs(self, draw: Draw) -> None:
        """What the oracle said is what the version's model says of each candidate alone."""
        assert draw.version is not None
        case, model = self.case, self.versions[draw.version]
        backwards = self.source.items(draw.candidates[::-1])
        alone = [self.scored_by([item]) for item in reversed(backwards)]
        with torch.no_grad():
            pairs = [(rows_of(call_model(model, inputs)), targets) for inputs, targets in map(case.split, alone)]
        z = torch.cat([outputs for outputs, _ in pairs]).double()
        if case.method == "self-distill":
            said, expected = draw.log_probabilities, z.log_softmax(1).unflatten(0, (-1, case.gamma)).mean(1)
            assert draw.scores is None
        else:
            y = torch.cat([targets for _, targets in pairs]).numpy()
            expected = torch.from_numpy(np.asarray(SCORES[case.score][1](z.numpy(), y)))
            said = draw.scores
            self.scores += draw.scores[draw.scores.isfinite()].tolist()  # type: ignore[index]
        assert said is not None
        assert said.shape == expected.shape
        if self.oracle == CHEAP:
            torch.testing.assert_close(said.double(), expected, equal_nan=True, **EXACT)
        elif case.score != "now and then":
            self.deviations += (said - expected).abs().flatten().tolist()
            self.expected += expected.flatten().tolist()

    def check_precision(self) -> None:
        """A low precision is off by a small part of how much the scores differ, over the run."""
        if len(self.expected) >= ENOUGH:
            spread = max(self.expected) - min(self.expected) + 0.1
            assert np.mean(self.deviations) <= OF_THE_SPREAD[self.oracle.split(":")[1]] * spread

    def check_pick(self, draw: Draw) -> None:
        """The addresses are the chosen candidates', and those are the rule's."""
        case = self.case
        assert draw.chosen is not None
        assert draw.mined is not None
        assert same(draw.addresses, draw.candidates[draw.chosen])
        count = len(draw.addresses)
        assert int(draw.mined.sum()) == case.num_mined(draw.epoch, count)
        if draw.scores is None:
            values = np.zeros(len(draw.candidates))
        else:
            values = draw.scores.double().numpy()
            values = np.where(np.isfinite(values), values, -np.inf)
            self.chosen += [v for v in values[draw.chosen[draw.mined]].tolist() if math.isfinite(v)]
        if case.is_of_views:
            for slot, (chosen, is_mined) in enumerate(zip(draw.chosen, draw.mined, strict=True)):
                views = values[slot * case.gamma : (slot + 1) * case.gamma]
                self.check_view(views, int(chosen) - slot * case.gamma, bool(is_mined))
        else:
            assert len(set(draw.chosen.tolist())) == count
            labels = self.source.dataset.labels[draw.candidates.ids]  # type: ignore[attr-defined]
            check_quotas(values, labels, draw.chosen[draw.mined], case.balance)
            if case.is_scored:
                check_hardest(values, labels, draw.chosen[draw.mined], case.balance)

    def check_view(self, values: Any, view: int, is_mined: bool) -> None:
        """One slot's pick among the scores of its views."""
        assert 0 <= view < self.case.gamma
        finite = np.flatnonzero(np.isfinite(values))
        if not is_mined:
            assert view == 0
        elif self.case.pick == "max":
            assert view == int(np.argmax(values))
        elif self.case.pick == "quantile":
            place = math.floor(0.75 * (len(finite) - 1) + 0.5)
            assert view == (int(np.argmax(values == np.sort(values[finite])[place])) if len(finite) else 0)
        elif len(finite):
            assert view in finite
            assert self.case.pick == "uniform" or values[view] > 0 or not (values[finite] > 0).any()


def check_hardest(values: Any, labels: Any, mined: Any, balance: str) -> None:
    """The mined are the hardest of their class, of equal ones the first."""
    if balance == "none":
        labels = np.zeros(len(values), dtype=np.int64)
    for label in np.unique(labels[mined]):
        all_of_it = np.flatnonzero(labels == label)
        ours = mined[labels[mined] == label]
        hardest = all_of_it[np.argsort(-values[all_of_it], kind="stable")][: len(ours)]
        assert sorted(ours.tolist()) == sorted(hardest.tolist())


def check_quotas(values: Any, labels: Any, mined: Any, balance: str) -> None:
    """There are so many mined of each class as the balance says."""
    if balance == "none":
        labels = np.zeros(len(values), dtype=np.int64)
    n, m, classes = len(values), len(mined), np.unique(labels)
    taken = {label: int((labels[mined] == label).sum()) for label in classes}
    there = {label: int((np.isfinite(values) & (labels == label)).sum()) for label in classes}
    if m > sum(there.values()):
        assert all(taken[label] >= there[label] for label in classes)
        return
    assert all(taken[label] <= there[label] for label in classes)
    if balance == "uniform":
        full = [label for label in classes if taken[label] == there[label]]
        open_ = [taken[label] for label in classes if label not in full]
        assert not open_ or max(open_) - min(open_) <= 1
        assert not open_ or all(taken[label] <= min(open_) + 1 for label in full)
    shares = {label: Fraction(m * int((labels == label).sum()), n) for label in classes}
    if balance == "stratified" and all(shares[label] <= there[label] - 1 for label in classes):
        up = [shares[label] % 1 for label in classes if taken[label] > shares[label]]
        down = [shares[label] % 1 for label in classes if taken[label] < shares[label]]
        assert all(abs(taken[label] - shares[label]) < 1 for label in classes)
        assert not up or not down or min(up) >= max(down)


def same(first: Addresses, second: Addresses) -> bool:
    return first.ids.tolist() == second.ids.tolist() and first.seeds.tolist() == second.seeds.tolist()


def kinds(tree: Any) -> Any:
    """The types of a batch, and of what is in it."""
    if isinstance(tree, dict):
        return type(tree), {name: kinds(value) for name, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree), [kinds(value) for value in tree]
    return type(tree), tree.dtype if isinstance(tree, Tensor) else None
