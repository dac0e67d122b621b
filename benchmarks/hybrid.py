"""What the oracle costs the trainer when it has a core of its own: step times side by side in one run.

The trainer runs on one core, the oracle on another. Each arm's T steps are measured in short turns with as many of the
baseline on the trainer's core, so that a busy machine slows both alike; ratios are medians over rounds. An oracle that
cannot keep up gains from the baseline's turns, in which it scores `queue_depth` draws ahead: `--turns 1` has fewest.
Beside them: the baseline while the other core multiplies matrices for nobody, which is what the hardware itself takes;
what other tools do (score with the trainer's own modules, in its time, in one batch); and the baseline given *both*
cores.

    python benchmarks/hybrid.py                                  # arms, about 15 minutes
    python benchmarks/hybrid.py --case identical                 # 500 steps, inline against the process pool
    python benchmarks/hybrid.py --data cifar10 --data-cache DIR  # images of a data set instead of random pixels

Speed does not depend on what the images show. Needs two cores to itself.
"""

import argparse
import copy
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.data import DataLoader

import infer2train
from infer2train.data.load import load_data
from infer2train.draws.addresses import Addresses
from infer2train.loader.loader import MinedLoader
from infer2train.machine.cores import available_cores, on_cores
from infer2train.models.build import build_model
from infer2train.models.pixels import Pixels
from infer2train.observe.runlog import cpu_name
from infer2train.observe.timeline import ORACLE_SPANS
from infer2train.pool.process import ProcessPool
from infer2train.sources.views.crops import PadCropFlip
from infer2train.sources.views.image_views import ImageViews
from infer2train.studies.gamma.recommendation import hybrid_step_seconds

METHODS = ("nm-augment", "self-distill", "nm-sample")
BOUNDS = {"nm-augment": 1.05, "self-distill": 1.08, "nm-sample": 1.05}


@dataclass
class Arm:
    """One way to train, its own copy of the model, and what each block of it took (seconds a step)."""

    name: str
    network: nn.Module
    optimizer: SGD
    batches: Iterator[Any]
    precision: str = "fp32"
    loader: MinedLoader | None = None
    seconds: list[float] | None = None
    figures: list[dict[str, float]] | None = None

    def step(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        """One training step."""
        self.network.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            outputs = self.network(images)
        loss = F.cross_entropy(outputs.float(), targets)
        if self.loader is not None:
            loss = loss + self.loader.penalty(outputs.float())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def block(self, steps: int) -> float:
        """Seconds a step, over so many."""
        if self.loader is not None:
            self.loader.metrics()
        started = perf_counter()
        for images, targets in islice(self.batches, steps):
            self.step(images, targets)
        seconds = (perf_counter() - started) / steps
        if self.loader is not None:
            self.figures = [*(self.figures or []), self.loader.metrics()]
        return seconds


def endless(loader: Any) -> Iterator[Any]:
    """Batches, epoch after epoch."""
    while True:
        yield from loader


def views(options: argparse.Namespace) -> ImageViews:
    """What is trained on."""
    if options.data:
        split = load_data(options.data, cache_dir=Path(options.data_cache), progress=False).train
        return ImageViews(split.images, split.targets, PadCropFlip(4))
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (20_000, 32, 32, 3), dtype=np.uint8)
    return ImageViews(pixels, generator.integers(0, 10, 20_000), PadCropFlip(4))


