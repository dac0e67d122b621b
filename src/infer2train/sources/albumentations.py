"""Albumentations' transforms, which draw from generators of their own: found in a data set, and seeded.

In versions from 2 on, global seeds do not reach them. They are looked for once, wherever attributes, containers and
functions of a data set lead.
"""

import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

_MOST_TRANSFORMS = 1000
"""Containers with more items hold samples, where no transform need be looked for."""


def transforms_in(roots: Sequence[Any]) -> list[Any]:
    """The outermost Albumentations transforms that attributes, containers and functions lead to from here."""
    if "albumentations" not in sys.modules:
        return []
    from albumentations.core.composition import BaseCompose
    from albumentations.core.transforms_interface import BasicTransform

    found: list[Any] = []
    seen: dict[int, Any] = {}  # holds what it has seen, so that no id is used again
    waiting = list(roots)
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen[id(thing)] = thing
        if isinstance(thing, BaseCompose | BasicTransform):
            found.append(thing)
        else:
            waiting.extend(_inside(thing))
    return found


def seed_transforms(transforms: Iterable[Any], word: int) -> None:
    """Give each of them generators that follow this word."""
    for transform in transforms:
        # Not set_random_seed: it gives each transform of a Compose a generator of its own in the same state, so that
        # all those of one probability would fire together.
        transform.set_random_state(np.random.default_rng(word), random.Random(word))


@contextmanager
def transforms_kept(transforms: Iterable[Any]) -> Iterator[None]:
    """Put their generators back at the end, also after an exception."""
    parts = [(part, part.random_generator, part.py_random) for part in _all_parts(transforms)]
    try:
        yield
    finally:
        for part, generator, py_random in parts:
            # Only replaced, never moved, by set_random_state.
            part.random_generator, part.py_random = generator, py_random


def _inside(thing: Any) -> list[Any]:
    """What an object holds that may be, or lead to, a transform."""
    if isinstance(thing, type | ModuleType | np.ndarray | torch.Tensor | str | bytes | int | float):
        return []
    if isinstance(thing, dict | list | tuple | set):
        held = thing.values() if isinstance(thing, dict) else thing
        return list(held) if len(thing) <= _MOST_TRANSFORMS else []
    if isinstance(thing, partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, MethodType):
        return [thing.__self__]
    if isinstance(thing, FunctionType):
        held = [cell.cell_contents for cell in thing.__closure__ or () if not _is_empty(cell)]
        named = [thing.__globals__.get(name) for name in _names_in(thing.__code__)]
        # A lambda in a script names its transform, or a function beside it; whatever else a function names would lead
        # through whole libraries.
        return held + [value for value in named if _is_near(value, thing)]
    return list(getattr(thing, "__dict__", {}).values())


def _names_in(code: CodeType) -> set[str]:
    """What a function names, also in its comprehensions, lambdas and inner functions."""
    inner = (part for part in code.co_consts if isinstance(part, CodeType))
    return set(code.co_names).union(*map(_names_in, inner))


def _is_near(value: Any, function: FunctionType) -> bool:
    """Whether what a function names is a transform, or a function of the same module."""
    if isinstance(value, FunctionType):
        return value.__globals__ is function.__globals__
    return type(value).__module__.partition(".")[0] == "albumentations"


def _is_empty(cell: CellType) -> bool:
    """Whether a variable of a closure has no value yet."""
    try:
        _ = cell.cell_contents
    except ValueError:
        return True
    return False


def _all_parts(transforms: Iterable[Any]) -> Iterator[Any]:
    """Each of these Albumentations transforms and all that they are composed of."""
    for transform in transforms:
        yield transform
        yield from _all_parts(getattr(transform, "transforms", ()))
