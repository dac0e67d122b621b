"""Copies of models as people have them: with computed weights, kept activations, TorchScript."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils.data import DataLoader

from infer2train import mine
from infer2train.oracle.measurement import step_seconds
from infer2train.oracle.quantization.frozen import frozen_copy
from infer2train.studies.gamma.trainer import training_ways
from infer2train.studies.inspection.judge import Judge
from mined_runs import Plain, draws, jittered, sgd


class Keeps(nn.Module):
    """Keeps what it computed last, as models do whose features are looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(36, 3)
        self.seen: dict[str, list[Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.seen["features"] = [self.layer(x.flatten(1))]
        return self.seen["features"][0]


class Pinned(nn.Module):
    """Freezes batch-norm as most do, without returning itself."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.BatchNorm2d(1), nn.Linear(36, 3)

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)
        self.norm.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.norm(x).flatten(1))  # type: ignore[no-any-return]


def normed() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(36, 3)))


def pruned() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    prune.l1_unstructured(model[1], "weight", 0.5)
    return model


def spectral() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.utils.spectral_norm(nn.Linear(36, 3)))


def scripted() -> nn.Module:
    return torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.BatchNorm1d(3)))  # type: ignore[no-any-return]


def seen_by(hook_of: Callable[[list[Tensor]], Any], mined: bool) -> tuple[Tensor, list[Tensor]]:
    """Weights after an epoch whose loss takes what a hook saw of the first layer, and what that was at each step."""
    torch.manual_seed(0)
    features: list[Tensor] = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3))
    model[1].register_forward_hook(hook_of(features))
    optimizer, base = sgd(model), DataLoader(Plain(24), batch_size=4)
    loader = mine(base, model, optimizer, gamma=1, update_every=2) if mined else base  # of one view, it is the same
    told = []
    for x, y in loader:
        loss = F.cross_entropy(model(x), y) + features[0].abs().mean()
        told.append(features[0].detach())
        assert len(features) == 1
        features.clear()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model[1].weight.detach(), told


def test_hooks_that_look_are_the_loops_alone() -> None:
    def looks(features: list[Tensor]) -> Any:
        return lambda module, inputs, output: features.append(output)

    (own, told), (other, others) = seen_by(looks, mined=False), seen_by(looks, mined=True)
    assert torch.equal(own, other)
    assert all(torch.equal(a, b) for a, b in zip(told, others, strict=True))


def test_hooks_that_change_outputs_are_kept() -> None:
    def doubles(features: list[Tensor]) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            return 2 * output

        return hook

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    handle = model.register_forward_hook(doubles([]))
    loader = mine(jittered(), model, sgd(model), gamma=2)
    x = torch.rand(4, 1, 6, 6)
    assert torch.equal(frozen_copy(model)(x), model(x))
    loader.close()
    handle.remove()
    mine(jittered(), model, sgd(model), gamma=2).close()
    assert torch.equal(frozen_copy(model)(x), model(x))
    model.register_forward_hook(lambda module, inputs, output: None)
    mine(jittered(), model, sgd(model), gamma=2).close()
    assert not frozen_copy(model)._forward_hooks, "one that looks, beside none that changes"


KINDS = [normed, pruned, spectral, Keeps, scripted]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("make", KINDS)
def test_a_copy_computes_what_the_model_does_and_shares_nothing(make: Callable[[], nn.Module]) -> None:
    model, x = make(), torch.rand(4, 1, 6, 6)
    model(x)  # what it keeps has a history now
    frozen = frozen_copy(model)
    expected = model.eval()(x).detach()
    assert torch.equal(frozen(x), expected)
    assert not frozen.training
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert torch.equal(frozen(x), expected)


class Locked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(36, 3)
        self.layer.lock = threading.Lock()


def test_what_cannot_be_copied_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"needs a copy of the model.*cannot pickle.*, of layer\.lock; keep it outside"
    ):
        mine(jittered(), Locked(), gamma=2)


def test_a_train_method_that_returns_nothing_is_called_all_the_same() -> None:
    model, x = Pinned(), torch.rand(4, 1, 6, 6)
    mine(jittered(), model, sgd(model), gamma=2).close()
    assert model.training
    assert not frozen_copy(model).training
    assert step_seconds(model, x) > 0
    assert len(list(training_ways(model, x, torch.zeros(4).long(), compiled=False))) == 4
    assert Judge(model, lambda outputs, targets: outputs[:, 0])(x, torch.zeros(4)).shape == (4,)
    assert model.training


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:batch-norm is folded only")
@pytest.mark.parametrize("make", KINDS)
def test_such_a_model_is_mined_by_its_newest_weights(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make()
    optimizer = sgd(model)
    loader = mine(jittered(40), model, optimizer, gamma=2, update_every=1)
    model(torch.rand(4, 1, 6, 6))
    for _ in draws(loader, model, optimizer):
        last = loader.last
        assert last is not None
        assert last.lag == 0
    with torch.no_grad():
        x, y = next(iter(loader))
        fresh = nn.functional.cross_entropy(model.eval()(x), y, reduction="none")
    assert loader.last is not None
    assert loader.last.scores is not None
    torch.testing.assert_close(loader.last.scores[torch.from_numpy(loader.last.chosen)], fresh)
