"""Tasks: what is done at the addresses of a draw with the weights of a version, wherever a pool does it.

Built once, by the trainer's process; a pool with workers elsewhere sends it to each of them once, pickled. Scoring is
the first; `generate` keeps what the engine says, for whoever trains on it. What comes of a task is an answer.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from infer2train.batches import Split, batch_size, map_tensors, pad_batch, split_batch, take_rows
from infer2train.draws.addresses import Addresses
from infer2train.draws.randomness import seeded
from infer2train.oracle.engine import Engine
from infer2train.oracle.fidelity import FidelityMonitor
from infer2train.oracle.scorer import Scorer, chunks, joined, outputs_of
from infer2train.sources.pipeline import ViewWorkers
from infer2train.sources.reader import Reader
from infer2train.sources.source import Source

Sample = Callable[[Callable[..., Any], Any, Int64[np.ndarray, " n"]], Any]
"""(model, inputs, seeds) -> what is made of inputs, row by row: `model(inputs)`, called as often as is needed and for
no more rows, gives the engine's outputs, and what is drawn from them follows the seeds."""


@dataclass(frozen=True)
class Answer:
    """What came of a task."""

    draw: int
    version: int | None
    """Of the weights that it was done with; None where none were needed."""
    tree: Any
    """Plain containers, numbers, text and tensors, which belong to whoever collects them."""


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """Everything that the work needs but addresses and weights.

    Whoever runs it reads the source at the addresses, chunk by chunk and ahead of time, has the engine use the version,
    and calls `answer`, from one thread. It is a pure function of both, so work that was lost is done again.
    """

    source: Source
    reader: Reader
    """Reads the source beside the draws: for the engine's samples, and for the digest of the data."""
    view_workers: ViewWorkers
    engine: Engine | None
    """None where nothing but what is read is asked for."""
    monitor: FidelityMonitor | None = None

    @property
    @abstractmethod
    def chunk(self) -> int:
        """Addresses that are read and run at a time."""

    @abstractmethod
    def run(self, batches: Iterable[Any]) -> Any:
        """The tree of an answer, see `Answer.tree`; its tensors are copies, since engines use their memory again.

        Args:
            batches: what the source has at the draw's addresses, one batch a chunk, in their order.
        """

    @final
    def pieces(self, addresses: Addresses) -> list[Addresses]:
        """The addresses of a draw in chunks, which depend on nothing else."""
        return chunks(addresses, self.chunk)

    @final
    def answer(self, draw: int, batches: Iterable[Any]) -> Answer:
        """What comes of a draw, by the weights in use."""
        device = torch.device("cpu") if self.engine is None else self.engine.device
        # The caller may stand inside the trainer's autocast, which no other pool would know of.
        with torch.autocast(device.type, torch.bfloat16, enabled=False):
            tree = self.run(batches)
        return Answer(draw, None if self.engine is None else self.engine.version, tree)


@dataclass(frozen=True, kw_only=True)
class ScoringTask(Task):
    """Scores candidates: the tree has the fields of `Scores`."""

    scorer: Scorer

    @property
    def chunk(self) -> int:
        return self.scorer.chunk

    def run(self, batches: Iterable[Any]) -> dict[str, Any]:
        return dict(vars(self.scorer.score(self.engine, batches)))


@dataclass(frozen=True, kw_only=True)
class GeneratingTask(Task):
    """Keeps what a model makes: its outputs, or what a function draws from them.

    The source gives each batch with its seeds, see `infer2train.sources.seeded.WithSeeds`. The tree is
    `{"outputs": …, "targets": …}`, each as if the draw were one batch.
    """

    rows: int
    """Inputs that the engine is given at a time; fewer are padded."""
    split: Split = split_batch
    """batch -> (inputs, targets)."""
    sample: Sample | None = None

    @property
    def chunk(self) -> int:
        return self.rows

    def run(self, batches: Iterable[Any]) -> dict[str, Any]:
        outputs, targets, rows = [], [], []
        for batch, seeds in batches:
            inputs, target = self.split(batch)
            count = batch_size(inputs)
            made = self._made(pad_batch(inputs, self.rows), np.pad(seeds, (0, self.rows - count), mode="edge"))
            outputs.append(map_tensors(_copy, take_rows(made, count)))
            targets.append(target)
            rows.append(count)
        return {"outputs": joined(outputs, rows), "targets": joined(targets, rows)}

    def _made(self, inputs: Any, seeds: Int64[np.ndarray, " n"]) -> Any:
        """What comes of a whole chunk."""
        if self.sample is None:
            return self._asked(inputs)

        def model(*arguments: Any, **named: Any) -> Any:
            inputs = named or (arguments[0] if len(arguments) == 1 else arguments)
            return map_tensors(_copy, self._asked(inputs))

        # What it draws from the global generators follows the addresses too, and moves nothing of the trainer's.
        with torch.no_grad(), seeded(int(seeds[-1])):
            return self.sample(model, inputs, seeds)

    def _asked(self, inputs: Any) -> Any:
        assert self.engine is not None, "nothing is generated without an engine"
        return outputs_of(self.engine, inputs, self.rows)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()
