"""Mining under Accelerate: prepared loaders move batches and mine, and select what a loop of one's own selects."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import prepare_data_loader
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DataLoaderConfiguration
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler

import infer2train
from infer2train.draws.draw import Draw
from infer2train.loader.loader import MinedLoader
from infer2train.oracle.torch_engine import TorchEngine
from integrations.host_runs import EPOCHS, SETTINGS, Told, are_the_same, die, killed, own_loop, parts, run_of_ones_own
from mined_runs import Jittered, equal, jittered, network, sgd, state_of

pytestmark = pytest.mark.usefixtures("one_thread", "fresh_state")


@pytest.fixture
def fresh_state() -> Iterator[None]:
    """Accelerate keeps its state in the process."""
    forget_state()
    yield
    forget_state()


def forget_state() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def epoch(accelerator: Accelerator, loader: MinedLoader, model: nn.Module, optimizer: Any) -> Iterator[Draw]:
    """One epoch as Accelerate's documentation writes it."""
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(F.cross_entropy(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
        assert loader.last is not None
        yield loader.last


def prepared(every: int = 1, **options: Any) -> tuple[Accelerator, nn.Module, Any, MinedLoader]:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=every, **options)
    model, optimizer, base = accelerator.prepare(*parts())
    return accelerator, model, optimizer, infer2train.mine(base, model, optimizer, **SETTINGS)


def trained(made: tuple[Accelerator, nn.Module, Any, MinedLoader]) -> tuple[Told, dict[str, torch.Tensor]]:
    accelerator, model, optimizer, loader = made
    told = [draw for _ in range(EPOCHS) for draw in epoch(accelerator, loader, model, optimizer)]
    loader.close()
    return told, state_of(model)


# What is selected


@pytest.mark.parametrize(("every", "precision"), [(1, "no"), (4, "no"), (4, "bf16")])
def test_a_prepared_loader_selects_what_a_loop_of_ones_own_selects(every: int, precision: str) -> None:
    """Accelerate's own loader fetches one batch ahead; this one does not, and needs no delay."""
    own, weights = run_of_ones_own(every, in_bf16=precision == "bf16")
    made = prepared(every, mixed_precision=precision)
    assert any("accumulation_steps is 4" in note for note in made[3].notes) == (every == 4)
    told, others = trained(made)
    assert len(told) == EPOCHS * 7
    assert are_the_same(told, own)
    assert equal(others, weights)


def test_mined_before_it_is_prepared_it_does_the_same() -> None:
    own, weights = run_of_ones_own(4)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    model, optimizer, base = parts()
    loader = infer2train.mine(base, model, optimizer, **SETTINGS, accumulation_steps=4)
    told, others = trained((accelerator, *accelerator.prepare(model, optimizer, loader)))
    assert are_the_same(told, own)
    assert equal(others, weights)


def test_a_seed_in_the_sampler_does_not_change_the_order() -> None:
    own, weights = run_of_ones_own()
    seeded = DataLoaderConfiguration(use_seedable_sampler=True, data_seed=3)
    made = prepared(dataloader_config=seeded)
    assert type(made[3].batch_sampler.sampler) is RandomSampler
    told, others = trained(made)
    assert are_the_same(told, own)
    assert equal(others, weights)


def test_an_oracle_of_a_model_in_mixed_precision_computes_in_its_own() -> None:
    model = Accelerator(cpu=True, mixed_precision="bf16").prepare(network())
    engine = TorchEngine(model)
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.ones(2, 1, 6, 6))
    again = pickle.loads(pickle.dumps(engine))
    for asked in (engine, again):
        with torch.inference_mode():
            asked._network(torch.ones(2, 1, 6, 6))
        assert set(asked.precisions().values()) == {"fp32"}
    assert "_original_forward" in vars(model), "the trainer's own is left as it is"


# What Accelerate is told


def test_batches_go_where_the_prepared_loader_sends_them() -> None:
    model = network()
    base = prepare_data_loader(jittered(), device=torch.device("meta"), put_on_device=True)
    x, y = next(iter(infer2train.mine(base, model, sgd(model), **SETTINGS)))
    assert (x.device.type, y.device.type) == ("meta", "meta")


def test_a_model_that_moves_after_mine_is_refused_with_the_lines_to_write() -> None:
    model = network()
    loader = infer2train.mine(jittered(), model, sgd(model), **SETTINGS)
    model.to("meta")
    with pytest.raises(
        ValueError, match=r"got one on cpu that is on meta now; call mine\(\) after accelerator.prepare"
    ):
        next(iter(loader))


def test_accumulation_that_is_not_declared_before_prepare_is_refused() -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    model, optimizer, base = parts()
    loader = infer2train.mine(base, model, optimizer, **SETTINGS | {"update_every": 1})
    with pytest.raises(RuntimeError, match="pass accumulation_steps= if the loop accumulates gradients"):
        trained((accelerator, *accelerator.prepare(model, optimizer, loader)))


