"""A run's nested state as what a file can hold: a tree that JSON writes exactly, and tensors by name. No pickle.

Stands just above `checkpoint`, which writes both to disk. Every value comes back as it was: its type, its bits, the
order of a dictionary. What cannot be promised that is refused when saving, with its place in the state; nothing is
turned into something similar. Left out, because no state dict needs them: strides (tensors come back contiguous, on the
CPU, without gradients), sharing of memory, and mapping types other than `dict` and `Counter`, which become `dict`.
"""

import json
import math
import struct
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor, nn

_ALLOWED = (
    "dictionaries with str or int keys, lists, tuples, None, bool, int, float, str, dense torch tensors, numeric NumPy "
    "arrays and NumPy scalars"
)
_MAX_DEPTH = 100
"""Far beyond any state dict, far below Python's recursion limit; a container that holds itself ends here."""

_INT64 = range(-(1 << 63), 1 << 63)
_ARRAY_KINDS = "biufcmM"
_OPEN = "state"

# What every version of safetensors in our range knows by name; the rest travels as bytes with its dtype in the tree.
_BY_NAME = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool}
    | {torch.int64, torch.int32, torch.int16, torch.int8}
    | {torch.uint64, torch.uint32, torch.uint16, torch.uint8}
)
_AS_BYTES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.complex32, torch.complex64, torch.complex128),
        *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
    )
}


def encode(state: Mapping[str, Any]) -> tuple[str, dict[str, Shaped[Tensor, "..."]]]:
    """A nested state as JSON text and the tensors that the text names.

    A tensor's name is its place in the state, such as `state['model']['conv1.weight']`. On the CPU a tensor is not
    copied unless it has to be, so write the result before training goes on.

    Args:
        state: what the error below lists, nested.

    Returns:
        ASCII text, and contiguous CPU tensors of which no two share memory.

    Raises:
        TypeError: a value, or a key, of another type; it says where.
        ValueError: a tensor without plain storage, text that UTF-8 cannot hold, a state that is nested without end.

    Example:
        >>> text, tensors = encode({"step": 3, "lr": torch.tensor(0.1)})
        >>> text, list(tensors)
        ('{"dict":[["step",3],["lr",{"tensor":"state[\\'lr\\']"}]]}', ["state['lr']"])
    """
    encoder = _Encoder()
    tree = encoder.value(dict(state), _OPEN, _MAX_DEPTH)
    return json.dumps(tree, allow_nan=False, separators=(",", ":")), encoder.tensors


def decode(text: str, tensors: Mapping[str, Shaped[Tensor, "..."]]) -> dict[str, Any]:
    """The state that `encode` was given, on the CPU.

    Raises:
        ValueError: the text is not `encode`'s, or does not fit the tensors.
    """
    try:
        state = _decoded(json.loads(text), tensors)
    except (LookupError, TypeError, AttributeError, RuntimeError, struct.error) as error:
        # Wherever a foreign text departs from ours, some step of the decoding meets a type, key or shape it cannot use.
        # RuntimeError holds torch's own complaints and RecursionError.
        raise ValueError(f"it does not hold a state that infer2train wrote ({error!r})") from error
    if type(state) is not dict:
        raise ValueError(f"it does not hold a state that infer2train wrote (a {type(state).__name__} at the top)")
    return state


