"""Records: copies of the whole state, and what is refused."""

import dataclasses

import pytest
import torch
from torch import nn

from infer2train.oracle.snapshot import (
    NotFiniteError,
    Record,
    RecordGate,
    check_architecture,
    parameters_and_buffers,
    snapshot,
)


def network() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    model[2].weight = nn.Parameter(model[0].weight.detach().t().contiguous())
    return model


def test_a_record_is_a_copy_of_weights_and_buffers() -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    record = snapshot(model, 100)
    assert record.version == 100
    assert list(record.tensors) == list(before)
    assert {"1.running_mean", "1.running_var", "1.num_batches_tracked"} <= record.tensors.keys()
    model.train()(torch.randn(8, 3)).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert not torch.equal(model.state_dict()["1.running_mean"], before["1.running_mean"])
    for name, tensor in record.tensors.items():
        assert torch.equal(tensor, before[name]), f"{name} follows the model"
        assert not tensor.requires_grad
        assert tensor.dtype == before[name].dtype


def test_taking_one_leaves_the_model_alone() -> None:
    model = network().train()
    model(torch.randn(8, 3)).sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    record = snapshot(model, 0)
    for tensor in record.tensors.values():
        tensor.zero_()
    assert model.training
    assert any(bool(parameter.any()) for parameter in model.parameters())
    assert all(torch.equal(parameter.grad, gradients[name]) for name, parameter in model.named_parameters())


def test_the_layout_in_memory_is_kept() -> None:
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    assert snapshot(model, 0).tensors["weight"].is_contiguous(memory_format=torch.channels_last)


def test_a_record_cannot_be_changed_to_another_version() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        snapshot(network(), 0).version = 1  # type: ignore[misc]


def test_a_buffer_that_is_not_finite_has_remedies_of_its_own() -> None:
    model = network()
    model.register_buffer("mask", torch.zeros(3))
    model.register_buffer("known", torch.tensor([0.0, -torch.inf]))
    gate = RecordGate(model)
    gate.check(snapshot(model, 0), None)
    model.mask[0] = -torch.inf
    with pytest.raises(
        NotFiniteError, match=r"in mask;.*; give a buffer .*finfo.*or let a mask hold its infinity when"
    ):
        gate.check(snapshot(model, 1), 0)
    model.mask.zero_()
    model[0].bias.data[0] = torch.nan
    with pytest.raises(NotFiniteError, match=r"in 0\.bias; .*if training has diverged$"):
        gate.check(snapshot(model, 1), 0)


def test_the_same_architecture_passes() -> None:
    check_architecture(network().state_dict(), snapshot(network(), 0))
    on_meta = {name: tensor.to("meta") for name, tensor in network().state_dict().items()}
    check_architecture(on_meta, snapshot(network(), 0))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("0.bias"), "1 differences .0.bias is missing"),
        (lambda tensors: tensors.update(head=torch.zeros(1)), "1 differences .head is unknown"),
        (lambda tensors: tensors.update({"0.bias": torch.zeros(5)}), r"0.bias has shape \(5,\) instead of \(4,\)"),
        (lambda tensors: tensors.update({"0.bias": torch.zeros(4, 1)}), r"0.bias has shape \(4, 1\) instead of \(4,\)"),
    ],
)
def test_another_architecture_is_refused_by_name(change, said: str) -> None:
    tensors = dict(snapshot(network(), 0).tensors)
    change(tensors)
    with pytest.raises(ValueError, match=said):
        check_architecture(network().state_dict(), Record(0, tensors))


def test_many_differences_are_counted_and_five_shown() -> None:
    record = Record(0, {f"extra.{i}": torch.zeros(1) for i in range(4)})
    expected = network().state_dict()
    with pytest.raises(ValueError, match=rf"got {len(expected) + 4} differences") as caught:
        check_architecture(expected, record)
    assert str(caught.value).count("is missing") == 5
    assert "…" in str(caught.value)


class Stateful(nn.Linear):
    """With state of every kind that a module may have."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.register_buffer("kept", torch.zeros(1))
        self.register_buffer("passing", torch.zeros(1), persistent=False)
        self.register_buffer("absent", None)

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 3}

    def set_extra_state(self, state: object) -> None: ...


def test_buffers_of_both_kinds_are_in_and_extra_state_is_not() -> None:
    model = nn.Sequential(Stateful(), nn.ReLU())
    assert list(snapshot(model, 0).tensors) == ["0.weight", "0.bias", "0.kept", "0.passing"]
    shared = nn.ModuleDict({"a": model[0], "b": model[0]})
    assert list(parameters_and_buffers(shared)) == [
        f"{name}.{part}" for name in "ab" for part in ("weight", "bias", "kept", "passing")
    ]


def test_they_are_the_models_own_and_without_history() -> None:
    model = network()
    found = parameters_and_buffers(model)
    assert all(found[name].data_ptr() == tensor.data_ptr() for name, tensor in model.state_dict().items())
    assert not any(tensor.requires_grad or tensor.grad_fn for tensor in found.values())
