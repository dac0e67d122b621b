"""`make demo`: where it pays, where it does not and what the same hardware does instead, on real digits in minutes.

Setting and method were chosen on held-out images; the seeds and the test images shown here had no part in that,
but for what docs/results says.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from infer2train.machine.cores import available_cores
from infer2train.observe.runlog import CONFIG, read_config
from infer2train.oracle.engines import resolve_engine
from infer2train.studies.compare import Comparison, compare, print_comparison
from infer2train.studies.gamma.step_times import step_times
from infer2train.training.config import RunConfig, from_plain
from infer2train.training.regimes import regime_defaults

SEEDS = 5
IMAGES, LABEL_NOISE, GAMMA, EPOCHS = 500, 0.3, 10, 40
LONGER = 4
"""Times the steps: in seconds too, more than trusted-random takes with the models of two halves."""
SETTINGS: dict[str, Any] = {
    "data": "digits-half",
    "model": "convnet",
    "limit": IMAGES,
    "label_noise": LABEL_NOISE,
    "view": "identity",
    "gamma": GAMMA,
    "update_every": 40,
    "epochs": EPOCHS,
    "lr_drops": (33,),
    "irreducible_epochs": 25,
    "train_error_samples": IMAGES,
    "evaluate_every": 4,
    "threads": 1,
}
ARMS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "trusted-random": {"method": "trusted-random"},
    "nm-sample": {"method": "nm-sample"},
    f"baseline-{LONGER}x": {"epochs": LONGER * EPOCHS, "lr_drops": (LONGER * 33,)},
    "baseline-short": {"epochs": 12, "lr_drops": (10,)},
}
WHY = (
    "trusted-random leaves out labels that a model of the other half of the images does not believe: most wrong ones",
    "nm-sample trains on what is hardest: where labels are wrong, on those",
    f"baseline-{LONGER}x trains on: what the same hardware does instead, in more time than the models of halves take",
    "baseline-short stops before wrong labels are known by heart: cheapest, for who knows when; augmentation delays it",
)
NEXT = "compare --data FOLDER --regime cifar10-resnet44 --methods baseline trusted-random"


def demo(runs_dir: Path, *, quiet: bool = False) -> None:
    """Compare the arms on scikit-learn's digits; go on where an earlier call was interrupted."""
    console = Console()
    console.print(
        f"infer2train demo: {len(ARMS)} ways to train × {SEEDS} paired seeds, γ = {GAMMA}, on handwritten digits\n"
        f"({IMAGES} images for training, {LABEL_NOISE:.0%} of their labels wrong; 899 for testing, with right labels)",
        highlight=False,
        soft_wrap=True,
    )
    folder = runs_dir / "demo"
    oracle = _begun_with(folder) or _oracle(console)
    if not folder.exists():  # a demo that goes on has shown it
        _show_step_times(oracle, console, quiet=quiet)
    runs = planned(oracle, folder / "cache")
    summaries = compare(Comparison(runs=runs), folder, resume=True, jobs=len(available_cores()), quiet=quiet)
    print_comparison(summaries, folder, console)
    for line in WHY:
        console.print(f"- {line}", highlight=False, soft_wrap=True)
    console.print("now your own data:", highlight=False)
    console.print(f"{_command()} {NEXT}", highlight=False, soft_wrap=True)


def planned(oracle: str, cache: Path) -> dict[tuple[str, int], RunConfig]:
    """The run of every arm and seed.

    Args:
        oracle: engine that scores.
        cache: folder of the models of half the images.
    """
    common = {**SETTINGS, "oracle": oracle, "data_cache": str(cache)}
    return {
        (arm, seed): from_plain(
            {**regime_defaults("digits", own.get("method", "baseline")), **common, **own, "seed": seed}
        )
        for seed in range(SEEDS)
        for arm, own in ARMS.items()
    }


def _begun_with(folder: Path) -> str | None:
    """The oracle of the runs that are there: a demo goes on with it, whatever was installed meanwhile."""
    begun = next(folder.glob(f"*/{CONFIG}"), None)
    return None if begun is None else read_config(begun.parent).get("oracle")


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
        f"a training step of ResNet-20 at γ = {GAMMA}, measured here: {times.alone * 1e3:.0f} ms alone, "
        f"{times.inline * 1e3:.0f} ms with the oracle in its time ({times.inline / times.alone:.2f} ×), {beside}",
        highlight=False,
        soft_wrap=True,
    )


def _command() -> str:
    """How this program is called from here: by its name where the shell finds it, else by its path."""
    if shutil.which("infer2train"):
        return "infer2train"
    called = Path(sys.argv[0])
    return str(called.relative_to(Path.cwd())) if called.is_relative_to(Path.cwd()) else str(called)
