"""`infer2train plan`: how many oracles, of which kind, keep γ fed, and what a step costs; from what gamma measures.

Each worker is taken for a device like the one that was measured. What is predicted is a mean step: the slower of the
trainer and of all workers together, and what no number of workers hides: the first draw of a version, which nobody can
begin before its weights are there. Publishing weights, every T steps, is left out: gamma does not measure it.
"""

import json
import math
import pickle
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from infer2train.pool.messages import Do, Done
from infer2train.settings import at_least
from infer2train.studies.gamma.measure import bytes_of
from infer2train.studies.gamma.recommendation import FAITHFUL, hybrid_step_seconds
from infer2train.training.config import RunConfig
from infer2train.training.setup import pixel_model

WORKERS = (1, 2, 4, 8)
NEAR = 1.05
"""Workers are enough where a step takes no longer than this many times one without an oracle."""
MOST = 256
"""Workers, and steps of delay, that are looked at where what was asked for is not enough."""
DEEPEST = 4
"""Draws that are submitted ahead at least; with more workers as many as there are, or some would have none."""
MEGABIT = 1e6 / 8
"""In bytes."""
FIELDS = ("model", "batch_size", "training_images_per_second", "views_per_second", "engines")
"""What a plan is made from, in what gamma writes."""
FIELDS_OF_AN_ENGINE = ("name", "images_per_second", "refresh_seconds", "captured_gain", "chunk")
SPANS = 2
"""Of each chunk, in an answer: what the worker did when."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What was measured of a trainer and one kind of oracle, in seconds."""

    oracle: str
    step: float
    """Of the trainer alone, its views included."""
    draw: float
    """Of one worker, for one draw, views included."""
    refresh: float
    """Of one worker, for new weights."""
    publish: float = 0.0
    """Of the trainer, for new weights."""
    carry: float = 0.0
    """Between the two, for one draw there and back."""
    captured_gain: float | None = None
    """Part of what the model's own picks would gain that this oracle's do."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What a number of workers comes to."""

    oracle: str
    workers: int
    queue_depth: int
    """Draws to submit ahead."""
    step: float
    """Predicted (seconds)."""
    ratio: float
    """To a step without an oracle."""

    @property
    def is_enough(self) -> bool:
        """Whether nobody waits for long."""
        return self.ratio <= NEAR


@dataclass(frozen=True, kw_only=True)
class Needed:
    """About what would be enough, where nothing that was planned is."""

    workers: int
    delay_steps: int


def planned(costs: Costs, workers: int, *, update_every: int, delay_steps: int = 0) -> Planned:
    """The step with so many workers.

    Example:
        >>> planned(Costs(oracle="int8", step=1.0, draw=4.0, refresh=0.0), 2, update_every=100, delay_steps=10).ratio
        2.0
    """
    queue_depth = max(DEEPEST, workers)
    step = hybrid_step_seconds(
        step_seconds=costs.step,
        draw_seconds=costs.draw,
        refresh_seconds=costs.refresh,
        publish_seconds=costs.publish,
        carry_seconds=costs.carry,
        update_every=update_every,
        delay_steps=delay_steps,
        queue_depth=queue_depth,
        workers=workers,
    )
    return Planned(
        oracle=costs.oracle, workers=workers, queue_depth=queue_depth, step=step, ratio=round(step / costs.step, 9)
    )


def enough(rows: Iterable[Planned]) -> Planned | None:
    """The fewest workers of one kind with which a step is near one without an oracle; None where none of these is."""
    return min((row for row in rows if row.is_enough), key=lambda row: row.workers, default=None)


def recommended(kinds: Mapping[str, Sequence[Planned]], costs: Iterable[Costs]) -> Planned:
    """The fewest workers that are enough; where none are, those that make the shortest step, or nearly so with fewer.

    Kinds whose picks are not the model's are left out, as long as there are others.
    """
    faithful = {c.oracle for c in costs if c.captured_gain is None or c.captured_gain >= FAITHFUL}
    rows = [row for name, listed in kinds.items() if name in faithful or not faithful for row in listed]
    longest = NEAR * min(row.step for row in rows)
    found = [row for row in rows if row.is_enough] or [row for row in rows if row.step <= longest]
    return min(found, key=lambda row: (row.workers, row.step))


