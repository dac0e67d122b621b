"""Kills oracle workers and trainers at random moments, and shows that nothing else changes.

Two campaigns, each compared with a run that nothing disturbed:

workers   one strict run whose oracle's worker is killed again and again, at moments spread over its phases: every
          draw is scored by the version that it asks for, no draw is lost, the final weights are the same bits.
trainer   runs whose trainer is killed at a random moment and resumed, over and over: no process is left, nothing is
          left in /dev/shm, the final weights are the same bits.

    python benchmarks/faults.py --campaign workers --kills 200
    python benchmarks/faults.py --campaign trainer --kills 50 --oracle torch:fp32

Exits with 1 if a claim does not hold. A worker takes seconds to start, so 200 kills take half an hour.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import infer2train
from infer2train.checkpoint.checkpoint import load_checkpoint, save_checkpoint
from infer2train.draws.versions import VersionRule
from infer2train.loader.loader import MinedLoader
from infer2train.observe.runlog import cpu_name
from infer2train.pool.process import ProcessPool
from infer2train.pool.pulse import PHASES
from infer2train.sources.views.crops import PadCropFlip

BATCH_SIZE, GAMMA, UPDATE_EVERY, SAMPLES, SEED = 16, 6, 4, 320, 0
MOST_KILLS_WITHOUT_ANSWER = 3
"""The pool gives a worker up that ends more often than this before it answers anything, which is meant."""
GONE_SECONDS = 20
"""Until a worker that was importing its packages notices that its trainer is gone."""
STEPS_OF_A_TRAINER, CHECKPOINT_EVERY = 60, 10
FAMILY = "INFER2TRAIN_FAULTS"
"""The environment variable by which a trainer's processes are found."""


def images() -> infer2train.ImageViews:
    """Handwritten digits, 8 × 8."""
    from sklearn.datasets import load_digits  # not in the workers, which import this file

    digits = load_digits()
    pixels = (digits.images[:SAMPLES] * 15).astype("uint8")[..., None]
    return infer2train.ImageViews(pixels, digits.target[:SAMPLES], PadCropFlip(1))


