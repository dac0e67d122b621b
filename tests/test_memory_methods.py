"""Methods that remember samples, against what their papers say, told slowly; and in a loop."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from conformance.method import BATCH, IDS, draw_at, made
from infer2train import MinedLoader, mine
from infer2train.batches import map_tensors
from infer2train.draws.addresses import Purpose, uniforms
from infer2train.draws.draw import Draw, Kind
from infer2train.draws.methods.memory import Memory
from infer2train.draws.methods.table import METHODS
from mined_runs import equal, sgd, state_of

pytestmark = pytest.mark.usefixtures("one_thread")

EPOCHS, SAMPLES, CLASSES = 8, 48, 3


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Linear(4, CLASSES)


def data(wrong: int = 0) -> TensorDataset:
    """Three clouds; the labels of the first few samples are wrong."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(SAMPLES) % CLASSES
    x = F.one_hot(labels, 4).float() * 2 + torch.randn(SAMPLES, 4, generator=generator)
    labels[:wrong] = (labels[:wrong] + 1) % CLASSES
    return TensorDataset(x, labels)


def loader_of(model: nn.Module, optimizer: Any, wrong: int = 0, **settings: Any) -> MinedLoader:
    base = DataLoader(data(wrong), batch_size=16, shuffle=True)
    return mine(base, model, optimizer, update_every=1, epochs=EPOCHS, **settings)


def trained(loader: MinedLoader, model: nn.Module, optimizer: Any, until: int = 10_000) -> list[Draw]:
    """The draws of a loop that weights its losses, up to a step."""
    seen = []
    while loader.epoch < EPOCHS and loader.steps < until:
        for x, y in loader:
            assert loader.last is not None
            losses = F.cross_entropy(model(x), y, reduction="none")
            weights = loader.last.weights
            (losses if weights is None else losses * weights).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append(loader.last)
            if loader.steps == until:
                break
    return seen


def test_a_memory_grows_and_knows_nothing_of_others() -> None:
    memory = Memory()
    assert memory.mean() is None
    memory.write(torch.tensor([5, 2]), torch.tensor([1.0, 3.0]))
    memory.write(torch.tensor([1000]), torch.tensor([torch.inf]))
    assert memory.read(torch.tensor([2, 5, 1000, 10**9])).nan_to_num(-1).tolist()[:2] == [3.0, 1.0]
    assert memory.read(torch.tensor([3, 10**9])).isnan().all()
    assert memory.mean() == 2.0, "over what is finite"


# InfoBatch


def test_infobatch_against_its_paper_sample_by_sample() -> None:
    """Left out with probability r what was below the mean of the epoch before; what stays of it counts 1/(1 - r)."""
    method = made("infobatch", prune=0.3)
    losses: dict[int, float] = {}
    chance = np.random.default_rng(3)
    for epoch in range(4):
        mean = float(np.mean(np.float32([*losses.values()]).astype(np.float64))) if losses else None
        method.begin_epoch(epoch)
        for number in range(epoch * 3, epoch * 3 + 3):
            draw = draw_at(method, 1.0, number=number, epoch=epoch, ids=IDS[(number % 3) * BATCH :][:BATCH])
            scores = torch.from_numpy(chance.random(BATCH).astype(np.float32))
            picked = method.select(draw, scores, None)
            kept, weights = [], []
            for slot, loss in enumerate(scores.tolist()):
                u = uniforms(0, Purpose.PRUNE, epoch=epoch, draw=number, slot=slot).item()
                is_easy = mean is not None and loss < mean
                if not is_easy or u >= 0.3:
                    kept.append(slot)
                    weights.append(1 / (1 - 0.3) if is_easy else 1.0)
            assert picked.chosen is not None
            assert picked.weights is not None
            assert picked.chosen.tolist() == kept
            assert picked.weights.tolist() == pytest.approx([w * len(kept) / BATCH for w in weights], rel=1e-6)
            method.observe(replace(picked, scores=scores))
            losses |= dict(zip(draw.ids.tolist(), scores.tolist(), strict=True))
    assert 0 < method.metrics()["pruned_share"] < 0.3


