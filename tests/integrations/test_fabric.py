"""Mining under Fabric: what it has set up is mined, and batches go where it would send them."""

from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn
from torch.nn import functional as F

import infer2train
from infer2train.loader.loader import MinedLoader
from infer2train.loader.surroundings import Fabric as Around
from integrations.host_runs import EPOCHS, SETTINGS, Told, are_the_same, parts, run_of_ones_own
from mined_runs import equal, jittered, network, sgd, state_of

pytestmark = pytest.mark.usefixtures("one_thread")


def set_up(precision: Any = "32-true") -> tuple[Fabric, nn.Module, Any, MinedLoader]:
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    model, optimizer, base = parts()
    model, optimizer = fabric.setup(model, optimizer)
    base = fabric.setup_dataloaders(base)
    return fabric, model, optimizer, infer2train.mine(base, model, optimizer, **SETTINGS)


def trained(fabric: Fabric, model: nn.Module, optimizer: Any, loader: MinedLoader) -> tuple[Told, Any]:
    told: Told = []
    for _ in range(EPOCHS):
        for x, y in loader:
            fabric.backward(F.cross_entropy(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
            assert loader.last is not None
            told.append(loader.last)
    return told, state_of(model)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_what_fabric_has_set_up_selects_what_a_loop_of_ones_own_selects(precision: str) -> None:
    own, weights = run_of_ones_own(in_bf16=precision != "32-true")
    told, others = trained(*set_up(precision))
    assert are_the_same(told, own)
    assert equal(others, weights)


def test_a_run_goes_on_through_fabrics_checkpoint(tmp_path: Any) -> None:
    own, weights = run_of_ones_own()
    fabric, model, optimizer, loader = set_up()
    for _ in range(2):
        for x, y in loader:
            fabric.backward(F.cross_entropy(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
            if loader.steps == 10:
                break
    fabric.save(tmp_path / "state", {"model": model, "optimizer": optimizer, "loader": loader})
    fabric, model, optimizer, loader = set_up()
    fabric.load(tmp_path / "state", {"model": model, "optimizer": optimizer, "loader": loader})
    told: Told = []
    for _ in range(loader.epoch, EPOCHS):
        for x, y in loader:
            fabric.backward(F.cross_entropy(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
            assert loader.last is not None
            told.append(loader.last)
    assert are_the_same(told, own[10:])
    assert equal(state_of(model), weights)


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
