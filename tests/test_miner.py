"""`mine()` as its users meet it: the loop of the front page, every method's pick, Algorithm 1, settings and logs."""

import copy
import random
from collections import Counter, namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, SubsetRandomSampler, default_collate

from infer2train import MinedLoader, Mining, Replay, mine
from infer2train.draws.addresses import Addresses, Purpose, seeds
from infer2train.draws.draw import Draw
from infer2train.draws.methods.table import METHODS
from infer2train.observe.runlog import read_config, read_rows
from infer2train.oracle.snapshot import NotFiniteError
from mined_runs import (
    CLASSES,
    Annotated,
    Gained,
    Jittered,
    Measured,
    Monotone,
    Named,
    Plain,
    Uniform,
    draws,
    equal,
    jittered,
    network,
    sgd,
    state_of,
)

Batch = namedtuple("Batch", "x y")


def collate_named_tuple(items: list[Any]) -> Batch:
    return Batch(*default_collate(items))


# The loop of the front page


def test_the_front_page_loop_yields_what_collate_fn_returns_with_and_without_workers() -> None:
    runs = []
    for num_workers in (2, 0):
        base = jittered(batch_size=5, num_workers=num_workers, collate_fn=collate_named_tuple)
        model = network(norm=True)
        optimizer = sgd(model)
        loader = mine(base, model, optimizer, method="nm-augment", gamma=4, update_every=3)
        by_hand = Replay(base.dataset, collate_named_tuple)
        batches = []
        for epoch in range(2):
            for batch in loader:
                loss = F.cross_entropy(model(batch.x), batch.y)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                assert loader.last is not None
                assert loader.last.epoch == epoch
                assert equal(batch, by_hand.batch(loader.last.addresses))
                batches.append(batch)
        assert len(batches) == 2 * len(loader) == 10
        assert [len(batch.y) for batch in batches] == [5, 5, 5, 5, 4] * 2, "the last partial batch is kept"
        assert sorted(torch.cat([batch.y for batch in batches[:5]]).tolist()) == sorted(Jittered().labels.tolist())
        runs.append((batches, state_of(model), loader))
    assert equal(runs[0][0], runs[1][0])
    assert equal(runs[0][1], runs[1][1])
    assert not equal(runs[0][1], network(norm=True).state_dict()), "nothing was learnt"


def test_dictionary_batches() -> None:
    base = DataLoader(Named(), batch_size=6, shuffle=True)
    model = Gained()
    optimizer = sgd(model)
    version_0 = copy.deepcopy(model).eval()
    by_hand = Replay(base.dataset, default_collate)
    loader = mine(base, model, optimizer, gamma=3)
    for batch in loader:
        labels = batch.pop("labels")
        F.cross_entropy(model(**batch)["logits"], labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert loader.last is not None
        assert equal({**batch, "labels": labels}, by_hand.batch(loader.last.addresses))
        candidates = by_hand.batch(loader.last.candidates)
        labels = candidates.pop("labels")
        with torch.no_grad():
            expected = F.cross_entropy(version_0(**candidates)["logits"], labels, reduction="none")
        torch.testing.assert_close(loader.last.scores, expected)
        assert loader.last.chosen is not None
        assert loader.last.chosen.tolist() == (expected.view(6, 3).argmax(1) + 3 * torch.arange(6)).tolist()
    assert loader.steps == 4


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs[:, 0] - targets).square()


def test_a_users_own_score_for_regression() -> None:
    base = DataLoader(Measured(), batch_size=6, shuffle=True)
    model = network(outputs=1)
    optimizer = sgd(model, lr=0.01)
    loader = mine(base, model, optimizer, gamma=5, update_every=1, score=squared_error)
    for x, y in loader:
        before = copy.deepcopy(model).eval()
        squared_error(model(x), y).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert loader.last is not None
        errors = squared_error(before(x), y).view(6)
        everything = Replay(base.dataset, default_collate).batch(loader.last.candidates)
        worst = squared_error(before(everything[0]), everything[1]).view(6, 5).amax(1)
        torch.testing.assert_close(errors, worst)
    assert y.dtype == torch.float32


