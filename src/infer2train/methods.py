"""Each method of the paper, and each control, as its five choices: candidates, score, pick, schedule, loss.

Reads top down: the table first, then what its words mean. A draw asks `candidates` what the oracle looks at and
`select` what is trained on; both are pure functions of (run seed, epoch, draw) and the scores.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from infer2train.addresses import Addresses, Purpose, seeds, uniforms
from infer2train.config import unknown
from infer2train.scores import SCORES
from infer2train.selection import PICKS, Balance, Pick, fill, num_mined, pick_hardest


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """The mined share r of a draw, by epoch.

    r = min{1, rate · epoch} where `rate` is given (the paper), else r grows from 0 at `start` to 1 at `stop`, both
    parts of the whole training. `start == stop` switches mining on there; the default mines from the beginning.

    Source: paper, section 5.1 (rates 0.01 and 0.1 over 90 epochs) and figure 3: mining hard early does harm.
    """

    rate: float | None = None
    start: float = 0.0
    stop: float = 0.0

    def __post_init__(self) -> None:
        if self.rate is not None and not self.rate > 0:
            raise ValueError(f"ramp_rate must be positive: got {self.rate}; the paper uses 0.01 and 0.1")
        if self.rate is not None and (self.start, self.stop) != (0, 0):
            raise ValueError("a ramp is given by its rate or by start and stop: got both; drop one")
        if not 0 <= self.start <= self.stop <= 1:
            raise ValueError(
                f"a ramp must have 0 <= start <= stop <= 1, parts of the whole training: got start {self.start}, stop "
                f"{self.stop}; divide epochs by their number, or pass a rate"
            )

    @property
    def needs_length(self) -> bool:
        """Whether the share depends on how long the training is."""
        return self.rate is None and self.stop > 0

    def share(self, epoch: int, epochs: int | None) -> float:
        """The mined share r in [0, 1] in `epoch` (counted from 0) of `epochs`."""
        if self.rate is not None:
            return min(1.0, self.rate * epoch)
        if not self.needs_length:
            return 1.0
        assert epochs is not None
        progress = epoch / epochs
        if self.stop == self.start:
            return float(progress >= self.start)
        return min(1.0, max(0.0, (progress - self.start) / (self.stop - self.start)))


ALWAYS = Ramp()
OVER_THE_TRAINING = Ramp(start=0.0, stop=1.0)


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to use an oracle: five choices and where they come from."""

    candidates: Literal["one-view", "views", "samples", "anchors"]
    """What a draw consists of: B × 1; B × γ views; γ·B ids with replacement; B anchors and B × γ views."""
    score: str | None
    """What the oracle gives for each candidate; None where it gives none."""
    pick: str
    """What is trained on: all, anchors, hardest samples by class, or one view of each sample (see `PICKS`)."""
    schedule: Ramp = ALWAYS
    """How the mined share grows."""
    loss: Literal["plain", "distillation"] = "plain"
    """L, or L + λ·(1/γ)·Σ KL(F(x) ‖ F̃(T_i x)) (equation 1)."""
    source: str
    """Where it is described."""

    @property
    def has_oracle(self) -> bool:
        """Whether a forward pass of the oracle is needed."""
        return self.loss == "distillation" or (self.score is not None and self.score != "uniform")

    @property
    def asks_the_pool(self) -> bool:
        """Whether candidates are looked at before the pick (random-sample needs their labels)."""
        return self.loss == "distillation" or self.score is not None

    @property
    def is_rampable(self) -> bool:
        """Whether only a share of a draw can be mined."""
        return self.score is not None


METHODS: dict[str, Method] = {
    "baseline": Method(candidates="one-view", score=None, pick="all", source="section 5: the original training regime"),
    "batch-augment": Method(
        candidates="views", score=None, pick="all", source="control: [4], batches of several views of each sample"
    ),
    "nm-sample": Method(
        candidates="samples", score="loss", pick="hardest", schedule=OVER_THE_TRAINING, source="sections 3.1 and 5.1"
    ),
    "random-sample": Method(
        candidates="samples",
        score="uniform",
        pick="hardest",
        schedule=OVER_THE_TRAINING,
        source="control: nm-sample, blind",
    ),
    "nm-augment": Method(candidates="views", score="loss", pick="max", source="sections 3.1 and 5.1"),
    "nm-augment-soft": Method(
        candidates="views", score="loss", pick="proportional", source="arXiv 2005.00695 (Wu et al. 2020)"
    ),
    "self-distill": Method(
        candidates="anchors", score=None, pick="anchors", loss="distillation", source="section 3.2, equation 1"
    ),
}


