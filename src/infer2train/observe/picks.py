"""What was picked: one row for each sample that the oracle's scores decided about, in Parquet, bounded in size.

The loader hands over each draw that was scored; a row has an address, so that whoever reads it can make the view again.
Where a view of a sample was picked, its rivals are the sample's other views, which have rows of their own in the first
slots of a draw; where samples were picked, they are the candidates of the draw that were not, and all have rows. When
there are too many rows, every second draw is left out, of those there are and of those to come: what is kept is spread
over the whole run.
"""

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Int64

from infer2train.draws.draw import Draw

if TYPE_CHECKING:
    import pyarrow as pa

PICKS = "picks"
"""Folder of the parts, in the run's."""
PART_ROWS = 50_000
"""Rows that are held before they are written."""
MOST_ROWS = 1_000_000
"""Rows of a run: less than 30 bytes each on the disk."""
WHOLE_SLOTS = 2
"""Slots of a draw whose views all have a row."""
STRIDE = b"infer2train.stride"
COLUMNS = {
    "step": "int32",
    "draw": "int32",
    "epoch": "int32",
    "slot": "int32",
    "id": "int64",
    "seed": "int64",
    "score": "float32",
    "rival_median": "float32",
    "rival_max": "float32",
    "is_trained": "bool",
    "is_picked": "bool",
    "version": "int32",
}
"""Name -> type. `slot` is the place in the batch, or among the candidates where samples are picked; the rivals' scores
are NaN where there are none; `is_trained`: trained on, `is_picked`: for its score; `step - version` is the lag."""

Rows = dict[str, np.ndarray]


class PickLog:
    """Appends rows to the folder of a run. One process writes; any may read.

    Args:
        folder: of the run.
        is_of_views: whether a view of each sample is picked, and not samples.
        draws: handed out so far: rows of later ones are of a run that was broken off, and are taken back.
        keeps_all: keep the rows of every draw, however many there are.
    """

    def __init__(self, folder: Path, *, is_of_views: bool, draws: int, keeps_all: bool = False) -> None:
        self._folder = folder / PICKS
        self._is_of_views, self._keeps_all = is_of_views, keeps_all
        self._held: list[Rows] = []
        self._held_rows, self._written_rows, self._stride, self._parts = 0, 0, 1, 0
        self._take_back(draws)

    def add(self, draw: Draw) -> None:
        """Take note of a draw that was handed out."""
        if draw.scores is None or draw.chosen is None or draw.number % self._stride:
            return
        rows = rows_of(draw, self._is_of_views)
        self._held.append(rows)
        self._held_rows += len(rows["id"])
        if self._held_rows >= PART_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        if not self._held:
            return
        table = {name: np.concatenate([rows[name] for rows in self._held]) for name in COLUMNS}
        self._write(self._folder / f"part-{self._parts:05d}.parquet", table)
        self._parts += 1
        self._written_rows += self._held_rows
        self._held, self._held_rows = [], 0
        while not self._keeps_all and self._written_rows > MOST_ROWS:
            self._stride *= 2
            self._rewrite(lambda rows: rows["draw"] % self._stride == 0)

    def _take_back(self, draws: int) -> None:
        if self._folder.is_dir():
            parts = [part for part in sorted(self._folder.glob("part-*.parquet")) if _is_whole(part)]
            self._stride = max((_stride_of(part) for part in parts), default=1)
            self._parts = 1 + max((int(part.stem.rpartition("-")[2]) for part in parts), default=-1)
            self._rewrite(lambda rows: (rows["draw"] < draws) & (rows["draw"] % self._stride == 0))

    def _rewrite(self, keeps: Any) -> None:
        """Leave rows out of every part that holds some of them."""
        self._written_rows = 0
        for part in sorted(self._folder.glob("part-*.parquet")):
            rows = _read(part)
            kept = keeps(rows)
            if not kept.any():
                part.unlink()
            elif not kept.all() or _stride_of(part) != self._stride:
                self._write(part, {name: column[kept] for name, column in rows.items()})
            self._written_rows += int(kept.sum())

    def _write(self, part: Path, rows: Rows) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._folder.mkdir(parents=True, exist_ok=True)
        schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in COLUMNS.items()])
        table = pa.table(rows, schema=schema.with_metadata({STRIDE: str(self._stride).encode()}))
        partial = part.with_suffix(".partial")
        pq.write_table(table, partial, compression="zstd")
        partial.replace(part)


