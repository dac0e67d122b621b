"""Forward hooks of the user's: an oracle's copies do without them, unless the model's outputs depend on them.

A hook that looks (keeps a feature map, adds up a penalty) would see what an oracle computes among what the loop does.
Hooks of torch's own, by which weights are computed (`weight_norm`, pruning), are part of the model.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from torch import nn

_DEPENDENT: "WeakSet[nn.Module]" = WeakSet()
"""Models whose outputs depend on them."""


def keep_hooks(model: nn.Module, wanted: bool = True) -> None:
    """Have copies of a model keep its hooks from now on, or no longer."""
    (_DEPENDENT.add if wanted else _DEPENDENT.discard)(model)


def has_hooks(model: nn.Module) -> bool:
    """Whether a user has put some on the model."""
    return next(_hooks_of(model), None) is not None


def without_hooks(model: nn.Module) -> dict[int, Any]:
    """What `deepcopy` is told to put in the places of a model's hooks."""
    if model in _DEPENDENT:
        return {}
    return {
        id(hooks): OrderedDict((key, hook) for key, hook in hooks.items() if _is_torchs(hook))
        for module in model.modules()
        for hooks in _registries(module)
    }


@contextmanager
def unseen(model: nn.Module) -> Iterator[None]:
    """Within, hooks may be called; lists, dictionaries and sets that they write to by name are put back at the end."""
    kept = [(held, type(held)(held)) for hook in _hooks_of(model) for held in _written_to(hook)]
    try:
        yield
    finally:
        for held, before in kept:
            held.clear()
            held.extend(before) if isinstance(held, list) else held.update(before)


def _hooks_of(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        for hooks in _registries(module):
            yield from (hook for hook in hooks.values() if not _is_torchs(hook))


def _registries(module: nn.Module) -> list[dict[int, Any]]:
    """Those of the module's hooks before and after its forward pass in which there are some."""
    return [hooks for kind in ("_forward_hooks", "_forward_pre_hooks") if (hooks := vars(module).get(kind))]


def _is_torchs(hook: Any) -> bool:
    return str(getattr(hook, "__module__", type(hook).__module__)).partition(".")[0] == "torch"


def _written_to(hook: Any) -> Iterator[Any]:
    """Containers in a function's closure, and those that it names; a method's object is copied with the model."""
    code, cells = getattr(hook, "__code__", None), getattr(hook, "__closure__", None) or ()
    named = [] if code is None else [hook.__globals__.get(name) for name in code.co_names]
    for held in (*(_content(cell) for cell in cells), *named):
        if type(held) in (list, dict, set):
            yield held


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it has no value yet
        return None
