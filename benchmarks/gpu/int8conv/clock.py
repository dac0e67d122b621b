"""How long calls take on a CUDA device: medians of events, after a warm-up, in eager and inside a CUDA graph.

Calls come as a list, one for each set of inputs, and are timed together: the sets together outgrow the L2 cache.
"""

import statistics
from collections.abc import Callable, Sequence
from time import perf_counter

import torch

SAMPLES = 15
WARM_UP_SECONDS = 0.1
"""A device that was idle, while a kernel was compiled for it, say, has a low clock at first."""
SAMPLE_MILLISECONDS = 3.0
"""A sample lasts at least so long, or events are too coarse for it."""

Call = Callable[[], object]


def eager_seconds(calls: Sequence[Call]) -> float:
    """Seconds of one call, launched by Python as it comes."""

    # Results are kept, so that each set has one of its own, as it has inputs of its own.
    return _median_seconds(lambda: [call() for call in calls]) / len(calls)


def graph_seconds(calls: Sequence[Call]) -> float:
    """Seconds of one call where a CUDA graph holds all of them: without what launching costs the CPU."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is compiled or chosen at a first call must not be captured
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]
    found = _median_seconds(graph.replay) / len(calls)
    del kept
    return found


def copy_bandwidth(num_bytes: int = 2**30) -> float:
    """Bytes/s of a copy within the device, read and written counted."""
    source = torch.randint(0, 255, (num_bytes,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * num_bytes / _median_seconds(lambda: target.copy_(source))


def _median_seconds(run: Call) -> float:
    until, once = perf_counter() + WARM_UP_SECONDS, 0.0
    while not once or perf_counter() < until:
        once = _seconds(run, 1)
    repetitions = max(1, min(200, round(SAMPLE_MILLISECONDS / 1000 / once)))
    return statistics.median(_seconds(run, repetitions) for _ in range(SAMPLES))


def _seconds(run: Call, repetitions: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repetitions):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000 / repetitions
