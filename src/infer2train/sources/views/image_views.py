"""Images in memory, seen under vectorised views: the fast source for small images and for GPUs.

Reads only the images that a batch names, from a memory-mapped array, from memory or from a device. Images that do not
fit there, or differ in size, are `on_demand`'s.
"""

import mmap
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from infer2train.draws.addresses import Addresses
from infer2train.sources.views.view import View
from infer2train.sources.views.view_dataset import ViewDataset

Images = UInt8[np.ndarray, "n h w c"] | UInt8[Tensor, "n h w c"]


class _Mapped(NamedTuple):
    """Where a memory-mapped array of pixels lies."""

    path: str
    offset: int
    shape: tuple[int, ...]
    order: Literal["C", "F"]


class ImageViews(ViewDataset):
    """Images of one size and their classes as a source of views, and as a data set.

    Args:
        images: pixels, uint8 and channels last; a tensor's device is where the views are made. A memory-mapped file is
            mapped again, not copied, in processes that are spawned.
        targets: one class each.
        view: what a seed does to an image.
        numbers: which of `images` each sample is. Default: all of them, in their order.

    Raises:
        ValueError: the images are no pixels [n, h, w, c], there are not as many targets, or the view cannot be taken
            of images of this size.

    Example:
        >>> from infer2train.sources.views.crops import PadCropFlip
        >>> images = np.zeros((10, 32, 32, 3), dtype=np.uint8)
        >>> views = ImageViews(images, np.arange(10), PadCropFlip())
        >>> pixels, targets = views.batch(Addresses(np.array([3, 3]), np.array([7, 8])))
        >>> tuple(pixels.shape), targets.tolist()
        ((2, 3, 32, 32), [3, 3])
    """

    def __init__(
        self,
        images: Images,
        targets: Int64[np.ndarray, " m"] | Int64[Tensor, " m"],
        view: View,
        numbers: Int64[np.ndarray, " m"] | None = None,
    ) -> None:
        _check_pixels(images)
        if (count := len(images if numbers is None else numbers)) != len(targets):
            raise ValueError(
                f"every image needs one target: got {count} images and {len(targets)} targets; "
                "pass arrays of one length"
            )
        self.images, self._numbers = images, numbers
        self.targets = torch.as_tensor(np.array(targets) if isinstance(targets, np.ndarray) else targets)
        if isinstance(images, Tensor):
            self.targets = self.targets.to(images.device)
        self.view = view
        self.output_size = view.output_size(images.shape[1], images.shape[2])

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, addresses: Addresses) -> tuple[UInt8[Tensor, "n c h w"], Int64[Tensor, " n"]]:
        """The views at these addresses and their targets, on the images' device."""
        self.check_ids(addresses.ids)
        ids = torch.from_numpy(addresses.ids).to(self.targets.device)
        return self.view(self._gather(addresses.ids), addresses.seeds), self.targets[ids]

    def _gather(self, ids: Int64[np.ndarray, " n"]) -> UInt8[Tensor, "n h w c"]:
        """A copy of these images. `take` and `index_select` copy whole images, plain indexing single bytes."""
        ids = ids if self._numbers is None else self._numbers[ids]
        if isinstance(self.images, np.ndarray):
            return torch.from_numpy(np.asarray(self.images).take(ids, axis=0))
        return self.images.index_select(0, torch.from_numpy(ids).to(self.images.device))

    def __getstate__(self) -> dict[str, Any]:
        # Pickling a memory map copies the file's content into the pickle: gigabytes for each worker that is spawned.
        state = self.__dict__.copy()
        images = self.images
        # A slice of a map has the whole map as its base, and the whole map's offset: that one is copied.
        if isinstance(images, np.memmap) and isinstance(images.base, mmap.mmap) and images.filename is not None:
            order: Literal["C", "F"] = "C" if images.flags.c_contiguous else "F"
            state["images"] = _Mapped(str(images.filename), images.offset, images.shape, order)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        mapped = state["images"]
        if isinstance(mapped, _Mapped):
            state["images"] = np.memmap(mapped.path, np.uint8, "r", mapped.offset, mapped.shape, mapped.order)
        self.__dict__.update(state)


def _check_pixels(images: Images) -> None:
    """Refuse numbers that are no bytes, which would be cast to black, and images without channels, or with them first.

    Raises:
        ValueError: the line that makes pixels of them.
    """
    is_tensor, kind = isinstance(images, Tensor), str(images.dtype).removeprefix("torch.")
    shape, remedy = tuple(images.shape), ""
    if kind != "uint8":
        scaled = "(x * 255).round()" if "float" in kind else "x"
        cast = f"{scaled}{'.to(torch.uint8)' if is_tensor else '.astype(np.uint8)'}"
        remedy = f"pass {cast}, where x is from 0 to {1 if 'float' in kind else 255}"
    elif len(shape) == 3:
        remedy = "pass x[..., None] if x is grey"
    elif len(shape) != 4:
        remedy = "pass images as one array"
    elif shape[1] in (1, 3) and shape[3] not in (1, 3):
        remedy = f"pass x.{'permute' if is_tensor else 'transpose'}(0, 2, 3, 1)"
    if remedy:
        raise ValueError(
            f"images must be uint8 pixels [n, h, w, c], channels last: got {kind} of shape {shape}; {remedy}"
        )
