"""What every view and every source must do: an AssertionError says what one did wrong.

The same address gives the same pixels alone, anywhere in a list of 640, and in another process; other seeds give other
pixels; the images and everybody's random state stay as they were.
"""

import functools
import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infer2train.batches import batch_size, map_tensors
from infer2train.draws.addresses import Addresses, Purpose, integers, seeds
from infer2train.sources.source import Source
from infer2train.sources.views.view import View

CANDIDATES = 640
"""A draw of the paper: 64 samples, 10 views of each."""

ALONE = (0, 1, 17, 63, 64, 127, 319, 639)
"""Places in the draw that are also tried alone: both ends, and both sides of what vector instructions take at once."""

SIDES = ((32, 32), (375, 500), (500, 375), (1, 1), (3, 700), (900, 2), (60, 100))
"""Heights and widths of images that a batch may hold at once."""

INDEPENDENT_SEEDS = 64


def check_view(view: View, images: Tensor) -> None:
    """Everything a view must do, on images of one size.

    Args:
        view: any; it is sent to another process, so its class must be importable there.
        images: at least two different ones, uint8 [n h w c].
    """
    batch = images[torch.from_numpy(np.arange(CANDIDATES) % len(images))]
    own = seeds(0, Purpose.PROBE, slot=np.arange(CANDIDATES))
    pixels = _unmoved(lambda: view(batch.clone(), own))
    _check_form(view, batch, pixels)
    _check_untouched(view, batch, own)
    assert torch.equal(pixels, view(batch, own)), "the same seeds must give the same pixels a second time"
    for i in ALONE:
        assert torch.equal(pixels[i : i + 1], view(batch[i : i + 1], own[i : i + 1])), f"view {i} differs when alone"
    order = np.argsort(own)
    assert torch.equal(pixels[torch.from_numpy(order)], view(batch[order], own[order])), "the place in a batch shows"
    _check_seed_matters(view, images)
    _check_sides(view, own)
    assert torch.equal(pixels, elsewhere().submit(view, batch, own).result()), "another process gives other pixels"


def check_source(source: Source) -> None:
    """Everything a source must do.

    Args:
        source: gives batches whose leaves have the candidates as their first axis; picklable.
    """
    ids = integers(len(source), 0, Purpose.SUBSET, slot=np.arange(CANDIDATES // 10))
    addresses = Addresses(np.repeat(ids, 10), seeds(0, Purpose.PROBE, slot=np.arange(CANDIDATES)))
    batch = _unmoved(lambda: source.batch(addresses))
    assert batch_size(batch) == CANDIDATES, "a batch has one row for each address"
    assert same(batch, source.batch(addresses)), "the same addresses must give the same batch a second time"
    for i in ALONE:
        here = source.batch(addresses[i : i + 1])
        assert same(_rows(batch, np.array([i])), here), f"address {i} differs when alone"
    order = np.argsort(addresses.seeds)
    assert same(_rows(batch, order), source.batch(addresses[order])), "the place in a batch shows"
    again = elsewhere().submit(source.batch, addresses).result()
    assert same(batch, again), "another process gives another batch"


@functools.cache
def elsewhere() -> ProcessPoolExecutor:
    """One other process for the whole run, started from nothing: it shares no memory and no state with this one."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def same(first: Any, second: Any) -> bool:
    """Whether two batches are equal to the last bit."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, tuple | list):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return bool(first == second)


def _rows(batch: Any, rows: np.ndarray) -> Any:
    return map_tensors(lambda tensor: tensor[torch.from_numpy(rows)], batch)


def _check_form(view: View, images: Tensor, pixels: Tensor) -> None:
    n, h, w, c = images.shape
    assert pixels.dtype == torch.uint8, "a view gives pixels"
    assert pixels.shape == (n, c, *view.output_size(h, w)), f"output_size says otherwise: got {tuple(pixels.shape)}"
    assert pixels.permute(0, 2, 3, 1).is_contiguous(), "the memory must be NHWC, so that the network has channels_last"
    assert pixels.device == images.device


def _check_untouched(view: View, images: Tensor, own: np.ndarray) -> None:
    given, before = images.clone(), own.copy()
    view(given, own)
    assert torch.equal(given, images), "a view must not write to the images"
    assert np.array_equal(own, before), "a view must not write to the seeds"


def _check_sides(view: View, own: np.ndarray) -> None:
    heights, widths = np.resize(SIDES, (len(own), 2)).T
    together = view.draw(own, heights, widths)
    for h, w in SIDES:
        rows = (heights == h) & (widths == w)
        for name, values in view.draw(own[rows], h, w).items():
            assert values.dtype == together[name].dtype == np.int64, f"{name} must be int64"
            assert np.array_equal(values, together[name][rows]), f"{name} of a {h}x{w} image differs among others"


def _check_seed_matters(view: View, images: Tensor) -> None:
    own = seeds(1, Purpose.PROBE, slot=np.arange(INDEPENDENT_SEEDS))
    views = view(images[:1].expand(INDEPENDENT_SEEDS, -1, -1, -1), own)
    different = len({pixels.numpy().tobytes() for pixels in views})
    if view.random:
        assert different > 1, f"{INDEPENDENT_SEEDS} seeds gave one and the same view: the seed is ignored"
    else:
        assert different == 1, f"a view that is not random gave {different} different views of one image"


def _unmoved(make: Callable[[], Any]) -> Any:
    """What `make` returns, after checking that it neither depends on global random states nor moves them."""
    results = []
    for state in (1, 2):
        random.seed(state)
        np.random.seed(state)
        torch.manual_seed(state)
        before = _random_states()
        results.append(make())
        assert before == _random_states(), "global random state was moved"
    assert same(*results), "the result depends on global random state"
    return results[0]


def _random_states() -> list[Any]:
    return [
        random.getstate(),
        np.random.get_state(legacy=False)["state"]["key"].tolist(),
        torch.get_rng_state().tolist(),
    ]
