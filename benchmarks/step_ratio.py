"""What a mined step costs over an ordinary one where oracle and trainer share a device, eager and compiled.

Ordinary trainings of the paper's CIFAR-10 regime (ResNet-44, B = 64, γ = 10) on random pixels, whose arithmetic is that
of CIFAR-10. The first epoch warms up and compiles; the figures are medians of the rows of metrics.jsonl after it.

    python benchmarks/step_ratio.py                          # on CUDA: part of `make gpu`
    python benchmarks/step_ratio.py --pool stream            # the oracle in a CUDA stream beside the trainer's
    python benchmarks/step_ratio.py --device cpu --model resnet8 --images 640 --log-every 5 --update-every 10
"""

import argparse
import io
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from infer2train.observe.runlog import cpu_name, read_rows
from infer2train.training.config import RunConfig, from_plain
from infer2train.training.loop import train
from infer2train.training.regimes import regime_defaults

METHODS = ("baseline", "nm-augment")


def parsed() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", default="cuda")
    add("--compile", nargs="+", default=["none", "reduce-overhead"], help="see train; the oracle is compiled likewise")
    add("--model", default="resnet44")
    add("--oracle", default="torch:bf16")
    add("--pool", default="inline")
    add("--precision", default="fp32")
    add("--batch-size", type=int, default=64)
    add("--gamma", type=int, default=10)
    add("--update-every", type=int, default=100)
    add("--images", type=int, default=12_800)
    add("--epochs", type=int, default=3)
    add("--log-every", type=int, default=50, help="steps timed at once")
    return parser.parse_args()


def write_images(folder: Path, name: str, count: int) -> None:
    """A shard of random pixels and classes, in the hub's layout."""
    generator, files = np.random.default_rng(count), []
    for pixels in generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", compress_level=0)
        files.append({"bytes": file.getvalue(), "path": None})
    table = pa.table({"image": files, "label": np.arange(count) % 10})
    pq.write_table(table, folder / f"{name}-00000-of-00001.parquet")


def run_of(args: argparse.Namespace, folder: Path, method: str, mode: str) -> RunConfig:
    """The run whose steps are timed."""
    names = ("device", "model", "pool", "precision", "batch_size", "gamma", "update_every", "epochs", "log_every")
    asked = {name: getattr(args, name) for name in names}
    oracle = args.oracle if mode == "none" else f"{args.oracle}+compile"
    place = {"data": str(folder / "data"), "data_cache": str(folder / "cache")}
    rest = {"train_error_samples": 0, "evaluate_every": args.epochs, "checkpoint_every": 10**9}
    return from_plain(
        regime_defaults("cifar10-resnet44", method) | asked | place | rest | {"oracle": oracle, "compile": mode}
    )


def milliseconds(config: RunConfig, folder: Path) -> float:
    """Of a step, once the first epoch is over."""
    train(config, folder, quiet=True, report=False)
    rows = [row for row in read_rows(folder) if row["kind"] == "step" and row["epoch"] > 0]
    return 1000 / statistics.median(row["steps_per_second"] for row in rows)


def main() -> None:
    """Train everything and show it."""
    args = parsed()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("step_ratio: skipped, since this machine has no CUDA device that torch can use; pass --device cpu")
        return
    machine = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else cpu_name()
    print(", ".join(f"{name} {value}" for name, value in vars(args).items()))
    print(f"torch {torch.__version__}, {machine}")
    print(f"{'compile':16} {'method':12} {'ms a step':>10} {'ratio':>6}")
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").mkdir()
        write_images(folder / "data", "train", args.images)
        write_images(folder / "data", "test", 100)
        for mode in args.compile:
            took = {}
            for method in METHODS:
                took[method] = milliseconds(run_of(args, folder, method, mode), folder / f"{method}-{mode}")
                print(f"{mode:16} {method:12} {took[method]:10.2f} {took[method] / took[METHODS[0]]:6.2f}", flush=True)


if __name__ == "__main__":
    main()
