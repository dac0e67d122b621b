"""Whether oracles in processes of their own keep up with the trainer; if not, by how much, and what would help.

An oracle keeps up where what a mined draw costs it, shared out over its processes, is no more than what the trainer
does between two mined draws. Where it does so on the whole and the trainer still waits right behind every new version,
the weights come too late, and allowed staleness hides that. Computed from the accounting alone, so that it can be
tested without a clock.
"""

import math
from dataclasses import dataclass

from infer2train.observe.timeline import TRAINER, Span

FEWEST_DRAWS = 50
"""Mined draws over which is judged."""
MOST_WAITING = 0.05
"""Part of its time that a trainer may wait for scores."""
FLOAT = ("fp32", "bf16")


class Waits:
    """Adds up how long the trainer waited for scores, and what it did between; a listener of the timeline.

    Args:
        draws_per_epoch: the first scored draw of an epoch is waited for whatever the oracle is, and not counted.
    """

    def __init__(self, draws_per_epoch: int) -> None:
        self._draws_per_epoch = draws_per_epoch
        self._versions: dict[int, int | None] = {}
        self._newest: int | None = None
        self._epoch, self._ended = -1, 0.0
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.draws = 0
        """Draws that were scored."""
        self.seconds = 0.0
        """How long the trainer waited for them."""
        self.own_seconds = 0.0
        """How long it did anything else between them."""
        self.behind_seconds = 0.0
        """Of `seconds`, what was for the first draw of each new version."""
        self.versions = 0
        """How many new versions there were."""

    def add(self, span: Span) -> None:
        """Take in a span: an oracle's says which version scored a draw, the trainer's how long it waited for it."""
        if span.name == "forward" and span.lane != TRAINER:
            self._versions[span.details["draw"]] = span.details["version"]
        if span.lane != TRAINER or span.name != "scores":
            return
        epoch, version = span.details["draw"] // self._draws_per_epoch, self._versions.pop(span.details["draw"], None)
        is_first, is_new, ended = epoch != self._epoch, version != self._newest, self._ended
        self._epoch, self._newest, self._ended = epoch, version, span.started + span.seconds
        if is_first:
            return
        self.draws, self.seconds = self.draws + 1, self.seconds + span.seconds
        self.own_seconds += max(0.0, span.started - ended)
        if is_new:
            self.behind_seconds, self.versions = self.behind_seconds + span.seconds, self.versions + 1


@dataclass(frozen=True, kw_only=True)
class Accounts:
    """What a window cost, and the settings under which it did.

    Args:
        draws: scored ones.
        waiting_seconds: of the trainer, for scores.
        trainer_seconds: of the trainer, for all else between those draws.
        scoring_seconds: of all oracles: views and forward passes.
        refresh_seconds: of all oracles: new weights.
        behind_seconds: what of `waiting_seconds` was for the first draws of new versions.
        versions: new ones.
        workers: the oracle's processes.
        oracle, gamma, mine_every, update_every, delay_steps, queue_depth: as configured.
    """

    draws: int
    waiting_seconds: float
    trainer_seconds: float
    scoring_seconds: float
    refresh_seconds: float
    behind_seconds: float
    versions: int
    workers: int
    oracle: str
    gamma: int
    mine_every: int
    update_every: int
    delay_steps: int
    queue_depth: int

    @property
    def waiting_share(self) -> float:
        """The part of its time that the trainer waited, 0 to 1."""
        whole = self.waiting_seconds + self.trainer_seconds
        return self.waiting_seconds / whole if whole else 0.0

    @property
    def load(self) -> float:
        """An oracle's seconds for each of the trainer's own; above 1 it cannot keep up."""
        return (self.scoring_seconds + self.refresh_seconds) / self.workers / self.trainer_seconds


