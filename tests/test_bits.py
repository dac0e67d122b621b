"""Same or not, to the last bit; and what two processes can compare."""

import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from infer2train.sources.bits import difference, outline


def thing(number: float) -> dict[str, Any]:
    """Made anew each time, with a tensor and a set inside an object."""
    inside = SimpleNamespace(x=torch.tensor([number]), names={f"name {i}" for i in range(50)})
    return {"image": np.full(3, number), "boxes": [(1, None), inside], "text": "a"}


def test_what_is_made_again_is_the_same() -> None:
    first, second = thing(0.0), thing(0.0)
    assert difference(first, second) is None
    assert outline(first) == outline(second)
    assert difference(first, pickle.loads(pickle.dumps(second))) is None


@pytest.mark.parametrize(
    ("change", "leaf"),
    [
        (lambda it: it["image"].__setitem__(2, -0.0), "item['image']"),
        (lambda it: it["boxes"][1].x.neg_(), "item['boxes'][1]"),
        (lambda it: it["boxes"][1].names.pop(), "item['boxes'][1]"),
        (lambda it: it.__setitem__("text", "b"), "item['text']"),
        (lambda it: it.__setitem__("text", ["a"]), "item['text']"),
        (lambda it: it["boxes"].append(1), "item['boxes']"),
        (lambda it: it.__setitem__("more", 1), "item"),
    ],
)
def test_any_bit_makes_a_difference_and_is_named(change: Any, leaf: str) -> None:
    first, second = thing(0.0), thing(0.0)
    change(second)
    assert difference(first, second) == leaf
    assert difference(outline(first), outline(second)) == leaf


def test_an_outline_is_small_and_can_be_sent() -> None:
    small = outline({"image": torch.rand(1000, 1000), "text": "a"})
    assert len(pickle.dumps(small)) < 500