def needed(costs: Costs, *, update_every: int, delay_steps: int = 0) -> Needed | None:
    """About how many workers are enough, by which D; None where no number is.

    Example:
        >>> needed(Costs(oracle="int8", step=1.0, draw=4.0, refresh=0.0), update_every=10)
        Needed(workers=4, delay_steps=4)
    """
    in_flight = min(MOST, math.ceil((costs.refresh + costs.draw + costs.carry) / costs.step))  # draws, at the most
    for delay in sorted({delay_steps, max(delay_steps, in_flight)}):
        workers = _fewest(costs, in_flight, update_every=update_every, delay_steps=delay)
        if workers is not None:
            return Needed(workers=workers, delay_steps=delay)
    return None


def _fewest(costs: Costs, most: int, **rule: int) -> int | None:
    """Workers that are enough, of so many at the most."""

    def is_enough(workers: int) -> bool:
        return planned(costs, workers, **rule).is_enough

    return 1 + bisect_left(range(1, most + 1), True, key=is_enough) if is_enough(most) else None


def bytes_of_a_draw(candidates: int, chunk: int) -> int:
    """What crosses for a draw that is scored, both ways."""
    there = Do(1, 1, 1, np.arange(candidates), np.full(candidates, 1 << 62))
    tree = {"targets": torch.zeros(candidates, dtype=torch.int64), "values": torch.zeros(candidates)}
    spans = [["oracle 0", "forward", 0.5, 0.5, {"draw": 1, "version": 1}]] * (SPANS * -(-candidates // chunk))
    back = Done(1, 1, 1, tree | {"log_probabilities": None}, {}, spans)
    return len(pickle.dumps(there)) + len(pickle.dumps(back))


def bytes_of_a_record(model: str, classes: int = 10) -> int:
    """The weights and statistics of a model."""
    return bytes_of(pixel_model(RunConfig(model=model), classes, 3))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was planned for, and what came of it."""

    gamma: int
    update_every: int
    delay_steps: int
    link_megabits: float
    draw_bytes: int
    record_bytes: int
    step: float
    kinds: dict[str, list[Planned]]
    recommended: Planned
    needed: Needed | None
    """Of the recommended kind, where nothing that was planned is enough."""


def check_plan(
    *, gamma: int, workers: Sequence[int], update_every: int, delay_steps: int, link_megabits: float
) -> None:
    """Refuse what nothing can be planned for: before minutes of measuring.

    Raises:
        ValueError: a setting that cannot be met.
    """
    for name, value in {"gamma": gamma, "update_every": update_every, "workers": min(workers, default=0)}.items():
        at_least(name, value, 1)
    at_least("delay_steps", delay_steps, 0)
    if not link_megabits > 0:
        raise ValueError(f"link_megabits must be positive: got {link_megabits}; pass --link-mbit 1000, say")


def plan_of(
    measured: Mapping[str, Any],
    *,
    gamma: int,
    workers: Sequence[int] = WORKERS,
    update_every: int = 100,
    delay_steps: int = 0,
    link_megabits: float = 1000.0,
) -> Plan:
    """A plan from what `infer2train gamma --json` writes.

    Args:
        measured: that, read.
        gamma: candidates for each trained example.
        workers: numbers of them to plan for.
        update_every: T.
        delay_steps: D.
        link_megabits: between trainer and oracles, each second.

    Raises:
        ValueError: a setting that cannot be met.
    """
    check_plan(
        gamma=gamma,
        workers=workers,
        update_every=update_every,
        delay_steps=delay_steps,
        link_megabits=link_megabits,
    )
    batch_size = measured["batch_size"]
    candidates, step = gamma * batch_size, batch_size / measured["training_images_per_second"]
    engines, rate = measured["engines"], link_megabits * MEGABIT
    draw_bytes = bytes_of_a_draw(candidates, min(engine["chunk"] for engine in engines))
    record_bytes = measured.get("record_bytes") or bytes_of_a_record(measured["model"])  # of older files
    costs = [
        Costs(
            oracle=engine["name"],
            step=step,
            draw=candidates * (1 / engine["images_per_second"] + 1 / measured["views_per_second"]),
            refresh=engine["refresh_seconds"] + record_bytes / rate,
            carry=draw_bytes / rate,
            captured_gain=engine["captured_gain"],
        )
        for engine in engines
    ]
    kinds = {
        kind.oracle: [planned(kind, n, update_every=update_every, delay_steps=delay_steps) for n in workers]
        for kind in costs
    }
    found = recommended(kinds, costs)
    kind = next(kind for kind in costs if kind.oracle == found.oracle)
    return Plan(
        gamma=gamma,
        update_every=update_every,
        delay_steps=delay_steps,
        link_megabits=link_megabits,
        draw_bytes=draw_bytes,
        record_bytes=record_bytes,
        step=step,
        kinds=kinds,
        recommended=found,
        needed=None if found.is_enough else needed(kind, update_every=update_every, delay_steps=delay_steps),
    )


def read_measured(file: Path) -> dict[str, Any]:
    """What `infer2train gamma --json` wrote.

    Raises:
        ValueError: the file is none of it.
    """
    try:
        measured: Any = json.loads(file.read_text(encoding="utf-8", errors="replace"))
    except json.JSONDecodeError:
        measured = None
    lacking = _lacking(measured)
    if lacking:
        found = "that is no JSON" if measured is None else f"without {', '.join(lacking)}"
        raise ValueError(
            f"a plan is made from what gamma measured: got {file} {found}; write it with gamma --json {file}"
        )
    return dict(measured)


def _lacking(measured: Any) -> list[str]:
    """What a plan is made from, and is not there, or 0."""
    told = measured if isinstance(measured, dict) else {}
    of_engines = {name for engine in told.get("engines") or () for name in FIELDS_OF_AN_ENGINE if name not in engine}
    return [*(name for name in FIELDS if not told.get(name)), *sorted(of_engines)]


def print_plan(plan: Plan, console: Console) -> None:
    """The table, and what to do."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("oracle", "workers", "step", "× alone", ""):
        table.add_column(heading, justify="left" if heading == "oracle" else "right", no_wrap=True)
    for rows in plan.kinds.values():
        for row in rows:
            mark = "enough" if row == enough(rows) else ""
            table.add_row(row.oracle, str(row.workers), f"{row.step * 1e3:.0f} ms", f"{row.ratio:.2f}", mark)
    console.print(
        f"γ = {plan.gamma}, T = {plan.update_every}, D = {plan.delay_steps}; a step alone takes "
        f"{plan.step * 1e3:.0f} ms; {plan.draw_bytes / 1024:.0f} KB a draw, there and back, and "
        f"{plan.record_bytes / 1024:.0f} KB a record, at {plan.link_megabits:g} Mbit/s",
        highlight=False,
        soft_wrap=True,
    )
    console.print(table)
    for line in _advice(plan):
        console.print(line, highlight=False, soft_wrap=True)


def _advice(plan: Plan) -> Iterator[str]:
    found, needed = plan.recommended, plan.needed
    if not found.is_enough and needed is None:
        yield f"none of these is enough, and {MOST} workers would not be either: lower --gamma or raise --update-every"
    elif not found.is_enough and needed is not None:
        more = "" if needed.delay_steps == plan.delay_steps else f", with --delay-steps {needed.delay_steps}"
        yield f"none of these is enough: about {needed.workers} workers of {found.oracle} would be{more}"
    yield (
        f"{'recommended' if found.is_enough else 'the best of these'}: --oracle {found.oracle} --gamma {plan.gamma} "
        f"--update-every {plan.update_every} --delay-steps {plan.delay_steps} --pool process --oracle-workers "
        f"{found.workers} --queue-depth {found.queue_depth} (--pool ray on other machines); a step is predicted to "
        f"take {found.step * 1e3:.0f} ms, {found.ratio:.2f} × one without an oracle"
    )
