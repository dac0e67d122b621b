"""Batches as pytrees: what a `collate_fn` returns, told apart into inputs and targets, moved, padded and cut.

A batch is whatever the user's loader gives: tensors in tuples, lists, named tuples and mappings, at any depth; their
types are kept. Leaves that are not tensors (strings, None) are carried along. Scorer, engines and the training step all
read batches through this module only.
"""

import copy
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

TARGET_NAMES = ("labels", "label", "targets", "target", "y")
"""Entries of a mapping that are targets; exactly one must be there."""


Split = Callable[[Any], tuple[Any, Any]]
"""A batch, as the user's `collate_fn` returns it -> (inputs, targets)."""


def split_batch(batch: Any) -> tuple[Any, Any]:
    """A batch as (inputs, targets).

    (x, y) gives x and y; a longer tuple or list all but its last element, as a tuple, and the last; a mapping its one
    entry of `TARGET_NAMES` as targets and a dictionary of the rest.

    Raises:
        ValueError: it cannot be told which part is the target.

    Example:
        >>> split_batch({"input_ids": 1, "attention_mask": 2, "labels": 3})
        ({'input_ids': 1, 'attention_mask': 2}, 3)
    """
    if isinstance(batch, Mapping):
        named = [name for name in TARGET_NAMES if name in batch]
        if len(named) == 1:
            return {name: part for name, part in batch.items() if name != named[0]}, batch[named[0]]
        got = f"entries {', '.join(map(str, batch))}"
    elif isinstance(batch, tuple | list):
        if len(batch) >= 2:
            return (batch[0] if len(batch) == 2 else tuple(batch[:-1])), batch[-1]
        got = f"a {type(batch).__name__} of {len(batch)}"
    else:
        got = f"a {type(batch).__name__}"
    raise ValueError(
        f"a batch must be (inputs, …, targets), or a mapping with exactly one of {', '.join(TARGET_NAMES)}: got {got}; "
        "pass split=, a function batch -> (inputs, targets)"
    )


def call_model(model: nn.Module, inputs: Any) -> Any:
    """model(x), model(*x) for a tuple or list, model(**x) for a mapping."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


def logits_of(outputs: Any) -> Shaped[Tensor, "n ..."]:
    """The logits among a model's outputs: the tensor itself, the entry "logits", or a tuple's first element.

    Raises:
        ValueError: there is no such tensor.
    """
    found, got = outputs, f"a {type(outputs).__name__}"
    if isinstance(outputs, Mapping):
        found, got = outputs.get("logits"), f"entries {', '.join(map(str, outputs))}"
    elif isinstance(outputs, tuple | list):
        found = outputs[0] if outputs else None
    if not isinstance(found, Tensor):
        raise ValueError(
            f'a model must return logits, a mapping with "logits" or a tuple that starts with them: got {got}; '
            "pass score=, a function (outputs, targets) -> [n]"
        )
    return found


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The tree with every tensor replaced by `function` of it; containers keep their types, other leaves are kept.

    Example:
        >>> map_tensors(torch.neg, {"x": (torch.ones(1), "name")})
        {'x': (tensor([-1.]), 'name')}
    """
    return map_leaves(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """As `map_tensors`, but every leaf is replaced: whatever is no mapping, tuple or list."""
    if isinstance(tree, Tensor):  # the usual leaf, told without looking at what else it is
        return function(tree)
    if isinstance(tree, Mapping):
        return _like(tree, {key: map_leaves(function, part) for key, part in tree.items()})
    if isinstance(tree, tuple | list):
        make = getattr(type(tree), "_make", type(tree))  # a named tuple's constructor takes its fields one by one
        return make([map_leaves(function, part) for part in tree])
    return function(tree)


def _like(tree: Mapping[Any, Any], entries: dict[Any, Any]) -> Any:
    """The entries in a mapping of the tree's own type: OrderedDict, defaultdict, UserDict, a Hugging Face output."""
    if type(tree) is dict:
        return entries
    if not isinstance(tree, MutableMapping):
        return type(tree)(entries)  # type: ignore[call-arg]  # a mapping is made of a dictionary
    result = copy.copy(tree)  # constructors differ, and a copy keeps what else the object carries
    for key, part in entries.items():
        result[key] = part
    return result


def tensors_of(tree: Any) -> list[Tensor]:
    """Every tensor of the tree, in order."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(keep, tree)
    return found


def to_device(tree: Any, device: torch.device | str, non_blocking: bool = False) -> Any:
    """The tree with its tensors on `device`; a tensor that is there already is not copied."""
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking), tree)


def as_float32(tree: Any) -> Any:
    """The tree with every tensor of real numbers in float32: what an oracle computes with, whatever the loop's own."""
    return map_tensors(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor, tree)


def batch_size(tree: Any) -> int:
    """The leading dimension of the tree's tensors.

    Raises:
        ValueError: there is no tensor, one has no dimension, or they disagree.
    """
    sizes = sorted({tensor.shape[0] if tensor.ndim else -1 for tensor in tensors_of(tree)})
    if len(sizes) != 1 or sizes[0] < 0:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_of(tree)) or "no tensor"
        raise ValueError(
            f"the inputs of a batch must be tensors with one leading dimension, the number of samples: got {shapes}; "
            "make collate_fn stack the samples first, or pass split= to leave other tensors out"
        )
    return sizes[0]


def pad_batch(tree: Any, n: int) -> Any:
    """The tree with the last row of every tensor repeated up to n rows; n may not be fewer than there are."""
    rows = batch_size(tree)
    assert 0 < rows <= n, (rows, n)
    if rows == n:
        return tree
    return map_tensors(lambda tensor: torch.cat([tensor, tensor[-1:].expand(n - rows, *tensor.shape[1:])]), tree)


def take_rows(tree: Any, n: int) -> Any:
    """The tree with the first n rows of every tensor; tensors without dimensions (a mean loss) are kept."""
    return map_tensors(lambda tensor: tensor[:n] if tensor.ndim else tensor, tree)
