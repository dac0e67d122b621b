"""Nested states come back as they were: every type, every bit; what cannot is refused with its place."""

import enum
import math
import struct
import warnings
from collections import Counter, OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp
from safetensors.torch import load, save
from torch import nn

from infer2train.checkpoint.state import _AS_BYTES, _BY_NAME, decode, encode


def through_files(state: dict[str, Any]) -> dict[str, Any]:
    """What a state is after having been bytes."""
    text, tensors = encode(state)
    return decode(text.encode("ascii").decode(), load(save(tensors)))


def same(a: Any, b: Any) -> bool:
    """Equal in type and in every bit, which == does not say of nan, -0.0, True, or arrays."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape or a.numel() == 0:
            return a.dtype == b.dtype and a.shape == b.shape
        raw = [t.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
        return torch.equal(*raw)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return len(a) == len(b) and all(same(*pair) for pair in zip(a.items(), b.items(), strict=True))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(*pair) for pair in zip(a, b, strict=True))
    return struct.pack("d", a) == struct.pack("d", b) if type(a) is float else bool(a == b)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.integers().map(lambda n: n << 200)
SHAPES = stnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
DTYPES = stnp.scalar_dtypes() | stnp.floating_dtypes(endianness="=", sizes=(16, 32, 64))
ARRAYS = stnp.arrays(DTYPES, SHAPES)
NATIVE = st.sampled_from(["f4", "f8", "f2", "i8", "i4", "i2", "i1", "u1", "u4", "?"])
TENSORS = stnp.arrays(NATIVE, SHAPES).map(lambda array: torch.from_numpy(array.copy()))
LEAVES = PLAIN | ARRAYS | ARRAYS.filter(lambda a: a.ndim == 0).map(lambda a: a[()]) | TENSORS
KEYS = st.text(max_size=5) | st.integers()
NESTED = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.dictionaries(KEYS, st.integers(), max_size=3).map(Counter)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=5), NESTED, max_size=4))
@example({"a": {0: 1, "0": 2, -1: ()}, "']['": {}, "": [[], (None,)], "__metadata__": torch.ones(1)})
@example({"floats": [math.nan, -math.nan, math.inf, -0.0, 5e-324, 0.1], "big": [10**5000, -(2**63), 2**63]})
@example({"dict": {"tensor": "state"}, "tuple": {"float": "00"}, "int": {"int": "0x1"}})
def test_every_state_comes_back(state: dict[str, Any]) -> None:
    assert same(through_files(state), state)


@pytest.mark.parametrize("dtype", sorted(_BY_NAME | set(_AS_BYTES.values()), key=str), ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3, 4)])
def test_every_dtype_keeps_its_bits(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    high = 2 if dtype is torch.bool else 256
    raw = torch.randint(high, (math.prod(shape) * dtype.itemsize,), generator=torch.Generator().manual_seed(3))
    tensor = raw.to(torch.uint8).view(dtype).reshape(shape)
    assert same(through_files({"x": tensor})["x"], tensor)


def test_every_dtype_of_torch_is_kept_or_refused() -> None:
    dtypes = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    in_use = {dtype for dtype in dtypes if dtype.is_floating_point or dtype.is_complex} - {torch.float4_e2m1fn_x2}
    assert in_use <= _BY_NAME | set(_AS_BYTES.values())
    with pytest.raises(ValueError, match=r"uint4.*at state\['x'\]\[1\]"):
        encode({"x": [0, torch.empty(2, dtype=torch.uint4)]})


def test_shared_and_strided_memory_becomes_separate_tensors() -> None:
    base = torch.arange(12.0).reshape(3, 4)
    array = base.numpy()
    views = {
        "all": base,
        "again": base,
        "column": base[:, 1],
        "t": base.T,
        "tail": base[2],
        "wide": base[:1].expand(3, 4),
    }
    state = {
        **views,
        "array": array,
        "rows": array[::-1],
        "conj": torch.tensor([1 + 2j]).conj(),
        "p": base.to_sparse().to_dense(),
    }
    back = through_files(state)
    assert all(same(back[name], value) for name, value in state.items())
    back["all"].zero_()
    back["array"][:] = 7
    assert same(back["again"], base), "tensors that come back share memory"
    assert array[2, 3] == 11.0


def test_parameters_come_back_as_plain_tensors_and_mappings_as_dictionaries() -> None:
    state = {"p": nn.Parameter(torch.ones(2)), "o": OrderedDict(b=1, a=2), "g": torch.ones(1, requires_grad=True) * 2}
    back = through_files(state)
    assert type(back["p"]) is torch.Tensor
    assert not back["p"].requires_grad
    assert not back["g"].requires_grad
    assert type(back["o"]) is dict
    assert list(back["o"]) == ["b", "a"]


def test_arrays_that_come_back_belong_to_the_caller() -> None:
    frozen = np.arange(4, dtype=">u4")
    frozen.flags.writeable = False
    with warnings.catch_warnings(action="error"):
        back = through_files({"x": frozen})["x"]
    assert same(back, frozen)
    assert back.flags.writeable
    assert back.flags.owndata


class Colour(enum.IntEnum):
    RED = 1


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    "value",
    [
        *({1, 2}, b"bytes", object(), 1j, lambda: None, Colour.RED, Point(1, 2), torch.Size([1]), torch.float32),
        *(np.array(["a"]), np.array([object()]), np.ma.masked_array([1], [True]), np.zeros(1, "i4,f4"), np.str_("a")),
        *(
            torch.ones(2).to_sparse(),
            torch.ones(2, device="meta"),
            "\ud800",
            {True: 1},
            {None: 1},
            {(1, 2): 3},
            {1.5: 1},
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_would_not_come_back_is_refused_with_its_place(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"state\['outer'\]\[0\]"):
        encode({"outer": [value]})


def test_a_container_that_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueError, match="hold itself"):
        encode({"x": endless})


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "1", "{", '{"list":[]}', "{}", '{"tensor":"x"}', '{"dict":[[["k"],1]]}', '{"dict":[["k"]]}'),
        *(
            '{"dict":5}',
            '{"dict":[["k",{"float":"00"}]]}',
            '{"dict":[["k",{"int":"z"}]]}',
            '{"dict":[["k",{"int":3}]]}',
        ),
        *('{"dict":[["k",{"tensor":"none"}]]}', '{"dict":[["k",{"tensor":"x","dtype":"object"}]]}', "[" * 100000),
        '{"dict":[["k",{"tensor":"x","dtype":"complex64","shape":[1000000000000]}]]}',
        '{"dict":[["k",{"array":"x","dtype":"O","shape":[1]}]]}',
        '{"dict":[["k",{"array":"x","dtype":"<f4","shape":[1000000000000]}]]}',
        '{"dict":[["k",{"array":"x","dtype":"<f4"}]]}',
        '{"dict":[["k",{"array":"scalar","dtype":"<f4","shape":[]}]]}',
        '{"dict":[["k",{"pickle":"x"}]]}',
    ],
    ids=lambda text: text[:60] or "nothing",
)
def test_text_that_is_not_ours_is_a_value_error(text: str) -> None:
    tensors = {"x": torch.zeros(8, dtype=torch.uint8), "scalar": torch.tensor(1.0)}
    with pytest.raises(ValueError, match=r".+"):
        decode(text, tensors)


def make_sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4)


def make_adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, amsgrad=True)


@pytest.mark.parametrize(
    ("make", "schedule"),
    [
        (make_sgd, lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 5, 5], gamma=0.1)),
        (make_adam, lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, 10)),
        (make_sgd, lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0)),
    ],
    ids=["sgd-steps", "adam-cycle", "sgd-plateau"],
)
def test_training_goes_on_bit_for_bit(
    make: Callable[[Any], torch.optim.Optimizer], schedule: Callable[[torch.optim.Optimizer], Any]
) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
        optimizer = make(model.parameters())
        return model, optimizer, schedule(optimizer)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any, steps: range) -> None:
        for step in steps:
            x = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(step))
            loss = model(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            scheduler.step(*([1.0] if plateau else []))

    straight = build()
    train(*straight, range(8))
    first = build()
    train(*first, range(4))
    back = through_files({"parts": [part.state_dict() for part in first]})
    resumed = build()
    for part, state in zip(resumed, back["parts"], strict=True):
        part.load_state_dict(state)
    if isinstance(resumed[2], torch.optim.lr_scheduler.MultiStepLR):
        assert sorted(resumed[2].milestones.elements()) == [2, 5, 5]
    train(*resumed, range(4, 8))
    for ours, theirs in zip(resumed, straight, strict=True):
        assert same(through_files(ours.state_dict()), through_files(theirs.state_dict()))


def test_a_gradient_scaler_comes_back() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0, growth_interval=7)
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler.scale(weight.sum() * math.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    state = through_files({"scaler": scaler.state_dict()})["scaler"]
    assert state["scale"] == 256.0, "the scaler that is saved has backed off"
    other = torch.amp.GradScaler("cpu")
    other.load_state_dict(state)
    assert other.state_dict() == scaler.state_dict()
