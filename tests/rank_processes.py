"""Ranks of one run on this machine: real processes, forked so that one costs milliseconds, joined by Gloo."""

import io
import multiprocessing
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed

PATIENCE_SECONDS = 200
"""For what takes two seconds on a machine that does nothing else."""


def in_processes(count: int, task: Callable[[], Any], folder: Path, *, timeout_seconds: float = 180) -> list[Any]:
    """What a task returns, or the text of what it raises, in each of some processes.

    Args:
        count: of processes.
        task: called in each, as a member of the group; a rank that ends without a word has `None`.
        folder: for their rendezvous.
        timeout_seconds: of the process group.
    """
    context = multiprocessing.get_context("fork")
    ends = [context.Pipe() for _ in range(count)]
    processes = [
        context.Process(target=_member, args=(rank, count, task, folder / "rendezvous", end[1], timeout_seconds))
        for rank, end in enumerate(ends)
    ]
    for process, (_, there) in zip(processes, ends, strict=True):
        process.start()
        there.close()
    said = [_said(here) for here, _ in ends]
    for process in processes:
        process.join(10)
        process.kill()
    (folder / "rendezvous").unlink(missing_ok=True)
    return said


def _said(end: Any) -> Any:
    try:
        if not end.poll(PATIENCE_SECONDS):
            return f"no answer within {PATIENCE_SECONDS} seconds"
        return torch.load(io.BytesIO(end.recv_bytes()), weights_only=False)
    except EOFError:
        return None


def _member(rank: int, count: int, task: Callable[[], Any], rendezvous: Path, end: Any, timeout_seconds: float) -> None:
    torch.set_num_threads(1)  # the threads of the process that was forked are not there
    try:
        torch.distributed.init_process_group(
            "gloo",
            f"file://{rendezvous}",
            rank=rank,
            world_size=count,
            timeout=timedelta(seconds=timeout_seconds),
        )
        said = task()
    except (ValueError, RuntimeError) as error:
        said = f"{type(error).__name__}: {error}"
    except BaseException:
        said = traceback.format_exc()
    content = io.BytesIO()
    torch.save(said, content)  # by itself, multiprocessing would share tensors with a process that has ended
    end.send_bytes(content.getvalue())
    torch.distributed.destroy_process_group()