def _is_whole(part: Path) -> bool:
    """Whether a part can be read; one that cannot is moved aside, since it is no reason not to go on."""
    import pyarrow as pa

    try:
        _read(part), _stride_of(part)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        aside = part.replace(part.with_suffix(".damaged"))
        reason = " ".join(str(error).split())[:120]
        warnings.warn(
            f"what was picked must be in whole Parquet files: {part} is not ({reason}), and is {aside.name} now; its "
            "rows are lost to inspect, the run goes on as if they were there",
            RuntimeWarning,
        )
        return False
    return True


def rows_of(draw: Draw, is_of_views: bool) -> Rows:
    """The rows of one scored draw.

    Args:
        draw: with `scores` and `chosen`.
        is_of_views: whether its candidates are views of each slot's sample.
    """
    assert draw.scores is not None
    assert draw.chosen is not None
    scores = draw.scores.detach().float().cpu().numpy()
    mined = np.ones(len(draw.chosen), dtype=bool) if draw.mined is None else draw.mined
    places, found = (_of_views if is_of_views else _of_samples)(draw.chosen, scores)
    is_trained, is_picked = np.zeros((2, len(scores)), dtype=bool)
    is_trained[draw.chosen], is_picked[draw.chosen[mined]] = True, True
    rows: dict[str, Any] = {
        "step": draw.step,
        "draw": draw.number,
        "epoch": draw.epoch,
        "version": -1 if draw.version is None else draw.version,
        "id": draw.candidates.ids[places],
        "seed": draw.candidates.seeds[places],
        "score": scores[places],
        "is_trained": is_trained[places],
        "is_picked": is_picked[places],
        **found,
    }
    return {name: np.array(np.broadcast_to(rows[name], len(places)), dtype=kind) for name, kind in COLUMNS.items()}


Found = tuple[Int64[np.ndarray, " r"], dict[str, Any]]
"""Which candidates have a row, and the columns that depend on who their rivals are."""


def _of_views(chosen: Int64[np.ndarray, " b"], scores: Float32[np.ndarray, " n"]) -> Found:
    table, slots = scores.reshape(len(chosen), -1), np.arange(len(chosen))
    is_rival = np.ones(table.shape, dtype=bool)
    is_rival[slots, chosen % table.shape[1]] = False
    rivals = table[is_rival].reshape(len(slots), -1)
    others = np.flatnonzero(is_rival[:WHOLE_SLOTS])
    nothing = np.full(len(others), np.nan)
    medians, most = np.array([_middle_and_most(row) for row in rivals]).reshape(-1, 2).T
    return np.concatenate([chosen, others]), {
        "slot": np.concatenate([slots, others // table.shape[1]]),
        "rival_median": np.concatenate([medians, nothing]),
        "rival_max": np.concatenate([most, nothing]),
    }


def _of_samples(chosen: Int64[np.ndarray, " b"], scores: Float32[np.ndarray, " n"]) -> Found:
    median, most = _middle_and_most(np.delete(scores, chosen))
    every = np.arange(len(scores))
    return every, {"slot": every, "rival_median": median, "rival_max": most}


def _middle_and_most(scores: Float32[np.ndarray, " n"]) -> tuple[float, float]:
    """Of those that are finite; NaN where none is."""
    finite = scores[np.isfinite(scores)]
    return (float(np.median(finite)), float(finite.max())) if len(finite) else (math.nan, math.nan)


def read_picks(folder: Path) -> Rows:
    """All rows of a run, in the order of its draws; columns as in `COLUMNS`.

    Raises:
        ValueError: the run wrote none.
    """
    parts = sorted((folder / PICKS).glob("part-*.parquet"))
    if not parts:
        raise ValueError(
            f"what was picked stands in {PICKS}/ of a run's folder: got {folder} without it; train with a method that "
            "picks by scores and without --audit off, or pass log_dir= to mine()"
        )
    read = [_read(part) for part in parts]
    stride = max(_stride_of(part) for part in parts)
    rows = {name: np.concatenate([part[name] for part in read]) for name in COLUMNS}
    place = rows["draw"].astype(np.int64) * (int(rows["slot"].max(initial=0)) + 1) + rows["slot"]
    if stride == 1 and (place[1:] >= place[:-1]).all():
        return rows  # as one rank leaves them, and they may be millions
    order = np.argsort(place, kind="stable")
    order = order[rows["draw"][order] % stride == 0]
    return {name: column[order] for name, column in rows.items()}


def _read(part: Path) -> Rows:
    import pyarrow.parquet as pq

    table: pa.Table = pq.read_table(part)
    return {name: table[name].to_numpy() for name in COLUMNS}


def _stride_of(part: Path) -> int:
    import pyarrow.parquet as pq

    return int((pq.read_schema(part).metadata or {}).get(STRIDE, b"1"))
