"""From a user's loader, model and settings to a pool that scores: what is read, which engine, where it runs.

Everything that is left to the machine or the model is decided here, once, and told in notes.
"""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, default_collate

from infer2train.batches import Split
from infer2train.draws.addresses import Addresses, check_seed
from infer2train.draws.methods.method import Choices
from infer2train.draws.methods.table import choices_of, get_score
from infer2train.draws.mining import Mining
from infer2train.draws.scores import OF_NUMBERS, Score
from infer2train.loader.admission import check_ranks
from infer2train.loader.feeding import Feed, measured_feed
from infer2train.loader.order import readable_ids, usual_batch_size
from infer2train.loader.rehearsal import Rehearsal, rehearse
from infer2train.machine.device import device_of
from infer2train.machine.place import Place
from infer2train.oracle.engines import build_engine, is_any_int8, resolve_engine
from infer2train.oracle.fidelity import FidelityMonitor
from infer2train.oracle.quantization.schemes import get_scheme
from infer2train.oracle.samples import SourceSamples
from infer2train.oracle.scorer import Scorer
from infer2train.pool.pool import Pool
from infer2train.pool.pools import pool_of
from infer2train.pool.task import ScoringTask
from infer2train.pool.transport import Post
from infer2train.pool.validated import validated
from infer2train.sources.pipeline import ViewWorkers
from infer2train.sources.reader import Reader
from infer2train.sources.replay import Replay
from infer2train.sources.source import Source

SCORED_APART = (
    "score_collate makes the batches that are scored: a score is of the sample before what collate_fn does to a batch, "
    "which is trained on"
)
"""What the user of two collate functions should know."""
ANY_SIZE = "torch:fp32"
"""What scores batches whose changing sizes an engine cannot follow."""
ROUND_UP = (
    "int8 engines make kernels for each new one, and are faster where collate_fn rounds lengths up, for example to "
    "multiples of 8"
)
"""What the user of batches of many sizes should know."""
CHUNK_ON_CPU = 32
"""Candidates scored at a time where caches are small; on other devices a whole draw is."""

Notes = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Host:
    """What the user's loop consists of, and what is scored of it."""

    dataloader: "DataLoader[Any]"
    model: nn.Module
    split: Split
    source: Source
    reader: Reader
    """Reads the source beside the draws."""

    def read(self, addresses: Addresses) -> tuple[Any, Any]:
        """(inputs, targets) at addresses, as they are scored."""
        return self.split(self.reader.batch(addresses))

    def samples(self, seed: int) -> SourceSamples:
        """Views of what the loop trains on, for engines to calibrate and check themselves on."""
        return SourceSamples(self.reader, lambda: readable_ids(self.dataloader), seed=seed, split=self.split)


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """A pool, and what was decided on the way to it."""

    mining: Mining
    """The settings, with what was left to the machine decided."""
    pool: Pool
    monitor: FidelityMonitor | None
    feed: Feed | None
    """How fast candidates are read, where they are read one by one."""
    notes: Notes


def sources(
    dataloader: "DataLoader[Any]",
    transform: Callable[[Any], Any] | None,
    score_collate: Callable[[list[Any]], Any] | None,
    mining: Mining,
) -> tuple[Source, Source]:
    """What is trained on, and what is scored: two sources only where they are collated in two ways."""
    choices, data, collate_fn = choices_of(mining), dataloader.dataset, dataloader.collate_fn
    workers = ViewWorkers.of(dataloader)
    if isinstance(data, Source):
        if transform is not None:
            raise ValueError("transform must be left out where the data set makes views itself: got both; drop it")
        if collate_fn is not default_collate or score_collate is not None:
            raise ValueError(
                "collate_fn and score_collate must be left out where the data set makes whole batches: got one; drop it"
            )
        return data, data
    tried: dict[str, Any] = {
        "transform": transform,
        "workers": workers.numbering(max(workers.num_workers, mining.oracle_num_workers or 0)),
        "ids": readable_ids(dataloader),
    }
    if score_collate is None or not choices.looks_at_candidates:
        source = Replay(data, collate_fn, may_mix=not choices.looks_at_candidates, **tried)
        return source, source
    if choices.loss == "distillation":
        raise ValueError(
            "self-distill compares what the model says of a batch with what the oracle said of the same samples, so "
            "both need one collate function: got score_collate; mix after the loader, or use another method"
        )
    return Replay(data, collate_fn, check=False, may_mix=True, **tried), Replay(data, score_collate, **tried)