def model(name: str) -> nn.Module:
    """With its first weights."""
    network = build_model(name, num_classes=10, in_channels=3, seed=0)
    pixels = Pixels(network, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return pixels.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def arm(options: argparse.Namespace, source: ImageViews, method: str, precision: str = "fp32", **settings: Any) -> Arm:
    """A way to train; mined unless it is the baseline."""
    network = model(options.model)
    optimizer = SGD(network.parameters(), lr=0.01, momentum=0.9)
    base: DataLoader[Any] = DataLoader(source, batch_size=options.batch_size, shuffle=True, drop_last=True)
    loader = infer2train.mine(
        base,
        network,
        optimizer,
        method=method,
        gamma=options.gamma,
        oracle=options.oracle,
        update_every=options.update_every,
        ramp_rate=1.0 if method == "nm-sample" else None,
        **settings,
    )
    made = Arm(f"{method} {precision}", network, optimizer, endless(loader), precision, loader)
    if method == "nm-sample":  # its ramp mines from the second epoch on
        next(made.batches)
        made.batches = endless(loader)
    return made


def naive(options: argparse.Namespace, source: ImageViews) -> Arm:
    """What other tools do: the trainer's own modules score all candidates at once, in its precision and time."""
    network = model(options.model)
    made = Arm("others", network, SGD(network.parameters(), lr=0.01, momentum=0.9), iter(()))
    generator = np.random.default_rng(0)

    def batches() -> Iterator[Any]:
        while True:
            ids = np.repeat(generator.integers(0, len(source), options.batch_size), options.gamma)
            addresses = Addresses(ids, generator.integers(0, 1 << 62, len(ids)))
            images, targets = source.batch(addresses)
            network.eval()
            with torch.no_grad():
                losses = F.cross_entropy(network(images), targets, reduction="none")
            hardest = losses.view(-1, options.gamma).argmax(1) + torch.arange(options.batch_size) * options.gamma
            yield images[hardest], targets[hardest]

    made.batches = batches()
    return made


def predicted(arm: Arm, alone: float, options: argparse.Namespace) -> float:
    """A step beside the oracle, from the accounting of the last block (seconds)."""
    figures = joined(arm)
    draws = figures["mined_draws"]
    versions = max(1.0, figures.get("refreshes", 1.0))
    return hybrid_step_seconds(
        step_seconds=alone,
        draw_seconds=(figures["oracle_views_seconds"] + figures["oracle_forward_seconds"]) / draws,
        refresh_seconds=figures["oracle_refresh_seconds"] / versions,
        update_every=options.update_every,
        publish_seconds=figures["publishing_seconds"] / versions,
    )


def say(text: str) -> None:
    """One line, at once."""
    print(text, flush=True)


def measure_arms(options: argparse.Namespace) -> None:
    """The table of step times."""
    trainer, oracle = options.trainer_core, options.oracle_core
    source, steps = views(options), options.update_every
    in_process = {"pool": "process", "oracle_cores": str(oracle)}
    with on_cores([trainer]):
        torch.set_num_threads(1)
        baseline = {precision: arm(options, source, "baseline", precision) for precision in options.precisions}
        hybrids = [
            arm(options, source, method, precision, **in_process)
            for precision in options.precisions
            for method in (options.methods if precision == "fp32" else options.methods[:1])
        ]
        others, both = naive(options, source), copy.deepcopy(model(options.model))
        two = Arm("both", both, SGD(both.parameters(), lr=0.01, momentum=0.9), endless(DataLoader(source, 64, True)))
        for made in (*baseline.values(), *hybrids):
            made.block(steps // 2)
            say(f"warm: {made.name}")
        ratios: dict[str, list[float]] = {}

        def note(name: str, value: float) -> None:
            ratios.setdefault(name, []).append(value)

        for round_number in range(options.rounds):
            for made in hybrids:
                seconds, own = in_turns(made, baseline[made.precision], steps, options.turns)
                expected = predicted(made, own, options) / own
                figures = joined(made)
                note(made.name, seconds / own)
                note(f"{made.name} predicted", expected)
                note(f"{made.name} publishing", figures["publishing_seconds"] / (seconds * steps))
                note(f"{made.name} oracle busy", figures["oracle_busy"])
                note(f"{made.name} training", figures["trainer_train_seconds"] / (own * steps))
                note(f"{made.name} waiting", figures["trainer_scores_seconds"] / (own * steps))
                say(
                    f"round {round_number}: {made.name} {seconds * 1e3:.1f} ms, alone {own * 1e3:.1f} ms, ratio "
                    f"{seconds / own:.3f} (predicted {expected:.3f}); in {steps} steps it trains "
                    f"{figures['trainer_train_seconds']:.2f} s, waits {figures['trainer_scores_seconds']:.2f} s, makes "
                    f"views {figures['trainer_views_seconds']:.2f} s; oracle busy {figures['oracle_busy']:.0%}"
                )
            with burning(oracle) as burn:
                burdened, own = in_turns(baseline["fp32"], baseline["fp32"], steps, options.turns, burn)
            note("beside a busy core", burdened / own)
            note("others", others.block(3) / own)
            with on_cores([trainer, oracle]):
                torch.set_num_threads(2)
                two.block(5)
                doubled = two.block(steps // options.turns)
                torch.set_num_threads(1)
            note("both", doubled / baseline["fp32"].block(steps // options.turns))
            say(
                f"round {round_number}: others {ratios['others'][-1]:.2f}, both cores {ratios['both'][-1]:.3f}, the "
                f"baseline beside a core busy with something else {ratios['beside a busy core'][-1]:.3f}"
            )
        restart = measure_restart(hybrids[0], oracle)
        for made in hybrids:
            assert made.loader is not None
            made.loader.close()
    report(options, ratios, restart)


def in_turns(made: Arm, baseline: Arm, steps: int, turns: int, burn: "Burn | None" = None) -> tuple[float, float]:
    """Seconds a step of an arm and of the baseline, over so many steps of each, in short turns: a machine drifts."""
    made.figures = []
    ours = theirs = 0.0
    for _ in range(turns):
        if burn is not None:
            burn.go()
        ours += made.block(steps // turns) / turns
        if burn is not None:
            burn.pause()
        theirs += baseline.block(steps // turns) / turns
    return ours, theirs


def joined(made: Arm) -> dict[str, float]:
    """The figures of an arm's last turns: sums of seconds and counts, means of shares."""
    figures = made.figures or []
    names = {name for row in figures for name in row}
    total = {name: sum(row.get(name, 0.0) for row in figures) for name in names}
    spent = sum(total[f"oracle_{name}_seconds"] for name in ORACLE_SPANS)
    return total | {"oracle_busy": spent / sum(row["seconds"] for row in figures)}


class Burn:
    """A process that multiplies matrices on one core, at will."""

    def __init__(self, core: int) -> None:
        code = "import torch; torch.set_num_threads(1); a = torch.randn(512, 512)\nwhile True: a @ a"
        with on_cores([core]):
            self.process = subprocess.Popen([sys.executable, "-c", code])
        self.pause()

    def go(self) -> None:
        """Multiply."""
        self.process.send_signal(signal.SIGCONT)

    def pause(self) -> None:
        """Rest."""
        self.process.send_signal(signal.SIGSTOP)


@contextmanager
def burning(core: int) -> Iterator[Burn]:
    """Within, a core can be kept busy with something that has nothing to do with us."""
    burn = Burn(core)
    burn.go()
    sleep(5)  # its imports
    burn.pause()
    try:
        yield burn
    finally:
        burn.process.kill()
        burn.process.wait()


def measure_restart(made: Arm, core: int) -> tuple[float, float]:
    """Seconds from a worker's death to the first score of its successor, and of its imports alone."""
    assert made.loader is not None
    pool = made.loader._pool
    assert isinstance(pool, ProcessPool)
    scored: list[float] = []
    made.block(2)
    pool.timeline.listen(lambda span: scored.append(span.started + span.seconds) if span.name == "forward" else None)
    scored.clear()
    (pid,) = pool.workers().values()
    os.kill(pid, signal.SIGKILL)
    died = perf_counter()
    while not any(end > died for end in scored):
        made.block(1)
    after = next(end for end in scored if end > died) - died
    started = perf_counter()
    code = "import infer2train.pool.worker, infer2train.oracle.openvino_engine, infer2train.oracle.fidelity, openvino"
    with on_cores([core]):
        subprocess.run([sys.executable, "-c", f"{code}; import openvino.opset13"], check=True)
    return after, perf_counter() - started


def report(options: argparse.Namespace, ratios: dict[str, list[float]], restart: tuple[float, float]) -> None:
    """The table."""

    def median(name: str) -> float:
        return statistics.median(ratios[name])

    def spread(name: str) -> str:
        return f"{median(name):.3f} ({min(ratios[name]):.3f} to {max(ratios[name]):.3f})"

    say(
        f"\n{options.model}, batch {options.batch_size}, γ = {options.gamma}, {options.oracle}, T = "
        f"{options.update_every}, D = 0; trainer on core {options.trainer_core}, oracle on core {options.oracle_core} "
        f"of {cpu_name()}; {options.rounds} rounds, medians (least to most)"
    )
    for method in options.methods:
        name = f"{method} fp32"
        say(f"{method} / baseline, a step: {spread(name)}, asked at most {BOUNDS[method]}")
        say(
            f"  its own step takes {median(f'{name} training'):.3f} of that, waiting for scores "
            f"{median(f'{name} waiting'):.3f}; predicted from the accounting {spread(f'{name} predicted')}; oracle "
            f"busy {median(f'{name} oracle busy'):.0%}"
        )
    if "bf16" in options.precisions:
        name = f"{options.methods[0]} bf16"
        against = [m / max(1.0, p) for m, p in zip(ratios[name], ratios[f"{name} predicted"], strict=True)]
        say(f"with a bf16 trainer: measured {spread(name)}, predicted {spread(f'{name} predicted')}")
        say(f"  measured / max(1, predicted): {statistics.median(against):.3f}, asked at most 1.03")
    say(f"publishing: {median(f'{options.methods[0]} fp32 publishing'):.2%} of the trainer's time, asked at most 1 %")
    say(f"the baseline beside a core busy with matrix products / by itself: {spread('beside a busy core')}")
    say(f"what other tools do / baseline: {spread('others')}")
    hybrid = median(f"{options.methods[0]} fp32")
    say(
        f"equal hardware: the baseline on both cores takes {spread('both')} of its step on one, so it is "
        f"{hybrid / median('both'):.2f} × as fast as the hybrid, time per epoch {median('both') / hybrid:.3f}"
    )
    after, imports = restart
    say(
        f"worker killed to first score of its successor: {after:.2f} s, imports alone {imports:.2f} s, beyond them "
        f"{after - imports:.2f} s, asked at most 3 s"
    )


def measure_identical(options: argparse.Namespace) -> None:
    """500 steps in each pool: the same selections and weights, bit for bit."""
    source = views(options)
    ends: list[tuple[dict[str, torch.Tensor], list[bytes]]] = []
    for pool in ("inline", "process"):
        torch.manual_seed(0)
        settings = {"pool": pool, "oracle_cores": str(options.oracle_core)} if pool == "process" else {}
        with on_cores([options.trainer_core]):
            torch.set_num_threads(1)
            made = arm(options, source, options.methods[0], **settings)
            assert made.loader is not None
            picked, started = [], perf_counter()
            for images, targets in islice(made.batches, options.steps):
                picked.append(made.loader.last.addresses.ids.tobytes() + made.loader.last.addresses.seeds.tobytes())  # type: ignore[union-attr]
                made.step(images, targets)
            made.loader.close()
        ends.append((made.network.state_dict(), picked))
        say(f"{pool}: {options.steps} steps in {perf_counter() - started:.0f} s")
    (ours, our_picks), (theirs, their_picks) = ends
    same = [torch.equal(ours[name], theirs[name]) for name in ours]
    say(
        f"{options.model}, {options.oracle}, T = {options.update_every}: selections "
        f"{'identical' if our_picks == their_picks else 'DIFFER'}, weights {'identical' if all(same) else 'DIFFER'}"
    )
    if our_picks != their_picks or not all(same):
        sys.exit(1)


def main() -> None:
    """Measure the case asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=["arms", "identical"], default="arms")
    parser.add_argument("--model", default="resnet44")
    parser.add_argument("--oracle", default="openvino:int8")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--gamma", type=int, default=10)
    parser.add_argument("--update-every", type=int, default=100)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=4, help="in which the steps between two refreshes are measured")
    parser.add_argument("--steps", type=int, default=500, help="of --case identical")
    parser.add_argument("--data", default=None)
    parser.add_argument("--data-cache", default=None)
    parser.add_argument("--trainer-core", type=int, default=available_cores()[0])
    parser.add_argument("--oracle-core", type=int, default=available_cores()[-1])
    options = parser.parse_args()
    if options.trainer_core == options.oracle_core:
        parser.error("trainer and oracle need a core each")
    {"arms": measure_arms, "identical": measure_identical}[options.case](options)


if __name__ == "__main__":
    main()
