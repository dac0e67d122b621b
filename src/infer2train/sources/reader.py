"""A source that is read where the user's DataLoader reads: in a worker of its own, if the loader has any.

Whatever is read beside the batches goes through it: calibration samples, the probe, the digest of the data. A data set
may be readable nowhere else, since `worker_init_fn` opens its files.
"""

from dataclasses import replace
from typing import Any

from infer2train.draws.addresses import Addresses
from infer2train.sources.pipeline import AddressPipeline, ViewWorkers
from infer2train.sources.source import Around, Source


class Reader(Around):
    """Reads another source, one batch after the other.

    Its one worker starts when it is first needed and lives until `close()`; a batch asked for later starts another. It
    may be called by any thread, one at a time. Sent to another process it is one that has not begun.

    Args:
        source: what is read.
        workers: as the user's DataLoader has them; with none, the calling process reads. Their timeout, which is for
            one of the user's batches, is left aside.

    Example:
        >>> reader = Reader(source, ViewWorkers.of(loader))
        >>> batch = reader.batch(addresses)
        >>> reader.close()
    """

    def __init__(self, source: Source, workers: ViewWorkers) -> None:
        super().__init__(source)
        self._workers = replace(workers, num_workers=min(1, workers.num_workers), pin_memory=False, timeout=0.0)
        self._pipeline = AddressPipeline(source, like=self._workers)

    def __getstate__(self) -> dict[str, Any]:
        return {"_source": self._source, "_workers": self._workers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_source"], state["_workers"])  # type: ignore[misc]  # made anew, of the same class

    def batch(self, addresses: Addresses) -> Any:
        self._pipeline.put(addresses)
        try:
            return self._pipeline.get()
        except BaseException:
            self.close()  # the batch may still be on its way, and would be taken for the next one
            raise

    def close(self) -> None:
        """Stop the worker. May be called twice."""
        self._pipeline.close()
