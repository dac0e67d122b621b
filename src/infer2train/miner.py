"""`mine()`: joins sampler, addresses, pool, pick and views into a loader for anybody's training loop."""

import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import DataLoader, default_collate

from infer2train.acknowledgement import Optimizers, acknowledge_steps, optimizers_of, untouched
from infer2train.addresses import check_seed
from infer2train.admission import check_loader, check_model
from infer2train.batches import split_batch
from infer2train.config import at_least, check_staleness, unknown
from infer2train.device import device_of
from infer2train.loader import MinedLoader
from infer2train.methods import Method, Ramp, get_method, get_score
from infer2train.oracle.catalogue import build_engine, resolve_engine
from infer2train.oracle.fidelity import FidelityMonitor
from infer2train.oracle.live import LiveModel
from infer2train.oracle.samples import SourceSamples
from infer2train.oracle.scorer import Score, Scorer, Split
from infer2train.order import readable_ids, usual_batch_size
from infer2train.pipeline import AddressPipeline, ViewWorkers
from infer2train.plan import MiningPlan, OnOracleLoss, Staleness, WhenLate, plan_fields
from infer2train.pool.cores import as_text, shared_out
from infer2train.pool.inline import InlinePool
from infer2train.pool.pool import Pool
from infer2train.pool.task import ScoringTask
from infer2train.quantization.program import get_scheme
from infer2train.reader import Reader
from infer2train.rehearsal import rehearse
from infer2train.replay import Replay
from infer2train.runlog import RunLog, read_rows, write_config
from infer2train.selection import BALANCES, Balance
from infer2train.source import Source
from infer2train.versions import VersionRule

PoolName = Literal["inline", "process", "stream"]
POOLS = ("inline", "process", "stream")
SCORED_APART = (
    "score_collate makes the batches that are scored: a score is of the sample before what collate_fn does to a batch, "
    "which is trained on"
)
"""What the user of two collate functions should know."""
ANY_SIZE = "torch:fp32"
"""What scores batches that change their size."""
CHUNK_ON_CPU = 32
"""Candidates scored at a time where caches are small; on other devices a whole draw is."""


