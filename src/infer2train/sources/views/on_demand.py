"""Images decoded when they are needed, of any sizes, seen under vectorised views: the source for data beyond memory.

Of all views of a sample that a batch asks for, one decoding is the origin. The parameters of many views are drawn at
once, each for the height and width of its own image; images of one size are moved together. The pixels are those of
`ImageViews` over the same images, to the bit.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from infer2train.draws.addresses import Addresses
from infer2train.sources.views.view import View
from infer2train.sources.views.view_dataset import ViewDataset

Pixels = UInt8[np.ndarray, "_ _ _"]
"""Of one image: height, width, channels. Anonymous, since images differ."""

_Portion = tuple[Int64[np.ndarray, " m"], list[Pixels], Int64[np.ndarray, " m"]]
"""Rows of a batch, images, and which of these each row shows."""

HELD_BYTES = 1 << 26
"""Pixels that are held at a time, counted once for each view; more only where one image's are."""


class OnDemandViews(ViewDataset):
    """Images that are read one by one, and their classes, as a source of views and as a data set.

    Args:
        pixels_of: sample id -> the image. A pure function, called by one thread a process; picklable where workers are
            spawned. All images have the same channels; their sizes may differ.
        targets: one class each.
        view: what a seed does to an image. Its views have one size, whatever the image's.

    Raises:
        ValueError: views of images of different sizes would differ in size.

    Example:
        >>> from infer2train.sources.views.crops import RandomResizedCropFlip
        >>> images = [np.zeros((40, 30, 3), np.uint8), np.zeros((50, 70, 3), np.uint8)]
        >>> views = OnDemandViews(images.__getitem__, np.array([3, 5]), RandomResizedCropFlip(24))
        >>> pixels, targets = views.batch(Addresses(np.array([1, 0, 1]), np.array([7, 8, 9])))
        >>> tuple(pixels.shape), targets.tolist()
        ((3, 3, 24, 24), [5, 3, 5])
    """

    def __init__(self, pixels_of: Callable[[int], Pixels], targets: Int64[np.ndarray, " m"], view: View) -> None:
        size = view.output_size(1, 1)
        if size != view.output_size(2, 3):
            raise ValueError(
                f"images of different sizes need a view that makes them one: got {type(view).__name__}, which keeps "
                "the image's; use random-resized-crop-flip, or decode the images to one size beforehand"
            )
        self._pixels_of = pixels_of
        self.targets = torch.as_tensor(np.array(targets))
        self.view = view
        self.output_size = size
        self._last: tuple[int, Pixels] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, addresses: Addresses) -> tuple[UInt8[Tensor, "n c h w"], Int64[Tensor, " n"]]:
        """The views at these addresses and their targets."""
        self.check_ids(addresses.ids)
        made = [
            (rows, self._views(images, shown, addresses.seeds[rows]))
            for rows, images, shown in self._portions(addresses.ids)
        ]
        order = np.argsort(np.concatenate([rows for rows, _ in made]))
        pixels = torch.cat([views for _, views in made])[torch.from_numpy(order)]
        return pixels.permute(0, 3, 1, 2), self.targets[torch.from_numpy(addresses.ids)]

    def _portions(self, ids: Int64[np.ndarray, " n"]) -> Iterator[_Portion]:
        """The batch in parts of which the images may be held at a time."""
        distinct, first, which, counts = np.unique(ids, return_index=True, return_inverse=True, return_counts=True)
        samples = np.argsort(first)  # as they come, so that the next batch can go on with this one's last image
        rank = np.argsort(samples)[which]
        images: list[Pixels] = []
        begin, held_bytes = 0, 0
        for end, sample in enumerate(samples, start=1):
            images.append(self._decoded(int(distinct[sample])))
            held_bytes += images[-1].nbytes * int(counts[sample])
            if held_bytes >= HELD_BYTES or end == len(samples):
                rows = np.flatnonzero((begin <= rank) & (rank < end))
                yield rows, images, rank[rows] - begin
                images, begin, held_bytes = [], end, 0

    def _decoded(self, sample_id: int) -> Pixels:
        """The image; without decoding where it was the last one: a draw's chunks cut through the views of a sample."""
        last = self._last
        if last is None or last[0] != sample_id:
            last = self._last = sample_id, self._pixels_of(sample_id)
        return last[1]

    def _views(
        self, images: list[Pixels], shown: Int64[np.ndarray, " m"], seeds: Int64[np.ndarray, " m"]
    ) -> UInt8[Tensor, "m h2 w2 c"]:
        """The view under each seed of the image that `shown` names, as it lies in memory."""
        shapes, kinds = np.unique([image.shape for image in images], axis=0, return_inverse=True)
        heights, widths, channels = shapes[kinds[shown]].T
        parameters = self.view.draw(seeds, heights, widths)
        views = torch.empty((len(seeds), *self.output_size, int(channels[0])), dtype=torch.uint8)
        for kind in range(len(shapes)):
            rows = np.flatnonzero(kinds[shown] == kind)
            of_kind = {name: values[rows] for name, values in parameters.items()}
            made = self.view.apply(_gathered(images, shown[rows]), of_kind)
            views[torch.from_numpy(rows)] = made.permute(0, 2, 3, 1)
        return views

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}


def _gathered(images: list[Pixels], shown: Int64[np.ndarray, " m"]) -> UInt8[Tensor, "m h w c"]:
    """These images, of one shape, one for each view; one image alone is not copied for its views."""
    if (shown == shown[0]).all():
        # Pillow's pixels cannot be written, and torch has no such tensors.
        return torch.from_numpy(np.array(images[shown[0]])).expand(len(shown), -1, -1, -1)
    return torch.from_numpy(np.stack([images[image] for image in shown]))
