"""Work on a CUDA device, recorded once as a CUDA graph and then replayed: a launch instead of hundreds.

What is recorded must do the same on the same tensors each time: no shape, no address and no decision of the host may
change, and nothing may be asked of the device. `device_steps` writes its work so; run as it stands, it is the readable
reference.
"""

from collections.abc import Callable, Iterable
from threading import Lock

import torch
from torch import Tensor

Work = Callable[[], None]

WARM_UP = 3
"""Runs before the recording, in which libraries choose their algorithms and take their workspaces."""
_ONE_AT_A_TIME = Lock()
"""Every graph of a process takes part in its default generator's state: none may be replayed while one is recorded."""


def captured(work: Work, kept: Iterable[Tensor]) -> Work:
    """The work as one launch; nothing has changed when it is returned.

    The first runs are real ones, so what they change is put back: the random state, and the tensors in `kept`.

    Args:
        work: takes its inputs from tensors that stay where they are, and leaves its results in such.
        kept: every tensor that a second run would find changed by the first.

    Returns:
        Replays it. Call it on the stream that is current now, which is not the default one: libraries have one
        workspace for each stream, and what is recorded goes on using it.

    Raises:
        RuntimeError: it cannot be recorded.
    """
    kept, stream = list(kept), torch.cuda.current_stream()
    graph = torch.cuda.CUDAGraph()
    with _ONE_AT_A_TIME:
        before, random = [tensor.detach().clone() for tensor in kept], torch.cuda.get_rng_state(stream.device)
        try:
            for _ in range(WARM_UP):
                work()
            # Not "global": other seeds go on in other threads. It waits for the device before it begins.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                work()
        except RuntimeError as error:
            # What the work raised; the recording that it spoils fails in turn as it is ended.
            reason = error.__context__ or error
            raise RuntimeError(
                f"a step must do the same on the same tensors each time to be recorded as a CUDA graph: got {reason}; "
                "pass --step loop"
            ) from error
        with torch.no_grad():
            for tensor, value in zip(kept, before, strict=True):
                tensor.copy_(value)
        torch.cuda.set_rng_state(random, stream.device)

    def replay() -> None:
        with _ONE_AT_A_TIME:
            graph.replay()

    return replay
