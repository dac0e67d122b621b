"""A worker's process from within: its life, and its desk at the channel to the trainer's process.

One thread works, another beats. The process ends when the trainer's does, however that ends.
"""

import os
import signal
import threading
import time
from dataclasses import dataclass
from pickle import loads
from socket import socket
from typing import Any

import torch

from infer2train.pool.channel import Channel, wait_for
from infer2train.pool.messages import Failed, News, Order
from infer2train.pool.pulse import BEAT_SECONDS, Pulse
from infer2train.pool.task import Task
from infer2train.pool.transport import Desk, Post
from infer2train.pool.worker import Worker, pass_warnings_on


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a worker's process shares with the trainer's.

    Args:
        post: the worker's.
        matmul_precision: torch's setting.
        trainer: id of the process that it ends with.
        task_bytes: size of the packed task.
    """

    post: Post
    matmul_precision: str
    trainer: int
    task_bytes: int


class ProcessDesk(Desk):
    """A desk at a channel.

    Args:
        channel: to the supervisor.
        pulse: where it says what the worker does.
    """

    def __init__(self, channel: Channel, pulse: Pulse) -> None:
        self._channel, self._pulse = channel, pulse

    def orders(self, *, wait: bool) -> list[Order]:
        if wait:
            wait_for([self._channel], None)
        self._channel.flush()
        return self._channel.receive()

    def tell(self, news: News) -> None:
        self._channel.send(news)

    def enter(self, phase: str) -> None:
        self._pulse.enter(phase)

    def drain(self) -> None:
        """Wait until all that was told is on its way."""
        while self._channel.is_sending:
            wait_for([self._channel], None)
            self._channel.flush()


def work(end: socket, task: Any, pulse: Any, setting: Setting) -> None:
    """A worker's whole life; the target of its process.

    Args:
        end: of the channel to the trainer's process.
        task: descriptor of the packed task, as `multiprocessing.reduction.DupFd` sends it.
        pulse: descriptor of the shared page, likewise.
        setting: how to run.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to handle; it reaches the whole terminal
    torch.set_num_threads(setting.post.threads)
    torch.set_float32_matmul_precision(setting.matmul_precision)
    sign = Pulse(pulse.detach())
    threading.Thread(target=_beat, args=(sign, setting.trainer), daemon=True).start()
    desk = ProcessDesk(Channel(end), sign)
    try:
        with os.fdopen(task.detach(), "rb") as file:
            unpacked: Task = loads(os.pread(file.fileno(), setting.task_bytes, 0))  # from our own parent
        worker = Worker(unpacked, desk, setting.post)
    except Exception as error:
        desk.tell(Failed.by(error, None))
        desk.drain()
        return
    pass_warnings_on(desk)
    worker.run()
    os._exit(0)  # without waiting for a program that is still being prepared


def _beat(pulse: Pulse, trainer: int) -> None:
    while os.getppid() == trainer:
        pulse.beat()
        time.sleep(BEAT_SECONDS)
    os._exit(1)  # the trainer is gone: nobody is left to clean up for
