"""A text as its tokens, each with its loss: which loss is whose, and how it looks.

A loss belongs to what was to be predicted. Where the targets are the inputs moved by one, as in next-token prediction,
the loss at a place is that of the token after it; elsewhere (masked tokens, tags) that of the token there.

Shapes: t tokens of one text.
"""

import html
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from infer2train.draws.scores import IGNORED

MOST_TOKENS = 120
"""Of a text that are shown."""
CHANCES = (2, 10, 100, 1000)
"""A shade begins where the model gave what was to be predicted one chance in so many."""
VISIBLE = str.maketrans({"\n": "↵\n", "\t": "⇥\t"})
OPENED = '<p class="text tokens">'

TokenText = Callable[[int], str]
"""The id of a token -> what it says."""


@dataclass(frozen=True)
class Token:
    """One token, the loss of its prediction, and what was to be predicted where that is something else."""

    id: int
    loss: float = float("nan")
    wanted: int | None = None


def ids_of(inputs: Any) -> Tensor | None:
    """The ids of a sample's tokens, if that is what its inputs are: integers [t], alone or as `input_ids`."""
    found = inputs.get("input_ids") if isinstance(inputs, dict) else inputs
    is_row = isinstance(found, Tensor) and found.ndim == 1 and not found.is_floating_point()
    return found if is_row else None


def tokens_of(inputs: Any, targets: Any, losses: Float32[Tensor, "..."] | None) -> list[Token]:
    """The tokens of one text, without those that its attention mask or its targets tell to be padding.

    Args:
        inputs: ids [t], or a dictionary with `input_ids` [t] and perhaps `attention_mask` [t].
        targets: of each token, [t], `IGNORED` where there is none; or of the whole text.
        losses: of each target, [t], NaN where there is none; of all tokens but the first, [t − 1]; or of the text.

    Raises:
        ValueError: there are neither t losses nor t − 1.

    Example:
        >>> tokens_of(torch.tensor([5, 6, 0]), torch.tensor([6, 7, -100]), torch.tensor([0.5, 1.0, torch.nan]))[1:]
        [Token(id=6, loss=0.5, wanted=None), Token(id=7, loss=1.0, wanted=None)]
    """
    row = ids_of(inputs)
    assert row is not None
    ids = row.cpu().numpy().astype(np.int64)
    wanted, values = np.full(len(ids), IGNORED), np.full(len(ids), np.nan, dtype=np.float32)
    if isinstance(targets, Tensor) and targets.shape == row.shape:
        wanted = targets.cpu().numpy().astype(np.int64)
    if losses is not None and losses.ndim:
        values = losses.numpy()
    if len(values) == len(ids) - 1:
        wanted = np.where(np.isnan(values), IGNORED, ids[1:])
    elif len(values) != len(ids):
        raise ValueError(
            f"losses= must give a loss for each token, or for each but the first: got {values.shape} for {len(ids)} "
            "tokens; return them as [n, t]"
        )
    is_own = _mask(inputs, len(ids))
    if len(wanted) < len(ids) or _is_moved(ids, wanted):
        return _predicted(ids, wanted, values, is_own)
    return [
        Token(int(ids[at]), float(values[at]), None if wanted[at] in (IGNORED, ids[at]) else int(wanted[at]))
        for at in np.flatnonzero(is_own)
    ]


def _mask(inputs: Any, count: int) -> Bool[np.ndarray, " t"]:
    mask = inputs.get("attention_mask") if isinstance(inputs, dict) else None
    if isinstance(mask, Tensor) and mask.shape == (count,):
        return np.asarray(mask.cpu().numpy() != 0)
    return np.ones(count, dtype=bool)


def _is_moved(ids: Int64[np.ndarray, " t"], wanted: Int64[np.ndarray, " t"]) -> bool:
    """Whether what is to be predicted is the next token, wherever a text goes on."""
    places = np.flatnonzero(wanted != IGNORED)
    inside = places[:-1]
    return len(inside) > 0 and bool((wanted[inside] == ids[inside + 1]).all() and (wanted != ids)[places].any())


def _predicted(
    ids: Int64[np.ndarray, " t"],
    wanted: Int64[np.ndarray, " w"],
    values: Float32[np.ndarray, " w"],
    is_own: Bool[np.ndarray, " t"],
) -> list[Token]:
    """The first token, and those after it, each with the loss at the place before."""
    counts = np.append(False, wanted != IGNORED)
    said = np.append(ids, IGNORED)[: len(counts)]
    said[1:] = np.where(counts[1:], wanted, said[1:])
    is_own = np.append(is_own, False)[: len(counts)] | counts
    if counts.any():
        is_own[int(np.flatnonzero(counts)[-1]) + 1 :] = False
    losses = np.append(np.nan, values)
    return [Token(int(said[at]), float(losses[at])) for at in np.flatnonzero(is_own)]


def shade(loss: float) -> int:
    """From 0, where the loss is low or none, to the number of `CHANCES`."""
    return 0 if np.isnan(loss) else bisect(CHANCES, float(np.exp(min(loss, 50.0))))


def has_tokens(element: str) -> bool:
    """Whether this is what `as_marked` gave."""
    return element.startswith(OPENED)


def as_marked(tokens: Sequence[Token], text: TokenText | None) -> str:
    """Tokens as HTML, with their losses as shades, and as numbers for who does not see or tell these apart.

    Args:
        tokens: of one text.
        text: of a token; None for its id.
    """
    marked = [_marked(token, text or (lambda token: f"{token} ")) for token in tokens[:MOST_TOKENS]]
    return f"{OPENED}{''.join(marked)}{' …' if len(tokens) > MOST_TOKENS else ''}</p>"


def _marked(token: Token, text: TokenText) -> str:
    said = html.escape(str(text(token.id)).translate(VISIBLE))
    if np.isnan(token.loss):
        return f"<span>{said}</span>"
    loss = f"{token.loss:.2f}" + ("" if token.wanted is None else f", target {token.wanted}")
    return f'<b class="s{shade(token.loss)}" title="loss {loss}">{said}<i> {loss} </i></b>'