def stack_images(items: list[Any]) -> tuple[Tensor, list[dict[str, Tensor]]]:
    return torch.stack([image for image, _ in items]), [annotation for _, annotation in items]


def annotated_error(outputs: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
    return F.cross_entropy(outputs, torch.stack([target["label"] for target in targets]), reduction="none")


@pytest.mark.parametrize("oracle_chunk", [5, 32])
def test_targets_of_any_number_a_sample(oracle_chunk: int) -> None:
    base = DataLoader(Annotated(), batch_size=4, shuffle=True, collate_fn=stack_images)
    model = network().eval()
    loader = mine(base, model, gamma=4, score=annotated_error, oracle_chunk=oracle_chunk)
    by_hand = Replay(base.dataset, stack_images)
    for batch in loader:
        assert loader.last is not None
        assert equal(batch, by_hand.batch(loader.last.addresses))
        with torch.no_grad():
            x, targets = by_hand.batch(loader.last.candidates)
            torch.testing.assert_close(loader.last.scores, annotated_error(model(x), targets))


def add_noise(image: Tensor) -> Tensor:
    return image + torch.randn(image.shape) * random.random()


def test_a_transform_given_apart_makes_the_views_of_samples_read_once() -> None:
    data = Plain()
    base = DataLoader(data, batch_size=4, shuffle=True)
    loader = mine(base, network(), gamma=6, transform=add_noise)
    by_hand = Replay(Plain(), default_collate, transform=add_noise)
    data.reads = 0
    for number, batch in enumerate(loader, 1):
        assert loader.last is not None
        assert equal(batch, by_hand.batch(loader.last.addresses))
        assert data.reads == number * (4 + 4), "once for all candidates of a sample, once for the picked one"
    assert len(set(loader.last.scores.tolist())) == 24  # type: ignore[union-attr]


@pytest.mark.slow
def test_spawned_workers_make_the_same_views() -> None:
    runs = []
    for options in ({}, {"num_workers": 1, "multiprocessing_context": "spawn", "prefetch_factor": 3}):
        model = network(norm=True)
        optimizer = sgd(model)
        loader = mine(jittered(**options), model, optimizer, gamma=3, update_every=2)
        assert len(list(draws(loader, model, optimizer))) == 6
        runs.append(state_of(model))
    assert equal(runs[0], runs[1])


def test_the_users_dataloader_stays_as_it_was() -> None:
    generator = torch.Generator().manual_seed(4)
    base = jittered(generator=generator)

    def one_epoch() -> list[Any]:
        generator.manual_seed(8)
        for seed in (torch.manual_seed, random.seed, np.random.seed):
            seed(9)
        return list(base)

    expected, attributes, state = one_epoch(), dict(vars(base)), generator.get_state()
    model = network()
    for _ in draws(mine(base, model, optimizer := sgd(model), gamma=2), model, optimizer):
        assert torch.equal(generator.get_state(), state)
    assert vars(base).keys() == attributes.keys()
    assert all(vars(base)[name] is value for name, value in attributes.items())
    assert equal(one_epoch(), expected)


# Each method's pick, where the hardest view is known


def uniform_loader(labels: Any = (0, 1) * 6, **options: Any) -> "DataLoader[Any]":
    return DataLoader(Uniform(labels), **{"batch_size": 4, "shuffle": True, **options})


def numbers(base: "DataLoader[Any]", addresses: Addresses) -> np.ndarray[Any, Any]:
    """The number that each view is."""
    return Replay(base.dataset, default_collate).batch(addresses)[0][:, 0].numpy()


def untrained(base: Any, method: str, *, epochs: int = 1, classes: int = 2, **options: Any) -> list[Draw]:
    """The draws of some epochs in which no step is taken: all are scored by version 0 of `Monotone`."""
    if METHODS[method].schedule.needs_length:
        options["epochs"] = epochs
    loader = mine(base, Monotone(classes), method=method, update_every=10**6, **options)
    seen = []
    for _ in range(epochs):
        for _ in loader:
            assert loader.last is not None
            seen.append(loader.last)
    return seen


def test_nm_augment_picks_the_hardest_view_of_each_sample() -> None:
    base = uniform_loader()
    for draw in untrained(base, "nm-augment", gamma=6):
        all_views = numbers(base, draw.candidates).reshape(4, 6)
        assert draw.candidates.ids.reshape(4, 6).tolist() == [[i] * 6 for i in draw.addresses.ids]
        np.testing.assert_array_equal(numbers(base, draw.addresses), all_views.max(1))
        assert draw.chosen is not None
        assert (draw.chosen - 6 * np.arange(4)).tolist() == all_views.argmax(1).tolist()
        assert draw.scores is not None
        np.testing.assert_allclose(draw.scores, np.log1p(np.exp(3 * all_views)).reshape(-1), rtol=1e-5)


def test_a_ramp_mines_a_share_of_the_slots_and_leaves_the_others_to_the_baseline() -> None:
    base = uniform_loader(labels=(0, 1) * 20, batch_size=10)
    seen = untrained(base, "nm-augment", gamma=6, ramp_rate=0.3, epochs=5)
    mined_slots = []
    for draw, plain in zip(seen, untrained(base, "baseline", epochs=5), strict=True):
        if draw.epoch == 0:
            assert list(draw.addresses) == list(plain.addresses)
            assert draw.version is None
            continue
        assert draw.mined is not None
        assert draw.mined.sum() == min(10, 3 * draw.epoch)
        hardest = numbers(base, draw.candidates).reshape(10, 6).max(1)
        np.testing.assert_array_equal(numbers(base, draw.addresses)[draw.mined], hardest[draw.mined])
        assert list(draw.addresses[~draw.mined]) == list(plain.addresses[~draw.mined])
        mined_slots.append(np.flatnonzero(draw.mined).tolist())
    assert len({str(slots) for slots in mined_slots[:4]}) > 1, "other slots in every draw"


def test_a_uniform_pick_is_the_baseline_in_distribution() -> None:
    base = uniform_loader(labels=(0, 1) * 100, batch_size=50)
    by_pick = {pick: untrained(base, "nm-augment", gamma=5, pick=pick, epochs=2) for pick in ("uniform", "max")}
    baseline = np.concatenate([numbers(base, d.addresses) for d in untrained(base, "baseline", epochs=2)])
    picked = {pick: np.concatenate([numbers(base, d.addresses) for d in own]) for pick, own in by_pick.items()}
    assert stats.ks_2samp(picked["uniform"], baseline).pvalue > 0.01
    assert stats.ks_2samp(picked["max"], baseline).pvalue < 1e-6, "a pick that does matter must be told apart"
    views = np.concatenate([d.chosen % 5 for d in by_pick["uniform"] if d.chosen is not None])
    assert stats.chisquare(np.bincount(views, minlength=5)).pvalue > 0.01


def test_every_method_sees_the_baselines_view_as_its_view_0() -> None:
    base = uniform_loader()
    baseline = untrained(base, "baseline", seed=7)
    for method, every in {"nm-augment": 3, "nm-augment-soft": 3, "batch-augment": 3, "self-distill": 1}.items():
        for draw, plain in zip(untrained(base, method, gamma=3, seed=7), baseline, strict=True):
            own = draw.addresses if method in ("batch-augment", "self-distill") else draw.candidates
            assert list(own[::every]) == list(plain.addresses), method
    every_second = untrained(base, "nm-augment", gamma=3, seed=7, mine_every=2)
    for draw, plain in zip(every_second[1::2], baseline[1::2], strict=True):
        assert list(draw.addresses) == list(plain.addresses)
    assert [draw.version for draw in every_second] == [0, None, 0]
    assert [list(d.addresses) for d in untrained(base, "baseline", seed=8)] != [list(d.addresses) for d in baseline]


def test_nm_augment_soft_picks_in_proportion_to_the_loss() -> None:
    base = uniform_loader(labels=(0, 1) * 150, batch_size=100)
    expected, observed = np.zeros(4), np.zeros(4)
    for draw in untrained(base, "nm-augment-soft", gamma=4, epochs=3):
        losses = np.log1p(np.exp(3 * numbers(base, draw.candidates).reshape(-1, 4).astype(np.float64)))
        assert draw.chosen is not None
        ranks = losses.argsort(1).argsort(1)[np.arange(len(losses)), draw.chosen % 4]
        expected += np.sort(losses / losses.sum(1, keepdims=True), 1).sum(0)
        observed += np.bincount(ranks, minlength=4)
    assert stats.chisquare(observed, expected).pvalue > 0.01
    assert stats.chisquare(observed).pvalue < 1e-6, "a uniform pick must be told apart"


@pytest.mark.parametrize("balance", ["uniform", "stratified", "none"])
def test_nm_sample_mines_the_hardest_of_each_class_and_as_many_as_its_ramp_says(balance: Any) -> None:
    labels = np.array([0] * 28 + [1] * 8 + [2] * 4)
    subset = [i for i in range(40) if i % 4]
    base = uniform_loader(labels, batch_size=10, shuffle=False, sampler=SubsetRandomSampler(subset))
    seen = untrained(base, "nm-sample", gamma=4, classes=3, epochs=5, balance=balance)
    assert {len(draw.addresses) for draw in seen} == {10}
    for draw in seen:
        mined_count = int(10 * draw.epoch / 5 + 0.5)
        assert set(draw.addresses.ids) <= set(subset), "ids come from the user's sampler"
        if mined_count == 0:
            assert draw.scores is None, "nothing is asked of the oracle while nothing is mined"
            continue
        hardness, own = numbers(base, draw.candidates), labels[draw.candidates.ids]
        assert draw.chosen is not None
        assert draw.mined is not None
        mined, rest = draw.chosen[draw.mined], draw.chosen[~draw.mined]
        assert len(mined) == mined_count
        assert len(set(draw.chosen.tolist())) == 10, "a candidate was trained on twice"
        quotas = Counter(own[mined].tolist())
        for label, quota in quotas.items():
            hardest = sorted(hardness[own == label], reverse=True)[:quota]
            assert sorted(hardness[mined][own[mined] == label], reverse=True) == hardest
        counts = Counter(own.tolist())
        for label, count in counts.items():
            share = {"uniform": mined_count / len(counts), "stratified": mined_count * count / 40}.get(balance)
            assert share is None or abs(quotas[label] - share) < 1 or quotas[label] == count, (balance, quotas, counts)
        if balance == "none":
            assert set(mined.tolist()) == set(np.argsort(-hardness)[:mined_count].tolist())
        assert list(draw.addresses) == list(draw.candidates[draw.chosen])
        assert len(rest) == 10 - mined_count


def test_what_fills_an_nm_sample_batch_is_not_the_hard_part() -> None:
    base = uniform_loader(labels=(0, 1) * 100, batch_size=50)
    fill = []
    for draw in untrained(base, "nm-sample", gamma=4, epochs=2, ramp_rate=0.5):
        if draw.mined is not None:
            assert draw.mined.sum() == 25
            fill.append(numbers(base, draw.addresses[~draw.mined]))
    left = np.concatenate(fill)
    assert left.mean() < 0.5, "the hardest are gone, the others are equally likely"
    # 25 of 200 candidates are mined, so the others are uniform below about 7/8.
    assert stats.kstest(left, stats.uniform(0, 0.875).cdf).pvalue > 0.01


def test_random_sample_is_class_balanced_and_blind() -> None:
    labels = np.array([0] * 60 + [1] * 30 + [2] * 10)
    base = uniform_loader(labels, batch_size=12, drop_last=True)
    options: dict[str, Any] = {"gamma": 8, "classes": 3, "epochs": 2, "balance": "uniform", "ramp_stop": 0.0}
    blind, mined = untrained(base, "random-sample", **options), untrained(base, "nm-sample", **options)
    for draw in blind:
        assert draw.version is None
        assert draw.scores is None
        present = np.bincount(labels[draw.candidates.ids], minlength=3)
        quotas = np.bincount(labels[draw.addresses.ids], minlength=3)
        assert quotas.tolist() == [4, 4, 4] or (present < 4).any(), "what a class does not have, the others give"
    picked = [np.concatenate([numbers(base, d.addresses) for d in seen]) for seen in (blind, mined)]
    assert stats.kstest(picked[0], "uniform").pvalue > 0.01
    assert stats.kstest(picked[1], "uniform").pvalue < 1e-6, "nm-sample must be told apart"


def test_batch_augment_trains_on_every_view() -> None:
    base = uniform_loader()
    loader = mine(base, Monotone(), method="batch-augment", gamma=3)
    views = untrained(base, "nm-augment", gamma=3)
    for (x, y), draw in zip(loader, views, strict=True):
        assert x.shape == (12, 2)
        assert y.tolist() == Uniform((0, 1) * 6).labels[draw.candidates.ids].tolist()
        np.testing.assert_array_equal(x[:, 0], numbers(base, draw.candidates))


def test_self_distill_penalises_the_divergence_from_the_oracles_views() -> None:
    base = jittered()
    model = network(norm=True)
    optimizer = sgd(model)
    loader = mine(base, model, optimizer, method="self-distill", gamma=3, update_every=2, distill_weight=0.7)
    by_hand = Replay(base.dataset, default_collate)
    versions = {0: copy.deepcopy(model).eval()}
    for draw_number, (x, y) in enumerate(loader):
        outputs = model(x)
        penalty = loader.penalty(outputs)
        assert loader.last is not None
        assert loader.last.version == draw_number // 2 * 2
        assert loader.last.candidates.ids.tolist() == np.repeat(loader.last.addresses.ids, 3).tolist()
        assert not set(loader.last.candidates.seeds) & set(loader.last.addresses.seeds), "an anchor is no view"
        with torch.no_grad():
            views = versions[loader.last.version](by_hand.batch(loader.last.candidates)[0])
        p_BK, q_BGK = outputs.softmax(1), views.softmax(1).view(4, 3, -1)
        divergences = [
            sum(p * (p.log() - q.log()) for p, q in zip(p_BK[b], q_BGK[b, i], strict=True))
            for b in range(4)
            for i in range(3)
        ]
        torch.testing.assert_close(penalty, 0.7 * torch.stack(divergences).mean())
        (F.cross_entropy(outputs, y) + penalty).backward()
        optimizer.step()
        optimizer.zero_grad()
        versions[draw_number + 1] = copy.deepcopy(model).eval()


def test_samples_that_overflow_in_the_oracle_are_counted_and_add_nothing_to_the_penalty() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(2)))
    with torch.no_grad():
        for layer in model:
            layer.weight.copy_(400 * torch.eye(2))  # 400² · x is more than float16 holds where x > 0.41
    loader = mine(uniform_loader(batch_size=12), model, method="self-distill", gamma=2, oracle="torch:fp16")
    next(iter(loader))
    assert loader.last is not None
    assert loader.last.log_probabilities is not None
    unsaid = loader.last.log_probabilities.isnan().any(1)
    assert 0 < unsaid.sum() < 12
    assert loader.metrics()["nonfinite_scores"] == unsaid.sum()
    assert loader.penalty(torch.zeros(12, 2)).isfinite()


