"""The global generators of Python, NumPy and torch: seeded for a while, saved, restored.

What we draw ourselves comes from `addresses`. Users' transforms, samplers and models draw from these; so they are set
from an address around each call of theirs, and put back.
"""

import os
import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from infer2train.draws.addresses import Purpose, words

FourWords = tuple[int, int, int, int]
"""Seeds of 32 bits for `random`, NumPy, torch and Albumentations."""

RANDOM_STATE = threading.RLock()
"""Whoever sets the process's global generators for a while holds it: an oracle's second thread reads samples to
calibrate on while the first one reads candidates."""
# A process that is forked while another thread holds it would wait for that thread for ever.
if hasattr(os, "register_at_fork"):  # not on Windows, where nothing is forked
    os.register_at_fork(
        before=RANDOM_STATE.acquire, after_in_parent=RANDOM_STATE.release, after_in_child=RANDOM_STATE.release
    )

VIEW, LOADING = 0, 1
"""What the generators are seeded for: the slots of Purpose.PARAMETER."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within, the global generators of `random`, NumPy and torch (CPU) follow this seed; after, they are as before.

    Example:
        >>> with seeded(7):
        ...     first = random.random()
        >>> with seeded(7):
        ...     first == random.random()
        True
    """
    with state_kept():
        seed_global(four_words(np.array([seed]), VIEW)[0])
        yield


def four_words(keys: Int64[np.ndarray, " n"], slot: int) -> list[FourWords]:
    """Four random words for each key, as plain ints.

    Args:
        keys: seeds, or sample ids.
        slot: what the words are for, VIEW or LOADING.
    """
    return list(zip(*(word.tolist() for word in words(keys, Purpose.PARAMETER, slot=slot)), strict=True))


def seed_global(four: FourWords) -> None:
    """Seed each generator with a word of its own: NumPy's and torch's are one algorithm, and would draw the same."""
    python, legacy, tensor, _ = four
    random.seed(python)
    np.random.seed(legacy)
    torch.default_generator.manual_seed(tensor)  # torch.manual_seed would seed CUDA too


@contextmanager
def state_kept() -> Iterator[None]:
    """Put every global generator back at the end, also after an exception. One thread after the other."""
    with RANDOM_STATE:
        states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.default_generator.set_state(states[2])


def seed_everything(seed: int) -> None:
    """Seed the global generators, from which a model of the user's own may draw; ours draw from addresses."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])


def rng_state() -> dict[str, Any]:
    """The states of the global generators of Python, NumPy and torch, and of every CUDA device if CUDA is in use."""
    with RANDOM_STATE:
        return _rng_state()


def _rng_state() -> dict[str, Any]:
    numpy_state: Any = np.random.get_state(legacy=False)
    # Arrays as tensors, so that torch.load(weights_only=True) takes the state that a user has saved with torch.save.
    numpy_state["state"] = {
        name: torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
        for name, value in numpy_state["state"].items()
    }
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": numpy_state,
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch has no types for it
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_rng(state: Mapping[str, Any]) -> None:
    """Put the global generators into a state that `rng_state` returned, so that they go on with the same numbers.

    Raises:
        ValueError: it holds generators of more CUDA devices than there are; no generator was changed.
    """
    cuda = state.get("cuda", [])
    num_devices = torch.cuda.device_count() if cuda else 0
    if len(cuda) > num_devices:
        raise ValueError(
            f"random states of CUDA devices need those devices: got {len(cuda)} states for {num_devices} devices; "
            "resume on a machine like the first, or remove 'cuda' from the state and accept other random numbers"
        )
    inner = {
        name: value.numpy() if isinstance(value, torch.Tensor) else value
        for name, value in state["numpy"]["state"].items()
    }
    with RANDOM_STATE:
        random.setstate(state["python"])
        np.random.set_state({**state["numpy"], "state": inner})
        torch.set_rng_state(state["torch"])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
