"""Showing what was picked: the chosen views of a draw beside the rejected ones, made again from their addresses."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from infer2train.batches import Split, split_batch, tensors_of
from infer2train.draws.addresses import Addresses
from infer2train.draws.draw import Draw
from infer2train.reporting.gallery import GalleryRow
from infer2train.sources.source import Source


def audit_draw(
    draw: Draw,
    source: Source,
    *,
    gamma: int,
    class_names: Sequence[str] = (),
    split: Split = split_batch,
    rows: int = 4,
) -> list[GalleryRow]:
    """The first mined examples of a draw, each beside candidates that lost to it.

    Where a view of each sample was picked, these are the sample's other views; where samples were picked, candidates of
    the draw that were not.

    Args:
        draw: as `loader.last` has it.
        source: what its addresses are read from.
        gamma: candidates shown in each row.
        class_names: by label.
        split: batch -> (inputs, targets).
        rows: how many examples.

    Returns:
        None of them where nothing was scored or the inputs are not images.
    """
    if draw.scores is None or draw.chosen is None or draw.mined is None:
        return []
    scores = draw.scores.cpu().numpy().astype(np.float32)
    sheet = []
    for chosen in draw.chosen[draw.mined][:rows].tolist():
        beside = _beside(draw, chosen, gamma)
        inputs, targets = split(source.batch(draw.candidates[beside]))
        images = tensors_of(inputs)[0]
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            return []
        place, ids = beside.tolist().index(chosen), draw.candidates.ids[beside]
        are_samples = len(np.unique(ids)) > 1
        sheet.append(
            GalleryRow(
                epoch=draw.epoch,
                draw=draw.number,
                sample_id=int(ids[place]),
                label=_label(targets, place, class_names),
                pixels=as_pixels(images),
                scores=scores[beside],
                chosen=place,
                samples=[f"{_label(targets, other, class_names)} · {one}" for other, one in enumerate(ids)]
                if are_samples
                else (),
            )
        )
    return sheet


def _beside(draw: Draw, chosen: int, gamma: int) -> Int64[np.ndarray, " g"]:
    """Indices of the chosen candidate and of those it is shown with: its own sample's, or losers of the draw."""
    same: Addresses = draw.candidates
    slot = chosen // gamma * gamma
    own = np.arange(slot, min(slot + gamma, len(same)))  # fewer where a draw has one candidate a sample
    if len(own) == gamma > 1 and len(np.unique(same.ids[own])) == 1:
        return own
    assert draw.chosen is not None
    losers = np.setdiff1d(np.arange(len(same)), draw.chosen)[: gamma - 1]
    return np.concatenate([[chosen], losers])


def _label(targets: Any, place: int, class_names: Sequence[str]) -> str:
    if not isinstance(targets, Tensor) or targets.ndim != 1:
        return ""
    target = targets[place].item()
    return class_names[int(target)] if isinstance(target, int) and 0 <= target < len(class_names) else str(target)


def as_pixels(images: Tensor) -> UInt8[np.ndarray, "n h w c"]:
    """Images as a person can look at them: uint8 as they are, others stretched from their lowest to their highest."""
    if images.dtype != torch.uint8:
        images = images.float()
        low, high = images.amin(), images.amax()
        images = ((images - low) / (high - low).clamp_min(1e-12) * 255).round().to(torch.uint8)
    return images.permute(0, 2, 3, 1).cpu().contiguous().numpy()
