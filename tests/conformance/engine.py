"""What every engine must do: run it for an engine, a model and inputs, and an AssertionError says what it did wrong."""

import copy
import functools
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conformance.networks import NETWORKS, experienced
from infer2train.batches import batch_size, call_model, map_tensors, take_rows, tensors_of
from infer2train.oracle.engine import Engine
from infer2train.oracle.engines import EXTRAS, build_engine, parse_engine
from infer2train.oracle.lowered_engine import LoweredEngine
from infer2train.oracle.samples import GivenSamples
from infer2train.oracle.snapshot import Record, parameters_and_buffers, snapshot

TOLERANCES = {"fp32": 1e-4, "fp16": 0.01, "bf16": 0.05, "int8": 0.6}
"""Largest error of the outputs, relative to their spread between rows, by the precision in the engine's name. Integers
are as far off as ranges cut that are a mean over samples: at 16 bits no less than at 8. How near they are to what they
should be is the simulation's to say."""
BETWEEN_BATCHES = 0.05
"""Largest error of a row's outputs, relative likewise, by what else is in its batch."""
GIVEN_ROWS = 13
ENGINE_ROWS = 12
"""Neither divides the other: of every batch of a test some call is padded."""

MakeEngine = Callable[[nn.Module], Engine]


def check_engine(make_engine: MakeEngine, model: nn.Module, inputs: Any) -> None:
    """Everything below, each on an engine of its own.

    Args:
        make_engine: builds a fresh engine for a model.
        model: any; it is copied first.
        inputs: a batch of at least 8 different rows, as the model takes it.
    """
    ready = experienced(copy.deepcopy(model), inputs).train()
    for check in CHECKS:
        own = copy.deepcopy(ready)
        check(make_engine(own), own, inputs)


def check_unrefreshed(engine: Engine, model: nn.Module, inputs: Any) -> None:
    assert engine.version is None, "an engine has no version before its first record"
    assert engine.precisions() == {}, "nothing has run yet"
    error = _raised(lambda: engine.outputs(inputs))
    assert isinstance(error, RuntimeError), f"outputs() before any refresh must raise RuntimeError, got {error!r}"


def check_outputs(engine: Engine, model: nn.Module, inputs: Any) -> None:
    engine.refresh(snapshot(model, 100))
    assert engine.version == 100, "the version in use must be the record's"
    outputs = engine.outputs(inputs)
    assert all(t.dtype not in (torch.bfloat16, torch.float16) for t in tensors_of(outputs)), "outputs must be float32"
    _assert_near(outputs, _expected(model, inputs), engine, "the model's outputs in evaluation mode")
    again = engine.outputs(inputs)
    assert _same(_kept(again), _kept(engine.outputs(inputs))), (
        "the same inputs must give the same outputs: dropout is on?"
    )
    names = dict(model.named_modules())
    assert engine.precisions(), "layers ran"
    assert engine.precisions().keys() <= names.keys(), "layers are named as in the model"


def check_refresh(engine: Engine, model: nn.Module, inputs: Any) -> None:
    engine.refresh(snapshot(model, 0))
    first = _kept(engine.outputs(inputs))
    old = _expected(model, inputs)
    experienced(model, inputs, seed=1)
    assert _same(first, _kept(engine.outputs(inputs))), "training went on, and the engine moved without a record"
    new = _expected(model, inputs)
    assert _error(old, new) > 2 * _tolerance(engine), "the canary is too weak: weights must change what the model says"
    engine.refresh(snapshot(model, 7))
    assert engine.version == 7, "the version in use must be the record's"
    _assert_near(engine.outputs(inputs), new, engine, "the new weights' outputs")


def check_record_is_copied(engine: Engine, model: nn.Module, inputs: Any) -> None:
    record = snapshot(model, 0)
    before = _kept(dict(record.tensors))
    engine.refresh(record)
    outputs = _kept(engine.outputs(inputs))
    assert _same(before, dict(record.tensors)), "an engine never writes to a record"
    for tensor in record.tensors.values():
        tensor.zero_()
    assert _same(outputs, _kept(engine.outputs(inputs))), "an engine must copy from a record, not share its storage"


def check_model_is_left_alone(engine: Engine, model: nn.Module, inputs: Any) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    record = snapshot(model, 0)
    flags = [module.training for module in model.modules()]
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    torch.rand(1)  # away from any state that a seed gives
    # Python's own state is left out: the tests' type checker draws from it.
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    engine.refresh(record)
    outputs = engine.outputs(inputs)
    assert torch.equal(torch.get_rng_state(), torch_state), "scoring must not move torch's random state"
    assert np.random.get_state()[1].tolist() == numpy_state, "nor NumPy's"
    assert _same(parameters_and_buffers(model), dict(record.tensors)), (
        "scoring must not move weights or batch-norm statistics"
    )
    assert all(bool((p.grad == 1).all()) for p in model.parameters() if p.grad is not None), "nor gradients"
    assert all(p.grad is not None for p in model.parameters()), "nor drop them"
    assert [module.training for module in model.modules()] == flags, "nor switch the model to another mode"
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable
    assert not any(tensor.requires_grad for tensor in tensors_of(outputs)), "scores carry no graph"


