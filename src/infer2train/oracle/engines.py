"""Engines by name: what `--oracle openvino:int8@CPU` builds, and which engine `int8` is."""

import importlib.util
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from infer2train.machine.device import torch_device
from infer2train.oracle.engine import Engine
from infer2train.oracle.reduced_engine import ReducedEngine, ReducedSamples, require_any_size
from infer2train.oracle.samples import Samples
from infer2train.settings import resolve, unknown

if TYPE_CHECKING:
    from infer2train.oracle.lowered_engine import LoweredEngine

ENGINES = {
    "torch": "infer2train.oracle.torch_engine:TorchEngine",
    "simulated": "infer2train.oracle.simulated_engine:SimulatedEngine",
    "openvino": "infer2train.oracle.openvino_engine:OpenVINOEngine",
    "onnxruntime": "infer2train.oracle.onnxruntime_engine:ONNXRuntimeEngine",
}
"""Name -> an engine whose default precision is what the bare name means. `torch` is built as (model, *, precision=,
device=, is_compiled=), the others as (model, *, precision=, samples=, device=, scheme=, rows=)."""
EXTRAS = {"openvino": ("openvino",), "onnxruntime": ("onnxruntime", "onnx", "onnxscript")}
"""Engine -> packages that its extra of the same name installs."""
INT8 = ("openvino:int8", "onnxruntime:int8")
"""Engines that run integers, the fastest first (docs/results)."""
AUTOMATIC = ("int8", "auto")
"""Names that stand for an engine, decided once a run."""


@dataclass(frozen=True)
class EngineName:
    """A parsed `name:precision+compile@device/divisor`."""

    name: str
    precision: str | None
    device: str | None
    is_compiled: bool = False
    """By torch.compile; only torch's own engine can be."""
    divisor: int = 1
    """Of the images' height and width, see `ReducedEngine`."""


def parse_engine(spec: str) -> EngineName:
    """The parts of an engine's name.

    Raises:
        ValueError: there is no such engine; it names the nearest.

    Example:
        >>> parse_engine("openvino:int8@GPU.0/2")
        EngineName(name='openvino', precision='int8', device='GPU.0', is_compiled=False, divisor=2)
    """
    rest, slash, divisor = spec.partition("/")
    if slash and not (divisor.isdecimal() and int(divisor) >= 2):
        raise ValueError(
            f"what stands behind the / divides the height and width of images, a whole number from 2: got {spec!r}; "
            "write /2, or leave it out"
        )
    rest, at, device = rest.partition("@")
    if rest == "auto" and slash:
        raise ValueError(f"oracle 'auto' measures whole images: got {spec!r}; name an engine before the /, say int8/2")
    if rest == "auto":
        raise ValueError(
            "oracle 'auto' is decided by mine() and train: got it where one engine is built; name an engine"
        )
    if at and not device:
        raise ValueError(f"an engine's device stands behind the @: got {spec!r}; name one, or leave the @ out")
    rest, plus, suffix = rest.partition("+")
    name, colon, precision = rest.partition(":")
    if name not in ENGINES:
        raise unknown("engine", name, [*ENGINES, *AUTOMATIC])
    if plus and (suffix, name) != ("compile", "torch"):
        raise ValueError(
            f"what may follow an engine's precision is +compile, after torch's: got {spec!r}; leave it out"
        )
    return EngineName(name, precision if colon else None, device or None, bool(plus), int(divisor or 1))


def is_any_int8(spec: str) -> bool:
    """Whether the model decides which engine it is: `int8`, also at a lower resolution."""
    return spec.partition("/")[0] == "int8"


def missing_packages(spec: str) -> list[str]:
    """Packages that an engine needs, with or without a precision in its name, and that are not installed."""
    return [package for package in EXTRAS.get(parse_engine(spec).name, ()) if importlib.util.find_spec(package) is None]


def resolve_engine(spec: str, is_used: bool = True) -> str:
    """The engine that a name stands for: `int8` is the fastest int8 engine installed; other names are themselves.

    `auto` stays, for whoever can measure. Whoever has the model has `build_engine("int8", …)` look at it as well.

    Args:
        spec: as the user wrote it.
        is_used: whether an engine will be built; a control that has none needs no packages.

    Raises:
        ValueError: there is no such engine, or a package is missing; it says what to install.
    """
    if spec.startswith("int8/"):
        parse_engine(spec.replace("int8", INT8[0]))
        return spec.replace("int8", resolve_engine("int8"), 1) if is_used else spec
    name = None if spec in AUTOMATIC else parse_engine(spec).name
    if name and is_used and (missing := missing_packages(name)):
        raise ValueError(
            f"oracle {spec!r} needs {' and '.join(missing)}, which this Python does not have: "
            f"pip install 'infer2train[{name}]'"
        )
    if spec != "int8" or not is_used:
        return spec
    for spec in INT8:
        if not missing_packages(spec):
            return spec
    raise ValueError(
        "oracle 'int8' needs an int8 engine, and none is installed: pip install 'infer2train[openvino]' (the fastest "
        "on x86 CPUs) or 'infer2train[onnxruntime]'"
    )