def test_the_weighted_mean_has_the_expectation_of_the_whole_batchs() -> None:
    method = made("infobatch")
    first = draw_at(method, 1.0, number=0, ids=IDS[:BATCH])
    scores = torch.linspace(0.1, 1.0, BATCH)
    method.observe(replace(first, scores=scores))
    method.begin_epoch(1)
    gradients = torch.randn(BATCH, generator=torch.Generator().manual_seed(0))
    means = []
    for number in range(4000):
        picked = method.select(draw_at(method, 1.0, number=number, epoch=1, ids=IDS[:BATCH]), scores, None)
        assert picked.chosen is not None
        assert picked.weights is not None
        means.append(float((gradients[picked.chosen] * picked.weights).mean()))
    error = np.std(means) / len(means) ** 0.5
    assert abs(np.mean(means) - float(gradients.mean())) < 4 * error


@pytest.mark.parametrize("prune", [0.5, 0.9])
def test_a_batch_of_which_nothing_is_kept_counts_nothing(prune: float) -> None:
    """Two easy samples of loss 0.5: were such a batch to count whole, the mean would be (1 + prune²)/2."""
    method = made("infobatch", prune=prune)
    method.observe(replace(draw_at(method, 1.0, number=0, ids=IDS[:2]), scores=torch.ones(2)))
    method.begin_epoch(1)
    losses, means = torch.full((2,), 0.5), []
    for number in range(4000):
        picked = method.select(draw_at(method, 1.0, number=number, epoch=1, ids=IDS[:2]), losses, None)
        assert picked.chosen is not None
        assert picked.weights is not None
        assert len(picked.chosen) > 0
        means.append(float((losses[picked.chosen] * picked.weights).mean()))
    assert abs(np.mean(means) - 0.5) < 4 * np.std(means) / len(means) ** 0.5


@pytest.mark.parametrize("prune", [0.5, 0.9])
def test_no_batch_is_left_with_one_sample_and_none_counts_another_way(prune: float) -> None:
    """Batch normalisation refuses one sample; the second, the first of those left out by its number, counts nothing."""
    method = made("infobatch", prune=prune)
    method.observe(replace(draw_at(method, 1.0, number=0, ids=IDS[:4]), scores=torch.ones(4)))
    method.begin_epoch(1)
    losses, seen = torch.tensor([0.5, 0.25, torch.nan, 0.75]), 0
    for number in range(200):
        draw = draw_at(method, 1.0, number=number, epoch=1, ids=IDS[:4])
        picked = method.select(draw, losses, None)
        chance = draw.numbers(uniforms, Purpose.PRUNE, np.arange(4))
        kept = [slot for slot in (0, 1, 3) if chance[slot] >= prune]
        assert picked.chosen is not None
        assert picked.weights is not None
        assert picked.mined is not None
        assert len(picked.addresses) == len(picked.chosen) == len(picked.mined) == len(picked.weights) >= 2
        if len(kept) != 1:
            continue
        second = min({0, 1, 3} - set(kept), key=chance.__getitem__)
        assert picked.chosen.tolist() == sorted([*kept, second])
        assert picked.addresses.ids.tolist() == IDS[sorted([*kept, second])].tolist()
        assert not picked.mined.any()
        weights = dict(zip(picked.chosen.tolist(), picked.weights.tolist(), strict=True))
        assert weights == {kept[0]: pytest.approx(2 / (1 - prune) / 4), second: 0.0}
        seen += 1
    assert seen > 20


def test_one_finite_sample_among_others_stays_alone() -> None:
    """What is not finite would make the loss so, whatever it counts."""
    method = made("infobatch")
    picked = method.select(draw_at(method, 1.0, ids=IDS[:3]), torch.tensor([torch.nan, 0.5, torch.inf]), None)
    assert picked.chosen is not None
    assert picked.chosen.tolist() == [1]


def test_infobatch_trains_a_model_with_batch_normalisation() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, CLASSES))
    optimizer = sgd(model)
    base = DataLoader(data(), batch_size=4, shuffle=True)
    loader = mine(base, model, optimizer, update_every=1, epochs=EPOCHS, method="infobatch", prune=0.9)
    seen = trained(loader, model, optimizer)
    assert min(len(draw.addresses) for draw in seen) == 2


def test_what_scores_nan_is_left_out_while_anything_else_is_there() -> None:
    method = made("infobatch")
    draw = draw_at(method, 1.0)
    method.observe(replace(draw, scores=torch.ones(BATCH)))
    method.begin_epoch(1)
    scores = torch.full((BATCH,), 2.0)
    scores[3], scores[5] = torch.nan, torch.inf
    kept = method.select(draw, scores, None).chosen
    assert kept is not None
    assert kept.tolist() == [slot for slot in range(BATCH) if slot not in (3, 5)]
    all_bad = method.select(draw, torch.full((BATCH,), torch.nan), None).chosen
    assert all_bad is not None
    assert len(all_bad) == BATCH