def assembled(host: Host, wanted: Mining, *, is_scored_apart: bool, held_out: Source | None = None) -> Assembly:
    """The pool that scores for a loop.

    Args:
        host: the loop.
        wanted: what is mined.
        is_scored_apart: whether what is scored is collated otherwise than what is trained on.

    Raises:
        ValueError: a name is unknown, or data and model do not go with it.
    """
    choices, kind = choices_of(wanted), pool_of(wanted)
    check_ranks(wanted)
    get_scheme(wanted.quantization)
    check_seed(wanted.seed)
    notes: Notes = (SCORED_APART,) if is_scored_apart else ()
    chunk = wanted.oracle_chunk or _default_chunk(host, wanted.gamma)
    mining = replace(wanted, oracle=_named(wanted.oracle, choices), oracle_chunk=chunk)
    tried = _rehearsed(host, mining, choices)
    for decide in (partial(_for_any_padding, tried), _for_this_machine):
        mining, more = decide(host, mining, choices)
        notes += more
    feed = _feed(host, mining)
    notes += () if feed is None else (feed.note,)
    mining, task, more = _of_any_size(host, mining, choices, tried.varying)
    notes += more
    if task.engine is not None:
        notes += task.engine.notes
        if is_any_int8(mining.oracle):
            mining = replace(mining, oracle=task.engine.name)
    whole = task if held_out is None else validated(task, held_out, host.split, _measure(mining))
    pool, more = kind.built(whole, mining, device_of(host.model))
    return Assembly(mining=mining, pool=pool, monitor=task.monitor, feed=feed, notes=notes + more)


def _default_chunk(host: Host, gamma: int) -> int:
    is_on_cpu = device_of(host.model).type == "cpu"
    return CHUNK_ON_CPU if is_on_cpu else gamma * (usual_batch_size(host.dataloader) or CHUNK_ON_CPU)


def _measure(mining: Mining) -> Score | None:
    """The loss of held-out samples, where their targets are no classes: the score that the user has named for them."""
    is_named = callable(mining.score) or mining.score in OF_NUMBERS
    return get_score(mining) if is_named else None


def _named(oracle: str, choices: Choices) -> str:
    """The engine asked for, as far as its name alone tells: which one `int8` is, this model decides.

    Raises:
        ValueError: there is no such engine, or a package is missing.
    """
    resolved = resolve_engine(oracle, is_used=choices.has_oracle)
    return oracle if is_any_int8(oracle) and choices.has_oracle else resolved


def _rehearsed(host: Host, mining: Mining, choices: Choices) -> Rehearsal:
    """What one batch shows; nothing where no candidate is looked at."""
    if not choices.looks_at_candidates:
        return Rehearsal()
    return rehearse(
        host.model,
        host.reader.batch,
        readable_ids(host.dataloader),
        choices=choices,
        split=host.split,
        score=get_score(mining),
        balance=mining.balance,
    )


def _for_any_padding(tried: Rehearsal, host: Host, mining: Mining, choices: Choices) -> tuple[Mining, Notes]:
    """The engine, or float32 where what a candidate scores depends on how far it is padded."""
    if not tried.is_padding_seen:
        return mining, ()
    why = "what the model says of a sample depends on how far it is padded; give the model a mask (attention_mask)"
    if mining.oracle.startswith("torch"):
        return mining, (f"batches change their size ({tried.varying}): {why}",)
    return _in_float32(mining, tried.varying, why)


