"""What `infer2train inspect` costs: seconds and bytes of the page, for the record of a run that was never trained.

    taskset -c 0 python benchmarks/inspection.py FOLDER_OF_CIFAR10 [CACHE]

50,000 images, 10 epochs of batches of 64, γ = 10: draws with the addresses that such a run has and scores by chance, in
the run's own record, as `audit` keeps them; then the verb, as it is called, three times in processes of its own. The
process and the imports are counted.
"""

import statistics
import subprocess
import sys
import tempfile
from itertools import product
from os import times
from pathlib import Path
from time import perf_counter
from typing import Literal

import numpy as np
import torch

from infer2train.draws.addresses import Addresses
from infer2train.draws.draw import Draw, Kind
from infer2train.observe.picks import PICKS, PickLog
from infer2train.observe.runlog import write_config
from infer2train.settings import as_plain
from infer2train.training.config import RunConfig

IMAGES, EPOCHS, BATCH, GAMMA, REPEATS = 50_000, 10, 64, 10, 3


def draws(of_views: bool, epoch: int) -> list[Draw]:
    """Of one epoch, with scores that fall from epoch to epoch."""
    generator, found = np.random.default_rng(epoch), []
    order = generator.permutation(IMAGES)
    per_epoch = IMAGES // BATCH
    for number in range(per_epoch):
        ids = order[number * BATCH : (number + 1) * BATCH]
        draw = Draw(
            number=epoch * per_epoch + number,
            epoch=epoch,
            step=epoch * per_epoch + number,
            kind=Kind.MINED,
            seed=0,
            ids=ids,
            epoch_ids=order,
            version=(epoch * per_epoch + number) // 100 * 100,
            candidates=Addresses(ids[:0], ids[:0]),
            addresses=Addresses(ids[:0], ids[:0]),
        )
        candidates = draw.views(0, GAMMA) if of_views else draw.samples(BATCH * GAMMA)
        scores = generator.exponential(2.0 / (1 + epoch), len(candidates)).astype(np.float32)
        best = (
            np.arange(BATCH) * GAMMA + scores.reshape(BATCH, GAMMA).argmax(1)
            if of_views
            else np.argsort(-scores)[:BATCH]
        )
        changes = {"candidates": candidates, "chosen": best, "scores": torch.from_numpy(scores)}
        found.append(Draw(**{**vars(draw), **changes}))
    return found


def write(folder: Path, method: str, audit: Literal["sampled", "all"], data: str, cache: str | None) -> None:
    """A run folder with nothing but its configuration and what it picked."""
    config = RunConfig(
        regime="cifar10-resnet44",
        data=data,
        data_cache=cache,
        view="pad-crop-flip",
        method=method,
        gamma=GAMMA,
        epochs=EPOCHS,
        lr_drops=(),
        audit=audit,
    )
    write_config(folder, as_plain(config, RunConfig))
    is_of_views = method == "nm-augment"
    log = PickLog(folder, is_of_views=is_of_views, steps=0, keeps_all=audit == "all")
    for epoch in range(EPOCHS):
        for draw in draws(is_of_views, epoch):
            log.add(draw)
    log.flush()


def cost(folder: Path) -> tuple[list[float], list[float]]:
    """Seconds of each call of the verb, and those of them that the processor worked for it."""
    seconds, worked = [], []
    for _ in range(REPEATS):
        started, before = perf_counter(), times()
        command = [sys.executable, "-m", "infer2train.cli", "inspect", str(folder), "--quiet"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(perf_counter() - started)
        after = times()
        worked.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return seconds, worked


def main(data: str, cache: str | None = None) -> None:
    """Print one line for each record."""
    for method, audit in product(("nm-augment", "nm-sample"), ("sampled", "all")):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write(folder, method, audit, data, cache)
            record = sum(part.stat().st_size for part in (folder / PICKS).iterdir())
            seconds, worked = cost(folder)
            page = (folder / "inspect.html").stat().st_size
        print(
            f"{method}, audit {audit}: record {record / 1e6:.1f} MB; inspect {statistics.median(seconds):.1f} s "
            f"({', '.join(f'{each:.1f}' for each in seconds)}), of which the processor worked "
            f"{statistics.median(worked):.1f}; page {page / 1e6:.2f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
