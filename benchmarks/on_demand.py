"""What one core decodes on demand: reading a random image, decoding it, and batches of its views.

    python benchmarks/on_demand.py                              # photographs that are made here, 500x375
    python benchmarks/on_demand.py --data FOLDER --crop-size 56

One thread, random ids. Prints medians of the processor time of an image, in which other work on the machine shows
little and waiting for a disk not at all; quote them with the hardware, the versions that are printed, and the number of
samples. For Parquet shards it also times reading a random row where it lies, which is why they are unpacked.
"""

import argparse
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time

import numpy as np
import PIL
import torch
from PIL import Image

from infer2train.data.decoding import decode
from infer2train.data.images import EncodedSplit
from infer2train.data.load import load_encoded
from infer2train.draws.addresses import Addresses, Purpose, integers, seeds
from infer2train.observe.runlog import cpu_name
from infer2train.sources.views.crops import RandomResizedCropFlip
from infer2train.sources.views.on_demand import OnDemandViews

BATCH = 32
MADE_PHOTOS = 200
MADE_SIZE = (375, 500)


def main() -> None:
    """Print the table."""
    asked = parsed()
    torch.set_num_threads(1)
    versions = f"torch {torch.__version__}, Pillow {PIL.__version__}, NumPy {np.__version__}"
    print(f"{cpu_name()}, {versions}, 1 thread")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(asked.data) if asked.data else made_photos(Path(scratch) / "photos")
        cache = Path(scratch) / "cache"
        split = load_encoded(str(folder), cache_dir=cache, image_size=asked.image_size, progress=False).train
        ids = integers(len(split), 0, Purpose.CANDIDATE, slot=np.arange(asked.samples))
        describe(split, ids)
        print(f"views of {asked.crop_size}x{asked.crop_size}, {asked.samples} samples, medians\n")
        report("read a row group for one row", row_groups(folder, asked.samples))
        report("read an image", each(ids, split.encoded))
        report("decode it", decoding(split, ids))
        for views in (1, asked.gamma):
            taken = batches(split, ids, views, asked.crop_size)
            report(f"a sample in a batch, {views} view{'s' * (views > 1)} of it", taken)


def parsed() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of shards or class folders (default: photographs made here)")
    parser.add_argument("--image-size", type=int, help="the most that a shorter side may have (default: as stored)")
    parser.add_argument("--crop-size", type=int, default=224, help="of the views (default 224)")
    parser.add_argument("--gamma", type=int, default=10, help="views of each sample in the last row (default 10)")
    parser.add_argument("--samples", type=int, default=320, help="random samples that are read (default 320)")
    return parser.parse_args()


def made_photos(root: Path) -> Path:
    """Class folders of smooth noise with some grain: JPEGs of about a hundred kilobytes, as ImageNet's are."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        folder = root / split / "photo"
        folder.mkdir(parents=True)
        for number in range(MADE_PHOTOS if split == "train" else 1):
            coarse = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize(MADE_SIZE[::-1], Image.Resampling.BICUBIC)).astype(np.int64)
            grain = rng.integers(-18, 19, smooth.shape)
            Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=90)
    return root


def describe(split: EncodedSplit, ids: np.ndarray) -> None:
    """Print what the images are like."""
    contents = [split.encoded(int(sample_id)) or b"" for sample_id in ids[:64]]
    sides = [Image.open(io.BytesIO(content)).size for content in contents]
    width, height = np.median(sides, axis=0)
    print(f"{len(split)} images, median {width:.0f}x{height:.0f} and {np.median([*map(len, contents)]) / 1000:.1f} kB")


def each(ids: np.ndarray, call: Callable[[int], object]) -> list[float]:
    """Seconds of the call for each id."""
    taken = []
    for sample_id in ids.tolist():
        started = process_time()
        call(sample_id)
        taken.append(process_time() - started)
    return taken


def decoding(split: EncodedSplit, ids: np.ndarray) -> list[float]:
    """Seconds of decoding each image, its bytes at hand."""
    contents = {int(sample_id): split.encoded(int(sample_id)) for sample_id in ids}
    return each(ids, lambda sample_id: decode(contents[sample_id], split.image_size, square=False))


def batches(split: EncodedSplit, ids: np.ndarray, views: int, size: int) -> list[float]:
    """Seconds a sample in batches of so many views of each."""
    source = OnDemandViews(split.pixels, split.targets, RandomResizedCropFlip(size))
    repeated = np.repeat(ids, views)
    addresses = Addresses(repeated, seeds(0, Purpose.VIEW, slot=np.arange(len(repeated))))
    starts = np.arange(0, len(repeated) - BATCH + 1, BATCH)
    return [seconds * views / BATCH for seconds in each(starts, lambda at: source.batch(addresses[at : at + BATCH]))]


def row_groups(folder: Path, samples: int) -> list[float]:
    """Seconds of reading the row group of a random row, out of the first training shard; nothing for class folders."""
    shards = sorted(folder.glob("train*.parquet"))
    if not shards:
        return []
    import pyarrow.parquet as pq

    with pq.ParquetFile(shards[0]) as shard:
        groups = np.random.default_rng(0).integers(0, shard.num_row_groups, min(samples, 40))
        return each(groups, lambda group: shard.read_row_group(group, use_threads=False))


def report(what: str, taken: list[float]) -> None:
    """Print a line of the table."""
    if taken:
        print(f"{what:40}{1000 * median(taken):10.3f} ms{1 / median(taken):12.0f} a second")


if __name__ == "__main__":
    main()
