"""The line to write where `split=` or `score=` must be given: found by trying, and by the shapes that are at hand."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from infer2train.batches import TARGET_NAMES, Split
from infer2train.draws.scores import IGNORED
from infer2train.oracle.live import asked


def split_to_write(network: nn.Module, batch: Any) -> str | None:
    """A `split=` by which this model takes this batch: it was tried. None where nothing usual does.

    Args:
        network: a copy of the model in evaluation mode.
        batch: what the user's `collate_fn` returns.

    Example:
        >>> import torch
        >>> split_to_write(nn.Linear(2, 2), (torch.ones(3, 2), torch.zeros(3).long(), torch.arange(3)))
        'split=lambda batch: (batch[0], batch[1])'
    """
    for text, split in _splits(batch):
        try:
            asked(network, split(batch)[0])
        except Exception:  # it is tried whether it works
            continue
        return f"split={text}"
    return None


def _splits(batch: Any) -> Iterator[tuple[str, Split]]:
    """Ways to tell a batch apart, the likeliest first, each with its text."""
    if isinstance(batch, Tensor):
        yield "lambda batch: (batch, batch)", _same_twice
        return
    keys = [key for key in _keys(batch) if isinstance(batch[key], Tensor)]
    targets = [key for key in (*TARGET_NAMES, *keys) if key in keys]
    for x in keys:
        y = next((key for key in targets if key != x), x)
        yield f"lambda batch: (batch[{x!r}], batch[{y!r}])", _taking(x, y)
        yield f"lambda batch: (batch[{x!r}].float(), batch[{y!r}])", _taking(x, y, as_float=True)
    whole = [key for key in _keys(batch) if isinstance(batch[key], list | tuple | Mapping)]
    for x in whole:
        if targets:
            yield f"lambda batch: ((batch[{x!r}],), batch[{targets[0]!r}])", _taking_whole(x, targets[0])


def _keys(batch: Any) -> list[Any]:
    if isinstance(batch, Mapping):
        return list(batch)
    return list(range(len(batch))) if isinstance(batch, list | tuple) else []


def _taking_whole(x: Any, y: Any) -> Split:
    return lambda batch: ((batch[x],), batch[y])


def _same_twice(batch: Any) -> tuple[Any, Any]:
    return batch, batch


def _taking(x: Any, y: Any, *, as_float: bool = False) -> Split:
    return lambda batch: (batch[x].float() if as_float else batch[x], batch[y])


def score_to_write(outputs: Any, targets: Any) -> str | None:
    """A `score=` for outputs and targets of these shapes, a name where one of ours fits; None where nothing usual does.

    Args:
        outputs: of the model.
        targets: of the same samples.

    Example:
        >>> import torch
        >>> score_to_write(torch.ones(3, 1), torch.tensor([0.5, 2.0, 3.0]))
        '"squared-error"'
    """
    z, name = _logits(outputs)
    if z is None or not isinstance(targets, Tensor) or z.ndim == 0 or targets.ndim == 0:
        return None
    if (ours := _name(z, targets)) is not None:
        return f'"{ours}"'
    line = None if targets.is_floating_point() else _of_classes(z, targets)
    if line is None:
        return None
    text = f"lambda outputs, y: {line.replace('outputs', name)}"
    try:
        eval(text, {"F": F})(outputs, targets)
    except Exception:  # it is tried whether it works
        return None
    return text


def _name(z: Tensor, y: Tensor) -> str | None:
    """The score of ours that takes these shapes, and what targets of one batch look like."""
    is_binary = bool(((y == 0) | (y == 1)).all())
    is_one_each = z.numel() == len(z) == y.numel()
    if not is_one_each and (z.shape != y.shape or z.ndim < 2):
        return None
    if not y.is_floating_point():
        return "multi-label-loss" if is_binary else None
    if not is_one_each and z.ndim == 2 and bool((y >= 0).all()) and bool(((y.sum(1) - 1).abs() < 1e-3).all()):
        return "soft-loss"
    return "multi-label-loss" if is_binary else "squared-error"


def _logits(outputs: Any) -> tuple[Tensor | None, str]:
    """The first tensor of real numbers among outputs, and how it is written."""
    if isinstance(outputs, Tensor):
        return outputs, "outputs"
    if isinstance(outputs, Mapping):
        name = "logits" if "logits" in outputs else next(iter(outputs), "")
        return (outputs[name] if isinstance(outputs.get(name), Tensor) else None), f"outputs[{name!r}]"
    if isinstance(outputs, list | tuple) and outputs and isinstance(outputs[0], Tensor):
        return outputs[0], "outputs[0]"
    return None, ""


def _of_classes(z: Tensor, y: Tensor) -> str | None:
    """For targets that are whole numbers."""
    if z.ndim == 2 and y.shape == (len(z), 1):
        return 'F.cross_entropy(outputs, y.squeeze(1), reduction="none")'
    ignored = bool((y == IGNORED).any())
    if z.ndim == 2 and y.ndim == 1:
        return f'F.cross_entropy(outputs, y, reduction="none", ignore_index={IGNORED})' if ignored else None
    second = z if z.ndim == 3 else z.movedim(-1, 1)
    if z.ndim < 3 or y.shape != (len(z), *second.shape[2:]):
        return None
    moved = "outputs" if z.ndim == 3 else "outputs.movedim(-1, 1)"
    if not ignored:
        return f'F.cross_entropy({moved}, y, reduction="none").flatten(1).mean(1)'
    own = f"(y != {IGNORED}).flatten(1).sum(1).clamp(min=1)"
    return f'F.cross_entropy({moved}, y, reduction="none").flatten(1).sum(1) / {own}'