def build_engine(
    spec: str,
    model: nn.Module,
    device: torch.device | None = None,
    *,
    samples: Samples | None = None,
    scheme: str = "default",
    rows: int | None = None,
) -> Engine:
    """The engine that `name:precision@device/divisor` asks for.

    `int8` is the first of the int8 engines installed that runs this model well, see `Trial.is_good`, else the better
    one; the engine's name and notes say which and why.

    Args:
        spec: an entry of `ENGINES`, with or without a precision and a device: `openvino:int8`, `torch` (fp32),
            `torch:bf16+compile`; or `int8`.
        model: the trainer's model, which the engine copies.
        device: where the torch engine runs, if the name does not say it. Default: the model's own.
        samples: calibration samples and probe; every engine but torch needs them.
        scheme: how S and Z are chosen, an entry of `quantization.schemes.SCHEMES`.
        rows: that it is going to be called with. Default: the engine's own.

    Returns:
        An engine that waits for its first record.

    Raises:
        ValueError: there is no such engine, it has no such precision, a package is missing, or it cannot run the model.

    Example:
        >>> build_engine("torch:bf16", nn.Linear(2, 2)).name
        'torch:bf16'
    """
    first = resolve_engine(spec)
    whole, slash, divisor = spec.partition("/")
    if slash:
        small = None if samples is None else ReducedSamples(samples, int(divisor))
        if small is not None:
            require_any_size(model, small.calibration(0, rows or 2), int(divisor))
        inner = build_engine(whole, model, device, samples=small, scheme=scheme, rows=rows)
        return ReducedEngine(inner, int(divisor))
    if spec == "int8":
        others = [other for other in INT8 if other != first and not missing_packages(other)]
        return _first_good([first, *others], model, samples=samples, scheme=scheme, rows=rows)
    parsed = parse_engine(first)
    chosen = {} if parsed.precision is None else {"precision": parsed.precision}
    build = resolve(ENGINES[parsed.name])
    engine: Engine
    if parsed.name == "torch":
        place = torch_device(parsed.device, "leave it out for the model's own") if parsed.device else device
        engine = build(model, device=place, is_compiled=parsed.is_compiled, **chosen)
        return engine
    if samples is None:
        raise ValueError(f"the {parsed.name} engine needs samples= to calibrate on: got none; pass GivenSamples(x)")
    own_rows = {"rows": rows} if rows else {}
    engine = build(model, samples=samples, device=parsed.device, scheme=scheme, **chosen, **own_rows)
    return engine


def _first_good(specs: list[str], model: nn.Module, **how: Any) -> Engine:
    """The first engine that runs the model well, else the best; it alone warns.

    Raises:
        ValueError: none can run it; what the first one said.
    """
    from infer2train.oracle.lowered_engine import LoweredEngine
    from infer2train.oracle.quantization.graph import GraphError

    built: list[tuple[LoweredEngine, list[warnings.WarningMessage]]] = []
    failures: dict[str, ValueError] = {}
    for spec in specs:
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                engine = build_engine(spec, model, **how)
        except GraphError:
            raise  # no other could follow it either
        except ValueError as error:
            failures[spec] = error
            continue
        assert isinstance(engine, LoweredEngine)
        built.append((engine, said))
        if engine.trial is None or engine.trial.is_good:
            break
    if not built:
        raise failures[specs[0]]
    best, said = max(built, key=lambda pair: _goodness(pair[0]))  # the first of equals
    for message in said:
        warnings.warn(message.message)
    reasons = [f"{spec} cannot run this model" for spec in failures]
    reasons += [_weakness(engine) for engine, _ in built if engine is not best]
    if reasons:
        best.notes += (f"int8 is {best.name} for this model: {'; '.join(reasons)}",)
    return best


def _goodness(engine: "LoweredEngine") -> tuple[bool, float, float]:
    trial = engine.trial
    return (True, 1.0, 1.0) if trial is None else (trial.has_passed, trial.int8_share, trial.rank_correlation)


def _weakness(engine: "LoweredEngine") -> str:
    """What was found wrong with an engine that was not taken."""
    assert engine.trial is not None
    if not engine.trial.has_passed:
        return f"the program of {engine.name} is not what it should be"
    return engine.trial.note(engine.name)