def warning(accounts: Accounts) -> str | None:
    """What to tell the user of an oracle that is too slow; None where the trainer hardly waits.

    Example:
        >>> print(warning(Accounts(draws=100, waiting_seconds=10.0, trainer_seconds=10.0, scoring_seconds=20.0,
        ...     refresh_seconds=0.0, behind_seconds=0.0, versions=0, workers=1, oracle="torch:fp32", gamma=8,
        ...     mine_every=1, update_every=100, delay_steps=0, queue_depth=4)))
        the oracle cannot keep up: the trainer waited 50 % of the last 100 mined draws; a draw takes the oracle 200 ms, the trainer does its part in 100 ms: 2.0 times too slow. Any of these would do: oracle int8 if it is that much faster; gamma 4; mine_every 2; oracle_workers 2 with a core each
    """  # noqa: E501
    if accounts.draws < FEWEST_DRAWS or accounts.waiting_share <= MOST_WAITING:
        return None
    told = f"the trainer waited {100 * accounts.waiting_share:.0f} % of the last {accounts.draws} mined draws"
    if accounts.load > 1 - MOST_WAITING:
        oracle = 1000 * (accounts.scoring_seconds + accounts.refresh_seconds) / accounts.workers / accounts.draws
        trainer = 1000 * accounts.trainer_seconds / accounts.draws
        return (
            f"the oracle cannot keep up: {told}; a draw takes the oracle {oracle:.0f} ms, the trainer does its part in "
            f"{trainer:.0f} ms: {accounts.load:.1f} times too slow. Any of these would do: "
            f"{'; '.join(_remedies(accounts))}"
        )
    if accounts.versions and accounts.behind_seconds > accounts.waiting_seconds / 2:
        each = accounts.behind_seconds / accounts.versions
        return (
            f"the oracle gets new weights late: {told}, most of it right behind a new version ({1000 * each:.0f} ms "
            f"each), although the oracle has {100 - 100 * accounts.load:.0f} % of its time left. "
            f"{_delay(accounts, each)} would hide that"
        )
    return (
        f"the oracle is late at times: {told}, although the oracle has {100 - 100 * accounts.load:.0f} % of its time "
        f"left. queue_depth {2 * max(1, accounts.queue_depth)} would give it a longer start"
    )


def _remedies(accounts: Accounts) -> list[str]:
    """What would lower the load to 1, each by itself."""
    a, found = accounts, []
    refreshing = a.refresh_seconds / a.workers
    for_scoring = a.trainer_seconds - refreshing  # a process's time for scoring, if it is not to be waited for
    for_refreshing = a.trainer_seconds - a.scoring_seconds / a.workers
    if refreshing > a.scoring_seconds / a.workers and for_refreshing > 0:
        found.append(f"update_every {math.ceil(a.update_every * refreshing / for_refreshing)}")
    if for_scoring <= 0:  # scoring less does not help
        factor = math.ceil(a.load)
        return found or [f"update_every {factor * a.update_every} together with mine_every {factor * a.mine_every}"]
    if a.oracle.partition("@")[0].partition(":")[2] in FLOAT:
        found.append("oracle int8 if it is that much faster")
    needed = a.scoring_seconds / a.workers / for_scoring
    if 2 <= (gamma := int(a.gamma / needed)) < a.gamma:
        found.append(f"gamma {gamma}")
    found.append(f"mine_every {max(a.mine_every + 1, math.ceil(a.mine_every * needed))}")
    workers = max(a.workers + 1, math.ceil(a.workers * needed))
    return [*found, f"oracle_workers {workers} with a core each"]


def _delay(accounts: Accounts, seconds: float) -> str:
    """The settings that let the trainer go on with old weights for so long."""
    step = accounts.trainer_seconds / accounts.draws / accounts.mine_every
    delay = accounts.delay_steps + max(1, math.ceil(seconds / step))
    deeper = f" queue_depth {delay}" if delay > accounts.queue_depth else ""
    return f"delay_steps {delay}{deeper}"