def mine(
    dataloader: "DataLoader[Any]",
    model: nn.Module,
    optimizer: Optimizers | None = None,
    *,
    method: str = "nm-augment",
    gamma: int = 10,
    oracle: str = "torch:fp32",
    oracle_chunk: int | None = None,
    quantization: str = "default",
    update_every: int = 100,
    delay_steps: int = 0,
    mine_every: int = 1,
    score: str | Score | None = None,
    pick: str | None = None,
    balance: Balance = "stratified",
    ramp: Ramp | None = None,
    epochs: int | None = None,
    distill_weight: float = 1e-5,
    transform: Callable[[Any], Any] | None = None,
    score_collate: Callable[[list[Any]], Any] | None = None,
    split: Split = split_batch,
    accumulation_steps: int = 1,
    scaler: "torch.amp.GradScaler | None" = None,
    seed: int = 0,
    pool: PoolName = "inline",
    oracle_workers: int = 1,
    oracle_cores: str | None = None,
    queue_depth: int = 4,
    staleness: Staleness = "strict",
    when_late: WhenLate = "wait",
    on_oracle_loss: OnOracleLoss = "stop",
    log_dir: str | Path | None = None,
    log_every: int = 20,
) -> MinedLoader:
    """A loader whose batches an oracle has picked, for the training loop that you already have.

    What a method has no use for (γ and the oracle under `baseline`, say) is left aside, so that the same call with
    another `method` is its control. A score, a pick or a ramp that would have no effect is refused.

    Args:
        dataloader: your own, unchanged: a map-style data set with its augmentation inside, any sampler, any
            `collate_fn`, any number of workers. It is only read.
        model: what you train. Its weights are copied every `update_every` steps and never touched.
        optimizer: its steps are counted by a hook; a list where several train the model. Leave it out and call
            `loader.step_done()` after each step instead.
        method: baseline, batch-augment, nm-sample, random-sample, nm-augment, nm-augment-soft or self-distill.
        gamma: candidates for each trained example (γ).
        oracle: engine and precision, e.g. `int8` (the fastest int8 engine installed), `openvino:int8`, `torch:bf16`; or
            `auto`, measured now. `loader.plan.oracle` says what it became: pass that to resume.
        oracle_chunk: candidates scored at a time. Default: 32 on a CPU, a whole draw elsewhere.
        quantization: how an int8 engine chooses scales: default, tails, paper, percentile.
        update_every: steps between refreshes of the oracle (T).
        delay_steps: extra staleness (D; steps) for a loop that fetches ahead, e.g. 1 under Accelerate.
        mine_every: mine only draws of every so many steps.
        score: loss, entropy, margin, gradient-norm-bound, or your own `(outputs, targets) -> [n]`.
        pick: max, proportional, quantile or uniform, among the views of a sample.
        balance: class quotas of nm-sample: none, stratified, uniform.
        ramp: how the mined share grows; nm-sample's own grows over `epochs`.
        epochs: length of the training, for a ramp that is a part of it.
        distill_weight: λ of `loader.penalty(outputs)` under self-distill.
        transform: the random transform, where the data set does not apply it: an item is then loaded once for all its
            views.
        score_collate: makes the batches that the oracle scores, where `collate_fn` mixes samples (MixUp, CutMix) or
            draws: a candidate is then scored as it is before that, and trained on after it. Better is to mix in the
            loop, after the loader. Default: `collate_fn`, which must make the same of a sample in every batch.
        split: batch -> (inputs, targets). Default: pairs, and mappings with a `labels`-like entry.
        accumulation_steps: draws in one optimiser step.
        scaler: your GradScaler, whose skipped steps count too.
        seed: of everything random here.
        pool: inline, the oracle scores in the trainer's own time; process, in processes of its own, ahead of the
            trainer; stream, in a CUDA stream beside the trainer's. What is selected is the same. A script needs
            `if __name__ == "__main__":` for process.
        oracle_workers: processes of the oracle.
        oracle_cores: cores of the oracle, such as "1" or "4-7". Default: the last ones, one for each worker. Leave the
            others to the trainer: `torch.set_num_threads(...)`.
        queue_depth: draws that are scored ahead of the trainer, as far as their version is published.
        staleness: strict, the version of a draw follows from its step and nothing depends on time; or freshest, an
            oracle uses the newest weights that it has.
        when_late: with freshest: wait for late scores, or skip, train on the draw unmined and count it.
        on_oracle_loss: with freshest, when no oracle can be started any more: stop with an error, or continue unmined.
        log_dir: writes config.yaml, metrics.jsonl and, on `loader.close()`, report.html there.
        log_every: steps between rows of metrics.jsonl.

    Returns:
        A loader to iterate once an epoch; it yields what your `collate_fn` returns.

    Raises:
        ValueError: an unknown name, a setting without effect, or a loader, data set or model that cannot be mined.

    Example:
        >>> loader = infer2train.mine(base, model, optimizer, method="nm-augment", gamma=10)   # doctest: +SKIP
        >>> for x, y in loader:                                                                # doctest: +SKIP
        ...     loss = criterion(model(x), y)
        ...     loss.backward(); optimizer.step(); optimizer.zero_grad()

    Source: Hoffer et al. 2018, Algorithm 1. Deviates in what the paper left open: a bounded delay, and weights that
    are published at steps 0, T, 2T … whatever the epoch.
    """
    check_loader(dataloader)
    model, optimizers = check_model(model), optimizers_of(optimizer)
    bounds = {
        "gamma": gamma,
        "update_every": update_every,
        "mine_every": mine_every,
        "accumulation_steps": accumulation_steps,
        "log_every": log_every,
        "oracle_workers": oracle_workers,
        "oracle_chunk": oracle_chunk,
        "epochs": epochs,
    }
    for name, value in bounds.items():
        if value is not None:
            at_least(name, value, 1)
    at_least("delay_steps", delay_steps, 0)
    at_least("queue_depth", queue_depth, 0)
    check_staleness(staleness, when_late, on_oracle_loss)
    if pool not in POOLS:
        raise unknown("pool", pool, POOLS)
    own_score = None if isinstance(score, str) else score
    choices = get_method(method, score=score if isinstance(score, str) else None, pick=pick, schedule=ramp)
    if choices.schedule.needs_length and epochs is None:
        raise ValueError(
            f"{method} needs epochs=, the length of the training, for its ramp: got none; or pass ramp=Ramp(rate=0.01)"
        )
    scores_with = get_score(choices, own_score)
    plan = MiningPlan(
        method=choices,
        score=choices.score if own_score is None else getattr(own_score, "__qualname__", type(own_score).__qualname__),
        oracle=_named(oracle, choices),
        quantization=quantization,
        oracle_chunk=oracle_chunk or _default_chunk(dataloader, model, gamma),
        gamma=gamma,
        rule=VersionRule(update_every=update_every, delay_steps=delay_steps),
        mine_every=mine_every,
        balance=balance,
        distill_weight=distill_weight,
        accumulation_steps=accumulation_steps,
        epochs=epochs,
        seed=check_seed(seed),
        staleness=staleness,
        when_late=when_late,
        on_oracle_loss=on_oracle_loss,
    )
    get_scheme(quantization)
    if balance not in BALANCES:
        raise unknown("balance", balance, BALANCES)
    at_least("distill_weight", distill_weight, 0)
    source, scored = _sources(dataloader, transform, score_collate, choices)
    with closing(Reader(scored, ViewWorkers.of(dataloader))) as reader:  # few engines read on here, and begin anew
        notes: tuple[str, ...] = () if scored is source else (SCORED_APART,)
        if choices.asks_the_pool:
            ids = readable_ids(dataloader)
            rehearsal = rehearse(
                model, reader.batch, ids, method=choices, split=split, score=scores_with, balance=balance
            )
            if rehearsal.varying and choices.has_oracle and not plan.oracle.startswith("torch"):
                notes += (_taking_any_size(plan.oracle, rehearsal.varying),)
                plan = replace(plan, oracle=ANY_SIZE)
        if choices.has_oracle and plan.oracle == "auto":
            chosen, more_notes = _fastest_engine(dataloader, model, reader, plan, split)
            plan, notes = replace(plan, oracle=chosen), notes + more_notes
        hybrid = pool if choices.asks_the_pool else "inline"  # a control that looks at no candidate has no oracle
        cpu = torch.device("cpu") if hybrid == "process" else None
        task = _task(dataloader, model, scored, reader, plan, scores_with, split, cpu)
        if task.engine is not None:
            notes += task.engine.notes
            if plan.oracle == "int8":
                plan = replace(plan, oracle=task.engine.name)
        if hybrid == "process":
            started, more_notes = _process_pool(task, plan, oracle_workers, oracle_cores, queue_depth)
            notes += more_notes
        elif hybrid == "stream":
            started = _stream_pool(task, model, queue_depth)
        else:
            started = InlinePool(
                task.engine, task.scorer, AddressPipeline(scored, like=task.view_workers), task.monitor
            )
    live = LiveModel(model, task.monitor, update_every) if task.monitor is not None else None
    loader = MinedLoader(dataloader, model, plan, started, AddressPipeline(source, like=dataloader), live)
    loader.notes = notes
    loader.on_close(reader.close)
    is_last_known = len(optimizers) == 1 and not untouched(model, optimizers)
    loader.on_close(acknowledge_steps(loader.step_done if is_last_known else loader.step_due, optimizers, scaler))
    if log_dir is not None:
        loader.log_to(partial(_begun_log, Path(log_dir), {"method": method, **plan_fields(plan)}, model), log_every)
    return loader


