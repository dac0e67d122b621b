"""What is measured while mining: running totals, and windows on them as plain floats.

Totals only grow; whoever reads keeps a mark and asks for what came since. So the progress line, the log and the user's
own print do not disturb one another.
"""

from collections import Counter
from collections.abc import Callable, Mapping

from infer2train.observe.timeline import ORACLE_SPANS, TRAINER_SPANS

Totals = dict[str, float]

SECONDS = ("waiting", "views", "scoring", "publishing")
"""Time of the training process: in the loader altogether, and of that for candidates' views, scores, new weights."""
LANES = (
    *("trainer_scores", "trainer_views", "trainer_train", "trainer_publish"),
    *("oracle_views", "oracle_forward", "oracle_refresh", "oracle_available"),
)
"""Time of the trainer and of all oracles, by what it went into; what an oracle was available and idle is left."""

BEFALLEN = ("skipped_draws", "skipped_steps", "outgrown_versions", "oracle_lost_draws", "worker_restarts")
"""Counts of what is not as it should be, left out where there was nothing."""

LOGGED = (
    *("lag", "mined_share", "score_mean", "score_chosen", "nonfinite_scores", "duplicates", "scoring_share"),
    *("largest_class_share", "its_candidates_share"),
    *BEFALLEN,
    *("waiting_share", "oracle_busy"),
    *(f"{name}_seconds" for name in LANES),
    *("captured_gain", "same_view", "rank_correlation", "deviation", "recalibrations", "fp32_versions"),
    "int8_share",
)
"""What of a metrics window goes into each step row; what was not measured in it is left out."""
OF_MINED = ("lag", "score_mean", "score_chosen")
"""Means over what was mined, which a window without that has none of."""
FIDELITY = ("captured_gain", "same_view", "rank_correlation")
"""Of an oracle that rounds, against its own weights in float32: means over the refreshes of a window."""


class Meter:
    """Running totals under a name each."""

    def __init__(self) -> None:
        self._totals: Counter[str] = Counter()

    def add(self, **amounts: float) -> None:
        """Add to totals."""
        for name, amount in amounts.items():
            self._totals[name] += amount  # type: ignore[assignment]  # a Counter's numbers are whole to mypy

    def totals(self, **others: float) -> Totals:
        """A mark: today's totals, joined with totals that are kept elsewhere."""
        return {**self._totals, **others}


def window(now: Totals, mark: Totals) -> dict[str, float]:
    """What came between two marks.

    Returns:
        `draws`, `mined_draws`, `nonfinite_scores`, `duplicates`: counts; `lag` (steps), `mined_share` (of the trained
        examples), `score_mean` and `score_chosen` (of all finite candidates, of the mined): means; `*_seconds`: time of
        the training process; `scoring_share`: of the wall-clock, in views of candidates, scoring and publishing.
        `trainer_*_seconds` and `oracle_*_seconds` of all that trainer and oracles did at all, see
        `observe.timeline`. Where oracles have processes of their own, also `oracle_busy`, the share of their time in
        which they had something to do, and `waiting_share`, the part of the trainer's that it waited for scores.
        `skipped_draws`, `skipped_steps`, `oracle_lost_draws` and `worker_restarts` where there were any, and
        `outgrown_versions`, published while the model's outputs depended on something that no oracle sees change.
        Where samples with class labels are mined, `largest_class_share`: of the class that has most of a draw's picks
        its share of them, and `its_candidates_share`, of the candidates.
        Where an oracle that rounds was refreshed, also `refreshes`, `recalibrations` and `fp32_versions` (versions
        whose program failed its check), `deviation` (mean over refreshes, output quantisation steps), `int8_share` (of
        the model's multiply-adds, made in integers, mean over refreshes) and the means of `captured_gain`, `same_view`
        and `rank_correlation`, see `infer2train.oracle.fidelity.Fidelity`.
    """
    new = {name: float(value - mark.get(name, 0.0)) for name, value in now.items()}

    def ratio(part: str, whole: str) -> float:
        return new.get(part, 0.0) / new[whole] if new.get(whole) else 0.0

    seconds = {f"{name}_seconds": new.get(f"{name}_seconds", 0.0) for name in SECONDS}
    mining = seconds["views_seconds"] + seconds["scoring_seconds"] + seconds["publishing_seconds"]
    return {
        "draws": new.get("draws", 0.0),
        "mined_draws": new.get("mined_draws", 0.0),
        "lag": ratio("lag_sum", "mined_draws"),
        "mined_share": ratio("mined_examples", "examples"),
        "score_mean": ratio("score_sum", "scored"),
        "score_chosen": ratio("chosen_sum", "chosen"),
        "nonfinite_scores": new.get("nonfinite_scores", 0.0),
        "duplicates": new.get("duplicates", 0.0),
        **_classes(new, ratio),
        **_refreshes(new, ratio),
        **seconds,
        **_lanes(new),
        "seconds": new.get("seconds", 0.0),
        "scoring_share": mining / new["seconds"] if new.get("seconds") else 0.0,
    }


def _lanes(new: Mapping[str, float]) -> dict[str, float]:
    """What trainer and oracles did, and what befell the oracles' processes."""
    figures = {name: new[name] for name in BEFALLEN if new.get(name)}
    figures |= {f"{name}_seconds": new[f"{name}_seconds"] for name in LANES if f"{name}_seconds" in new}
    if available := new.get("oracle_available_seconds"):
        spent = sum(new.get(f"oracle_{name}_seconds", 0.0) for name in ORACLE_SPANS)
        trainer = sum(new.get(f"trainer_{name}_seconds", 0.0) for name in TRAINER_SPANS)
        figures["oracle_busy"] = min(1.0, spent / available)
        figures["waiting_share"] = new.get("trainer_scores_seconds", 0.0) / trainer if trainer else 0.0
    return figures


def _classes(new: Mapping[str, float], ratio: Callable[[str, str], float]) -> dict[str, float]:
    """What of a draw's picks is of one class, where samples with classes were mined."""
    if not new.get("class_picks"):
        return {}
    return {
        "largest_class_share": ratio("class_picked", "class_picks"),
        "its_candidates_share": ratio("class_there", "class_all"),
    }


def _refreshes(new: Mapping[str, float], ratio: Callable[[str, str], float]) -> dict[str, float]:
    """What happened at refreshes, where there were any."""
    figures: dict[str, float] = {}
    if new.get("refreshes"):
        figures |= {name: new[name] for name in ("refreshes", "recalibrations", "fp32_versions")}
        figures["deviation"] = ratio("deviation_sum", "refreshes")
        if "int8_share_sum" in new:
            figures["int8_share"] = ratio("int8_share_sum", "refreshes")
    if new.get("fidelity_count"):
        figures |= {name: ratio(f"{name}_sum", "fidelity_count") for name in FIDELITY}
    return figures


def draws_per_second(measured: Mapping[str, float]) -> float:
    """Draws per second of wall-clock in a metrics window."""
    return measured["draws"] / measured["seconds"] if measured["seconds"] else 0.0


def scalars(values: Mapping[str, object]) -> dict[str, float]:
    """The numbers among the values of a row, for a log that takes nothing else."""
    return {k: float(v) for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
