"""Runs of the command line in processes of their own, which can be stopped at an exact moment of the real code.

They are forked from a server that has imported the package and computed nothing, so that one costs milliseconds. A
moment is a call of one of the package's functions: the real one runs, and the process stops before or after it.
"""

import importlib
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *(
            "infer2train.cli.main",
            "infer2train.training.loop",
            "infer2train.data.digits",
            "infer2train.models.cifar_resnet",
        ),
        *("infer2train.loader.mine", "torch.utils.tensorboard", "matplotlib.figure", "jinja2", "yaml"),
    ]
)


def kill() -> None:
    """What the kernel, a scheduler or a power cut does."""
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    """Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


def interrupt_twice() -> None:
    """Ctrl-C, and again before the step is done."""
    interrupt()
    interrupt()


def terminate() -> None:
    """What a batch system sends before it kills."""
    os.kill(os.getpid(), signal.SIGTERM)


def fill_disk() -> None:
    """No file can be larger than a few kilobytes from now on: there is room for a log, not for weights."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, 16_000))


@dataclass(frozen=True)
class Moment:
    """Before or after the n-th call of a function, counted from 1 since the process started."""

    when: str
    """before or after."""
    function: str
    """`module:attribute`, where the caller looks it up."""
    call: int = 1
    what: Callable[[], None] = kill

    def arm(self) -> None:
        module, _, path = self.function.partition(":")
        *owners, name = path.split(".")
        owner: Any = importlib.import_module(module)
        for attribute in owners:
            owner = getattr(owner, attribute)
        real, calls = getattr(owner, name), 0

        def watched(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == self.call and self.when == "before":
                self.what()
            result = real(*arguments, **named)
            if calls == self.call and self.when == "after":
                self.what()
            return result

        setattr(owner, name, watched)


def command_line(
    folder: Path, *arguments: str, moment: Moment | None = None, limit_seconds: float = 120
) -> tuple[int, str]:
    """Run `infer2train ARGUMENTS` in `folder`, to its end or to the moment.

    Returns:
        The exit status (negative: the signal that killed it), and what it printed.
    """
    output = folder / "output.txt"
    process = SERVER.Process(target=_run, args=(folder, output, arguments, moment))
    process.start()
    process.join(limit_seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"{arguments} took more than {limit_seconds} s: {output.read_text()}")
    return process.exitcode, output.read_text()


def _run(folder: Path, output: Path, arguments: Sequence[str], moment: Moment | None) -> None:
    os.chdir(folder)
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # The server ignores Ctrl-C; a process that a shell starts does not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if moment is not None:
        moment.arm()
    from infer2train.cli.main import main

    sys.exit(main(arguments))
