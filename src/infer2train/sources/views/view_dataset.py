"""What all sources of views are besides: an ordinary map-style data set of images and classes.

Without mining, its random views follow torch's global seed like anybody's transforms. `image_views` and `on_demand`
make the views.
"""

from abc import abstractmethod

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from infer2train.draws.addresses import SEED_BITS, Addresses
from infer2train.sources.source import Source
from infer2train.sources.views.view import View

Item = tuple[Tensor, int]


class ViewDataset(Source, Dataset[Item]):
    """Images and their classes as a source of views, and as a data set."""

    view: View
    """What a seed does to an image."""
    output_size: tuple[int, int]
    """Height and width of the views (pixels)."""

    @abstractmethod
    def batch(self, addresses: Addresses) -> tuple[UInt8[Tensor, "n c h w"], Int64[Tensor, " n"]]:
        """The views at these addresses and their targets.

        Raises:
            IndexError: an id is not in [0, len).
        """

    def __getitem__(self, index: int) -> Item:
        """A random view of one image, and its target."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Item]:
        """Random views of these images, made together; what a `DataLoader` calls for a batch."""
        # The state that a DataLoader sets in each of its workers, so views follow torch.manual_seed like any transform.
        seeds = torch.randint(0, (1 << SEED_BITS) - 1, (len(indices),)).numpy()
        pixels, targets = self.batch(Addresses(np.asarray(indices, dtype=np.int64), seeds))
        return list(zip(pixels, targets.tolist(), strict=True))

    def check_ids(self, ids: Int64[np.ndarray, " n"]) -> None:
        """Refuse ids that no image has.

        Raises:
            IndexError: there are some.
        """
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= len(self):
            raise IndexError(f"ids must be in [0, {len(self)}): got {low if low < 0 else high}; check the sampler")
