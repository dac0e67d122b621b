"""One combination that the fuzz tries, how Hypothesis draws one, and what it is built of."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, default_collate

from fuzzed.data import FORMS, RANDOMNESS, Form, Jitter, Samples
from fuzzed.loaders import CHANGING, COLLATES, SAMPLERS, collates_for, recording
from fuzzed.models import BODIES, NOT_NEGATIVE, SCORES, model_for
from infer2train.batches import split_batch
from infer2train.draws.methods.table import METHODS

CHEAP = "torch:fp32"
PAPERS = [name for name in METHODS if name != "infobatch" and not METHODS[name].needs_irreducible]
"""What a memory remembers is held by test_memory_methods.py."""
ENGINES = [CHEAP] * 195 + ["torch:bf16"] * 2 + ["simulated:b8", "openvino:int8", "onnxruntime:int8"]
"""Converting a model takes a second, so it is done now and then."""
WORKERS = [0] * 38 + [1, 2]
"""To start workers takes a second in all, so there are some now and then."""
PICKS = {"nm-augment": "max", "nm-augment-soft": "proportional"}
SCORING = ("nm-augment", "nm-augment-soft", "nm-sample")
RAMPS: dict[str, dict[str, float] | None] = {
    "default": None,
    "rate 0.3": {"rate": 0.3},
    "rate 1": {"rate": 1.0},
    "linear": {"start": 0.0, "stop": 0.75},
    "from the beginning": {"start": 0.0, "stop": 0.0},
    "from the middle": {"start": 0.5, "stop": 0.5},
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One combination; its repr is what runs it again."""

    form: str = "pair"
    randomness: str = "all"
    apart: bool = False
    """Whether the transform is given to `mine()`."""
    n: int = 12
    sampler: str = "shuffle"
    batch_size: int = 4
    drop_last: bool = False
    collate: str = "by hand"
    scored_by_hand: bool = False
    """Whether `score_collate` makes the batches that are scored."""
    body: str = "plain"
    score: str = "default"
    method: str = "nm-augment"
    pick: str = "max"
    balance: str = "none"
    ramp: str = "default"
    gamma: int = 3
    epochs: int = 2
    update_every: int = 1
    delay_steps: int = 0
    is_ahead: bool = False
    """Whether the loop fetches the next batch before it trains on this one."""
    mine_every: int = 1
    accumulation_steps: int = 1
    steps_at_end: bool = True
    """Whether the loop makes a step of the last draws of an epoch when they are too few for one."""
    acknowledged_by: str = "hook"
    oracle: str = CHEAP
    oracle_chunk: int | None = None
    num_workers: int = 0
    keeps_workers: bool = False
    seed: int = 0

    @property
    def of(self) -> Form:
        return FORMS[self.form]

    @property
    def is_of_views(self) -> bool:
        """Whether candidates are views of the baseline's samples."""
        return self.method not in ("nm-sample", "random-sample")

    @property
    def asks_the_oracle(self) -> bool:
        """Whether candidates are looked at before the pick."""
        return self.method not in ("baseline", "batch-augment")

    @property
    def is_scored(self) -> bool:
        return self.method in SCORING

    def share(self, epoch: int) -> float:
        """The mined share that docs/methods.md promises."""
        ramp = RAMPS[self.ramp]
        if ramp is None:
            ramp = {"start": 0.0, "stop": 0.0 if self.is_of_views else 1.0}
        if "rate" in ramp:
            return min(1.0, ramp["rate"] * epoch)
        past = epoch / self.epochs - ramp["start"]
        width = ramp["stop"] - ramp["start"]
        return min(1.0, max(0.0, past / width)) if width else float(past >= 0)

    def num_mined(self, epoch: int, trained: int) -> int:
        return math.floor(round(self.share(epoch) * trained, 9) + 0.5)

    def split(self, batch: Any) -> tuple[Any, Any]:
        """Inputs and targets, by the form's own rule."""
        return (self.of.split or split_batch)(batch["batch"] if self.collate == "with extras" else batch)

    def data(self) -> Samples:
        return Samples(self.form, self.randomness, self.n, not self.apart)

    def transform(self) -> Jitter | None:
        return Jitter(self.randomness) if self.apart else None

    def collate_fn(self) -> Any:
        return (COLLATES | CHANGING)[self.collate]

    def dataloader(self) -> "DataLoader[Any]":
        options: dict[str, Any] = {"collate_fn": self.collate_fn(), "num_workers": self.num_workers}
        if self.num_workers:
            options |= {"multiprocessing_context": "fork", "persistent_workers": self.keeps_workers}
        return self.loader_over(self.data(), options)

    def loader_over(self, data: Any, options: dict[str, Any]) -> "DataLoader[Any]":
        """By the case's sampler, which remembers what it gives."""
        sampler = SAMPLERS[self.sampler](data)
        if self.sampler == "unequal batches":
            return DataLoader(data, batch_sampler=recording(sampler), **options)  # type: ignore[arg-type]
        order: dict[str, Any] = {"shuffle": True} if sampler is None else {"sampler": recording(sampler)}
        return DataLoader(data, batch_size=self.batch_size, drop_last=self.drop_last, **order, **options)

    def model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return model_for(self.of, self.body)

    def settings(self) -> dict[str, Any]:
        """What `mine()` is told besides loader, model and optimiser."""
        settings: dict[str, Any] = {
            "method": self.method,
            "gamma": self.gamma,
            "epochs": self.epochs,
            "update_every": self.update_every,
            "delay_steps": self.delay_steps,
            "mine_every": self.mine_every,
            "accumulation_steps": self.accumulation_steps,
            "oracle": self.oracle,
            "oracle_chunk": self.oracle_chunk,
            "balance": self.balance,
            "transform": self.transform(),
            "seed": self.seed,
        }
        if self.of.split is not None or self.collate == "with extras":
            settings["split"] = self.split
        if self.is_scored:
            settings["score"] = SCORES[self.score][0]
        if self.method in PICKS:
            settings["pick"] = self.pick
        if RAMPS[self.ramp] is not None:
            settings |= {f"ramp_{name}": value for name, value in RAMPS[self.ramp].items()}
        if self.scored_by_hand:
            settings["score_collate"] = default_collate
        return settings


