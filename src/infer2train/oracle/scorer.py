"""Scoring: batches of candidates in, one number each out (or the mean log-probabilities of equation 1).

What a pool runs wherever its engine is. Chunks are cut from the draw's candidate list alone and the last one is padded,
so that a candidate's score never depends on what else a pool happens to have at hand.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from infer2train.batches import Split, batch_size, logits_of, pad_batch, split_batch, take_rows, to_device
from infer2train.draws.addresses import Addresses
from infer2train.draws.losses import mean_log_probabilities, own_tokens
from infer2train.draws.scores import IGNORED, Score
from infer2train.oracle.engine import Engine


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What the oracle said of a draw's candidates."""

    targets: Any
    """The candidates' targets, [n] or any pytree of it: the trainer never decodes losers to learn labels."""
    values: Float[Tensor, " n"] | None = None
    """One number for each candidate."""
    log_probabilities: Float[Tensor, "b *t k"] | None = None
    """Mean over each slot's views of the log-probabilities, for distillation; of a token that does not count, NaN."""


def chunks(addresses: Addresses, size: int) -> list[Addresses]:
    """The candidates cut into lists of at most `size`, in order."""
    return [addresses[start : start + size] for start in range(0, len(addresses), size)]


class Scorer:
    """Scores chunks of candidates with an engine.

    Args:
        score: (outputs, targets) -> [n], the user's or ours; None where only targets or log-probabilities are wanted.
        distill_views: views of each slot (γ) whose log-probabilities are averaged; 0 where none are.
        split: batch -> (inputs, targets).
        chunk: rows of every call of the engine; shorter batches are padded.
    """

    def __init__(
        self,
        *,
        score: Score | None,
        distill_views: int = 0,
        split: Split = split_batch,
        chunk: int,
    ) -> None:
        self._score = score
        self._distill_views = distill_views
        self._split = split
        self.chunk = chunk

    def score(self, engine: Engine | None, batches: Iterable[Any]) -> Scores:
        """The scores of a draw, whose candidates come as collated batches in their order.

        Raises:
            ValueError: the score function does not give one number for each candidate, or logits cannot be distilled.
        """
        targets: list[Any] = []
        rows: list[int] = []
        values: list[Tensor] = []
        logits: list[Tensor] = []
        for inputs, target in map(self._split, batches):
            targets.append(target)
            rows.append(batch_size(inputs))
            if engine is None:
                continue
            outputs = outputs_of(engine, inputs, self.chunk)
            if self._distill_views:
                logits.append(own_tokens(logits_of(outputs), target))
            if self._score is not None:
                values.append(one_each(self._score(outputs, to_device(target, engine.device)), rows[-1]))
        return Scores(
            targets=joined(targets, rows),
            values=torch.cat(values) if values else None,
            log_probabilities=mean_log_probabilities(_of_one_length(logits, torch.nan), self._distill_views)
            if logits
            else None,
        )


def outputs_of(engine: Engine, inputs: Any, chunk: int) -> Any:
    """What an engine says of inputs, called with whole chunks: fewer rows are padded, and taken off again.

    The memory is the engine's, until it is called again.
    """
    return take_rows(engine.outputs(to_device(pad_batch(inputs, chunk), engine.device)), batch_size(inputs))


def one_each(values: Any, rows: int) -> Float[Tensor, " n"]:
    """What a score function gave, if it is one number for each candidate.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(values, Tensor) or values.shape != (rows,):
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        remedy = _reduced(values, rows)
        raise ValueError(f"score must return one number for each candidate: got {got} for {rows} candidates; {remedy}")
    return values.detach().float().clone()


def _reduced(values: Any, rows: int) -> str:
    """How to come from what a score gave to one number each."""
    shape = tuple(values.shape) if isinstance(values, Tensor) else ()
    if shape == (rows, 1):
        return "append .squeeze(1)"
    if shape == (rows, rows):
        return "outputs [n, 1] and targets [n] were combined with each other: write outputs.squeeze(1)"
    return (
        "take the mean over every dimension but the first, with reduction='none', of what counts: .flatten(1).mean(1), "
        "or .flatten(1).sum(1) / own.flatten(1).sum(1).clamp(min=1) where `own` says what that is"
    )


def joined(parts: list[Any], rows: list[int]) -> Any:
    """What each chunk has for its candidates, as if the draw were one batch.

    Tensors are joined along their first dimension, containers of columns column by column, and a sequence with one
    entry for each candidate (captions, boxes of different number) entry after entry. Labels of tokens that were padded
    chunk by chunk are padded on with `scores.IGNORED`. What is not by candidate stays apart, one entry a chunk, and so
    do other tensors of several sizes; nothing stays nothing.

    Args:
        parts: one pytree a chunk, of one structure.
        rows: how many candidates each chunk has.

    Example:
        >>> joined([["a", "b"], ["c"]], [2, 1])
        ['a', 'b', 'c']
    """
    first = parts[0]
    by_candidate = list(zip(parts, rows, strict=True))
    if all(_are_columns(part, n) for part, n in by_candidate):
        if isinstance(first, Mapping):
            return {key: joined([part[key] for part in parts], rows) for key in first}
        make = getattr(type(first), "_make", type(first))  # a named tuple's constructor takes its fields one by one
        return make([joined([part[column] for part in parts], rows) for column in range(len(first))])
    if all(_has_rows(part, n) for part, n in by_candidate):
        if not isinstance(first, Tensor):
            return [entry for part in parts for entry in part]
        if len({part.shape[1:] for part in parts}) == 1 or _are_labels(parts):
            return _of_one_length(parts, IGNORED)
    return None if first is None else parts


def _are_labels(parts: list[Tensor]) -> bool:
    """Whether they are classes of tokens, [n, t], of integers that can hold `IGNORED`."""
    return all(part.ndim == 2 and part.dtype in (torch.int16, torch.int32, torch.int64) for part in parts)


def _of_one_length(parts: list[Tensor], filled: float) -> Tensor:
    """Joined along their first dimension, the second as long as the longest."""
    if len({part.shape[1:] for part in parts}) == 1:
        return torch.cat(parts)
    longest = max(part.shape[1] for part in parts)
    missing = [part.new_full((len(part), longest - part.shape[1], *part.shape[2:]), filled) for part in parts]
    return torch.cat([torch.cat(pair, 1) for pair in zip(parts, missing, strict=True)])


def _are_columns(tree: Any, rows: int) -> bool:
    """Whether it is a container each of whose entries has something for each candidate."""
    entries = list(tree.values()) if isinstance(tree, Mapping) else tree if isinstance(tree, list | tuple) else []
    return len(entries) > 0 and all(_has_rows(entry, rows) for entry in entries)


def _has_rows(tree: Any, rows: int) -> bool:
    if isinstance(tree, Tensor):
        return tree.ndim > 0 and len(tree) == rows
    return _are_columns(tree, rows) or (isinstance(tree, list | tuple) and len(tree) == rows)