def get_method(name: str, *, score: str | None = None, pick: str | None = None, schedule: Ramp | None = None) -> Method:
    """The method of that name, with what the user chose instead of its own score, pick and schedule.

    Raises:
        ValueError: an unknown name, or a choice that this method does not have.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    method = METHODS[name]
    if (score is not None and not method.has_oracle) or (score is not None and method.score is None):
        raise ValueError(f"score must be left out where nothing is scored: got {score!r} for {name}; drop it")
    if score is not None and score not in SCORES:
        raise unknown("score", score, SCORES)
    if pick is not None and method.pick not in PICKS:
        raise ValueError(f"pick must be left out where no view is picked: got {pick!r} for {name}; use nm-augment")
    if pick is not None and pick not in PICKS:
        raise unknown("pick", pick, PICKS)
    if schedule is not None and not method.is_rampable:
        raise ValueError(f"a ramp must be left out where nothing is mined: got one for {name}; drop it")
    return Method(
        candidates=method.candidates,
        score=score or method.score,
        pick=pick or method.pick,
        schedule=schedule or method.schedule,
        loss=method.loss,
        source=method.source,
    )


@dataclass(frozen=True, kw_only=True)
class Slots:
    """The baseline's batch of one draw, and what its randomness hangs on. Everything of a draw follows from this."""

    seed: int
    """The run's seed."""
    epoch: int
    draw: int
    ids: Int64[np.ndarray, " b"]
    """Sample ids of the draw, from the user's sampler."""
    epoch_ids: Int64[np.ndarray, " n"]
    """Every id that the user's sampler gives in this epoch."""
    _made: dict[Any, Addresses] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Addresses that were asked for: submitting, picking and showing a draw ask for the same."""

    def numbers(self, make: Callable[..., Any], purpose: Purpose, slot: Any, view: Any = 0) -> Any:
        """Random numbers of this draw, from one of the functions of `addresses`."""
        return make(self.seed, purpose, epoch=self.epoch, draw=self.draw, slot=slot, view=view)

    def views(self, first: int, count: int) -> Addresses:
        """Views `first` … `first + count − 1` of each slot, slot by slot: [b * count].

        View 0 is the baseline's view (common random numbers), whatever the method.
        """
        if (first, count) not in self._made:
            slot, view = np.arange(len(self.ids))[:, None], np.arange(first, first + count)[None, :]
            numbers = self.numbers(seeds, Purpose.VIEW, slot, view).reshape(-1)
            self._made[first, count] = Addresses(np.repeat(self.ids, count), numbers)
        return self._made[first, count]

    def samples(self, count: int) -> Addresses:
        """`count` samples of the epoch, with replacement, each under a view of its own."""
        if count not in self._made:
            slot = np.arange(count)
            which = self.numbers(seeds, Purpose.CANDIDATE, slot) % len(self.epoch_ids)
            self._made[count] = Addresses(self.epoch_ids[which], self.numbers(seeds, Purpose.VIEW, slot))
        return self._made[count]


def candidates(method: Method, slots: Slots, gamma: int) -> Addresses:
    """What the oracle looks at in a draw: γ addresses for each trained example, or none."""
    if not method.asks_the_pool:
        return slots.views(0, 0)
    if method.candidates == "samples":
        return slots.samples(gamma * len(slots.ids))
    if method.candidates == "anchors":
        return slots.views(1, gamma)
    return slots.views(0, gamma)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a draw trains on."""

    addresses: Addresses
    """The trained examples, in the order of the batch."""
    chosen: Int64[np.ndarray, " t"] | None = None
    """For each trained example its index among the scored candidates; None where nothing was scored."""
    mined: Bool[np.ndarray, " t"] | None = None
    """Whether it was picked for its score, or fills the batch; None where nothing was scored."""


def unmined(slots: Slots) -> Selection:
    """The baseline's batch: view 0 of every slot."""
    return Selection(addresses=slots.views(0, 1))


