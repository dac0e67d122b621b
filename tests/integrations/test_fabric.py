"""Mining under Fabric: what it has set up is mined, and batches go where it would send them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from torch import nn
from torch.nn import functional as F

import infer2train
from infer2train.loader.loader import MinedLoader
from infer2train.loader.surroundings import Fabric as Around
from integrations.host_runs import EPOCHS, SETTINGS, Told, are_the_same, die, killed, parts, run_of_ones_own
from mined_runs import equal, jittered, network, sgd, state_of

pytestmark = pytest.mark.usefixtures("one_thread")


Run = tuple[Fabric, nn.Module, Any, MinedLoader]


def set_up(precision: Any = "32-true", every: int = 1) -> Run:
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    model, optimizer, base = parts()
    model, optimizer = fabric.setup(model, optimizer)
    base = fabric.setup_dataloaders(base)
    return fabric, model, optimizer, infer2train.mine(base, model, optimizer, **SETTINGS, accumulation_steps=every)


def trained(run: Run, every: int = 1, after: Callable[[int], None] = lambda number: None) -> tuple[Told, Any]:
    """Train what is left of the run; `after` is called after each draw."""
    fabric, model, optimizer, loader = run
    told: Told = []
    for _ in range(loader.epoch, EPOCHS):
        for x, y in loader:
            is_last = (loader.position % every == 0) or loader.position == len(loader)
            with fabric.no_backward_sync(model, enabled=not is_last):
                fabric.backward(F.cross_entropy(model(x), y) / every)
            if is_last:
                optimizer.step()
                optimizer.zero_grad()
            assert loader.last is not None
            told.append(loader.last)
            after(loader.last.number)
    return told, state_of(model)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_what_fabric_has_set_up_selects_what_a_loop_of_ones_own_selects(precision: str) -> None:
    own, weights = run_of_ones_own(in_bf16=precision != "32-true")
    told, others = trained(set_up(precision))
    assert are_the_same(told, own)
    assert equal(others, weights)


@pytest.mark.parametrize(("every", "draws"), [(1, 10), (4, 13)], ids=["mid-epoch", "mid-accumulation"])
def test_a_killed_run_goes_on_in_the_same_bits(every: int, draws: int, tmp_path: Path) -> None:
    """Ten draws are a whole epoch and three; thirteen end after two of the four micro-batches of a step."""
    own, weights = run_of_ones_own(every)

    def state(run: Run) -> dict[str, Any]:
        return dict(zip(("model", "optimizer", "loader"), run[1:], strict=True))

    def dies() -> None:
        run = set_up(every=every)

        def save_or_die(number: int) -> None:
            if number == draws:
                die()
            run[0].save(tmp_path / "state", state(run))

        trained(run, every, save_or_die)

    killed(dies)
    run = set_up(every=every)
    run[0].load(tmp_path / "state", state(run))
    told, others = trained(run, every)
    assert are_the_same(told, own[draws:])
    assert equal(others, weights)


def test_batches_go_where_fabric_sends_them() -> None:
    base = Fabric(accelerator="cpu", devices=1).setup_dataloaders(jittered())
    base._device = torch.device("meta")
    model = network()
    x, y = next(iter(infer2train.mine(base, model, sgd(model), **SETTINGS)))
    assert (x.device.type, y.device.type) == ("meta", "meta")
    batch = torch.ones(1)
    assert Around(None).placed(batch, is_last=False) is batch


def test_a_mined_loader_is_not_taken_by_fabric_itself() -> None:
    fabric, _, _, loader = set_up()
    with pytest.raises(TypeError, match="Only PyTorch DataLoader"):
        fabric.setup_dataloaders(loader)


def test_steps_that_fabrics_scaler_skips_are_counted() -> None:
    """It overflows at the first step, as it does on real networks."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    precision = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[precision])
    own = network()
    model, optimizer = fabric.setup(own, sgd(own))
    loader = infer2train.mine(fabric.setup_dataloaders(jittered(40)), model, optimizer, gamma=2, update_every=3)
    before = scaler.get_scale()
    for x, y in loader:
        fabric.backward(torch.nn.functional.cross_entropy(model(x), y))
        optimizer.step()
        optimizer.zero_grad()
    assert scaler.get_scale() < before, "it has skipped a step"
    assert loader.steps == 10
