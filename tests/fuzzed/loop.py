"""The training loop of the fuzz: looks at each batch when it gets it, keeps the versions, moves nothing unasked."""

import math
import pickle
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fuzzed.cases import Case
from fuzzed.loaders import Recording
from fuzzed.models import LOSSES, rows_of
from fuzzed.reference import Reference
from infer2train import MinedLoader, mine
from infer2train.batches import call_model
from infer2train.draws.addresses import Addresses


def check(case: Case) -> None:
    """Train by the case for its epochs; every draw is what the contract says."""
    states = random_states()
    torch.manual_seed(case.seed)
    reference = Reference(case, baseline_of(case))
    dataloader, model = case.dataloader(), case.model()
    before = look(model)
    parameters = list(model.parameters())
    by_kind = [parameters] if case.acknowledged_by != "two optimisers" else [parameters[::2], parameters[1::2]]
    optimizers = [torch.optim.SGD(some, lr=0.02, momentum=0.5) for some in by_kind]
    given_ones = None if case.acknowledged_by == "step_done" else optimizers if len(optimizers) > 1 else optimizers[0]
    now = random_states()
    loader = mine(dataloader, model, given_ones, **case.settings())
    reference.oracle = loader.mining.oracle
    assert reference.oracle == case.oracle
    assert now == random_states()
    assert before == look(model)
    assert not asked(dataloader)
    try:
        Loop(case, loader, model, optimizers, reference).run(dataloader)
        reference.check_precision()
        check_metrics(loader.metrics(), reference)
    finally:
        loader.close()
        put_back(states)


class Loop:
    """The loop that users have, which looks at each batch when it gets it."""

    def __init__(
        self,
        case: Case,
        loader: MinedLoader,
        model: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        reference: Reference,
    ) -> None:
        self.case, self.loader, self.model, self.optimizers, self.reference = case, loader, model, optimizers, reference
        self.steps = 0
        reference.keep(0, model)

    def run(self, dataloader: Any) -> None:
        orders = [[slots.ids.tolist() for slots in epoch] for epoch in self.reference.epochs]
        for epoch in range(self.case.epochs):
            assert self.loader.epoch == epoch
            for count, batch in enumerate(self.in_time(self.fetched(epoch)), start=1):
                self.forward(batch)
                if count % self.case.accumulation_steps == 0:
                    self.step()
            if self.case.steps_at_end and count % self.case.accumulation_steps:
                self.step()
            if self.case.acknowledged_by != "two optimisers":  # the last is counted when the next draw is asked for
                assert self.loader.steps == self.steps
            check_order(self.case, dataloader, epoch, orders[epoch])
        assert len(self.reference.baseline) == self.reference.num_draws
        seeds = self.reference.seeds
        assert len(set(seeds)) == len(seeds)
        if len(orders) > 1 and self.case.sampler not in ("sequential", "growing"):
            assert orders[0] != orders[1]

    def fetched(self, epoch: int) -> Iterator[Any]:
        """The batches of an epoch; to fetch one moves nothing but the data."""
        first_step, batches, count = self.steps, iter(self.loader), 0
        while True:
            states, before = random_states(), look(self.model)
            try:
                batch = next(batches)
            except StopIteration:
                assert states == random_states()
                return
            assert states == random_states()
            assert before == look(self.model)
            assert self.loader.last is not None
            step = first_step + count // self.case.accumulation_steps
            self.reference.check(batch, self.loader.last, step, epoch)
            count += 1
            yield batch

    def in_time(self, batches: Iterator[Any]) -> Iterator[Any]:
        """As they come, or one behind, as Accelerate's loaders hand them out."""
        if not self.case.is_ahead:
            yield from batches
            return
        current = next(batches)
        for following in batches:
            yield current
            current = following
        yield current

    def forward(self, batch: Any) -> None:
        inputs, targets = self.case.split(batch)
        outputs = call_model(self.model, inputs)
        loss = LOSSES[self.case.of.targets](rows_of(outputs), targets)
        if not self.case.is_ahead:
            loss = loss + 1000 * self.loader.penalty(outputs)
        loss.backward()

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if self.case.acknowledged_by == "step_done":
            self.loader.step_done()
        self.steps += 1
        if self.steps % self.case.update_every == 0:
            self.reference.keep(self.steps, self.model)


def baseline_of(case: Case) -> list[list[Addresses]]:
    """What the baseline trains on, by epoch and draw."""
    bare = case.loader_over(range(case.n), {})
    loader = mine(bare, nn.Linear(1, 1), method="baseline", seed=case.seed)
    drawn = [[loader.last.addresses for _ in loader if loader.last is not None] for _ in range(case.epochs)]
    loader.close()
    return drawn


def asked(dataloader: Any) -> list[list[Any]]:
    """What the sampler gave, each time that it was asked; nothing of one that the DataLoader makes."""
    for sampler in (dataloader.batch_sampler, dataloader.sampler):
        if isinstance(sampler, Recording):
            return sampler.asked
    return []


def check_order(case: Case, dataloader: Any, epoch: int, slots: list[list[int]]) -> None:
    """The batches of an epoch are those that the sampler gave, asked once."""
    if case.sampler == "shuffle":
        given = [sample for batch in slots for sample in batch]
        assert len(set(given)) == len(given)
        assert len(given) == case.n or case.drop_last
    else:
        assert len(asked(dataloader)) == epoch + 1
        given = asked(dataloader)[epoch]
    if case.sampler != "unequal batches":
        given = [given[i : i + case.batch_size] for i in range(0, len(given), case.batch_size)]
        given = [batch for batch in given if len(batch) == case.batch_size or not case.drop_last]
    assert slots == given


def check_metrics(metrics: dict[str, float], reference: Reference) -> None:
    """They are numbers, and those that the reference counts are right."""
    assert all(math.isfinite(value) for value in metrics.values()), metrics
    assert metrics["draws"] == reference.num_draws
    if reference.lags:
        assert metrics["lag"] == pytest.approx(sum(reference.lags) / len(reference.lags))
    if reference.scores:
        assert metrics["score_mean"] == pytest.approx(np.mean(reference.scores), rel=1e-4, abs=1e-5)
    if reference.chosen and reference.case.score != "now and then":  # see the test of finite ones
        assert metrics["score_chosen"] == pytest.approx(np.mean(reference.chosen), rel=1e-4, abs=1e-5)


def random_states() -> bytes:
    """The global generators', in one value."""
    return pickle.dumps((random.getstate(), np.random.get_state(), torch.get_rng_state().numpy().tobytes()))


def put_back(states: bytes) -> None:
    ours, numpys, torchs = pickle.loads(states)
    random.setstate(ours)
    np.random.set_state(numpys)
    torch.set_rng_state(torch.frombuffer(bytearray(torchs), dtype=torch.uint8))


def look(model: nn.Module) -> bytes:
    """Weights, buffers of both kinds, gradients and flags, in one value."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    bits = [(name, t.detach().numpy().tobytes(), t.requires_grad, t.grad is None) for name, t in tensors]
    gradients = [p.grad.numpy().tobytes() for p in model.parameters() if p.grad is not None]
    return pickle.dumps((bits, gradients, [module.training for module in model.modules()]))
