"""`make demo`: the paper's methods on real data in minutes, with paired seeds, a table, a picture and a verdict."""

from pathlib import Path

from rich.console import Console

from infer2train.compare import Comparison, compare, print_comparison
from infer2train.config import from_plain
from infer2train.training.regimes import regime_defaults
from infer2train.training.setup import available_cores

METHODS = ("baseline", "nm-augment", "nm-augment-soft", "nm-sample", "self-distill")
SEEDS = 5
GAMMA = 10
NEXT = (
    "infer2train compare --data FOLDER_OF_PARQUET_SHARDS --regime cifar10-resnet44 --methods baseline nm-augment-soft"
)


def demo(runs_dir: Path, *, quiet: bool = False) -> None:
    """Compare the methods on scikit-learn's digits; go on where an earlier call was interrupted."""
    console = Console()
    console.print(
        f"infer2train demo: {len(METHODS)} methods × {SEEDS} paired seeds on handwritten digits, 200 for training, "
        f"1,597 for testing, γ = {GAMMA}",
        highlight=False,
    )
    folder = runs_dir / "demo"
    runs = {
        (method, seed): from_plain({**regime_defaults("digits", method), "seed": seed, "gamma": GAMMA, "threads": 1})
        for seed in range(SEEDS)
        for method in METHODS
    }
    summaries = compare(Comparison(runs=runs), folder, resume=True, jobs=available_cores(), quiet=quiet)
    print_comparison(summaries, folder, console)
    console.print("now your own data:", highlight=False)
    console.print(NEXT, highlight=False, soft_wrap=True)
