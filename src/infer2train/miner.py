"""`mine()`: joins sampler, addresses, pool, pick and views into a loader for anybody's training loop.

The loader yields exactly what the user's `collate_fn` returns. Around each draw it knows the step that the draw belongs
to, the version that may score it, and what was picked (`loader.last`). The host tells it when a step is done; asking for
a draw whose version needs a step that is not done raises, and never blocks.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from infer2train.acknowledgement import acknowledge_steps
from infer2train.addresses import Addresses, check_seed
from infer2train.admission import check_loader, check_model
from infer2train.batches import logits_of, split_batch
from infer2train.config import at_least
from infer2train.losses import distillation
from infer2train.methods import Balance, Method, Ramp, Selection, Slots, candidates, get_method, get_score, select, unmined
from infer2train.metrics import Meter, Totals, window
from infer2train.oracle.catalogue import build_engine
from infer2train.oracle.scorer import Score, Scorer, Scores, Split
from infer2train.oracle.snapshot import Record, snapshot
from infer2train.order import Batches, epoch_batches, fingerprint
from infer2train.pipeline import AddressPipeline
from infer2train.pool.inline import InlinePool
from infer2train.pool.pool import Pool, check_scores
from infer2train.replay import Replay
from infer2train.runlog import RunLog, write_config
from infer2train.selection import count_nonfinite, num_mined
from infer2train.source import Source
from infer2train.checkpoint import restore_rng, rng_state
from infer2train.versions import EpochSteps, VersionRule

CHUNK_ON_CPU = 32
"""Candidates scored at a time where caches are small; on other devices a whole draw is."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One batch handed to the training loop, and how it came about."""

    draw: int
    """Counted from 0 over the whole run."""
    epoch: int
    step: int
    """The step that trains on it."""
    version: int | None
    """Version of the weights that scored it; None where no oracle did."""
    addresses: Addresses
    """The trained examples, in the order of the batch."""
    candidates: Addresses
    """What the oracle looked at; empty where nothing was scored."""
    scores: Float[Tensor, " n"] | None
    """One number for each candidate."""
    chosen: Int64[np.ndarray, " t"] | None
    """For each trained example its index among the candidates."""
    mined: Bool[np.ndarray, " t"] | None
    """Whether each trained example was picked for its score."""
    log_probabilities: Float[Tensor, "b k"] | None
    """The oracle's mean log-probabilities, for distillation."""

    @property
    def lag(self) -> int | None:
        """Step of the draw minus the version that scored it (steps)."""
        return None if self.version is None else self.step - self.version


@dataclass(frozen=True, kw_only=True)
class MiningPlan:
    """What a loader mines, resolved: nothing in it depends on data, weights or time."""

    method: Method
    gamma: int
    rule: VersionRule
    mine_every: int
    balance: Balance
    distill_weight: float
    accumulation_steps: int
    epochs: int | None
    seed: int

    def is_mined(self, step: int) -> bool:
        """Whether draws of this step are mined."""
        return self.method.asks_the_pool and step % self.mine_every == 0


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """A draw whose candidates are with the pool, or that needs none."""

    slots: Slots
    step: int
    share: float
    version: int | None
    scored: bool