def _begun_log(folder: Path, config: Mapping[str, Any], model: nn.Module, is_new: bool) -> RunLog:
    """The log of a run that begins, or goes on, in this folder.

    Raises:
        ValueError: a new run would be written into another's; nothing of that is touched.
    """
    if is_new and any(row["kind"] == "step" for row in read_rows(folder)):
        raise ValueError(
            f"log_dir must be a new folder, or that of the state loaded: got {folder}, which holds another run; name "
            "another one, or call load_state_dict() first"
        )
    write_config(folder, config)
    log = RunLog(folder)
    log.start(str(device_of(model)), torch.get_num_threads())
    return log


def _named(oracle: str, method: Method) -> str:
    """The engine asked for, as far as its name alone tells: which one `int8` is, this model decides.

    Raises:
        ValueError: there is no such engine, or a package is missing.
    """
    resolved = resolve_engine(oracle, is_used=method.has_oracle)
    return oracle if oracle == "int8" and method.has_oracle else resolved


def _taking_any_size(oracle: str, varying: str) -> str:
    """Why another engine scores than was asked for; it is warned of too."""
    reason = (
        f"batches change their size ({varying}), and int8 engines take inputs of one size: they are scored in fp32 by "
        f"{ANY_SIZE} instead of {oracle}; pad them to one length in collate_fn to have that"
    )
    warnings.warn(reason, RuntimeWarning, stacklevel=3)
    return reason


