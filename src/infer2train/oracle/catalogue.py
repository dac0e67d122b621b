"""Engines by name: what `--oracle torch:bf16` builds."""

import torch
from torch import nn

from infer2train.config import resolve, unknown
from infer2train.oracle.engine import Engine

ENGINES = {"torch": "infer2train.oracle.torch_engine:TorchEngine"}
"""Name -> an engine built as (model, *, precision=, device=), whose default precision is what the bare name means."""


def check_engine(spec: str) -> None:
    """Refuse a name that no engine has, also where none is built.

    Raises:
        ValueError: there is no such engine; it names the nearest.
    """
    name = spec.partition(":")[0]
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)


def build_engine(spec: str, model: nn.Module, device: torch.device | None = None) -> Engine:
    """The engine that `name:precision` asks for.

    Args:
        spec: an entry of `ENGINES`, with or without a precision: `torch:bf16`, `torch` (fp32).
        model: the trainer's model, which the engine copies.
        device: where it runs. Default: the model's own.

    Returns:
        An engine that waits for its first record.

    Raises:
        ValueError: there is no such engine, or it has no such precision.

    Example:
        >>> build_engine("torch:bf16", nn.Linear(2, 2)).name
        'torch:bf16'
    """
    check_engine(spec)
    name, separator, precision = spec.partition(":")
    chosen = {"precision": precision} if separator else {}
    engine: Engine = resolve(ENGINES[name])(model, device=device, **chosen)
    return engine
