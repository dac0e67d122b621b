"""Batches of every shape that collate functions return."""

import types
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from infer2train.batches import (
    batch_size,
    call_model,
    logits_of,
    map_tensors,
    pad_batch,
    split_batch,
    take_rows,
    tensors_of,
    to_device,
)

Pair = namedtuple("Pair", "image depth")
X, Y, Z = torch.arange(3.0), torch.arange(3) + 10, torch.arange(6.0).view(3, 2)


class Output(OrderedDict[str, Any]):
    """Entries that are attributes too, and no constructor from a mapping: as Hugging Face's outputs are."""

    def __init__(self, logits: Any = None, extra: Any = None) -> None:
        super().__init__()
        self["logits"] = logits
        self["extra"] = extra

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def __reduce__(self) -> Any:
        return type(self), (self.logits, self.extra)


class Encoding(UserDict[str, Any]):
    def __init__(self, data: dict[str, Any], tokenizer: str = "none") -> None:
        super().__init__(data)
        self.tokenizer = tokenizer


@pytest.mark.parametrize("name", ["labels", "label", "targets", "target", "y"])
def test_a_mapping_splits_at_its_one_target(name: str) -> None:
    inputs, targets = split_batch(Encoding({"ids": X, name: Y, "mask": Z}))
    assert targets is Y
    assert type(inputs) is dict
    assert list(inputs) == ["ids", "mask"]


@pytest.mark.parametrize("kind", [tuple, list])
def test_sequences_split_before_their_last(kind: type) -> None:
    assert split_batch(kind((X, Y))) == (X, Y)
    inputs, targets = split_batch(kind((X, Z, Y)))
    assert type(inputs) is tuple
    assert inputs[0] is X
    assert inputs[1] is Z
    assert targets is Y


@pytest.mark.parametrize(
    ("batch", "got"),
    [
        ({"ids": X}, "entries ids"),
        ({"ids": X, "label": Y, "labels": Y}, "entries ids, label, labels"),
        (X, "a Tensor"),
        ((X,), "a tuple of 1"),
    ],
)
def test_an_ambiguous_batch_asks_for_split(batch: Any, got: str) -> None:
    with pytest.raises(ValueError, match=f"{got}; pass split="):
        split_batch(batch)


class Weighs(nn.Module):
    def forward(self, a: Tensor, b: Tensor | float = 0.0) -> Tensor:
        return a - 2 * b


def test_a_model_is_called_as_its_inputs_ask() -> None:
    assert torch.equal(call_model(Weighs(), X), X)
    for inputs in ((X, X), [X, X], {"b": X, "a": X}, Encoding({"b": X, "a": X})):
        assert torch.equal(call_model(Weighs(), inputs), -X)


def test_logits_are_found() -> None:
    for outputs in (Z, (Z, X), [Z], {"loss": X, "logits": Z}, Output(Z)):
        assert logits_of(outputs) is Z
    for outputs in ({"loss": X}, (), "text", Output()):
        with pytest.raises(ValueError, match="pass score="):
            logits_of(outputs)


@pytest.mark.parametrize(
    "tree",
    [
        X,
        (X, [Y, None, "name"]),
        Pair(X, {"deep": (Y, Z)}),
        OrderedDict(b=X, a=Y),
        defaultdict(list, a=X),
        types.MappingProxyType({"a": X}),
        Encoding({"ids": X}, tokenizer="mine"),
        Output(X, (Y,)),
        torch.max(Z, 1),
    ],
    ids=lambda tree: type(tree).__name__,
)
def test_containers_keep_their_type_and_what_they_carry(tree: Any) -> None:
    before = [tensor.clone() for tensor in tensors_of(tree)]
    doubled = map_tensors(lambda tensor: tensor * 2, tree)
    assert type(doubled) is type(tree)
    assert len(before) == len(tensors_of(doubled)) > 0
    assert all(torch.equal(new, 2 * old) for new, old in zip(tensors_of(doubled), before, strict=True))
    assert all(torch.equal(now, old) for now, old in zip(tensors_of(tree), before, strict=True)), (
        "the tree itself stays"
    )
    if isinstance(tree, Encoding):
        assert doubled.tokenizer == "mine"
    if isinstance(tree, Output):
        assert torch.equal(doubled.logits, 2 * X), "attributes follow the entries"


def test_padding_repeats_the_last_row_and_taking_undoes_it() -> None:
    tree = {"a": Z, "b": (Y, "name")}
    padded = pad_batch(tree, 5)
    assert padded["a"].tolist() == [[0, 1], [2, 3], [4, 5], [4, 5], [4, 5]]
    assert padded["b"][0].tolist() == [10, 11, 12, 12, 12]
    taken = take_rows(padded, 3)
    assert torch.equal(taken["a"], Z)
    assert taken["b"][1] == "name"
    assert pad_batch(tree, 3) is tree
    assert take_rows({"loss": torch.tensor(1.0)}, 2)["loss"] == 1


def test_batch_size_is_what_all_agree_on() -> None:
    assert batch_size({"a": Z, "b": (Y, "name", None)}) == 3
    for tree, got in [((Z, torch.zeros(2)), r"\(3, 2\), \(2,\)"), (torch.tensor(1.0), r"\(\)"), ("text", "no tensor")]:
        with pytest.raises(ValueError, match=f"got {got}; make collate_fn"):
            batch_size(tree)


def test_to_device_moves_tensors_and_nothing_else() -> None:
    moved = to_device((X, {"name": "kept", "y": Y}), "meta", non_blocking=True)
    assert moved[0].device.type == moved[1]["y"].device.type == "meta"
    assert moved[1]["name"] == "kept"
    assert to_device(X, torch.device("cpu")) is X