class _Encoder:
    """One walk through a state, collecting its tensors. `where` is the place of a value, `depth` what may lie below."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._storages: set[int] = set()

    def value(self, value: Any, where: str, depth: int) -> Any:
        """The tree of any value: plain JSON where JSON has it, else an object with a tag that says what it is."""
        if depth < 0:
            raise ValueError(
                f"a state may be nested {_MAX_DEPTH} deep: got more at {where[:200]}…; does a container hold itself?"
            )
        # NumPy's scalars first: np.float64 is a float too.
        if isinstance(value, np.generic | np.ndarray):
            return self._array(value, where)
        if isinstance(value, Tensor):
            return self._tensor(value, where)
        if isinstance(value, Mapping):
            # MultiStepLR keeps a Counter in its state dict and asks it for its elements.
            tag = "counter" if type(value) is Counter else "dict"
            return {tag: [self._item(key, item, where, depth) for key, item in value.items()]}
        if type(value) in (list, tuple):
            items = [self.value(item, f"{where}[{i}]", depth - 1) for i, item in enumerate(value)]
            return items if type(value) is list else {"tuple": items}
        return _plain(value, where)

    def _item(self, key: Any, value: Any, where: str, depth: int) -> list[Any]:
        if type(key) not in (str, int):
            raise TypeError(f"a key of a state must be a str or an int: got {key!r} in {where}; use str(key)")
        return [_plain(key, where), self.value(value, f"{where}[{key!r}]", depth - 1)]

    def _tensor(self, value: Tensor, where: str) -> dict[str, Any]:
        if type(value) not in (Tensor, nn.Parameter):
            raise TypeError(
                f"a state may hold {_ALLOWED}: got {type(value).__qualname__} at {where}; save a plain tensor"
            )
        known = value.dtype in _BY_NAME or value.dtype in _AS_BYTES.values()
        if value.layout is not torch.strided or value.device.type == "meta" or not known:
            raise ValueError(
                f"a tensor of a state must be dense, with data, of a plain number type: got {value.dtype}, "
                f"{value.layout}, device {value.device} at {where}; convert it first"
            )
        value = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        if value.dtype in _BY_NAME:
            return {"tensor": self._keep(value, where)}
        raw = self._keep(value.reshape(-1).view(torch.uint8), where)
        return {"tensor": raw, "dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}

    def _array(self, value: np.generic | Shaped[np.ndarray, "..."], where: str) -> dict[str, Any]:
        # Types that a package registers (2) need that package to be read again.
        if isinstance(value, np.ma.MaskedArray) or value.dtype.kind not in _ARRAY_KINDS or value.dtype.isbuiltin == 2:
            raise TypeError(
                f"a state may hold {_ALLOWED}: got {type(value).__qualname__} of dtype {value.dtype} at {where}; "
                "save numbers, or lists of str"
            )
        # A copy, because torch takes no array that is read-only.
        array = np.array(value, order="C", subok=False)
        name = self._keep(torch.from_numpy(array.reshape(-1).view(np.uint8)), where)
        tag = "array" if isinstance(value, np.ndarray) else "scalar"
        return {tag: name, "dtype": array.dtype.str, "shape": list(array.shape)}

    def _keep(self, tensor: Tensor, name: str) -> str:
        # Tied weights and views share a storage, which safetensors refuses; the tensors kept here keep it in use, so
        # that an address seen twice is one storage.
        storage = tensor.untyped_storage().data_ptr()
        if storage in self._storages:
            tensor = tensor.clone()
        self._storages.add(tensor.untyped_storage().data_ptr())
        self.tensors[name] = tensor
        return name


def _plain(value: Any, where: str) -> Any:
    """None, bool, int, float or str, exactly of that type: a subclass would come back as its base."""
    if value is None or type(value) is bool:
        return value
    if type(value) is int:
        # Hexadecimal, because Python bounds the decimal digits that it reads.
        return value if value in _INT64 else {"int": hex(value)}
    if type(value) is float:
        return value if math.isfinite(value) else {"float": struct.pack(">d", value).hex()}
    if type(value) is not str:
        raise TypeError(f"a state may hold {_ALLOWED}: got {type(value).__qualname__} at {where}; convert it first")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"text in a state must be valid Unicode: got {value!r} at {where} ({error.reason})") from error
    return value


def _decoded(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_decoded(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    tagged: tuple[str, Any] = next(iter(tree.items()), ("nothing", None))
    tag, content = tagged
    if tag in ("dict", "counter"):
        items = {_decoded(key, tensors): _decoded(item, tensors) for key, item in content}
        return items if tag == "dict" else Counter(items)
    if tag == "tuple":
        return tuple(_decoded(item, tensors) for item in content)
    if tag == "int":
        return int(content, 16)
    if tag == "float":
        return struct.unpack(">d", bytes.fromhex(content))[0]
    tensor = tensors[content]
    if tag == "tensor":
        return tensor if "dtype" not in tree else tensor.view(_AS_BYTES[tree["dtype"]]).reshape(tree["shape"])
    if tag not in ("array", "scalar"):
        raise ValueError(f"it has a value of unknown kind {tag!r}, perhaps of a newer infer2train")
    array = np.frombuffer(tensor.numpy(), dtype=np.dtype(tree["dtype"])) if len(tensor) else np.empty(0, tree["dtype"])
    # A copy, because an array over foreign memory cannot be resized.
    array = array.reshape(tree["shape"]).copy()
    return array if tag == "array" else array[()]
