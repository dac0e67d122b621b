"""Which of the machine's cores are the oracle's and which the trainer's."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path


def available_cores() -> tuple[int, ...]:
    """Numbers of the cores that this process may run on; counted from 0 where the system does not say."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def parse_cores(text: str) -> tuple[int, ...]:
    """The cores that a text names.

    Raises:
        ValueError: it names none, or one that this machine does not have.

    Example:
        >>> parse_cores("0")
        (0,)
    """
    cores = named_cores(text)
    there_are = os.cpu_count() or 1
    if not cores or max(cores) >= there_are:
        raise ValueError(
            f"cores must be among this machine's: got {text!r}, there is 0 to {there_are - 1}; name others"
        )
    return cores


def named_cores(text: str) -> tuple[int, ...]:
    """The cores that a text names, of whatever machine.

    Raises:
        ValueError: it is no list of numbers and ranges.

    Example:
        >>> named_cores("1,4-7")
        (1, 4, 5, 6, 7)
    """
    cores: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"cores are named by numbers and ranges: got {text!r}; write 1, 1,3 or 4-7")
        cores.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(cores))


def as_text(cores: Sequence[int]) -> str:
    """The text that names these cores.

    Example:
        >>> as_text((1, 3))
        '1,3'
    """
    return ",".join(map(str, cores))


def shared_out(oracle_cores: str | None, workers: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The oracle's cores and the trainer's.

    Args:
        oracle_cores: as `parse_cores` takes them. Default: the last ones, one for each worker, as far as one is left
            for the trainer; each rank that `torchrun` starts on this machine has others of them.
        workers: processes of the oracle.

    Returns:
        (oracle's, trainer's). They share cores only where all are the oracle's.

    Raises:
        ValueError: as `parse_cores`, or there are fewer cores than workers.
    """
    everything = available_cores()
    if oracle_cores is not None:
        oracles: Sequence[int] = parse_cores(oracle_cores)
        chosen = oracles
        if len(chosen) < workers:
            raise ValueError(
                f"oracle_cores must be at least one for each worker: got {oracle_cores!r} for {workers} workers; name "
                "more cores or lower oracle_workers"
            )
    else:
        rank, ranks = (int(os.environ.get(name, there)) for name, there in (("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1)))
        oracles = everything[-min(ranks * workers, max(1, len(everything) - 1)) :]
        chosen = oracles[rank * workers :][:workers] or oracles[-workers:]
    left = tuple(core for core in everything if core not in oracles)
    return tuple(chosen), left or everything


def parts_of_all(parts: int) -> list[tuple[int, ...]]:
    """The cores of this process in so many parts, for processes side by side; they share cores where there are fewer.

    Example:
        >>> sum(map(len, parts_of_all(1))) == len(available_cores())
        True
    """
    everything = available_cores()
    ends = [part * len(everything) // parts for part in range(parts + 1)]
    own = [everything[first:last] for first, last in pairwise(ends)]
    return own if all(own) else [(everything[part % len(everything)],) for part in range(parts)]


def stay_on(cores: Sequence[int]) -> None:
    """This process runs on these cores from now on, where the system lets it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Within, this thread runs on these cores, and what it starts inherits them; no cores leave it as it is."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cores)
    except OSError as error:
        raise ValueError(
            f"cores must be among those that this process may run on: got {as_text(cores)}, there is "
            f"{as_text(available_cores())}; name others"
        ) from error
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def claimed_core() -> tuple[int, ...]:
    """The last core that no other process has claimed in this way, claimed until this one ends; empty where none is.

    For processes that were started without knowing of each other, as those of a cluster are.
    """
    if not hasattr(os, "sched_setaffinity"):
        return ()
    import fcntl

    for core in reversed(available_cores()):
        file = Path(tempfile.gettempdir()) / f"infer2train-{os.getuid()}-core-{core}"
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        else:
            return (core,)  # the descriptor stays open, and with it the claim
    return ()
