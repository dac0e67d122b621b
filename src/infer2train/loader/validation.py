"""Free validation: each version is evaluated on held-out data by the oracle, in time in which no draw waits for it.

Beside `picking`, which tells of the version that is in use. Nothing here changes what is selected, or when: what is
asked of the pool is small, and done last. A version whose successor came into use first, or which no draw may have any
more, is left unfinished. Of several ranks the first one's oracle evaluates, and the others hear of it when an epoch has
ended.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from infer2train.draws.addresses import Addresses
from infer2train.draws.mining import Mining
from infer2train.loader.order import readable_ids
from infer2train.loader.ranks import Ranks
from infer2train.oracle.scorer import chunks
from infer2train.pool.pools import pool_of
from infer2train.pool.supervisor import SupervisedPool
from infer2train.sources.replay import Replay
from infer2train.sources.source import Source

AHEAD = 16
"""Chunks that workers have to do when nothing else is to be done, from one draw to the next."""


@dataclass(frozen=True, kw_only=True)
class Validated:
    """How good one version is on the data that is held out, as the oracle runs it."""

    version: int
    loss: float
    """Mean over the samples."""
    error: float | None
    """Share of them whose class it does not know; None where targets are no classes."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    """Weights and buffers of that version, as the model has them; only of the best."""

    @property
    def rank(self) -> tuple[float, float]:
        """The lower, the better: the error, and of equals the loss."""
        return (0.0 if self.error is None else self.error), self.loss


def require_idle_time(validation: Any, mining: Mining) -> None:
    """Refuse to validate where somebody would have to wait for it.

    Raises:
        ValueError: no oracle has time of its own, or it may use any version.
    """
    if validation is None:
        return
    if not pool_of(mining).runs_beside:
        raise ValueError(
            f"validation is done in time that an oracle in a process of its own has left: got {mining.method} in "
            f"pool={mining.pool!r}, where the trainer would wait for it; pass pool='process', or evaluate the model "
            "between epochs"
        )
    if mining.staleness == "freshest":
        raise ValueError(
            "validation is of versions: got staleness='freshest', where the oracle's weights are whatever is there; "
            "leave one of them out"
        )


def held_out_of(validation: Any) -> Source:
    """What is evaluated on, from a data set, or a DataLoader over one."""
    if isinstance(validation, Source):
        return validation
    loader = validation if isinstance(validation, DataLoader) else DataLoader(validation)
    if isinstance(loader.dataset, Source):
        return loader.dataset
    return Replay(loader.dataset, loader.collate_fn, check=False, may_mix=True, ids=readable_ids(loader))


class Validation:
    """Evaluates versions in the idle time of a pool; called by the trainer's thread.

    Args:
        pool: whose workers have the data.
        addresses: of what is held out.
        chunk: samples that a worker evaluates at a time.
        ranks: of the run.
    """

    def __init__(self, pool: SupervisedPool, addresses: Addresses, chunk: int, ranks: Ranks | None = None) -> None:
        self._pool, self._ranks = pool, ranks or Ranks()
        self._chunks = chunks(addresses, chunk) if self._ranks.is_first else []
        self.curve: dict[int, Validated] = {}
        """What was found, by version, ascending."""
        self.best: Validated | None = None
        """The best version so far, with its weights; those only rank 0 has."""
        self._version: int | None = None
        self._found: dict[int, dict[str, Any]] = {}
        self._left: deque[int] = deque()

    @property
    def versions_since_best(self) -> int:
        """Versions that were evaluated since the best one, for whoever stops early: between two epochs, where all ranks
        know the same."""
        return 0 if self.best is None else sum(version > self.best.version for version in self.curve)

    def follow(self, version: int | None) -> None:
        """Take note of the version that scores draws from now on."""
        if version is None or version == self._version or not self._ranks.is_first:
            return
        self._pool.cancel_asides()  # workers do not go back to an older version
        self._version, self._found = version, {}
        self._left = deque(() if version in self.curve else range(len(self._chunks)))

    def advance(self) -> None:
        """Take in what was done, and have as much more on its way; waits for nobody."""
        if self._version is not None and self._version not in self._pool.records:
            self._version, self._found, self._left = None, {}, deque()  # no draw was scored for longer than it is kept
        for answer in self._pool.answered_asides():
            self._found[answer.draw] = answer.tree
        if self._version is None or self._version in self.curve:
            return
        while self._left and self._pool.num_asides < AHEAD:
            place = self._left.popleft()
            self._pool.aside(place, self._chunks[place], self._version)
        if len(self._found) == len(self._chunks):
            self._conclude(self._version)

    def forget(self) -> None:
        """Ask again for what was on its way, since the pool has forgotten it. May be called twice."""
        if self._version is not None and self._version not in self.curve:
            self._left = deque(place for place in range(len(self._chunks)) if place not in self._found)

    def share(self) -> None:
        """Have all ranks know what the first one has found; every rank calls this when it has ended an epoch."""
        known = [(one.version, one.loss, math.nan if one.error is None else one.error) for one in self.curve.values()]
        told = np.array(known if self._ranks.is_first else [], dtype=np.float64).reshape(-1)
        first = self._ranks.of_all(told.view(np.int64))[0].view(np.float64).reshape(-1, 3)
        if not self._ranks.is_first:
            for version, loss, error in first.tolist():
                self._note(Validated(version=int(version), loss=loss, error=None if math.isnan(error) else error))

    def _conclude(self, version: int) -> None:
        trees = [self._found[place] for place in range(len(self._chunks))]
        losses = torch.cat([tree["losses"] for tree in trees])
        wrong = None if trees[0]["wrong"] is None else torch.cat([tree["wrong"] for tree in trees])
        found = Validated(
            version=version,
            loss=float(losses.double().mean()),
            error=None if wrong is None else float(wrong.double().mean()),
            tensors=self._pool.records[version].tensors,
        )
        self._note(found)

    def _note(self, found: Validated) -> None:
        self.curve[found.version] = replace(found, tensors={})
        if self.best is None or found.rank < self.best.rank:
            self.best = found

    def metrics(self) -> dict[str, float]:
        """Of the version that was evaluated last."""
        if not self.curve:
            return {}
        newest = self.curve[max(self.curve)]
        error = {} if newest.error is None else {"oracle_validation_error": newest.error}
        return {"oracle_validation_version": float(newest.version), "oracle_validation_loss": newest.loss, **error}

    # Resume

    def state_dict(self) -> dict[str, Any]:
        """The curve, and the weights of the best version."""
        curve = {str(found.version): {"loss": found.loss, "error": found.error} for found in self.curve.values()}
        best = {} if self.best is None else {"version": self.best.version, "tensors": dict(self.best.tensors)}
        return {"curve": curve, "best": best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._version, self._found, self._left = None, {}, deque()
        self.curve = {int(v): Validated(version=int(v), **found) for v, found in state["curve"].items()}
        best = state["best"]
        self.best = None
        if best:
            self.best = Validated(**{**vars(self.curve[best["version"]]), "tensors": best["tensors"]})
