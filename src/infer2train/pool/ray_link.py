"""One Ray actor as the trainer has it: asked for, talked to, listened to by a thread, ended."""

import math
import sys
import threading
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import replace
from queue import SimpleQueue
from time import perf_counter, sleep
from typing import Any

import torch
from torch import Tensor

from infer2train.pool.messages import Done, News, Order, Take
from infer2train.pool.ray_desk import Oracle, Reply, Sent, kept
from infer2train.pool.transport import Link, LinkClosedError, Post

LOOK_SECONDS = 1.0
"""Between two looks of a waiting thread whether it is still wanted."""
AGAIN_SECONDS = 0.2
"""Before an actor that could not be reached is called again."""
SAME_CLOCK_SECONDS = 1.0
"""Between two clocks that are nearer than that there is only the time that a message takes."""
CALLS = 4
"""That an actor answers at a time: one that waits for news, others that bring orders."""


class Stored(dict[str, Tensor]):
    """A record's tensors, and where the cluster has them: they stay there as long as this lives.

    Args:
        tensors: of the record.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(tensors)
        self.reference = kept(tensors)


class RayLink(Link):
    """An actor, and the one call in flight to it that waits for news.

    What it has not acknowledged it is sent again with the next such call, so that no lost call loses an order.

    Args:
        post: the worker's.
        task: a reference to the pickled task, in a list.
        needs: resources of a place where it can run, by Ray's names.
        something_told: set whenever there is something to hear.
        avoided: nodes where it may not run, by Ray's ids.
    """

    def __init__(
        self,
        post: Post,
        task: list[Any],
        needs: Mapping[str, float],
        something_told: threading.Event,
        *,
        avoided: Collection[str] = (),
    ) -> None:
        import ray

        self._needs, self._something_told = dict(needs), something_told
        self._lock = threading.Lock()
        self._unacknowledged: deque[Sent] = deque()
        self._inbox: SimpleQueue[News] = SimpleQueue()
        self._numbers, self._beats = 0, 0
        self._said: Reply | None = None
        self._ended: str | None = None
        self._is_left = False
        self._clock_behind = math.inf
        self._actor: Any = (
            ray.remote(Oracle)
            .options(
                num_cpus=0,
                num_gpus=self._needs.get("GPU", 0),
                resources={name: count for name, count in needs.items() if name != "GPU"},
                scheduling_strategy="SPREAD",
                label_selector={"ray.io/node-id": f"!in({','.join(sorted(avoided))})"} if avoided else None,
                max_concurrency=CALLS,
                max_restarts=0,
                max_task_retries=0,
                enable_task_events=False,
            )
            .remote(task, post, torch.get_float32_matmul_precision(), sys.path)
        )
        self.listener = threading.Thread(target=self._listen, name=f"{post.lane} listener", daemon=True)
        self.listener.start()

    @property
    def is_placed(self) -> bool:
        return self._said is not None

    @property
    def where(self) -> str:
        return f"waits for {self._needs}" if self._said is None else f"on {self._said.node}"

    @property
    def node_id(self) -> str:
        """Of the node that it runs on."""
        assert self._said is not None, "it has no node before it has a place"
        return self._said.node_id

    @property
    def pid(self) -> int:
        assert self._said is not None, "it has no process before it has a place"
        return self._said.pid

    @property
    def beats(self) -> int:
        return self._beats

    @property
    def phase(self) -> str:
        return "starting" if self._said is None else self._said.phase

    def tell(self, order: Order) -> None:
        if self._ended is not None:
            raise LinkClosedError(self._ended)
        record: list[Any] = []
        if isinstance(order, Take):
            stored = order.tensors
            assert isinstance(stored, Stored)
            order, record = replace(order, tensors={}), stored.reference
        with self._lock:
            self._numbers += 1
            sent = Sent(self._numbers, order, record)
            self._unacknowledged.append(sent)
        self._actor.take.remote([sent])

    def heard(self) -> list[News]:
        news = [self._inbox.get() for _ in range(self._inbox.qsize())]
        if not news and self._ended is not None:
            raise LinkClosedError(self._ended)
        return news

    def how_it_ended(self, *, patience_seconds: float = 0.0) -> str | None:
        if patience_seconds:
            self.listener.join(patience_seconds)
        return self._ended

    def ended_by_itself(self) -> bool:
        return self._said is not None and self._said.is_over

    def end(self, *, patience_seconds: float = 0.0) -> None:
        import ray

        if patience_seconds:
            self.listener.join(patience_seconds)
        self._is_left = True
        ray.kill(self._actor)

    # In the listener's thread

    def _listen(self) -> None:
        heard, is_over = 0, False
        while not is_over:
            try:
                reply = self._asked(heard)
            except Exception as error:  # whatever it is that Ray says, nobody is there any more
                self._ended = self._ended or _in_words(error)
                break
            heard, is_over = self._note(reply, heard), reply.is_over
        else:
            self._ended = "ended"
        self._something_told.set()

    def _asked(self, heard: int) -> Reply:
        import ray
        from ray.exceptions import ActorUnavailableError, GetTimeoutError

        while True:
            with self._lock:
                again = list(self._unacknowledged)
            call = self._actor.hear.remote(heard, again)
            try:
                while True:
                    try:
                        reply: Reply = ray.get(call, timeout=LOOK_SECONDS)
                        return reply
                    except GetTimeoutError:
                        if self._is_left:
                            raise
            except ActorUnavailableError:
                sleep(AGAIN_SECONDS)

    def _note(self, reply: Reply, heard: int) -> int:
        with self._lock:
            while self._unacknowledged and self._unacknowledged[0].number <= reply.taken:
                self._unacknowledged.popleft()
        self._said, self._beats = reply, self._beats + 1
        self._clock_behind = min(self._clock_behind, perf_counter() - reply.clock)
        for number, news in reply.news:
            if number > heard:
                self._inbox.put(self._by_our_clock(news))
                heard = number
        if reply.news:
            self._something_told.set()
        return heard

    def _by_our_clock(self, news: News) -> News:
        """With the times of what it did as they were here: another machine's clock began when that was started."""
        if not isinstance(news, Done) or abs(self._clock_behind) < SAME_CLOCK_SECONDS:
            return news
        spans = [replace(span, started=span.started + self._clock_behind) for span in news.as_spans()]
        return replace(news, spans=[[s.lane, s.name, s.started, s.seconds, s.details] for s in spans])


def _in_words(error: Exception) -> str:
    """The line that says why, of the many that Ray prints."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    why = next((line for line in lines if line.startswith("The actor is dead because")), lines[0] if lines else "")
    return f"ended ({type(error).__name__}: {why.split('. ')[0]})"