class MinedLoader:
    """A loader of picked draws; made by `mine()`.

    Iterate it once an epoch, as the DataLoader it was made from. `last` tells of the draw handed out last, `metrics()`
    of what was measured, `state_dict()` is all that exact resumption needs besides model and optimiser.
    """

    last: Draw | None = None
    """The draw handed out last."""

    def __init__(
        self, dataloader: "DataLoader[Any]", model: nn.Module, plan: MiningPlan, pool: Pool, trainer: AddressPipeline
    ) -> None:
        self.plan = plan
        self._dataloader, self._model, self._pool, self._trainer = dataloader, model, pool, trainer
        self._records: dict[int, Record] = {}
        self._epoch, self._position, self._draws, self._steps = 0, 0, 0, 0
        self._is_open, self._is_resumed = False, False
        self._epoch_steps: EpochSteps | None = None
        self._order: str | None = None
        self._batches: Batches = []
        self._epoch_ids = np.empty(0, dtype=np.int64)
        self._submitted: deque[_Planned] = deque()
        self._picked: deque[Draw] = deque()
        self._iteration = 0
        self._meter = Meter()
        self._started = perf_counter()
        self._mark: Totals = self.totals()
        self._log: tuple[RunLog, int] | None = None

    # The epoch

    @property
    def epoch(self) -> int:
        """The epoch under way, or the next one (counted from 0): where `for epoch in range(loader.epoch, n)` goes on."""
        return self._epoch

    @property
    def steps(self) -> int:
        """Steps acknowledged so far."""
        return self._steps

    def __len__(self) -> int:
        """Draws in an epoch."""
        return len(self._dataloader)

    def __iter__(self) -> Iterator[Any]:
        self._begin_epoch()
        iteration = self._iteration
        try:
            while self._position < len(self._batches):
                yield self._next_batch()
        finally:
            if iteration == self._iteration:
                self._stop_pipelines()
        self._epoch, self._position, self._is_open = self._epoch + 1, 0, False

    def _begin_epoch(self) -> None:
        self._stop_pipelines()
        self._iteration += 1
        if self._is_open and not self._is_resumed:
            self._epoch, self._position = self._epoch + 1, 0
        self._batches = epoch_batches(self._dataloader, self.plan.seed, self._epoch)
        self._epoch_ids = np.concatenate(self._batches)
        order = fingerprint(self._batches)
        if not self._is_resumed or self._epoch_steps is None:
            self._epoch_steps = EpochSteps(
                first_draw=self._draws, first_step=self._steps, accumulation_steps=self.plan.accumulation_steps
            )
        elif order != self._order:
            raise ValueError(
                "a resumed epoch needs a sampler that gives the same order again: got another one; sample from torch's, "
                "NumPy's or random's global state, which mine() seeds, and leave the data as it was"
            )
        self._order, self._is_resumed, self._is_open = order, False, True
        if self.plan.method.has_oracle and self._steps not in self._records and self.plan.rule.is_published(self._steps):
            self._publish()

    def _stop_pipelines(self) -> None:
        self._pool.close()
        self._trainer.close()
        self._submitted.clear()
        self._picked.clear()

    # One draw

    def _next_batch(self) -> Any:
        started = perf_counter()
        self._require_version(self._draws)
        self._submit_ahead()
        while self._submitted:
            self._pick(self._submitted.popleft())
        batch = self._trainer.get()
        self.last = self._picked.popleft()
        assert self.last.draw == self._draws, (self.last.draw, self._draws)
        self._draws, self._position = self._draws + 1, self._position + 1
        self._retire_records()
        self._meter.add(draws=1, examples=len(self.last.addresses), waiting_seconds=perf_counter() - started)
        return batch

    def _step_of(self, draw: int) -> int:
        assert self._epoch_steps is not None
        return self._epoch_steps.step_of(draw)

    def _version_of(self, draw: int) -> int | None:
        step = self._step_of(draw)
        return self.plan.rule.version_of_step(step) if self.plan.method.has_oracle and self.plan.is_mined(step) else None

    def _require_version(self, draw: int) -> None:
        version = self._version_of(draw)
        if version is None or version in self._records:
            return
        step = self._step_of(draw)
        delay = self.plan.rule.delay_for(step, self._steps)
        raise RuntimeError(
            f"a draw of step {step} is scored by the weights after step {version}, but only {self._steps} steps are done: "
            f"the loop has fetched {step - self._steps} steps ahead. Pass delay_steps={delay} to mine() if it prefetches, "
            "accumulation_steps= if it accumulates gradients, scaler= if a GradScaler skips steps, or call "
            "loader.step_done() after each step if mine() was given no optimizer"
        )

    def _submit_ahead(self) -> None:
        """Hand the pool every draw whose version is published, as far ahead as views are made."""
        remaining = len(self._batches) - self._position
        ahead = len(self._picked)
        while ahead < min(remaining, self._trainer.depth + 1):
            draw = self._draws + ahead
            version = self._version_of(draw)
            if version is not None and version not in self._records:
                return
            self._submit(draw, self._batches[self._position + ahead], version)
            ahead += 1

    def _submit(self, draw: int, ids: Int64[np.ndarray, " b"], version: int | None) -> None:
        slots = Slots(seed=self.plan.seed, epoch=self._epoch, draw=draw, ids=ids, epoch_ids=self._epoch_ids)
        step, method = self._step_of(draw), self.plan.method
        share = method.schedule.share(self._epoch, self.plan.epochs)
        # Nothing is asked of the oracle where the ramp mines nothing yet.
        scored = self.plan.is_mined(step) and (not method.is_rampable or num_mined(share, len(ids)) > 0)
        if scored:
            self._pool.submit(draw, candidates(method, slots, self.plan.gamma), version)
        self._submitted.append(_Planned(slots=slots, step=step, share=share, version=version, scored=scored))

    def _pick(self, planned: _Planned) -> None:
        plan, slots = self.plan, planned.slots
        scores: Scores | None = None
        if planned.scored:
            scores = check_scores(self._pool.collect(slots.draw), slots.draw, planned.version)
        if plan.method.asks_the_pool and not plan.is_mined(planned.step):
            selection = unmined(slots)
        else:
            selection = select(
                plan.method,
                slots,
                plan.gamma,
                scores=scores.values if scores else None,
                targets=scores.targets if scores else None,
                share=planned.share,
                balance=plan.balance,
            )
        self._trainer.put(selection.addresses)
        drawn = Draw(
            draw=slots.draw,
            epoch=slots.epoch,
            step=planned.step,
            version=planned.version if scores else None,
            addresses=selection.addresses,
            candidates=candidates(plan.method, slots, plan.gamma) if scores else selection.addresses[:0],
            scores=scores.values if scores else None,
            chosen=selection.chosen if scores else None,
            mined=selection.mined if scores else None,
            log_probabilities=scores.log_probabilities if scores else None,
        )
        self._measure(drawn, selection)
        self._picked.append(drawn)

    def _measure(self, drawn: Draw, selection: Selection) -> None:
        self._meter.add(duplicates=len(selection.addresses) - len(np.unique(selection.addresses.ids)))
        if drawn.version is not None:
            self._meter.add(mined_draws=1, lag_sum=drawn.lag or 0)
        if drawn.scores is None or drawn.mined is None or drawn.chosen is None:
            return
        finite = drawn.scores[torch.isfinite(drawn.scores)]
        picked = drawn.scores[torch.from_numpy(drawn.chosen[drawn.mined]).to(drawn.scores.device)]
        self._meter.add(
            mined_examples=int(drawn.mined.sum()),
            scored=len(finite),
            score_sum=float(finite.sum()),
            chosen=len(picked),
            chosen_sum=float(picked.nan_to_num(0.0, 0.0, 0.0).sum()),
            nonfinite_scores=count_nonfinite(drawn.scores),
        )

    # Steps and versions

    def step_done(self) -> None:
        """Acknowledge one step: call it after each optimiser attempt, unless `mine()` was given the optimiser.

        Raises:
            RuntimeError: more steps were done than draws were handed out for.
        """
        if self.plan.method.has_oracle and (self._epoch_steps is None or self._steps > self._step_of(self._draws - 1)):
            raise RuntimeError(
                f"a step trains on at least one draw: got step {self._steps + 1} after {self._draws} draws of "
                f"accumulation_steps={self.plan.accumulation_steps}; if the optimizer steps more than once a draw, leave "
                "it out of mine() and call loader.step_done() once"
            )
        self._steps += 1
        if self.plan.method.has_oracle and self.plan.rule.is_published(self._steps):
            self._publish()
        if self._log is not None and self._steps % self._log[1] == 0:
            self._write_step(self._log[0])

    def _publish(self) -> None:
        started = perf_counter()
        record = snapshot(self._model, self._steps)
        self._records[record.version] = record
        self._pool.publish(record)
        self._meter.add(publishing_seconds=perf_counter() - started)

    def _retire_records(self) -> None:
        oldest = self.plan.rule.version_of_step(self._step_of(self._draws))
        for version in [v for v in self._records if v < oldest]:
            del self._records[version]
            self._pool.retire(oldest)

    # The loss

    def penalty(self, outputs: Any) -> Tensor:
        """What the method adds to the loss of the draw handed out last: λ·(1/γ)·Σ KL(F(x) ‖ F̃(T_i x)), or 0.

        Args:
            outputs: the model's outputs for that draw, logits [b, k].

        Example:
            >>> loss = criterion(outputs, y) + loader.penalty(outputs)      # doctest: +SKIP
        """
        logits = logits_of(outputs)
        if self.last is None or self.last.log_probabilities is None:
            return logits.new_zeros(())
        return self.plan.distill_weight * distillation(logits, self.last.log_probabilities.to(logits.device))

    # What was measured

    def totals(self) -> Totals:
        """Running totals since the loader was made, for `infer2train.metrics.window`."""
        pool = {f"{name}_seconds": value for name, value in self._pool.seconds().items()}
        own = self._meter.totals(seconds=perf_counter() - self._started)
        return {**own, **pool, "publishing_seconds": own.get("publishing_seconds", 0.0) + pool["publishing_seconds"]}

    def metrics(self) -> dict[str, float]:
        """Plain floats over what came since the last call; `infer2train.metrics.window` lists them."""
        now = self.totals()
        measured = window(now, self._mark)
        self._mark = now
        return {"epoch": float(self._epoch), "steps": float(self._steps), "gamma": float(self.plan.gamma), **measured}

    def log_to(self, log: RunLog, every_steps: int) -> None:
        """Write a step row to `log` every so many steps."""
        self._log = (log, every_steps)
        self._log_mark = self.totals()

    def _write_step(self, log: RunLog) -> None:
        now = self.totals()
        measured = window(now, self._log_mark)
        self._log_mark = now
        assert self.last is not None
        log.write(
            "step",
            step=self._steps,
            draw=self.last.draw,
            epoch=self.last.epoch,
            version=self.last.version,
            steps_per_second=log_rate(measured),
            **{name: measured[name] for name in LOGGED},
        )

    def close(self) -> None:
        """Stop workers; write the report where `log_dir` was given. May be called twice."""
        self._stop_pipelines()
        if self._log is not None:
            from infer2train.reporting.report import write_report

            log, self._log = self._log[0], None
            log.close()
            write_report(log.folder)

    # Resume

    def state_dict(self) -> dict[str, Any]:
        """Everything that going on exactly needs besides model, optimiser and scheduler: counters, the published
        records still needed, and the random state of torch, NumPy and `random`. Tensors and plain values only.

        Take it after a step and before the next draw.
        """
        steps = self._epoch_steps
        return {
            "epoch": self._epoch,
            "position": self._position,
            "draws": self._draws,
            "steps": self._steps,
            "is_open": self._is_open,
            "order": self._order,
            "first_draw": steps.first_draw if steps else 0,
            "first_step": steps.first_step if steps else 0,
            "records": {str(version): dict(record.tensors) for version, record in self._records.items()},
            "plan": plan_fields(self.plan),
            "rng": rng_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`: the next iteration continues the epoch where it stood.

        Raises:
            ValueError: the state is of a loader with other settings.
        """
        fields = plan_fields(self.plan)
        differ = [f"{name}: {state['plan'].get(name)!r} -> {value!r}" for name, value in fields.items() if state["plan"].get(name) != value]
        if differ:
            raise ValueError(f"a resumed loader needs the settings it was saved with: got {'; '.join(differ)}; restore them")
        self._stop_pipelines()
        self._epoch, self._position = state["epoch"], state["position"]
        self._draws, self._steps = state["draws"], state["steps"]
        self._order, self._is_open, self._is_resumed = state["order"], state["is_open"], state["is_open"]
        self._epoch_steps = EpochSteps(
            first_draw=state["first_draw"], first_step=state["first_step"], accumulation_steps=self.plan.accumulation_steps
        )
        device = next(self._model.parameters()).device
        for version, tensors in sorted(state["records"].items(), key=lambda item: int(item[0])):
            record = Record(int(version), {name: tensor.to(device) for name, tensor in tensors.items()})
            self._records[record.version] = record
            self._pool.publish(record)
        restore_rng(state["rng"])


LOGGED = ("lag", "mined_share", "score_mean", "score_chosen", "nonfinite_scores", "duplicates", "scoring_share")
"""What of a metrics window goes into each step row."""


def log_rate(measured: Mapping[str, float]) -> float:
    """Draws per second of wall-clock in a metrics window."""
    return measured["draws"] / measured["seconds"] if measured["seconds"] else 0.0


def plan_fields(plan: MiningPlan) -> dict[str, Any]:
    """The plan as a flat mapping of plain values, by which two plans are compared."""
    method, rule = plan.method, plan.rule
    return {
        "candidates": method.candidates,
        "score": method.score,
        "pick": method.pick,
        "ramp": [method.schedule.rate, method.schedule.start, method.schedule.stop],
        "loss": method.loss,
        "gamma": plan.gamma,
        "update_every": rule.update_every,
        "delay_steps": rule.delay_steps,
        "mine_every": plan.mine_every,
        "balance": plan.balance,
        "distill_weight": plan.distill_weight,
        "accumulation_steps": plan.accumulation_steps,
        "epochs": plan.epochs,
        "seed": plan.seed,
    }


def mine(
    dataloader: "DataLoader[Any]",
    model: nn.Module,
    optimizer: Optimizer | None = None,
    *,
    method: str = "nm-augment",
    gamma: int = 10,
    oracle: str = "torch:fp32",
    oracle_chunk: int | None = None,
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
    split: Split = split_batch,
    accumulation_steps: int = 1,
    scaler: "torch.amp.GradScaler | None" = None,
    seed: int = 0,
    log_dir: str | Path | None = None,
    log_every: int = 20,
) -> MinedLoader:
    """A loader whose batches an oracle has picked, for the training loop that you already have.

    Args:
        dataloader: your own, unchanged: a map-style data set with its augmentation inside, any sampler, any
            `collate_fn`, any number of workers. It is only read.
        model: what you train. Its weights are copied every `update_every` steps and never touched.
        optimizer: its steps are counted by a hook. Leave it out and call `loader.step_done()` after each step instead.
        method: baseline, batch-augment, nm-sample, random-sample, nm-augment, nm-augment-soft or self-distill.
        gamma: candidates for each trained example (γ).
        oracle: engine and precision, e.g. `torch:fp32` or `torch:bf16`.
        oracle_chunk: candidates scored at a time. Default: 32 on a CPU, a whole draw elsewhere.
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
        split: batch -> (inputs, targets). Default: pairs, and mappings with a `labels`-like entry.
        accumulation_steps: draws in one optimiser step.
        scaler: your GradScaler, whose skipped steps count too.
        seed: of everything random here.
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
    model = check_model(model)
    bounds = {"gamma": gamma, "update_every": update_every, "mine_every": mine_every, "accumulation_steps": accumulation_steps}
    for name, value in {**bounds, "oracle_chunk": oracle_chunk or 1, "log_every": log_every}.items():
        at_least(name, value, 1)
    at_least("delay_steps", delay_steps, 0)
    own_score = None if isinstance(score, str) else score
    choices = get_method(method, score=score if isinstance(score, str) else None, pick=pick, schedule=ramp)
    if choices.schedule.needs_length and epochs is None:
        raise ValueError(f"{method} needs epochs=, the length of the training, for its ramp: got none; or pass ramp=Ramp(rate=0.01)")
    plan = MiningPlan(
        method=choices,
        gamma=gamma,
        rule=VersionRule(update_every=update_every, delay_steps=delay_steps),
        mine_every=mine_every,
        balance=balance,
        distill_weight=distill_weight,
        accumulation_steps=accumulation_steps,
        epochs=epochs,
        seed=check_seed(seed),
    )
    source = _source(dataloader, transform)
    pool = _inline_pool(dataloader, model, source, plan, get_score(choices, own_score), oracle, oracle_chunk, split)
    loader = MinedLoader(dataloader, model, plan, pool, AddressPipeline(source, like=dataloader))
    acknowledge_steps(loader.step_done, optimizer, scaler)
    if log_dir is not None:
        write_config(Path(log_dir), {"method": method, "oracle": oracle, **plan_fields(plan)})
        log = RunLog(Path(log_dir))
        log.start(str(next(model.parameters()).device), torch.get_num_threads())
        loader.log_to(log, log_every)
    return loader


def _source(dataloader: "DataLoader[Any]", transform: Callable[[Any], Any] | None) -> Source:
    if not isinstance(dataloader.dataset, Source):
        return Replay(dataloader.dataset, dataloader.collate_fn, transform=transform)
    if transform is not None:
        raise ValueError("transform must be left out where the data set makes views itself: got both; drop it")
    return dataloader.dataset


def _inline_pool(
    dataloader: "DataLoader[Any]",
    model: nn.Module,
    source: Source,
    plan: MiningPlan,
    score: Score | None,
    oracle: str,
    chunk: int | None,
    split: Split,
) -> InlinePool:
    device = next(model.parameters()).device
    if chunk is None:
        whole = plan.gamma * (dataloader.batch_size or CHUNK_ON_CPU)
        chunk = CHUNK_ON_CPU if device.type == "cpu" else whole
    scorer = Scorer(
        score=score,
        distill_views=plan.gamma if plan.method.loss == "distillation" else 0,
        split=split,
        device=device,
        chunk=chunk,
    )
    engine = build_engine(oracle, model, device) if plan.method.has_oracle else None
    return InlinePool(engine, scorer, AddressPipeline(source, like=dataloader))