class Network(nn.Sequential):
    """A small convolutional network that takes bytes."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, stride=2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * 16, 10),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.float() / 128 - 1)  # type: ignore[no-any-return]


def build(oracle: str, pool: str) -> tuple[nn.Module, torch.optim.Optimizer, MinedLoader]:
    """The model, its optimiser and the loader of every run here."""
    torch.manual_seed(SEED)
    model = Network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    base: DataLoader[Any] = DataLoader(images(), batch_size=BATCH_SIZE, shuffle=True, drop_last=True)
    loader = infer2train.mine(
        base, model, optimizer, gamma=GAMMA, oracle=oracle, update_every=UPDATE_EVERY, seed=SEED, pool=pool
    )
    return model, optimizer, loader


def train_on(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> None:
    """One step."""
    x, y = batch
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()


class Killer(threading.Thread):
    """Kills the worker of a pool at random moments of chosen phases, and counts the phases that it hit.

    Args:
        pool: whose worker.
        kills: how many.
        chance: what decides.
    """

    def __init__(self, pool: ProcessPool, kills: int, chance: random.Random) -> None:
        super().__init__(daemon=True)
        self._pool, self._kills, self._chance = pool, kills, chance
        self.phases: Counter[str] = Counter()
        self.is_over = False

    def run(self) -> None:
        while sum(self.phases.values()) < self._kills and not self.is_over:
            if self._pool._seats[0].failures < MOST_KILLS_WITHOUT_ANSWER:
                self._kill_one()
            time.sleep(0.001)

    def _kill_one(self) -> None:
        """Wait for a phase that was hit the least, or a while; kill; wait until the worker is another one."""
        pid = self._pid()
        wanted = min(PHASES, key=lambda phase: (self.phases[phase], self._chance.random()))
        while self._phase() == "starting" and wanted != "starting" and not self.is_over:
            time.sleep(0.001)
        end = time.monotonic() + self._chance.uniform(0, 6)
        while time.monotonic() < end and not self.is_over and self._phase() != wanted:
            time.sleep(0)
        phase = self._phase()
        if self.is_over or phase is None or pid is None or self._pid() != pid:
            return
        os.kill(pid, signal.SIGKILL)
        self.phases[phase] += 1
        while self._pid() == pid and not self.is_over:
            time.sleep(0.001)

    def _pid(self) -> int | None:
        with suppress(ValueError):  # the pool just let go of that worker
            return self._pool.workers().get("oracle 0")
        return None

    def _phase(self) -> str | None:
        with suppress(ValueError):
            return self._pool.phases().get("oracle 0")
        return None


def campaign_workers(oracle: str, kills: int, seed: int) -> bool:
    """Kill the worker of one run so often; whether all claims hold."""
    model, optimizer, loader = build(oracle, "process")
    pool = loader._pool
    assert isinstance(pool, ProcessPool)
    killer = Killer(pool, kills, random.Random(seed))
    killer.start()
    versions: list[tuple[int, int | None]] = []
    wrong, rule, progress = 0, VersionRule(update_every=UPDATE_EVERY, delay_steps=0), 0.0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            while killer.is_alive():
                for batch in loader:
                    train_on(model, optimizer, batch)
                    assert loader.last is not None
                    versions.append((loader.last.number, loader.last.version))
                    wrong += loader.last.version != rule.version_of_step(loader.last.step)
                    if time.monotonic() - progress > 2:
                        progress = time.monotonic()
                        say(f"{oracle}: {sum(killer.phases.values())} of {kills} kills, {len(versions)} draws")
    finally:
        killer.is_over = True
    restarts = int(pool.totals().get("worker_restarts", 0))
    loader.close()
    say(f"{oracle}: the undisturbed run of {len(versions)} draws")
    undisturbed = weights_of_undisturbed(oracle, len(versions), "process")
    differ = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, undisturbed[name])]
    lost = len(versions) - len({draw for draw, _ in versions})
    killed = sum(killer.phases.values())
    print(f"\n{oracle}, {len(versions)} draws, {killed} kills, {restarts} restarts")
    for phase in PHASES:
        print(f"  {phase:<18} {killer.phases[phase]:>4} {'#' * killer.phases[phase]}")
    claims = {
        f"workers killed: {killed}": killed == kills,
        f"every kill was noticed: {restarts} restarts": restarts == killed,
        f"draws lost: {lost}": lost == 0 and [draw for draw, _ in versions] == list(range(len(versions))),
        f"draws scored by a wrong version: {wrong}": wrong == 0,
        f"tensors that differ from the undisturbed run: {len(differ)} of {len(undisturbed)}": not differ,
    }
    return told(claims)


def weights_of_undisturbed(oracle: str, steps: int, pool: str) -> dict[str, Tensor]:
    """The weights after so many steps that nothing disturbs."""
    model, optimizer, loader = build(oracle, pool)
    done = 0
    while done < steps:
        for batch in loader:
            train_on(model, optimizer, batch)
            done += 1
            if done == steps:
                break
    loader.close()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def trainer(oracle: str, folder: Path) -> None:
    """One trainer's life: go on from the newest checkpoint to the last step; killed by whoever started it."""
    model, optimizer, loader = build(oracle, "process")
    found = load_checkpoint(folder)
    if found is not None:
        model.load_state_dict(found.state["model"])
        optimizer.load_state_dict(found.state["optimizer"])
        loader.load_state_dict(found.state["loader"])
    while loader.steps < STEPS_OF_A_TRAINER:
        for batch in loader:
            train_on(model, optimizer, batch)
            print(f"step {loader.steps}", flush=True)
            if loader.steps % CHECKPOINT_EVERY == 0:
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "loader": loader.state_dict(),
                }
                save_checkpoint(folder, loader.steps, state)
            if loader.steps == STEPS_OF_A_TRAINER:
                break
    loader.close()


def family(mark: str) -> dict[int, str]:
    """The processes with this mark in their environment: process id -> command line."""
    found = {}
    wanted = f"{FAMILY}={mark}".encode()
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and wanted in (process / "environ").read_bytes().split(b"\0"):
                found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it ended while we looked
            continue
    return found


