"""Whether two trees are the same to the last bit, and where they first differ.

By this `trial` knows that a data set gives the same whenever and wherever it is read. Containers are gone through,
everything else is compared by what it would be stored as; what cannot be stored cannot be compared.
"""

import hashlib
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def bits(leaf: Any) -> Any:
    """Something equal for two leaves of one type if and only if all their bits are."""
    if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided:
        leaf = leaf.detach().cpu().contiguous()
        return leaf.dtype, leaf.shape, leaf.flatten().view(torch.uint8).numpy().tobytes()
    if isinstance(leaf, np.ndarray) and not leaf.dtype.hasobject:
        return leaf.dtype, leaf.shape, leaf.tobytes()
    stored = io.BytesIO()
    try:
        _Store(stored).dump(leaf)
    except (pickle.PicklingError, TypeError, AttributeError):
        return None  # what cannot be pickled cannot be compared
    return stored.getvalue()


class _Store(pickle.Pickler):
    """Stores what would be stored otherwise each time by its bits: tensors inside objects, and sets."""

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, torch.Tensor) and obj.layout == torch.strided:
            dtype, shape, content = bits(obj)
            return str(dtype), tuple(shape), content
        if isinstance(obj, set | frozenset):
            return sorted(repr(bits(element)) for element in obj)
        return None


def are_same(first: Any, second: Any) -> bool:
    """Whether two leaves of one type have the same bits."""
    return bool(bits(first) == bits(second))


def difference(
    first: Any, second: Any, path: str = "item", *, are_same: Callable[[Any, Any], bool] = are_same
) -> str | None:
    """The path of the first leaf in which two trees differ, e.g. `item['image']`; None if they do not.

    Example:
        >>> difference({"image": 1, "boxes": [2, 3]}, {"image": 1, "boxes": [2, 4]})
        "item['boxes'][1]"
    """
    if type(first) is not type(second):
        return path
    if isinstance(first, dict):
        if list(first) != list(second):
            return path
        pairs = [(f"{path}[{key!r}]", first[key], second[key]) for key in first]
    elif isinstance(first, tuple | list):
        if len(first) != len(second):
            return path
        pairs = [(f"{path}[{i}]", a, b) for i, (a, b) in enumerate(zip(first, second, strict=True))]
    else:
        return None if are_same(first, second) else path
    found = (difference(a, b, name, are_same=are_same) for name, a, b in pairs)
    return next((leaf for leaf in found if leaf is not None), None)


def outline(tree: Any) -> Any:
    """The tree with a digest for each leaf: small, and what two processes can compare by `difference`."""
    if isinstance(tree, dict):
        return {key: outline(part) for key, part in tree.items()}
    if isinstance(tree, tuple | list):
        return [outline(part) for part in tree]
    digest = hashlib.sha256(pickle.dumps(bits(tree))).hexdigest()
    return f"{type(tree).__qualname__} {digest}"
