"""How long a training run takes to its first step, after the imports, when the data cache is warm.

    python benchmarks/startup.py --data FOLDER_OF_PARQUET_SHARDS

Without `--data` it looks for cifar10/ in $INFER2TRAIN_DATA, else in ../shared/data, and does nothing where neither is.
Runs the preparation of `infer2train train --regime cifar10-resnet44 --method nm-augment` in fresh processes: the first
may have to decode (cold), the others find the cache. The bound for a warm start is 3 s.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

CHILD = """
import sys, time
import torch._dynamo  # which torch imports when the first optimiser is made
from infer2train.training.config import from_plain
from infer2train.training.regimes import regime_defaults
from infer2train.training.setup import prepare, resolved
from infer2train.training.step import EpochSums, train_step
started = time.perf_counter()
settings = {**regime_defaults("cifar10-resnet44", sys.argv[2]), "data": sys.argv[1], "threads": 1}
run = prepare(resolved(from_plain(settings)), progress=False)
prepared = time.perf_counter()
images, targets = next(iter(run.loader))
picked = time.perf_counter()
train_step(run, images, targets, EpochSums())
print(prepared - started, picked - prepared, time.perf_counter() - picked)
"""


def main() -> None:
    """Start a few times, print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", default=Path(os.environ.get("INFER2TRAIN_DATA", "../shared/data")) / "cifar10", type=Path
    )
    parser.add_argument("--method", default="nm-augment")
    parser.add_argument("--starts", type=int, default=5)
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"no data in {options.data}: name a folder of Parquet shards with --data")
        return
    rows = []
    for start in range(options.starts + 1):
        command = [sys.executable, "-c", CHILD, str(options.data), options.method]
        child = subprocess.run(command, check=True, capture_output=True, text=True)
        row = [float(word) for word in child.stdout.split()]
        print(f"start {start}: prepared {row[0]:.2f} s, first draw {row[1]:.2f} s, first step {row[2]:.2f} s")
        rows.append(row)
    warm = [statistics.median(column) for column in zip(*rows[1:], strict=True)]
    print(f"warm, median of {options.starts}: {sum(warm):.2f} s to the end of the first step (bound 3 s)")


if __name__ == "__main__":
    main()