# Algorithm 1


def algorithm_1(model: nn.Module, *, gamma: int, batch_size: int, seed: int, num_draws: int) -> list[list[int]]:
    """The paper's, word for word, in plain PyTorch: score every view with today's weights, train on the hardest."""
    optimizer = sgd(model)
    data = Replay(Jittered(), default_collate)
    picks = []
    for draw in range(num_draws):
        ids = np.arange(draw * batch_size, (draw + 1) * batch_size) % len(data)
        epoch, slot, view = draw * batch_size // len(data), np.arange(batch_size)[:, None], np.arange(gamma)[None]
        at = seeds(seed, Purpose.VIEW, epoch=epoch, draw=draw, slot=slot, view=view)
        x, y = data.batch(Addresses(np.repeat(ids, gamma), at.reshape(-1)))
        with torch.no_grad():
            losses = F.cross_entropy(copy.deepcopy(model).eval()(x), y, reduction="none")
        chosen = losses.view(batch_size, gamma).argmax(1) + gamma * torch.arange(batch_size)
        loss = F.cross_entropy(model(x[chosen]), y[chosen])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        picks.append(chosen.tolist())
    return picks


@pytest.mark.parametrize("norm", [False, True])
def test_it_is_algorithm_1(norm: bool) -> None:
    naive, model = network(norm=norm), network(norm=norm)
    expected = algorithm_1(naive, gamma=6, batch_size=8, seed=5, num_draws=12)
    optimizer = sgd(model)
    loader = mine(
        jittered(batch_size=8, shuffle=False), model, optimizer, gamma=6, update_every=1, delay_steps=0, seed=5
    )
    picks = [draw.chosen.tolist() for _ in range(4) for draw in draws(loader, model, optimizer)]  # type: ignore[union-attr]
    assert picks == expected
    assert any(index % 6 for pick in picks for index in pick), "view 0 alone would be the baseline"
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, naive.state_dict()[name], rtol=1e-6, atol=1e-7)


# Settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"gamma": 0}, "gamma must be at least 1: got 0; pass gamma=1 or more"),
        ({"update_every": 0}, "update_every must be at least 1: got 0"),
        ({"delay_steps": -1}, "delay_steps must be at least 0: got -1"),
        ({"mine_every": 0}, "mine_every must be at least 1"),
        ({"accumulation_steps": 0}, "accumulation_steps must be at least 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"oracle_chunk": 0}, "oracle_chunk must be at least 1"),
        ({"seed": -1}, "seed must be at least 0: got -1"),
        ({"seed": 1 << 63}, r"seed must be in \[0, 2\^63\): got 9223372036854775808"),
        ({"method": "nm-augmet"}, "unknown method 'nm-augmet': there is .*did you mean 'nm-augment'"),
        ({"score": "los"}, "unknown score 'los': there is .*did you mean 'loss'"),
        ({"pick": "maks"}, "unknown pick 'maks': there is .*did you mean 'max'"),
        ({"oracle": "torsh:fp32"}, "unknown engine 'torsh': there is .*did you mean 'torch'"),
        ({"oracle": "torch:fp33"}, "precision of the torch engine must be one of fp32, bf16, fp16: got 'fp33'"),
        ({"method": "nm-sample", "epochs": 3, "pick": "max"}, "pick must be left out .* for nm-sample; use nm-augment"),
        ({"method": "baseline", "score": "loss"}, "score must be left out where nothing is scored: got 'loss'"),
        ({"method": "baseline", "score": squared_error}, "score must be left out where nothing is scored"),
        ({"method": "random-sample", "epochs": 3, "score": squared_error}, "score must be left out"),
        ({"method": "self-distill", "score": squared_error}, "score must be left out"),
        ({"method": "self-distill", "ramp_rate": 0.1}, "a ramp must be left out .* for self-distill; drop it"),
        ({"method": "nm-sample"}, r"nm-sample needs epochs=.*or pass ramp_rate=0.01"),
        ({"method": "random-sample"}, "random-sample needs epochs="),
        ({"scaler": torch.amp.GradScaler("cpu")}, "scaler needs the optimizer .*pass optimizer= too"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_a_remedy(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        mine(jittered(), network(), **settings)
    assert "\n" not in str(error.value)


def scalar_score(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets)


@pytest.mark.parametrize(
    ("data", "settings", "said"),
    [
        (Jittered(), {"score": scalar_score}, r"score must return one number for each candidate: got shape \(\)"),
        (Measured(), {"method": "nm-sample", "score": squared_error}, "needs one class label .*balance='none'"),
        (Measured(), {}, r"integer classes as targets: got torch.float32; .*own score"),
    ],
)
def test_what_only_a_batch_can_tell_is_refused_at_once(data: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        mine(DataLoader(data, batch_size=4), network(), ramp_stop=0.0, **settings)


def test_nm_sample_takes_float_targets_without_balance() -> None:
    base = DataLoader(Measured(), batch_size=4)
    loader = mine(base, network(), method="nm-sample", score=squared_error, balance="none", ramp_stop=0.0, gamma=3)
    assert next(iter(loader))[1].dtype == torch.float32


# What is logged


def test_log_dir_holds_configuration_rows_and_after_close_a_report(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    model = network()
    optimizer = sgd(model)
    loader = mine(jittered(), model, optimizer, gamma=3, update_every=5, log_dir=folder, log_every=4)
    lags = [[draw.lag for draw in draws(loader, model, optimizer)] for _ in range(2)]
    config = read_config(folder)
    assert (config["method"], config["gamma"], config["update_every"]) == ("nm-augment", 3, 5)
    start, *rows = read_rows(folder)
    assert start["kind"] == "start"
    assert start["versions"]["torch"] == torch.__version__
    assert [(row["kind"], row["step"], row["draw"]) for row in rows] == [("step", n, n - 1) for n in (4, 8, 12)]
    assert [row["epoch"] for row in rows] == [0, 1, 1]
    assert [row["version"] for row in rows] == [0, 5, 10]
    flat = [lag for epoch in lags for lag in epoch if lag is not None]
    assert [row["lag"] for row in rows] == [np.mean(flat[n : n + 4]) for n in (0, 4, 8)]
    assert all(row["score_chosen"] > row["score_mean"] > 0 for row in rows)
    loader.close()
    loader.close()
    assert "nm-augment" in (folder / "report.html").read_text("utf-8")


def test_a_resumed_run_logs_no_step_twice(tmp_path: Path) -> None:
    def resumable() -> tuple[MinedLoader, nn.Module, torch.optim.Optimizer]:
        model = network()
        optimizer = sgd(model)
        return mine(jittered(), model, optimizer, gamma=2, log_dir=tmp_path, log_every=1), model, optimizer

    loader, model, optimizer = resumable()
    seen = draws(loader, model, optimizer)
    for _ in range(3):
        next(seen)
    state = loader.state_dict()
    next(seen)
    loader, model, optimizer = resumable()
    loader.load_state_dict(state)
    assert [draw.number for draw in draws(loader, model, optimizer)] == [3, 4, 5]
    loader.close()
    rows = [row for row in read_rows(tmp_path) if row["kind"] == "step"]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_a_step_of_the_baseline_outside_the_loop_is_not_logged(tmp_path: Path) -> None:
    model = network()
    optimizer = sgd(model)
    loader = mine(jittered(), model, optimizer, method="baseline", log_dir=tmp_path, log_every=1)
    optimizer.step()
    assert read_rows(tmp_path) == [], "nothing is written before the first epoch begins"
    assert len(list(draws(loader, model, optimizer))) == 6
    assert [row["kind"] for row in read_rows(tmp_path)] == ["start"] + ["step"] * 6


def test_metrics_are_plain_floats_of_what_came_since_the_last_call() -> None:
    model = network()
    optimizer = sgd(model)
    loader: MinedLoader = mine(jittered(), model, optimizer, gamma=3, update_every=4, mine_every=2)
    list(draws(loader, model, optimizer))
    measured = loader.metrics()
    assert all(type(value) is float for value in measured.values()), measured
    assert (measured["draws"], measured["mined_draws"], measured["gamma"], measured["steps"]) == (6, 3, 3, 6)
    assert measured["lag"] == np.mean([0, 2, 0])
    assert measured["mined_share"] == 0.5
    assert measured["score_chosen"] > measured["score_mean"]
    assert loader.metrics()["draws"] == 0
    next(draws(loader, model, optimizer))
    assert loader.metrics()["draws"] == 1


def test_infinite_scores_are_counted_and_never_picked() -> None:
    def score(outputs: Tensor, targets: Tensor) -> Tensor:
        number = outputs[torch.arange(len(targets)), targets].neg()
        return torch.where(number > number.median(), torch.nan, number)

    base = uniform_loader(batch_size=12)
    loader = mine(base, Monotone(), score=score, gamma=8)
    next(iter(loader))
    assert loader.last is not None
    assert loader.last.scores is not None
    assert loader.last.chosen is not None
    assert loader.metrics()["nonfinite_scores"] == loader.last.scores.isnan().sum() > 20
    views = loader.last.scores.view(12, 8)
    has_finite = views.isfinite().any(1)
    assert torch.equal(loader.last.scores[loader.last.chosen].isfinite(), has_finite)


def test_settings_may_come_as_one_object_and_be_changed_beside_it() -> None:
    shared = Mining(gamma=3, update_every=4, method="nm-augment-soft")
    model = network()
    loader = mine(jittered(), model, sgd(model), shared, seed=5)
    assert loader.mining == replace(shared, seed=5, oracle_chunk=32)
    again = mine(jittered(), network(), mining=loader.mining)
    assert again.mining == loader.mining
    with pytest.raises(ValueError, match=r"unknown setting 'gama'.*did you mean 'gamma'"):
        mine(jittered(), network(), gama=3)


def test_every_method_trains() -> None:
    for method in METHODS:
        model = network(dropout=0.2, norm=True)
        optimizer = sgd(model)
        own = {"irreducible": torch.zeros(24)} if METHODS[method].needs_irreducible else {}
        loader = mine(jittered(), model, optimizer, method=method, gamma=3, update_every=4, epochs=2, **own)
        seen = [draw for _ in range(2) for draw in draws(loader, model, optimizer)]
        assert [draw.number for draw in seen] == list(range(12))
        sizes = {"batch-augment": {12}, "infobatch": {1, 2, 3, 4}}.get(method, {4})
        assert {len(draw.addresses) for draw in seen} <= sizes
        assert not equal(state_of(model), network().state_dict())
        assert max(draw.addresses.ids.max() for draw in seen) < 24 <= CLASSES * 8


def diverge(loader: MinedLoader, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for _ in draws(loader, model, optimizer):
        with torch.no_grad():
            next(iter(model.parameters()))[0] = torch.nan


@pytest.mark.parametrize("oracle", ["torch:fp32", "int8"])
def test_weights_that_are_not_finite_end_the_run_at_the_next_version(oracle: str) -> None:
    """An old oracle could go on, but the training that it would pick for is over."""
    model = network()
    optimizer = sgd(model)
    loader = mine(jittered(), model, optimizer, gamma=2, update_every=3, oracle=oracle)
    with pytest.raises(NotFiniteError, match=r"NaN or infinity in 0\.weight.*if training has diverged"):
        diverge(loader, model, optimizer)
    assert loader.steps == 3