def _sources(
    dataloader: "DataLoader[Any]",
    transform: Callable[[Any], Any] | None,
    score_collate: Callable[[list[Any]], Any] | None,
    method: Method,
) -> tuple[Source, Source]:
    """What is trained on, and what is scored: two sources only where they are collated in two ways."""
    data, collate_fn = dataloader.dataset, dataloader.collate_fn
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
        "workers": ViewWorkers.of(dataloader),
        "ids": readable_ids(dataloader),
    }
    if score_collate is None or not method.asks_the_pool:
        source = Replay(data, collate_fn, may_mix=not method.asks_the_pool, **tried)
        return source, source
    if method.loss == "distillation":
        raise ValueError(
            "self-distill compares what the model says of a batch with what the oracle said of the same samples, so "
            "both need one collate function: got score_collate; mix after the loader, or use another method"
        )
    return Replay(data, collate_fn, check=False, may_mix=True, **tried), Replay(data, score_collate, **tried)


def _default_chunk(dataloader: "DataLoader[Any]", model: nn.Module, gamma: int) -> int:
    is_on_cpu = device_of(model).type == "cpu"
    return CHUNK_ON_CPU if is_on_cpu else gamma * (usual_batch_size(dataloader) or CHUNK_ON_CPU)


def _task(
    dataloader: "DataLoader[Any]",
    model: nn.Module,
    source: Source,
    reader: Reader,
    plan: MiningPlan,
    score: Score | None,
    split: Split,
    device: torch.device | None,
) -> ScoringTask:
    """What the pool does; `device` is where a torch engine runs that does not say it."""
    own_device = device_of(model)
    samples = _samples(dataloader, reader, plan, split)
    engine = None
    if plan.method.has_oracle:
        engine = build_engine(
            plan.oracle, model, device or own_device, samples=samples, scheme=plan.quantization, rows=plan.oracle_chunk
        )
    scores_on = engine.device if engine is not None else device or own_device
    scorer = Scorer(
        score=score,
        distill_views=plan.gamma if plan.method.loss == "distillation" else 0,
        split=split,
        device=scores_on,
        chunk=plan.oracle_chunk,
    )
    monitor = None
    if engine is not None and score is not None:
        monitor = FidelityMonitor(samples, score, engine.device, mines_views=plan.method.candidates == "views")
    workers = ViewWorkers.of(dataloader, scores_on)
    return ScoringTask(
        source=source, reader=reader, view_workers=workers, engine=engine, scorer=scorer, monitor=monitor
    )


def _process_pool(
    task: ScoringTask, plan: MiningPlan, workers: int, oracle_cores: str | None, queue_depth: int
) -> tuple[Pool, tuple[str, ...]]:
    """The started pool, and what its user should know."""
    from infer2train.pool.process import ProcessPool

    cores, others = shared_out(oracle_cores, workers)
    pool = ProcessPool(
        task,
        workers=workers,
        cores=cores,
        queue_depth=queue_depth,
        is_freshest=plan.staleness == "freshest",
        is_newest_first=plan.when_late == "skip",
    )
    notes = [f"the oracle's processes: {workers}, on cores {as_text(cores)}; the trainer's cores: {as_text(others)}"]
    if torch.get_num_threads() > len(others):
        notes.append(
            f"the trainer computes with {torch.get_num_threads()} threads and has {len(others)} cores beside the "
            f"oracle's: torch.set_num_threads({len(others)}) keeps them out of each other's way"
        )
    return pool, tuple(notes)


def _stream_pool(task: ScoringTask, model: nn.Module, queue_depth: int) -> Pool:
    from infer2train.pool.stream import StreamPool

    device = device_of(model)
    if device.type != "cuda":
        raise ValueError(
            f"pool='stream' shares a CUDA device with the trainer: got a model on {device}; use pool='process', or "
            "move the model to CUDA"
        )
    return StreamPool(task, device, queue_depth=queue_depth)


def _samples(dataloader: "DataLoader[Any]", reader: Reader, plan: MiningPlan, split: Split) -> SourceSamples:
    return SourceSamples(reader, lambda: readable_ids(dataloader), seed=plan.seed, split=split)


def _fastest_engine(
    dataloader: "DataLoader[Any]", model: nn.Module, reader: Reader, plan: MiningPlan, split: Split
) -> tuple[str, tuple[str, ...]]:
    """What `auto` is here, and why: measured once, and part of the plan from then on."""
    from infer2train.oracle.measurement import fastest_engine, step_seconds

    samples = _samples(dataloader, reader, plan, split)
    batch_size = usual_batch_size(dataloader) or CHUNK_ON_CPU
    chosen, lines = fastest_engine(
        model,
        samples,
        step_seconds=step_seconds(model, samples.calibration(0, batch_size)),
        batch_size=batch_size,
        update_every=plan.rule.update_every,
        rows=plan.oracle_chunk,
    )
    return chosen, (f"oracle auto is {chosen} here", *lines)
