"""What loading a data set costs: Parquet shards and class folders, before anything is cached and from the cache.

    taskset -c 0 python benchmarks/loading.py                      # 10,000 small images that are made here
    taskset -c 0 python benchmarks/loading.py --parquet FOLDER     # its shards, and its first images as class folders
    taskset -c 0 python benchmarks/loading.py --src OTHER/src      # beside another version, turn and turn about

Each load is a process of its own, which Python's start and the import of `data.load` are not counted in. Prints
medians of wall and of processor seconds, in the second of which other work on the machine shows little.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from infer2train.observe.runlog import cpu_name

HERE = Path(__file__).resolve().parents[1] / "src"
MADE = {"train": 8000, "test": 2000}
LOAD = """
import sys
from pathlib import Path
from time import perf_counter, process_time
from infer2train.data import load
name, folder, cache_dir = sys.argv[1:]
wall, processor = perf_counter(), process_time()
getattr(load, name)(folder, cache_dir=Path(cache_dir), progress=False)
print([perf_counter() - wall, process_time() - processor])
"""
CASES = (
    ("shards, decoded once, nothing cached", "shards", "load_data", True),
    ("shards, decoded once, from the cache", "shards", "load_data", False),
    ("shards, on demand, nothing cached", "shards", "load_encoded", True),
    ("shards, on demand, from the cache", "shards", "load_encoded", False),
    ("class folders, decoded once, nothing cached", "folders", "load_data", True),
    ("class folders, decoded once, from the cache", "folders", "load_data", False),
    ("class folders, on demand", "folders", "load_encoded", False),
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parquet", type=Path, help="folder of shards (default: images made here)")
    parser.add_argument("--src", type=Path, action="append", default=[], help="src of another checkout, to compare")
    parser.add_argument("--repetitions", type=int, default=5, help="of each load (default 5)")
    asked = parser.parse_args()
    sources = [*(path.resolve() for path in asked.src), HERE]
    print(f"{cpu_name()}, pyarrow {pa.__version__}, {len(os.sched_getaffinity(0))} core(s)")
    with tempfile.TemporaryDirectory() as scratch:
        folders = {
            "shards": asked.parquet or made_shards(Path(scratch) / "shards"),
            "folders": Path(scratch) / "folders",
        }
        made_class_folders(folders["shards"], folders["folders"])
        for title, kind, load, is_cold in CASES:
            taken: dict[Path, list[list[float]]] = {src: [] for src in sources}
            for repetition in range(asked.repetitions):
                for number, src in enumerate(sources):
                    cache = Path(scratch) / f"cache-{number}" / (f"{title}{repetition}" if is_cold else "warm")
                    if not is_cold and not repetition:
                        loaded(src, load, folders[kind], cache)
                    taken[src].append(loaded(src, load, folders[kind], cache))
            for src, times in taken.items():
                wall, processor = (median(column) for column in zip(*times, strict=True))
                print(f"{title:<46}{wall:9.3f} s{processor:9.3f} s   {src if len(sources) > 1 else ''}", flush=True)


def loaded(src: Path, load: str, folder: Path, cache: Path) -> list[float]:
    """Wall and processor seconds of one load."""
    command = [sys.executable, "-c", LOAD, load, str(folder.resolve()), str(cache)]
    environment = {**os.environ, "PYTHONPATH": str(src)}
    return list(json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout))


def made_shards(folder: Path) -> Path:
    """JPEGs of smooth noise, 32x32, in ten classes."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for split, num in MADE.items():
        images = []
        for _ in range(num):
            coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            buffer = io.BytesIO()
            coarse.resize((32, 32), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
            images.append({"bytes": buffer.getvalue(), "path": None})
        pq.write_table(pa.table({"image": images, "label": rng.integers(0, 10, num)}), folder / f"{split}.parquet")
    return folder


def made_class_folders(shards: Path, root: Path) -> None:
    """The first images of the shards, one file each."""
    for split, num in MADE.items():
        for number, (content, label) in zip(range(num), rows(sorted(shards.glob(f"{split}*.parquet"))), strict=False):
            path = root / split / str(label) / f"{number:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def rows(shards: list[Path]) -> Iterator[tuple[bytes, int]]:
    """Content and label of each image."""
    for path in shards:
        table = pq.read_table(path)
        images = next(column for column in table.columns if pa.types.is_struct(column.type))
        yield from zip((image["bytes"] for image in images.to_pylist()), table["label"].to_pylist(), strict=True)


if __name__ == "__main__":
    main()
