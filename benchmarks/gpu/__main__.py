"""All that needs a CUDA device, one after another: the tests marked gpu, then every script beside this one.

Each prints its own table; a failure does not stop the others; a table of all of them comes last. Runs with what the
images of CUDA machines have, without an installation of this package. `make gpu` is this:

    PYTHONPATH=src python3 benchmarks/gpu
"""

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
REPOSITORY = FOLDER.parents[1]
PROCESSES = 4
"""Of the tests, if pytest-xdist is there."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Args:
        name: what it is called.
        status: its exit status, negative where a signal ended it; None where its time was up.
        seconds: that it took.
        last_line: that it printed.
    """

    name: str
    status: int | None
    seconds: float
    last_line: str

    @property
    def word(self) -> str:
        """As the table says it."""
        if self.status is None:
            return "TIME UP"
        return "ok" if self.status == 0 else f"FAILED ({self.status})"


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0, help="a command may take before it is stopped")
    parser.add_argument("--only", nargs="+", help="names of the table: tests, or a script's without .py")
    return parser.parse_args()


def commands(folder: Path) -> dict[str, list[str]]:
    """What is run, by name: the tests, then the scripts of the folder in the order of their names."""
    scripts = sorted(path for path in folder.glob("*.py") if not path.name.startswith("_"))
    # In several processes where that is possible: what breaks a device's context breaks it for one of them.
    spread = ["-n", str(PROCESSES)] if importlib.util.find_spec("xdist") else []
    found = {"tests": [sys.executable, "-m", "pytest", "-m", "gpu", "-rf", *spread, str(REPOSITORY / "tests")]}
    return found | {path.stem: [sys.executable, str(path)] for path in scripts}


def run(name: str, command: Sequence[str], limit_seconds: float) -> Outcome:
    """Runs a command to its end or to the end of its time, and shows what it prints as it comes."""
    print(f"\n== {name}", flush=True)
    paths = [str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")]
    surroundings = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    started, last_line, late = time.perf_counter(), "", threading.Event()
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=surroundings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that what it started ends with it
    )

    def stop() -> None:
        late.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(limit_seconds, stop)
    timer.start()
    assert process.stdout is not None
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            last_line = line.strip() or last_line
        status = process.wait()
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        timer.cancel()
    return Outcome(name, None if late.is_set() else status, time.perf_counter() - started, last_line)


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """One line for each command."""
    width = max(len(outcome.name) for outcome in outcomes)
    return [f"{o.name:{width}}  {o.word:11} {o.seconds:6.0f} s  {o.last_line[:100]}" for o in outcomes]


def main() -> int:
    """Run all; 1 where anything failed, 0 where there is no CUDA device."""
    options = arguments()
    found = commands(FOLDER)
    if unknown := set(options.only or ()) - set(found):
        print(f"--only must name some of {', '.join(found)}: got {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    try:
        import torch
    except ImportError as error:
        print(f"gpu: nothing is run, for {sys.executable} cannot import PyTorch ({error}); name another: PYTHON=…")
        return 0
    if not torch.cuda.is_available():
        print(f"gpu: nothing is run, for PyTorch {torch.__version__} of {sys.executable} sees no CUDA device")
        return 0
    print(f"{torch.cuda.get_device_name(0)}, PyTorch {torch.__version__}, Python {sys.version.split()[0]}")
    chosen = {name: command for name, command in found.items() if name in (options.only or found)}
    outcomes = [run(name, command, 60 * options.minutes) for name, command in chosen.items()]
    print("\n".join(["", *table(outcomes)]))
    return 0 if all(outcome.status == 0 for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