def test_a_loop_that_is_left_and_one_inside_are_no_longer_the_active_one() -> None:
    accelerator, model, optimizer, loader = prepared()
    inside, state = accelerator.prepare(jittered(8)), GradientState()
    for draw in epoch(accelerator, loader, model, optimizer):
        assert not state.end_of_dataloader
        assert [state.end_of_dataloader for _ in inside] == [False, True]
        assert state.in_dataloader
        if draw.number == 2:
            break
    assert not state.in_dataloader


class ToldEpochs(RandomSampler):
    """A sampler that wants to know the epoch."""

    told: tuple[int, ...] = ()

    def set_epoch(self, number: int) -> None:
        self.told = (*self.told, number)


def test_samplers_are_told_the_epoch_also_after_a_resume() -> None:
    def made() -> tuple[ToldEpochs, Any]:
        model, data = network(), Jittered(8)
        sampler = ToldEpochs(data)
        parts = Accelerator(cpu=True).prepare(model, sgd(model), DataLoader(data, batch_size=4, sampler=sampler))
        return sampler, (Accelerator(cpu=True), *parts[:2], infer2train.mine(parts[2], *parts[:2], **SETTINGS))

    sampler, (accelerator, model, optimizer, loader) = made()
    for _ in range(2):
        list(epoch(accelerator, loader, model, optimizer))
    next(epoch(accelerator, loader, model, optimizer))
    assert sampler.told == (0, 1, 2)
    state = loader.state_dict()
    sampler, (accelerator, model, optimizer, loader) = made()
    loader.load_state_dict(state)
    list(epoch(accelerator, loader, model, optimizer))
    assert sampler.told == (2,)


@pytest.mark.parametrize("mined_first", [False, True])
def test_skipping_batches_is_refused_with_the_remedy(mined_first: bool) -> None:
    model, optimizer, base = Accelerator(cpu=True).prepare(*parts())
    remedy = r"resume (it )?by loader.load_state_dict\(state\)"
    if mined_first:
        skipping = skip_first_batches(infer2train.mine(base, model, optimizer, **SETTINGS), 2)
        with pytest.raises(RuntimeError, match=remedy):
            next(iter(skipping))
    else:
        with pytest.raises(ValueError, match=remedy):
            infer2train.mine(skip_first_batches(base, 2), model, optimizer, **SETTINGS)


def test_steps_that_its_scaler_skips_are_counted() -> None:
    Accelerator(cpu=True)
    model = network()
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    optimizer = AcceleratedOptimizer(sgd(model), scaler=scaler)
    loader = infer2train.mine(jittered(40), model, optimizer, **SETTINGS)
    for number, (x, y) in enumerate(loader):
        loss = F.cross_entropy(model(x), y) * (float("inf") if number == 2 else 1.0)
        scaler.scale(loss).backward()
        optimizer.step()
        assert optimizer.step_was_skipped == (number == 2)
        optimizer.zero_grad()
        assert loader.steps == number + 1


# Resume


@pytest.mark.parametrize(("every", "draws"), [(1, 10), (4, 13)], ids=["mid-epoch", "mid-accumulation"])
def test_a_killed_run_goes_on_in_the_same_bits(every: int, draws: int, tmp_path: Path) -> None:
    """Ten draws are a whole epoch and three; thirteen end after two of the four micro-batches of a step."""
    own, weights = run_of_ones_own(every)

    def dies() -> None:
        accelerator, model, optimizer, loader = prepared(every)
        accelerator.register_for_checkpointing(loader)
        for _ in range(EPOCHS):
            for draw in epoch(accelerator, loader, model, optimizer):
                if draw.number == draws:
                    die()
                accelerator.save_state(str(tmp_path))

    killed(dies)
    accelerator, model, optimizer, loader = prepared(every)
    accelerator.register_for_checkpointing(loader)
    accelerator.load_state(str(tmp_path))
    epochs = range(loader.epoch, EPOCHS)
    told = [draw for _ in epochs for draw in epoch(accelerator, loader, model, optimizer)]
    assert are_the_same(told, own[draws:])
    assert equal(state_of(model), weights)


def test_what_a_checkpoint_holds_of_the_loader_is_data_alone(tmp_path: Path) -> None:
    accelerator, model, optimizer, loader = prepared()
    accelerator.register_for_checkpointing(loader)
    list(epoch(accelerator, loader, model, optimizer))
    accelerator.save_state(str(tmp_path))
    state = torch.load(tmp_path / "custom_checkpoint_0.pkl", weights_only=True)
    assert equal(state, loader.state_dict())


def test_gradients_are_saved_where_they_are_accumulated() -> None:
    for every in (1, 4):
        model, optimizer, base = parts()
        loader = infer2train.mine(base, model, optimizer, **SETTINGS, accumulation_steps=every)
        has_gradients = []
        for _ in own_loop(loader, model, optimizer, every):
            saved = list(loader.state_dict()["gradients"].values())
            has_gradients.append(bool(saved))
            assert not saved or equal(saved, [p.grad for p in model.parameters()])
        assert has_gradients == ([False] * 7 if every == 1 else [True, True, True, False, True, True, False])
