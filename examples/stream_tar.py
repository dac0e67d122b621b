"""A stream of tar shards in the layout of WebDataset, mined: samples of the window that the oracle finds hard.

    python examples/stream_tar.py

A sample is the files of one name in a tar: `00017.png` and `00017.cls`. The stream gives bytes, and `transform=`
decodes them: so a window holds encoded images, and the DataLoader's workers share out the decoding.
"""

import io
import random
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

import infer2train


class TarShards(IterableDataset[Any]):
    """(encoded image, label) of each sample, shard by shard, in another order of shards in each pass."""

    def __init__(self, shards: list[Path]) -> None:
        self.shards = shards

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        for shard in random.sample(self.shards, len(self.shards)):
            with tarfile.open(shard) as tar:
                image = b""
                for member in tar:
                    file = tar.extractfile(member)
                    assert file is not None
                    if member.name.endswith(".png"):
                        image = file.read()
                    else:
                        yield image, int(file.read())


def write_shards(folder: Path, count: int = 4) -> list[Path]:
    """The first 800 digits as tar shards."""
    digits = load_digits()
    shards = [folder / f"digits-{i:05d}.tar" for i in range(count)]
    for i, shard in enumerate(shards):
        with tarfile.open(shard, "w") as tar:
            for n in range(i, 800, count):
                encoded = io.BytesIO()
                Image.fromarray((digits.images[n] * 15).astype(np.uint8)).save(encoded, "png")
                for suffix, content in (("png", encoded.getvalue()), ("cls", str(digits.target[n]).encode())):
                    member = tarfile.TarInfo(f"{n:05d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return shards


def decoded(encoded: bytes) -> Tensor:
    """The image, shifted by up to a pixel."""
    image = torch.from_numpy(np.array(Image.open(io.BytesIO(encoded)))).float() / 240
    return image.roll((random.randint(-1, 1), random.randint(-1, 1)), dims=(0, 1)).flatten()


def main() -> None:
    """Train for a few passes and print what the oracle did."""
    with tempfile.TemporaryDirectory() as folder:
        stream = TarShards(write_shards(Path(folder)))
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        base = DataLoader(stream, batch_size=32, drop_last=True)
        loader = infer2train.mine(
            base,
            model,
            optimizer,
            method="nm-sample",
            gamma=4,
            ramp_stop=0.0,
            update_every=10,
            window=256,
            transform=decoded,
        )
        for epoch in range(2):
            for images, labels in loader:
                loss = F.cross_entropy(model(images), labels)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            metrics = loader.metrics()
            print(
                f"pass {epoch}: loss {loss.item():.3f}, mean candidate loss {metrics['score_mean']:.3f}, "
                f"mean chosen loss {metrics['score_chosen']:.3f}"
            )
        loader.close()


if __name__ == "__main__":
    main()