@st.composite
def cases(draw: st.DrawFn, *, engines: list[str] = ENGINES, workers: list[int] = WORKERS) -> Case:
    """Any combination that the contract allows, each choice by itself.

    From a seed, which shrinks badly: choices that Hypothesis itself makes are near copies of one another, five of each.
    """
    random = draw(st.randoms(use_true_random=True))
    method = random.choice(["nm-augment", "nm-sample", *PAPERS])
    labelled = ("self-distill", "random-sample")
    form = random.choice([f for f in FORMS if method not in labelled or FORMS[f].targets == "class"])
    classes = FORMS[form].targets == "class"
    pick = random.choice(["max", "max", "quantile", "uniform"]) if method == "nm-augment" else "proportional"
    scores = [s for s, (_, _, kind) in SCORES.items() if kind == FORMS[form].targets]
    if method == "nm-augment-soft":
        scores = [s for s in scores if s in NOT_NEGATIVE or not classes]
    is_ramped = method in ("nm-augment", "nm-augment-soft", "nm-sample", "random-sample")
    is_ahead = random.choice([False, False, True])
    collates = collates_for(FORMS[form])
    changes = CHANGING if method in ("baseline", "batch-augment") and not FORMS[form].words else ()
    return Case(
        method=method,
        form=form,
        pick=pick,
        score=random.choice(scores),
        randomness=random.choice(list(RANDOMNESS)),
        apart=random.choice([False, True]),
        n=random.randint(12, 14),
        sampler=random.choice(list(SAMPLERS)),
        batch_size=random.choice([3, 4, 5, 6]),
        drop_last=random.choice([False, True]),
        collate=random.choice([*collates, *changes]),
        body=random.choice(list(BODIES)),
        balance=random.choice(["none", "stratified", "uniform"]) if classes else "none",
        ramp=random.choice(list(RAMPS)) if is_ramped else "default",
        gamma=random.choice([1, 2, 2, 3, 3, 4, 5]),
        epochs=2 if is_ramped and method not in PICKS else random.randint(1, 2),
        update_every=random.choice([1, 2, 3, 100]),
        is_ahead=is_ahead,
        delay_steps=random.randint(int(is_ahead), 2),
        mine_every=random.choice([1, 1, 1, 2, 3]),
        accumulation_steps=random.choice([1, 1, 2, 3]),
        steps_at_end=random.choice([False, True]),
        acknowledged_by=random.choice(["hook", "hook", "two optimisers", "step_done"]),
        oracle=random.choice(engines),
        oracle_chunk=random.choice([None, None, 1, 4, 7]),
        num_workers=random.choice(workers),
        keeps_workers=random.choice([False, True]),
        seed=random.randint(0, 3),
    )
