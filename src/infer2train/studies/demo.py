"""`make demo`: the paper's methods on real data in minutes, with paired seeds, a table, a picture and a verdict."""

import shutil
import sys
from pathlib import Path

from rich.console import Console

from infer2train.machine.cores import available_cores
from infer2train.oracle.engines import resolve_engine
from infer2train.studies.compare import Comparison, compare, print_comparison
from infer2train.studies.gamma.step_times import step_times
from infer2train.training.config import from_plain
from infer2train.training.regimes import regime_defaults

METHODS = ("baseline", "nm-augment", "nm-augment-soft", "nm-sample", "self-distill")
SEEDS = 5
GAMMA = 10
NEXT = "compare --data FOLDER --regime cifar10-resnet44 --methods baseline nm-augment-soft"


def demo(runs_dir: Path, *, quiet: bool = False) -> None:
    """Compare the methods on scikit-learn's digits; go on where an earlier call was interrupted."""
    console = Console()
    console.print(
        f"infer2train demo: {len(METHODS)} methods × {SEEDS} paired seeds, γ = {GAMMA}, on handwritten digits\n"
        "(200 images for training, 1,597 for testing)",
        highlight=False,
    )
    folder = runs_dir / "demo"
    oracle = _oracle(console)
    if not folder.exists():  # a demo that goes on has shown it
        _show_step_times(oracle, console, quiet=quiet)
    common = {"gamma": GAMMA, "threads": 1, "oracle": oracle}
    runs = {
        (method, seed): from_plain({**regime_defaults("digits", method), **common, "seed": seed})
        for seed in range(SEEDS)
        for method in METHODS
    }
    summaries = compare(Comparison(runs=runs), folder, resume=True, jobs=len(available_cores()), quiet=quiet)
    print_comparison(summaries, folder, console)
    console.print("now your own data:", highlight=False)
    console.print(f"{_command()} {NEXT}", highlight=False, soft_wrap=True)


def _oracle(console: Console) -> str:
    """An int8 engine, or fp32 where none is installed."""
    try:
        return resolve_engine("int8")
    except ValueError as error:
        console.print(f"{error}; going on with torch:fp32", highlight=False, markup=False, soft_wrap=True)
        return "torch:fp32"


def _show_step_times(oracle: str, console: Console, *, quiet: bool) -> None:
    """One measured line: what the oracle costs the trainer here."""
    progress = Console(stderr=True, quiet=quiet)
    with progress.status("measuring a training step") as status:
        times = step_times(oracle=oracle, gamma=GAMMA, say=lambda line: status.update(f"measuring a step, {line}"))
    beside = (
        "there is no second core for an oracle of its own"
        if times.hybrid is None
        else f"{times.hybrid * 1e3:.0f} ms with the oracle on a core of its own ({times.hybrid / times.alone:.2f} ×)"
    )
    console.print(
        f"a training step of ResNet-20, measured here: {times.alone * 1e3:.0f} ms alone, {times.inline * 1e3:.0f} ms "
        f"with the oracle in its time ({times.inline / times.alone:.2f} ×), {beside}",
        highlight=False,
        soft_wrap=True,
    )


def _command() -> str:
    """How this program is called from here: by its name where the shell finds it, else by its path."""
    if shutil.which("infer2train"):
        return "infer2train"
    called = Path(sys.argv[0])
    return str(called.relative_to(Path.cwd())) if called.is_relative_to(Path.cwd()) else str(called)
