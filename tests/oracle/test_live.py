"""The model itself as the measure of its oracles: what they cannot see change is found, and nothing is moved."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from infer2train import MinedLoader, mine
from infer2train.oracle.live import MEASURED_EVERY_STEPS
from mined_runs import Jittered, draws, equal, jittered, network, sgd, state_of


class Schedule:
    def __init__(self) -> None:
        self.value = 1.0


class Changing(nn.Module):
    """Reads state of every kind in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(36, 3)
        self.alpha, self.calls, self.schedule, self.options = 1.0, 0, Schedule(), {"scales": [1.0, 1.0]}
        self.register_buffer("shift", torch.zeros(1), persistent=False)
        self.register_buffer("kept", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        scale = self.alpha * self.schedule.value * self.options["scales"][1]
        return scale * (1 + self.shift + self.kept) * self.layer(x.flatten(1))


def run(
    change: Any, oracle: str = "torch:fp32", steps: int = MEASURED_EVERY_STEPS + 10
) -> tuple[MinedLoader, list[str]]:
    """A run whose model is changed after each step, and what was warned of."""
    torch.manual_seed(0)
    model = Changing()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = mine(jittered(40), model, optimizer, gamma=2, update_every=10, oracle=oracle)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        while loader.steps < steps:
            for _ in draws(loader, model, optimizer):
                change(model)
    return loader, [str(warning.message) for warning in caught]


@pytest.mark.parametrize("oracle", ["torch:fp32", "int8"])
@pytest.mark.parametrize("name", ["shift", "kept"])
def test_buffers_of_both_kinds_are_followed(name: str, oracle: str) -> None:
    torch.manual_seed(0)
    model = Changing()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    first = copy.deepcopy(model)
    loader = mine(jittered(40), model, optimizer, gamma=2, update_every=1, oracle=oracle)
    wrong = old = 0.0
    for x, y in loader:
        assert loader.last is not None
        assert loader.last.scores is not None
        said = loader.last.scores[torch.from_numpy(loader.last.chosen)]
        with torch.no_grad():
            fresh, stale = (F.cross_entropy(each(x), y, reduction="none") for each in (model, first))
        wrong, old = wrong + float((said - fresh).abs().sum()), old + float((stale - fresh).abs().sum())
        getattr(model, name).add_(torch.tensor([0.4]))
        optimizer.step()
    assert old > 10
    assert wrong < (0.3 if oracle == "int8" else 1e-5) * old
    assert "outgrown_versions" not in loader.metrics()


@pytest.mark.parametrize("oracle", ["torch:fp32", "int8"])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda model: setattr(model, "alpha", model.alpha + 0.1), r"alpha (1.0 -> 1"),
        (lambda model: setattr(model.schedule, "value", 0.5), r"schedule.value (1.0 -> 0.5)"),
        (lambda model: model.options["scales"].__setitem__(1, -1.0), r"options['scales'][1] (1.0 -> -1.0)"),
        (lambda model: setattr(model, "layer", nn.Sequential(model.layer)) if model.calls > 50 else None, "is missing"),
    ],
)
def test_what_no_oracle_sees_change_is_named(change: Any, named: str, oracle: str) -> None:
    if named == "is missing":
        with pytest.raises(ValueError, match=r"layer\.weight is missing"):
            run(change, oracle)
        return
    loader, said = run(change, oracle)
    (message,) = [text for text in said if "an oracle sees parameters and buffers change" in text]
    assert named in message
    assert "self.register_buffer(name, torch.tensor(value), persistent=False)" in message
    assert loader.metrics()["outgrown_versions"] >= 1


def test_an_attribute_that_does_not_matter_is_not_mentioned() -> None:
    _, said = run(lambda model: setattr(model, "name", f"after {model.calls}"))
    assert [text for text in said if "an oracle sees" in text] == []


def test_measuring_moves_nothing_of_the_model() -> None:
    """Two runs, one of which is measured: the same weights, batch-norm statistics, counters and random numbers."""
    found = []
    for score in ("loss", None):
        torch.manual_seed(0)
        model, base = network(norm=True, dropout=0.3), DataLoader(Jittered(40), batch_size=4)
        optimizer = sgd(model)
        loader = mine(base, model, optimizer, method="baseline" if score is None else "nm-augment", gamma=1)
        modes = [module.training for module in model.modules()]
        for _ in draws(loader, model, optimizer):
            assert [module.training for module in model.modules()] == modes
        found.append((state_of(model), torch.rand(3), all(p.requires_grad for p in model.parameters())))
    assert equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][2]


def test_a_model_in_bfloat16_is_measured_in_float32_and_stays_as_it_is() -> None:
    model = network().bfloat16()
    loader = mine(jittered(40), model, sgd(model), gamma=2)
    next(iter(loader))
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    assert loader.metrics()["captured_gain"] == pytest.approx(1)
