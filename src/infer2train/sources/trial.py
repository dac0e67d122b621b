"""The trial of a data set when a run is built: read and batched a few times, in the processes that will read it.

Where the DataLoader has workers, two of them are started as the run's are, and both must read the same. So a generator
that a worker makes for itself is found out, and a data set whose files are opened in workers can be tried at all.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Int64

from infer2train.draws.addresses import Addresses, Purpose, integers, seeds
from infer2train.sources.bits import difference, outline
from infer2train.sources.collation import try_collate
from infer2train.sources.pipeline import AddressPipeline, ViewWorkers
from infer2train.sources.source import Itemwise, Source

COLLATED = 8
"""Samples that are batched."""
CAUSES = (
    "Likely causes: a private generator (as np.random.default_rng() or torch.Generator()) held by the data set or a "
    "transform or made in worker_init_fn, a transform that changes its argument in place, a counter or a cache, "
    "several threads, the clock. Draw from `random`, np.random or torch's global generator instead; a transform of "
    "Albumentations must be an attribute of the data set, or named by a function that is one"
)
WORKER_CAUSES = (
    "Likely causes: get_worker_info().seed or .id, a generator made in worker_init_fn, the process's id. Draw from "
    "`random`, np.random or torch's global generator instead, which follow the address"
)


def try_out(tried: Itemwise, workers: ViewWorkers, *, with_batches: bool) -> None:
    """Refuse a data set that does not give the same again, or batches that cannot be scored.

    Args:
        tried: the data set, with at least one sample.
        workers: as the run has them.
        with_batches: whether batches are scored.

    Raises:
        ValueError: the rule, what was got, the remedy.
    """
    trial, at = _Trial(tried, with_batches), integers(len(tried.ids), 0, Purpose.PROBE, slot=np.arange(2))
    probes = Addresses(np.repeat(tried.ids[at], 4), seeds(0, Purpose.PROBE, slot=np.arange(8)))
    if workers.num_workers == 0:
        found = [trial.batch(probes)]
    else:
        two = replace(workers, num_workers=2, pin_memory=False, timeout=0.0)  # the user's is for one batch
        pipeline = AddressPipeline(trial, like=two)
        try:
            for _ in range(2):
                pipeline.put(probes)  # workers take turns
            found = [pipeline.get(), pipeline.get()]
        finally:
            pipeline.close()
    for finding in found:
        if finding.refusal is not None:
            raise ValueError(finding.refusal)
    _require_equal(found, probes)


@dataclass(frozen=True)
class _Finding:
    """Of one process.

    Args:
        refusal: why the data set cannot be mined.
        items: outlines of what was read.
        rows: outlines of what was made of samples, by their place in the batch.
    """

    refusal: str | None
    items: list[Any] = field(default_factory=list)
    rows: dict[str, Any] = field(default_factory=dict)


class _Trial(Source):
    """Gives what was found in the process that reads it."""

    def __init__(self, tried: Itemwise, with_batches: bool) -> None:
        self._tried, self._with_batches = tried, with_batches

    @property
    def dataset(self) -> Any:
        return self._tried.dataset

    def __len__(self) -> int:
        return len(self._tried)

    def batch(self, addresses: Addresses) -> _Finding:
        """Reads together, then one by one from the last on: views that are one object differ from those read alone."""
        first = outline(self._tried.items(addresses))  # at once: what is read later may be the same object
        again = [outline(self._tried.items(addresses[[at]])[0]) for at in reversed(range(len(addresses)))][::-1]
        for (sample_id, seed), before, after in zip(addresses, first, again, strict=True):
            if (leaf := difference(before, after)) is not None:
                return _Finding(
                    "a data set must give the same item whenever it is read at the same address: got another "
                    f"{leaf} of sample {sample_id} under seed {seed} the second time. {CAUSES}"
                )
        if not self._with_batches:
            return _Finding(None, first)
        collated = try_collate(self._tried.items(_spread(self._tried.ids)), self._tried.collated)
        return _Finding(collated.fault, first, {p: outline(list(r)) for p, r in collated.rows.items()})


def _spread(ids: Int64[np.ndarray, " n"]) -> Addresses:
    """Samples from all over a data set; of a small one several views."""
    slots, n = np.arange(COLLATED), len(ids)
    at = slots * n // COLLATED if n >= COLLATED else slots % n
    return Addresses(ids[at], seeds(0, Purpose.PROBE, slot=slots, view=1))


def _require_equal(found: list[_Finding], probes: Addresses) -> None:
    """Refuse a data set of which two workers read something else at the same addresses."""
    for other in found[1:]:
        for (sample_id, seed), here, there in zip(probes, found[0].items, other.items, strict=True):
            if (leaf := difference(here, there)) is not None:
                raise ValueError(
                    f"a data set must give the same item in every DataLoader worker: got another {leaf} of sample "
                    f"{sample_id} under seed {seed} in another worker. {WORKER_CAUSES}"
                )
        for path, rows in found[0].rows.items():
            if difference(rows, other.rows[path]) is not None:
                raise ValueError(
                    "a collate_fn must make the same batch of the same samples in every DataLoader worker: got another "
                    f"{path} in another worker. {WORKER_CAUSES}"
                )
