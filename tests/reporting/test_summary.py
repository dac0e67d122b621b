import io
import re
import shutil

import numpy as np
import pytest
from rich.console import Console
from run_folders import FINAL_ERRORS, write_comparison, write_run

from infer2train.reporting.statistics import Verdict, paired_difference
from infer2train.reporting.summary import MethodSummary, summarise
from infer2train.reporting.tables import comparison_table, difference, duration, outlook


def test_methods_are_compared_seed_by_seed_with_the_baseline(comparison_folder):
    baseline, *others = summarise(comparison_folder)
    assert baseline.method == "baseline"
    assert baseline.difference is None
    assert [line.method for line in others] == list(FINAL_ERRORS)[1:]
    for line in others:
        expected = np.subtract(list(line.test_errors.values()), list(baseline.test_errors.values()))
        assert line.difference.mean == pytest.approx(expected.mean())
        assert line.difference.std == pytest.approx(expected.std(ddof=1))  # so it is paired, not two means
        assert line.mean == pytest.approx(np.mean(list(line.test_errors.values())))
    verdicts = {line.method: line.difference.verdict for line in others}
    assert (verdicts["nm-augment"], verdicts["nm-sample"]) == (Verdict.HELPS, Verdict.HURTS)


def test_cost_is_that_of_one_run(comparison_folder):
    baseline, mined, *_ = summarise(comparison_folder)
    assert baseline.seconds == pytest.approx(18 * 62.0)
    assert mined.seconds == pytest.approx(18 * 93.0)
    assert baseline.scoring_share == 0.0
    assert mined.scoring_share == pytest.approx((31.0 + 4.0 + 0.3) / 93.0)


@pytest.mark.parametrize("method", ["baseline", "nm-augment"])
def test_unfinished_runs_count_for_nothing(tmp_path, method):
    folder = write_comparison(tmp_path / "half", ["baseline", "nm-augment"], [0, 1], epochs=5)
    shutil.rmtree(folder / f"{method}-seed1")
    write_run(folder / f"{method}-seed1", method, 1, epochs=5, done=3)
    baseline, mined = summarise(folder)
    half, whole = (baseline, mined) if method == "baseline" else (mined, baseline)
    assert (list(whole.test_errors), list(half.test_errors), half.unfinished) == ([0, 1], [0], (1,))
    assert (mined.difference.n, mined.difference.verdict) == (1, Verdict.INCONCLUSIVE)
    assert mined.difference.mean == pytest.approx(mined.test_errors[0] - baseline.test_errors[0])


def test_a_single_run_is_one_line_without_a_difference(run_folder):
    (line,) = summarise(run_folder)
    assert (line.method, list(line.test_errors), line.std, line.difference) == ("nm-augment", [0], None, None)


def wide_summary(method="nm-augment-soft"):
    found = paired_difference([0.14, 0.3, 0.1], [0.2, 0.21, 0.22])
    return MethodSummary(method, {0: 0.14, 1: 0.3, 2: 0.1}, 0.7341, 0.1212, found, 35_940.0, 0.33, (3,))


@pytest.mark.parametrize("method", ["nm-augment-soft", "a-method-of-somebody-with-a-very-long-name", "[red]x[/red]"])
def test_the_table_fits_100_columns_and_loses_no_number(method):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(comparison_table([wide_summary(method)]))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    for part in ("73.41 ± 12.12", "3/4", difference(wide_summary().difference), "INCONCLUSIVE", "9 h 59 min", "33 %"):
        assert part in text
    assert method[:10] in text


def test_the_table_says_what_the_errors_are_of():
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(comparison_table([wide_summary()], "validation error"))
    text = console.export_text(clear=False)
    assert re.search(r"Validation +", text)
    assert "73.41 ± 12.12" in text
    assert "Test error" not in text


def test_an_inconclusive_difference_says_how_many_seeds_it_needs():
    found = wide_summary().difference
    assert outlook(found) == f"needs ~{found.seeds_needed} seeds"
    assert outlook(paired_difference([0.1], [0.2])) == "needs ≥ 2 seeds"
    assert outlook(paired_difference([0.1, 0.2], [0.2, 0.1])) == "needs > 1000 seeds"
    assert outlook(paired_difference([0.1, 0.12], [0.9, 0.91])) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (599.6, "10 min"),
        (659.0, "11 min"),
        (3599.0, "1 h 0 min"),
        (3599.6, "1 h 0 min"),
        (None, "–"),
    ],
)
def test_durations_carry_over(seconds, text):
    assert duration(seconds) == text
