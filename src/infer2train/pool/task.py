"""What a pool's workers do, as it is sent to them: the data, the engine, the score. Built once, by the trainer."""

import pickle
from dataclasses import dataclass, fields

from infer2train.oracle.engine import Engine
from infer2train.oracle.fidelity import FidelityMonitor
from infer2train.oracle.scorer import Scorer
from infer2train.sources.pipeline import ViewWorkers
from infer2train.sources.reader import Reader
from infer2train.sources.source import Source

_WORDS = {
    "source": "the data set (with its transforms and its collate_fn)",
    "reader": "the data set and the DataLoader's worker_init_fn",
    "view_workers": "the DataLoader's worker_init_fn",
    "engine": "the model",
    "scorer": "score= and split=",
    "monitor": "score= and split=",
}


@dataclass(frozen=True, kw_only=True)
class ScoringTask:
    """Everything that scoring needs but addresses and weights."""

    source: Source
    reader: Reader
    """Reads the source beside the draws: for the engine's samples, and for the digest of the data."""
    view_workers: ViewWorkers
    engine: Engine | None
    scorer: Scorer
    monitor: FidelityMonitor | None = None


def packed(task: ScoringTask) -> bytes:
    """The task as another process of ours can unpack it.

    Raises:
        ValueError: a part of it cannot be sent; it says which.
    """
    try:
        return pickle.dumps(task)
    except Exception as error:  # pickle raises several kinds, and __reduce__ of the user's objects any
        part = next((field.name for field in fields(task) if not _can_be_sent(getattr(task, field.name))), "source")
        raise ValueError(
            f"an oracle in another process needs {_WORDS[part]} to be picklable: got {type(error).__name__}: {error}; "
            "define classes and functions at the top of a module (no lambda, no local function, no open file), or use "
            "pool='inline'"
        ) from error


def _can_be_sent(part: object) -> bool:
    try:
        pickle.dumps(part)
    except Exception:
        return False
    return True