def _of_any_size(
    host: Host, mining: Mining, choices: Choices, varying: str | None
) -> tuple[Mining, ScoringTask, Notes]:
    """The task, by float32 where batches change their size and the engine cannot follow."""
    try:
        task = _task(host, mining, choices)
        if not varying or task.engine is None or mining.oracle.startswith("torch"):
            return mining, task, ()
        if task.engine.takes_any_size:
            return mining, task, (f"batches change their size ({varying}): {ROUND_UP}",)
        why = "all that it was built with had one size"
    except ValueError as error:
        if not varying or mining.oracle.startswith("torch"):
            raise
        why = str(error)
    mining, notes = _in_float32(mining, varying, why)
    return mining, _task(host, mining, choices), notes


def _in_float32(mining: Mining, varying: str | None, why: str) -> tuple[Mining, Notes]:
    reason = (
        f"batches change their size ({varying}), which {mining.oracle} cannot follow here, so they are scored in fp32 "
        f"by {ANY_SIZE}: {why}; or pad them to one length in collate_fn"
    )
    warnings.warn(reason, RuntimeWarning, stacklevel=5)
    return replace(mining, oracle=ANY_SIZE), (reason,)


def _feed(host: Host, mining: Mining) -> Feed | None:
    """How fast the user's data set is read; the package's own views of images are measured where they are made."""
    if not isinstance(host.source, Replay):
        return None
    workers = ViewWorkers.of(host.dataloader).numbering(mining.oracle_num_workers)
    return measured_feed(
        host.reader.batch,
        readable_ids(host.dataloader),
        mining,
        batch_size=usual_batch_size(host.dataloader) or CHUNK_ON_CPU,
        num_workers=workers.num_workers,
        has_transform=host.source.has_transform,
    )


def _for_this_machine(host: Host, mining: Mining, choices: Choices) -> tuple[Mining, Notes]:
    """What `auto` is here, and why: measured once, and a setting from then on."""
    if not choices.has_oracle or mining.oracle != "auto":
        return mining, ()
    from infer2train.oracle.measurement import fastest_engine, step_seconds

    samples = host.samples(mining.seed)
    batch_size = usual_batch_size(host.dataloader) or CHUNK_ON_CPU
    assert mining.oracle_chunk is not None
    cores, _ = pool_of(mining).cores(mining)
    own = Post.several(mining.oracle_workers, cores)[0].cores  # of the first worker
    chosen, lines = fastest_engine(
        host.model,
        samples,
        step_seconds=step_seconds(host.model, samples.calibration(0, batch_size)),
        batch_size=batch_size,
        update_every=mining.update_every,
        rows=mining.oracle_chunk,
        place=Place(cores=own, num_threads=max(1, len(cores) // mining.oracle_workers)) if own else nullcontext,
        device=_oracle_device(host, mining),
    )
    return replace(mining, oracle=chosen), (f"oracle auto is {chosen} here", *lines)


def _oracle_device(host: Host, mining: Mining) -> torch.device:
    """Where a torch engine runs that does not say it: where the model is, or in a process on the CPU."""
    return torch.device("cpu") if pool_of(mining).runs_beside else device_of(host.model)


def _task(host: Host, mining: Mining, choices: Choices) -> ScoringTask:
    """What the pool does."""
    device = _oracle_device(host, mining)
    samples, chunk = host.samples(mining.seed), mining.oracle_chunk
    assert chunk is not None
    engine, score = None, get_score(mining)
    if choices.has_oracle:
        engine = build_engine(
            mining.oracle, host.model, device, samples=samples, scheme=mining.quantization, rows=chunk
        )
    scores_on = device if engine is None else engine.device
    scorer = Scorer(
        score=score,
        distill_views=mining.gamma if choices.loss == "distillation" else 0,
        split=host.split,
        chunk=chunk,
    )
    monitor = None
    if engine is not None and score is not None:
        monitor = FidelityMonitor(samples, score, engine.device, mines_views=choices.candidates == "views")
    workers = ViewWorkers.of(host.dataloader, scores_on).numbering(mining.oracle_num_workers)
    return ScoringTask(
        source=host.source, reader=host.reader, view_workers=workers, engine=engine, scorer=scorer, monitor=monitor
    )
