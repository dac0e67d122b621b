"""Numbers as people read them, and the comparison as a table for the terminal.

The report's HTML uses the same words, so the two never disagree. Errors come in as fractions and are shown in per cent;
differences in percentage points.
"""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from infer2train.reporting.statistics import MOST_SEEDS, PairedDifference, Verdict
from infer2train.reporting.summary import MethodSummary

ABSENT = "–"
_STYLES = {Verdict.HELPS: "green", Verdict.HURTS: "red", Verdict.INCONCLUSIVE: "yellow"}


def percent(value: float | None, decimals: int = 2) -> str:
    """A fraction in per cent, without the sign.

    Example:
        >>> percent(0.0693), percent(None)
        ('6.93', '–')
    """
    return ABSENT if value is None else f"{100 * value:.{decimals}f}"


def error(summary: MethodSummary) -> str:
    """Mean ± deviation of the test error in per cent."""
    return percent(summary.mean) + (f" ± {percent(summary.std)}" if summary.std is not None else "")


def points(value: float) -> str:
    """A difference of fractions in percentage points, always signed.

    Example:
        >>> points(-0.0062)
        '-0.62'
    """
    return f"{100 * value:+.2f}"


def difference(found: PairedDifference | None) -> str:
    """Mean and interval in percentage points: -0.62 [-0.81, -0.43]."""
    if found is None:
        return ABSENT
    if found.low is None or found.high is None:
        return points(found.mean)
    return f"{points(found.mean)} [{points(found.low)}, {points(found.high)}]"


def outlook(found: PairedDifference) -> str:
    """What more seeds would do for an inconclusive difference; empty for a settled one."""
    if found.verdict is not Verdict.INCONCLUSIVE:
        return ""
    if found.n == 1:
        return "needs ≥ 2 seeds"
    return f"needs > {MOST_SEEDS} seeds" if found.seeds_needed is None else f"needs ~{found.seeds_needed} seeds"


def duration(seconds: float | None) -> str:
    """Wall-clock in the two units that matter.

    Example:
        >>> duration(9.31), duration(372.0), duration(4320.0)
        ('9.3 s', '6 min 12 s', '1 h 12 min')
    """
    if seconds is None:
        return ABSENT
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 10:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def share(value: float | None) -> str:
    """A share in whole per cent."""
    return ABSENT if value is None else f"{100 * value:.0f} %"


def grouped(value: int) -> str:
    """A large number in groups of three digits."""
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def setting(value: Any) -> str:
    """A configured value as it stands in YAML; a dash for none."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(setting, value)) if isinstance(value, list | tuple) else str(value)


def comparison_table(summaries: Sequence[MethodSummary], error_name: str = "test error") -> Table:
    """The comparison over n paired seeds, for a terminal of 80 columns or more; long verdicts wrap, long names fold.

    Args:
        summaries: as `summarise` gives them.
        error_name: what their errors are called.

    Returns:
        A table to print with rich.
    """
    table = Table(box=SIMPLE_HEAD, padding=(0, 0), show_edge=False)
    table.add_column("Method", overflow="fold", min_width=15)
    table.add_column("n", justify="right")
    table.add_column(f"{error_name.capitalize()} %", justify="right", min_width=len("10.00 ± 10.00"))
    table.add_column("Difference [95 %]", justify="right", no_wrap=True)
    table.add_column("Verdict", min_width=12)
    table.add_column("Wall", justify="right")
    table.add_column("Scored", justify="right")
    for summary in summaries:
        table.add_row(
            Text(summary.method),
            seeds(summary),
            error(summary),
            Text(difference(summary.difference)),  # not markup: the interval stands in brackets
            _verdict_cell(summary.difference),
            duration(summary.seconds),
            share(summary.scoring_share),
        )
    return table


def seeds(summary: MethodSummary) -> str:
    """How many seeds have finished, of how many while some have not."""
    done = len(summary.test_errors)
    return f"{done}/{done + len(summary.unfinished)}" if summary.unfinished else str(done)


def _verdict_cell(found: PairedDifference | None) -> Text:
    """The verdict in its colour, and below it what more seeds would do."""
    if found is None:
        return Text(ABSENT)
    cell = Text(found.verdict.value, style=_STYLES[found.verdict])
    return cell.append(f"\n{outlook(found)}", style="default") if outlook(found) else cell