def test_infobatch_remembers_float32_whatever_the_default() -> None:
    memory = Memory()
    torch.set_default_dtype(torch.float64)
    try:
        memory.write(torch.tensor([3]), torch.tensor([0.5], dtype=torch.float32))
        assert memory.read(torch.tensor([3, 9])).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_infobatch_ends_with_whole_batches_and_needs_to_know_when() -> None:
    method = made("infobatch", epochs=8)
    assert [method.share(epoch) for epoch in range(8)] == [1.0] * 7 + [0.0]
    assert draw_at(method, method.share(7)).kind is Kind.UNSCORED
    with pytest.raises(ValueError, match="infobatch needs epochs="):
        made("infobatch", epochs=None)
    with pytest.raises(ValueError, match="prune must be below 1"):
        made("infobatch", prune=1.0)


def test_where_all_would_be_left_out_the_batch_stays_and_counts_nothing() -> None:
    method = made("infobatch", prune=0.999999)
    draw = draw_at(method, 1.0)
    method.observe(replace(draw, scores=torch.ones(BATCH)))
    method.begin_epoch(1)
    picked = method.select(draw, torch.zeros(BATCH), None)
    assert picked.weights is not None
    assert (len(picked.addresses), picked.weights.tolist()) == (BATCH, [0.0] * BATCH)


def test_infobatch_trains_on_less_in_a_loop() -> None:
    model = network()
    optimizer = sgd(model)
    loader = loader_of(model, optimizer, method="infobatch")
    seen = trained(loader, model, optimizer)
    by_epoch = [sum(len(draw.addresses) for draw in seen if draw.epoch == epoch) for epoch in range(EPOCHS)]
    assert by_epoch[0] == by_epoch[-1] == SAMPLES, "nothing is known at first, and the end is whole"
    assert all(SAMPLES / 3 < count < SAMPLES for count in by_epoch[1:-1])
    assert loader.metrics()["pruned_share"] == pytest.approx(1 - sum(by_epoch[:-1]) / (SAMPLES * (EPOCHS - 1)))


# RHO-LOSS


def test_rho_subtracts_the_irreducible_loss_of_each_sample() -> None:
    method = made("rho", balance="none", irreducible=np.arange(107, dtype=np.float32) / 10)
    draw = draw_at(method, 1.0)
    scores = torch.full((len(draw.candidates),), 20.0)
    picked = method.select(draw, scores, None)
    wanted = 20 - draw.candidates.ids / 10
    assert picked.scores is not None
    assert picked.scores.tolist() == pytest.approx(wanted.tolist())
    assert sorted(picked.addresses.ids.tolist()) == sorted(draw.candidates.ids.tolist())[:BATCH]


