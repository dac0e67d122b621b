"""How long a draw's views take on one core, beside a plain torch gather of the same images.

    python benchmarks/views.py

Synthetic images in a memory-mapped file of the size of CIFAR-10, random ids, one thread. Prints medians; quote them
with the hardware, the versions that are printed, and the number of repeats.
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from infer2train.draws.addresses import Addresses, Purpose, integers, seeds
from infer2train.sources.views.image_views import ImageViews
from infer2train.sources.views.named import VIEWS, make_view


def main() -> None:
    """Print the table."""
    asked = parsed()
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, NumPy {np.__version__}, 1 thread")
    print(
        f"{asked.candidates} views of {asked.size} x {asked.size} pixels out of {asked.images} images, "
        f"median of {asked.repeats}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        images = synthetic(Path(folder) / "images.npy", asked.images, asked.size)
        addresses = random_addresses(asked.images, asked.candidates)
        in_memory, ids = torch.from_numpy(np.array(images)), torch.from_numpy(addresses.ids)
        gather = milliseconds(lambda: in_memory[ids], asked.repeats)
        print(f"{'':26}{'batch (ms)':>12}{'parameters (ms)':>18}{'batch / gather':>18}")
        print(f"{'plain gather images[ids]':26}{gather:12.2f}{'':18}{1:18.1f}")
        for name in VIEWS:
            source = ImageViews(images, ids.new_zeros(len(images)), make_view(name, asked.size))
            batch, parameters = timed(source, addresses, asked.repeats)
            print(f"{name:26}{batch:12.2f}{parameters:18.2f}{batch / gather:18.1f}")


def parsed() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000, help="in the data set (default 50000)")
    parser.add_argument("--size", type=int, default=32, help="height and width in pixels (default 32)")
    parser.add_argument("--candidates", type=int, default=640, help="views a batch (default 640: 64 samples, 10 views)")
    parser.add_argument("--repeats", type=int, default=31, help="timings of each (default 31)")
    return parser.parse_args()


def timed(source: ImageViews, addresses: Addresses, repeats: int) -> tuple[float, float]:
    """Milliseconds of a batch, and of drawing its parameters."""
    height, width = source.images.shape[1:3]
    return (
        milliseconds(lambda: source.batch(addresses), repeats),
        milliseconds(lambda: source.view.draw(addresses.seeds, height, width), repeats),
    )


def synthetic(path: Path, num_images: int, size: int) -> np.ndarray:
    """Images of noise in a file, memory-mapped."""
    np.save(path, np.random.default_rng(0).integers(0, 256, (num_images, size, size, 3), dtype=np.uint8))
    images: np.ndarray = np.load(path, mmap_mode="r")
    return images


def random_addresses(num_images: int, candidates: int) -> Addresses:
    """Images at random places, each under a seed of its own."""
    slots = np.arange(candidates)
    ids = integers(num_images, 0, Purpose.CANDIDATE, slot=slots)
    return Addresses(ids, seeds(0, Purpose.VIEW, slot=slots))


def milliseconds(run: Callable[[], object], repeats: int) -> float:
    """Median wall-clock of a call, after three to warm up."""
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return 1000 * median(times)


if __name__ == "__main__":
    main()