def check_bad_records(engine: Engine, model: nn.Module, inputs: Any) -> None:
    engine.refresh(snapshot(model, 3))
    outputs = _kept(engine.outputs(inputs))
    experienced(model, inputs, seed=1)  # so that a partial refresh shows
    for what, (name, tensors) in _bad_records(snapshot(model, 4)).items():
        error = _raised(lambda tensors=tensors: engine.refresh(Record(4, tensors)))  # type: ignore[misc]
        assert isinstance(error, ValueError), f"a record with {what} must be refused with ValueError, got {error!r}"
        assert name in str(error), f"the refusal of {what} must name {name}: {error}"
        assert engine.version == 3, f"after the refusal of {what} the version must stay"
        assert _same(outputs, _kept(engine.outputs(inputs))), f"after the refusal of {what} the old weights must stay"


def check_rows_are_independent(engine: Engine, model: nn.Module, inputs: Any) -> None:
    engine.refresh(snapshot(model, 0))
    rows = batch_size(inputs)
    whole = _kept(engine.outputs(inputs))
    for start, stop in [(0, 1), (rows // 2, rows)]:
        part = engine.outputs(map_tensors(lambda t, a=start, b=stop: t[a:b], inputs))
        wanted = map_tensors(lambda t, a=start, b=stop: t[a:b], whole)
        error = max(_error(p, w, whole=f) for p, w, f in _triples(part, wanted, whole))
        assert error < min(_tolerance(engine), BETWEEN_BATCHES), (
            f"rows {start}:{stop} alone differ by {error:.2g} from the same rows in a batch"
        )
    others = map_tensors(lambda t: torch.cat([t[:1], t[1:].flip(0)]), inputs)
    first = take_rows(engine.outputs(others), 1)
    error = max(_error(p, w, whole=f) for p, w, f in _triples(first, take_rows(whole, 1), whole))
    assert error < min(_tolerance(engine), BETWEEN_BATCHES), (
        f"a row's outputs depend on the other rows: they differ by {error:.2g}"
    )


def check_preparing_changes_nothing(engine: Engine, model: nn.Module, inputs: Any) -> None:
    engine.refresh(snapshot(model, 0))
    old = _kept(engine.outputs(inputs))
    precisions = engine.precisions()
    first = engine.prepared(snapshot(model, 0))
    experienced(model, inputs, seed=1)
    record = snapshot(model, 7)
    second = engine.prepared(record)
    assert engine.version == 0, "the version must stay until use()"
    assert engine.precisions() == precisions, "the precisions are those of the program in use, not of one just prepared"
    assert _same(old, _kept(engine.outputs(inputs))), "the old weights must stay until use()"
    for tensor in record.tensors.values():
        tensor.zero_()
    engine.use(second)
    assert engine.version == 7, "use() must set the version"
    new = _kept(engine.outputs(inputs))
    _assert_near(new, _expected(model, inputs), engine, "the outputs of what was prepared before its record changed")
    for prepared, version, wanted in ((first, 0, old), (second, 7, new), (first, 0, old)):
        engine.use(prepared)
        assert engine.version == version, "programs may be used in any order, each under its own version"
        assert _same(wanted, _kept(engine.outputs(inputs))), "programs may be used in any order, each gives its own"


def check_preparing_in_a_second_thread(engine: Engine, model: nn.Module, inputs: Any) -> None:
    engine.refresh(snapshot(model, 0))
    asked = (engine.outputs, engine.reference) if isinstance(engine, LoweredEngine) else (engine.outputs,)
    old = [_kept(ask(inputs)) for ask in asked]
    experienced(model, inputs, seed=1)
    record = snapshot(model, 7)
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(lambda: [engine.prepared(engine.calibrated(record)) for _ in range(2)])
        while not future.done():
            now = [_kept(ask(inputs)) for ask in asked]
            assert _same(old, now), "outputs() must not see what a second thread prepares"
    engine.use(future.result()[0])
    new = _kept(engine.outputs(inputs))
    engine.refresh(engine.calibrated(record))
    assert _same(new, _kept(engine.outputs(inputs))), "what is prepared beside outputs() must be what is prepared alone"


def check_pickling(engine: Engine, model: nn.Module, inputs: Any) -> None:
    record = engine.calibrated(snapshot(model, 0))
    unused = pickle.loads(pickle.dumps(engine))
    engine.refresh(record)
    wanted, precisions = _kept(engine.outputs(inputs)), engine.precisions()
    written = pickle.dumps(engine)
    weights = {name: t for name, t in record.tensors.items() if t.is_floating_point() and len(t.unique()) > 8}
    along = [name for name, tensor in weights.items() if tensor.numpy().tobytes() in written]
    assert not along, f"weights do not travel with an engine: its pickle holds {', '.join(along)}"
    for other in (unused, pickle.loads(written)):
        check_unrefreshed(other, model, inputs)
        assert not any(other.totals().values()), "nothing has happened yet"
        again = other.calibrated(Record(record.version, record.tensors))
        assert _same(dict(record.ranges), dict(again.ranges)), "an unpickled engine must measure the same ranges"
        other.refresh(record)
        assert _same(wanted, _kept(other.outputs(inputs))), "an unpickled engine must give the same bits"
        assert other.precisions() == precisions, "an unpickled engine must run in the same precisions"
    assert _same(wanted, _kept(engine.outputs(inputs))), "the engine that was pickled must go on as before"


CHECKS = (
    check_unrefreshed,
    check_model_is_left_alone,
    check_outputs,
    check_refresh,
    check_record_is_copied,
    check_bad_records,
    check_rows_are_independent,
    check_preparing_changes_nothing,
    check_preparing_in_a_second_thread,
    check_pickling,
)


def _bad_records(record: Record) -> dict[str, tuple[str, dict[str, Tensor]]]:
    """What is wrong -> (the tensor that a refusal must name, the tensors)."""
    good = dict(record.tensors)
    floating = [name for name, tensor in good.items() if tensor.is_floating_point() and bool(tensor.isfinite().all())]
    first, last = floating[0], floating[-1]
    bad = {
        "a missing tensor": (last, {name: tensor for name, tensor in good.items() if name != last}),
        "an unknown tensor": ("stranger", good | {"stranger": torch.zeros(1)}),
        "another shape": (first, good | {first: torch.zeros(2, 3, 5)}),
    }
    for name in {first, last, next((name for name in floating if name.endswith("running_var")), last)}:
        for value in (torch.nan, torch.inf):
            poisoned = good[name].clone()
            poisoned.view(-1)[-1] = value
            bad[f"{value} in {name}"] = (name, good | {name: poisoned})
    return bad


def _expected(model: nn.Module, inputs: Any) -> Any:
    with torch.no_grad():
        return call_model(copy.deepcopy(model).eval(), inputs)


def _assert_near(outputs: Any, wanted: Any, engine: Engine, what: str) -> None:
    assert type(outputs) is type(wanted), f"outputs must be a {type(wanted)} as the model's, got {type(outputs)}"
    error = _error(outputs, wanted)
    assert error < _tolerance(engine), f"{engine.name} differs from {what} by {error:.2g} of their spread"


def _error(got: Any, wanted: Any, whole: Any = None) -> float:
    """Root mean square of the difference, relative to the spread between rows: no permutation passes."""
    errors = []
    for g, w, f in _triples(got, wanted, wanted if whole is None else whole):
        assert g.shape == w.shape, f"shape {tuple(g.shape)} instead of {tuple(w.shape)}"
        spread = (f - f.mean(0)).square().mean().sqrt()
        assert spread > 0, "the inputs' rows must differ"
        errors.append(float((g - w).square().mean().sqrt() / spread))
    return max(errors)


def _triples(a: Any, b: Any, c: Any) -> list[tuple[Tensor, Tensor, Tensor]]:
    return list(zip(tensors_of(a), tensors_of(b), tensors_of(c), strict=True))


def _same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tensors_of(a), tensors_of(b), strict=True))