def select(
    method: Method,
    slots: Slots,
    gamma: int,
    *,
    scores: Float[Tensor, " n"] | None = None,
    targets: Any = None,
    share: float = 1.0,
    balance: Balance = "stratified",
) -> Selection:
    """What the trainer trains on, of a mined draw.

    Args:
        method: the five choices.
        slots: the draw.
        gamma: candidates for each trained example.
        scores: of `candidates(method, slots, gamma)`, in that order; None where the method has none.
        targets: of the same candidates (class labels int64 [n] where they are balanced).
        share: mined share r in [0, 1].
        balance: class quotas of nm-sample.

    Returns:
        B examples (B·γ for batch-augment).
    """
    if method.pick == "anchors":
        return unmined(slots)
    if method.pick == "all":
        return Selection(addresses=slots.views(0, 1 if method.candidates == "one-view" else gamma))
    if num_mined(share, len(slots.ids)) == 0 and scores is None:
        return _select_nothing(method, slots, gamma)
    if method.score == "uniform":
        scores = torch.from_numpy(slots.numbers(uniforms, Purpose.UNIFORM_SCORE, np.arange(gamma * len(slots.ids))))
    assert scores is not None
    if method.pick == "hardest":
        return _select_samples(slots, gamma, scores, targets, share, balance)
    return _select_views(PICKS[method.pick], slots, gamma, scores, share)


def _select_nothing(method: Method, slots: Slots, gamma: int) -> Selection:
    """What a draw trains on while its ramp mines nothing: what fills it, which needs no score."""
    if method.candidates != "samples":
        return unmined(slots)
    num_candidates = gamma * len(slots.ids)
    return _select_samples(slots, gamma, torch.zeros(num_candidates), None, share=0.0, balance="none")


def _select_views(pick: Pick, slots: Slots, gamma: int, scores: Tensor, share: float) -> Selection:
    """One view of each slot: the picked one for ⌊r·B + ½⌋ slots at random, view 0 for the others."""
    batch = len(slots.ids)
    slot = np.arange(batch)
    draws = torch.from_numpy(slots.numbers(uniforms, Purpose.PICK, slot)).to(scores.device)
    view = pick(scores.view(batch, gamma), draws).cpu().numpy()
    order = np.argsort(slots.numbers(seeds, Purpose.MINED_SLOTS, slot), kind="stable")
    mined = np.zeros(batch, dtype=bool)
    mined[order[: num_mined(share, batch)]] = True
    chosen = slot * gamma + np.where(mined, view, 0)
    return Selection(addresses=slots.views(0, gamma)[chosen], chosen=chosen, mined=mined)


def _select_samples(
    slots: Slots, gamma: int, scores: Tensor, targets: Any, share: float, balance: Balance
) -> Selection:
    """The hardest candidates under class quotas, then others at random: B in all."""
    batch = len(slots.ids)
    mined_count = num_mined(share, batch)
    classes = None if balance == "none" else class_targets(targets).to(scores.device)
    if classes is not None and len(classes) != len(scores):
        raise ValueError(
            f"every candidate needs a label: got {len(classes)} for {len(scores)}; a collate_fn must keep every sample"
        )

    def class_keys(labels: Int64[Tensor, " k"]) -> Int64[Tensor, " k"]:
        return torch.from_numpy(slots.numbers(seeds, Purpose.CLASSES, labels.cpu().numpy())).to(labels.device)

    hardest = pick_hardest(scores, classes, mined_count, balance=balance, class_keys=class_keys)
    keys = torch.from_numpy(slots.numbers(seeds, Purpose.FILL, np.arange(len(scores)))).to(scores.device)
    chosen = fill(hardest, len(scores), batch, keys).cpu().numpy()
    mined = np.arange(batch) < mined_count
    return Selection(addresses=slots.samples(gamma * batch)[chosen], chosen=chosen, mined=mined)


def has_classes(targets: Any) -> bool:
    """Whether targets are class labels: whole numbers, one for each candidate."""
    return isinstance(targets, Tensor) and not targets.is_floating_point() and targets.ndim == 1


def class_targets(targets: Any) -> Int64[Tensor, " n"]:
    """Targets as class labels.

    Raises:
        ValueError: they are not whole numbers, one for each candidate.
    """
    if not isinstance(targets, Tensor) or not has_classes(targets):
        got = (
            f"{targets.dtype} of shape {tuple(targets.shape)}"
            if isinstance(targets, Tensor)
            else type(targets).__name__
        )
        raise ValueError(f"balance needs one class label (an integer) for each sample: got {got}; pass balance='none'")
    return targets.long()


def get_score(method: Method, score: Callable[[Any, Any], Tensor] | None = None) -> Callable[[Any, Any], Tensor] | None:
    """The score function of a method: the user's own, ours by name, or None where the oracle gives no score.

    Raises:
        ValueError: a score of the user's own where the oracle gives none.
    """
    if method.score is None or method.score == "uniform":
        if score is not None:
            raise ValueError(f"score must be left out where nothing is scored: got {score!r:.80}; drop it")
        return None
    return score or SCORES[method.score]