class Knowing(nn.Module):
    """Has the right class of each sample, whatever its label says."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :CLASSES] * 4


def irreducible_of(wrong: int) -> Tensor:
    x, labels = data(wrong).tensors
    return F.cross_entropy(Knowing()(x), labels, reduction="none")


def test_rho_leaves_wrong_labels_where_nm_sample_takes_them(tmp_path: Any) -> None:
    wrong, losses = 12, irreducible_of(12)
    np.save(tmp_path / "irreducible.npy", losses.numpy())
    share = {}
    for name, given in {"nm-sample": None, "rho": losses, "file": str(tmp_path / "irreducible.npy")}.items():
        model = network()
        optimizer = sgd(model)
        method = "rho" if given is not None else name
        loader = loader_of(
            model, optimizer, wrong, method=method, gamma=4, balance="none", ramp_stop=0.0, irreducible=given
        )
        picked = np.concatenate([d.addresses.ids for d in trained(loader, model, optimizer)][12:])
        share[name] = (picked < wrong).mean()
    assert share["nm-sample"] > 0.4
    assert share["rho"] < 0.1
    assert share["file"] == share["rho"]


@pytest.mark.parametrize("name", ["rho", "trusted", "trusted-random"])
def test_a_model_is_asked_once_for_the_irreducible_loss(name: str) -> None:
    model = network()
    own = Knowing().train()
    loader = loader_of(model, sgd(model), 12, method=name, irreducible=own)
    state = loader.state_dict()["method"]
    assert torch.allclose(state["irreducible"][:SAMPLES], irreducible_of(12))
    assert own.training, "it is left as it was"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "rho needs the irreducible loss of each sample: got none; pass irreducible="),
        (np.ones(7, dtype=np.float32), "got none for 41 of 48, such as id 7"),
        (np.full(48, np.nan, dtype=np.float32), "got none for 48 of 48, such as id 0"),
        (np.ones((48, 2), dtype=np.float32), r"one number for each sample: got shape \(48, 2\)"),
    ],
)
def test_irreducible_losses_that_are_missing_are_refused(given: Any, said: str) -> None:
    model = network()
    with pytest.raises(ValueError, match=said):
        loader_of(model, sgd(model), method="rho", irreducible=given)


# Trusted


def test_trusted_draws_in_proportion_to_the_loss_and_without_replacement() -> None:
    """The first of B by Gumbel keys is drawn with probability score / Σ scores of what is trusted."""
    irreducible = np.where(np.arange(107) % 2 == 0, 0.1, 2.0).astype(np.float32)
    method = made("trusted", balance="none", irreducible=irreducible, trust=1.0)
    first = []
    for number in range(4000):
        draw = draw_at(method, 1.0, number=number, ids=IDS[:1])  # of γ candidates one is trained on
        scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
        trusted = irreducible[draw.candidates.ids] <= 1.0
        picked = method.select(replace(draw, scores=scores), scores, None)
        assert picked.chosen is not None
        assert trusted[picked.chosen[0]] or not trusted.any(), "an untrusted one is picked only where there is no other"
        if trusted.all():
            first.append(int(picked.chosen[0]))
    shares = np.bincount(first, minlength=4) / len(first)
    assert shares == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=4 * 0.5 / len(first) ** 0.5)


def test_trusted_refuses_scores_below_0_which_are_no_probabilities() -> None:
    method = made("trusted", balance="none", irreducible=np.zeros(107, dtype=np.float32), trust=1.0)
    draw = draw_at(method, 1.0, ids=IDS[:1])
    method.select(draw, torch.tensor([1.0, -torch.inf, 3.0, torch.nan]), None)
    with pytest.raises(
        ValueError, match=r"'trusted' makes probabilities.* at least 0: got -0\.5; use the score 'loss'"
    ):
        method.select(draw, torch.tensor([1.0, -0.5, 3.0, 4.0]), None)


def test_trusted_takes_a_doubted_label_only_where_there_is_no_other() -> None:
    irreducible = np.where(np.arange(107) % 2 == 0, 0.1, 2.0).astype(np.float32)
    method = made("trusted", balance="none", irreducible=irreducible, trust=1.0, ramp_rate=0.1)
    for number, share in enumerate((0.0, 0.3, 1.0)):
        draw = draw_at(method, share, number=number)
        believed = irreducible[draw.candidates.ids if share else method.candidates(draw).ids] <= 1.0
        scores = torch.zeros(len(believed))  # of a network that knows them all by heart
        picked = method.select(replace(draw, scores=scores) if share else draw, scores if share else None, None)
        ids = picked.addresses.ids
        assert believed.sum() >= len(ids), "there are enough"
        assert (irreducible[ids] <= 1.0).all(), share


def test_trusted_leaves_wrong_labels_which_the_loss_alone_would_take() -> None:
    wrong = 12
    for name in ("trusted", "trusted-random"):
        model = network()
        optimizer = sgd(model)
        loader = loader_of(model, optimizer, wrong, method=name, gamma=4, irreducible=irreducible_of(wrong))
        draws = trained(loader, model, optimizer)
        picked = np.concatenate([draw.addresses.ids for draw in draws])
        assert (picked < wrong).mean() < 0.1
        believed = irreducible_of(wrong) <= np.log(CLASSES)
        assert loader.metrics()["trusted_share"] == pytest.approx(float(believed.float().mean()))


@pytest.mark.parametrize("name", ["rho", "trusted"])
def test_a_sample_that_the_model_was_not_asked_about_is_refused(name: str) -> None:
    class Growing(SubsetRandomSampler):
        def __iter__(self) -> Any:
            found = list(super().__iter__())
            self.indices = range(SAMPLES)
            return iter(found)

    sampler, model = Growing(range(16)), network()
    optimizer = sgd(model)
    base = DataLoader(data(), batch_size=16, sampler=sampler)
    loader = mine(base, model, optimizer, method=name, irreducible=network(), epochs=EPOCHS)
    trained(loader, model, optimizer, until=1)
    with pytest.raises(ValueError, match=r"irreducible must hold a finite loss for each sample .*asked at the start"):
        trained(loader, model, optimizer)


def test_an_irreducible_model_is_left_in_its_modes() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, CLASSES)).train()
    model[1].eval()
    mine(DataLoader(data(), batch_size=16), network(), method="trusted", irreducible=model).close()
    assert [module.training for module in model] == [True, False, True]


def test_trusted_needs_class_labels_or_a_limit() -> None:
    x, _ = data().tensors
    targets = torch.randn(SAMPLES, 2)
    settings: dict[str, Any] = {"method": "trusted", "irreducible": np.ones(SAMPLES), "balance": "none"}
    settings |= {"score": lambda outputs, wanted: (outputs[:, :2] - wanted).square().mean(1)}
    base = DataLoader(TensorDataset(x, targets), batch_size=16)
    with pytest.raises(ValueError, match=r"needs class labels, got Tensor; pass trust="):
        mine(base, network(), **settings)
    mine(base, network(), **settings, trust=1.5).close()


@pytest.mark.parametrize("classes", [10, 100])
def test_guessing_is_among_all_classes_however_the_labels_are_ordered(classes: int) -> None:
    labels = torch.arange(51_200) % classes
    base = DataLoader(TensorDataset(torch.zeros(len(labels), 4), labels), batch_size=16)
    irreducible = np.full(len(labels), np.log(classes) - 0.01)
    loader = mine(base, nn.Linear(4, classes), method="trusted-random", irreducible=irreducible)
    assert loader.metrics()["trusted_share"] == 1.0
    loader.close()
    doubted = mine(base, nn.Linear(4, classes), method="trusted-random", irreducible=irreducible + 0.02)
    assert doubted.metrics()["trusted_share"] == 0.0
    doubted.close()


class Counted(TensorDataset):
    reads = 0

    def __getitem__(self, index: int) -> Any:
        Counted.reads += 1
        return super().__getitem__(index)


@pytest.mark.parametrize(
    ("given", "said"),
    [({"method": "infobatch"}, "needs epochs="), ({"method": "rho", "epochs": 3}, "got none; pass irreducible=")],
)
def test_what_a_method_lacks_is_said_before_anything_is_read_or_started(given: dict[str, Any], said: str) -> None:
    Counted.reads = 0
    with pytest.raises(ValueError, match=said):
        mine(DataLoader(Counted(*data().tensors), batch_size=16), network(), **given)
    assert Counted.reads == 0


# All resume exactly


@pytest.mark.parametrize("stop", [1, 4, 6, 11, 20])
@pytest.mark.parametrize("name", ["infobatch", "rho", "trusted", "trusted-random"])
def test_a_resumed_run_ends_in_the_same_bits(name: str, stop: int) -> None:
    own: dict[str, Any] = {"irreducible": irreducible_of(0)} if METHODS[name].needs_irreducible else {}

    def begun() -> tuple[nn.Module, Any, MinedLoader]:
        model = network()
        optimizer = sgd(model)
        return model, optimizer, loader_of(model, optimizer, method=name, gamma=2, **own)

    model, optimizer, loader = begun()
    trained(loader, model, optimizer)
    first, first_optimizer, interrupted = begun()
    trained(interrupted, first, first_optimizer, until=stop)
    state = interrupted.state_dict()
    again, again_optimizer, resumed = begun()
    again.load_state_dict(first.state_dict())
    again_optimizer.load_state_dict(first_optimizer.state_dict())
    resumed.load_state_dict(state)
    trained(resumed, again, again_optimizer)
    assert equal(state_of(again), state_of(model))
    memories = [one.state_dict()["method"] for one in (resumed, loader)]
    assert equal(*[map_tensors(lambda x: x.nan_to_num(-1), memory) for memory in memories])


def test_looking_at_a_batch_leaves_no_memory() -> None:
    def ends(looks: int) -> Any:
        model = network()
        optimizer = sgd(model)
        loader = loader_of(model, optimizer, method="infobatch")
        for _ in range(looks):
            next(iter(loader))
        trained(loader, model, optimizer)
        return state_of(model)

    assert equal(ends(looks=0), ends(looks=2))