def _kept(tree: Any) -> Any:
    """A copy: an engine may reuse what it returned at its next call."""
    return map_tensors(torch.clone, tree)


def _raised(call: Callable[[], Any]) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None


def _tolerance(engine: Engine) -> float:
    precision = engine.name.partition("@")[0].partition("+")[0].partition(":")[2]
    return TOLERANCES["int8" if precision in ("b8", "b16") else precision]


class CountedSamples(GivenSamples):
    """Other inputs at every version, and what was asked for: (version, rows)."""

    def __init__(self, inputs: Any, targets: Any = None) -> None:
        super().__init__(inputs, targets)
        self.asked: list[tuple[int, int]] = []

    def calibration(self, version: int, rows: int) -> Any:
        self.asked.append((version, rows))
        index = (torch.arange(rows) + version) % batch_size(self._inputs)
        return map_tensors(lambda tensor: tensor[index], self._inputs)


@functools.cache
def given_samples(network: str) -> CountedSamples:
    """Of the engines that `converted` gives for a network."""
    return CountedSamples(NETWORKS[network][1](GIVEN_ROWS))


def trained(network: str, version: int = 0) -> nn.Module:
    """A network as it is at some version, the same at every call."""
    build, inputs = NETWORKS[network]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return experienced(build(), inputs(GIVEN_ROWS), version)


def needs(spec: str) -> None:
    """Skip a test where a package of its engine is missing."""
    for package in EXTRAS.get(parse_engine(spec).name, ()):
        pytest.importorskip(package, reason=f"{spec} needs {package}")


def converted(spec: str, network: str, scheme: str = "default") -> LoweredEngine:
    """An engine as new, for one of `NETWORKS`; its conversion, which takes seconds, is done once and shared."""
    needs(spec)
    return copy.copy(_converted(spec, network, scheme))


@functools.cache
def _converted(spec: str, network: str, scheme: str) -> LoweredEngine:
    engine = build_engine(spec, trained(network), samples=given_samples(network), scheme=scheme, rows=ENGINE_ROWS)
    assert isinstance(engine, LoweredEngine)
    return engine