def named_memory(pids: list[int]) -> set[str]:
    """Files in /dev/shm that these processes have mapped and that still have a name."""
    names = set()
    for pid in pids:
        try:
            lines = (Path("/proc") / str(pid) / "maps").read_text().splitlines()
        except OSError:
            continue
        names |= {line.split()[5] for line in lines if "/dev/shm/" in line and "(deleted)" not in line}
    return names


def campaign_trainer(oracle: str, kills: int, seed: int) -> bool:
    """Kill trainers so often; whether all claims hold."""
    chance = random.Random(seed)
    undisturbed = weights_of_undisturbed(oracle, STEPS_OF_A_TRAINER, "inline")
    killed, finished, left, differ, stages = 0, 0, 0, 0, Counter[str]()
    named: set[str] = set()
    with tempfile.TemporaryDirectory() as work:
        folder, life = Path(work) / "run 0", 0
        while killed < kills or finished == 0:
            life += 1
            mark = f"{os.getpid()}-{life}"
            command = [sys.executable, __file__, "--trainer", str(folder), "--oracle", oracle]
            output = Path(work) / "output.txt"
            with output.open("w") as file:
                process = subprocess.Popen(
                    command, env={**os.environ, FAMILY: mark}, stdout=file, stderr=subprocess.STDOUT
                )
            # Half of the moments while everything is still starting, half while it trains.
            wanted = chance.choice([0, 0, chance.randint(1, STEPS_OF_A_TRAINER)]) if killed < kills else 1 << 30
            end = time.monotonic() + (chance.uniform(0, 15) if wanted == 0 else 300)
            steps = 0
            while process.poll() is None and time.monotonic() < end and (wanted == 0 or steps < wanted):
                steps = output.read_text().count("step ")
                time.sleep(0.01)
            named |= named_memory(list(family(mark)))
            stages["starting" if steps == 0 else "training"] += process.poll() is None
            if process.poll() is None:
                time.sleep(chance.random() * 0.05)
                process.kill()
            status = process.wait()
            if status not in (0, -signal.SIGKILL):
                print(output.read_text())
                return told({f"a trainer ended with exit code {status}": False})
            killed += status != 0
            until = time.monotonic() + GONE_SECONDS
            while (there := family(mark)) and time.monotonic() < until:
                time.sleep(0.05)
            left += len(there)
            for pid in there:
                os.kill(pid, signal.SIGKILL)
            if status == 0:
                finished += 1
                found = load_checkpoint(folder)
                assert found is not None
                same = all(torch.equal(found.state["model"][name], tensor) for name, tensor in undisturbed.items())
                differ += not same
                folder = Path(work) / f"run {finished}"
            say(f"{oracle}: {killed} of {kills} trainers killed, {finished} runs finished")
    print(f"\n{oracle}, {killed} trainers killed: {dict(stages)}; {finished} runs resumed to their end")
    return told(
        {
            f"processes left: {left}": left == 0,
            f"named shared memory: {sorted(named) or 'none'}": not [name for name in named if Path(name).exists()],
            f"runs whose weights differ from the undisturbed one: {differ} of {finished}": differ == 0,
        }
    )


def told(claims: dict[str, bool]) -> bool:
    """Print what is so; whether all of it should be."""
    for claim, holds in claims.items():
        print(f"  {'ok  ' if holds else 'FAIL'} {claim}")
    return all(claims.values())


def say(text: str) -> None:
    """Show progress."""
    print(f"\r\x1b[K{text}", end="" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)


def main() -> None:
    """Run the campaigns asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--campaign", choices=["workers", "trainer"], nargs="+", default=["workers", "trainer"])
    parser.add_argument("--kills", type=int, help="in each campaign. Default: 200 workers, 50 trainers")
    parser.add_argument("--oracle", nargs="+", default=["torch:fp32"], help="engines, such as openvino:int8")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--trainer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.trainer is not None:
        trainer(options.oracle[0], options.trainer)
        return
    print(f"{cpu_name()}; torch {torch.__version__}; seed {options.seed}")
    campaigns = {"workers": (campaign_workers, 200), "trainer": (campaign_trainer, 50)}
    holds = True
    for name in options.campaign:
        campaign, kills = campaigns[name]
        for oracle in options.oracle:
            holds &= campaign(oracle, options.kills or kills, options.seed)
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
