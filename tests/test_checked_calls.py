"""Annotations are checked in these tests: in each anew, but not without end."""

import importlib.util
import os

import jaxtyping
import numpy as np
import pytest

from checked_calls import CHECKED_CALLS
from infer2train.draws.addresses import Addresses

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("beartype") or os.environ.get("INFER2TRAIN_NO_TYPECHECK") == "1",
    reason="annotations are checked where beartype is, and not under INFER2TRAIN_NO_TYPECHECK=1",
)


@pytest.mark.parametrize("test", ["one", "and the next"])
def test_the_first_calls_are_checked(test: str) -> None:
    addresses = Addresses(np.arange(3), np.arange(3))
    with pytest.raises(jaxtyping.TypeCheckError):
        Addresses(np.zeros((3, 1)), np.arange(3))
    for _ in range(CHECKED_CALLS):
        len(addresses)
    with pytest.raises(AssertionError):
        Addresses(np.zeros((3, 1)), np.arange(3))
