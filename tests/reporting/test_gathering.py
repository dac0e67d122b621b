"""Any runs compared: which are of one setting, what it is called, which differences may be told, where the page is."""

import shutil
from pathlib import Path

import pytest
import yaml
from run_folders import START, step_rows, write_comparison, write_rows, write_run
from test_report import Page

from infer2train.cli.main import main
from infer2train.reporting.curves import elapsed, error_over_seconds
from infer2train.reporting.gathering import gather
from infer2train.reporting.report import write_report
from infer2train.reporting.runs import read_run
from infer2train.reporting.sections import settings, unpaired
from infer2train.reporting.summary import summaries
from infer2train.settings import as_plain
from infer2train.training.config import RunConfig


def written(
    folder: Path, method: str = "nm-augment", seed: int = 0, *, done: int | None = None, **changes: object
) -> Path:
    """A short run with some settings of its own."""
    write_run(folder, method, seed, epochs=4, done=done)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, **changes}, sort_keys=False))
    return folder


def test_runs_of_one_setting_are_its_seeds(tmp_path: Path) -> None:
    folders = [
        written(tmp_path / f"{method}-{seed}", method, seed) for seed in (0, 1) for method in ("nm-augment", "baseline")
    ]
    found = gather(folders)
    assert found.methods == ("baseline", "nm-augment"), "the baseline first, wherever it was named"
    assert (found.baseline, found.seeds, len(found.runs)) == ("baseline", (0, 1), 4)
    assert gather([*folders, *folders]) == found, "what is named twice counts once"
    line = summaries(found)[1]
    assert line.difference is not None
    assert line.difference.n == 2


def test_settings_are_called_by_what_tells_them_apart(tmp_path: Path) -> None:
    few = [written(tmp_path / f"few{seed}", seed=seed, gamma=4) for seed in (0, 1)]
    many = written(tmp_path / "many", gamma=40, data_cache="/elsewhere")
    assert gather([*few, many]).methods == ("nm-augment, gamma 4", "nm-augment, gamma 40")
    other = written(tmp_path / "other", gamma=7, lr=0.5, model="resnet8")
    assert gather([*few, other]).methods == ("nm-augment, few", "nm-augment, other")
    assert settings(gather([*few, other]))["differing"] == ["gamma", "model", "lr"]


def test_a_run_of_an_earlier_release_has_the_defaults_of_what_it_did_not_write_down(tmp_path: Path) -> None:
    folders = [written(tmp_path / "old"), written(tmp_path / "new", seed=1, audit="sampled")]
    defaults = {"audit": "sampled", "gamma": 1}
    assert len(gather(folders).methods) == 2
    assert gather(folders, defaults=defaults).methods == ("nm-augment",)
    other = gather([*folders, written(tmp_path / "other", audit="off")], defaults=defaults)
    assert other.methods == ("nm-augment, audit sampled", "nm-augment, audit off")


def test_a_run_that_was_repeated_is_no_second_seed(tmp_path: Path) -> None:
    found = gather([written(tmp_path / name) for name in ("once", "again")])
    assert found.methods == ("nm-augment, once", "nm-augment, again")
    assert all(len(found.of(name)) == 1 for name in found.methods)


def test_folders_of_one_name_stay_apart(tmp_path: Path) -> None:
    found = gather([written(tmp_path / place / "run") for place in ("a", "b")])
    assert found.methods == ("nm-augment, run", "nm-augment, run (2)")


def test_a_comparison_and_a_run_are_compared(tmp_path: Path) -> None:
    planned = write_comparison(tmp_path / "planned", ["baseline", "nm-augment"], [0, 1], epochs=4)
    more = written(tmp_path / "more", gamma=3)
    found = gather([planned, more, planned / "baseline-seed0"])
    assert found.methods == ("baseline", "nm-augment, gamma 10", "nm-augment, gamma 3")
    assert [line.difference.n for line in summaries(found)[1:] if line.difference] == [2, 1]
    assert gather([planned]).methods == ("baseline", "nm-augment"), "one folder is what it was"
    assert gather([planned, more], baseline=more).baseline == "nm-augment, gamma 3"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seed": 3}, "no seed in common with baseline"),
        ({"data": "digits"}, "errors of other data than those of baseline"),
        ({"validation_split": 50}, "errors of other data than those of baseline"),
        ({"done": 2}, "no seed finished yet by both this setting and baseline"),
    ],
)
def test_no_difference_is_told_where_runs_do_not_pair(tmp_path: Path, changes: dict, reason: str) -> None:
    found = gather([written(tmp_path / "baseline", "baseline"), written(tmp_path / "other", **changes)])
    assert summaries(found)[1].difference is None
    assert unpaired(found, "nm-augment") == reason


def test_the_page_says_what_pairs_and_what_is_unfinished(tmp_path: Path) -> None:
    long = write_run(tmp_path / "long", "baseline", 0, epochs=6)
    others = [written(tmp_path / "seven", seed=7), written(tmp_path / "half", "nm-sample", done=3)]
    page = Page(write_report(written(tmp_path / "short", "baseline"), long, *others))
    for said in (
        "3 of 4 runs finished",
        "baseline, epochs 6 ? INCONCLUSIVE",
        "1 paired seed: no interval",
        "No seed in common with baseline, epochs 4",
        "No seed finished yet by both this setting and baseline, epochs 4",
        "not finished: 3 of 4 epochs",
        "without a result yet, and left out of every mean: nm-sample seed 0",
        "the length of the training among them",
        "Test error over the wall-clock",
    ):
        assert said in page.text
    shown = next(svg["aria-label"] for svg in page.of("svg") if "over steps" in svg.get("aria-label", ""))
    assert all(name in shown for name in ("epochs 4", "epochs 6", "nm-augment", "nm-sample")), "also what does not pair"


def test_a_loop_of_ones_own_stands_beside_a_training(tmp_path: Path) -> None:
    import numpy as np

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name, [START, *step_rows("nm-augment", np.random.default_rng(0), 1)])
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump({"method": "nm-augment", "gamma": 10, "seed": 0}))
    found = gather([tmp_path / "one", tmp_path / "two", written(tmp_path / "train")])
    assert found.methods == ("nm-augment, one", "nm-augment, two", "nm-augment, train"), "who knows what they trained"
    assert settings(found)["differing"] == [], "what it did not write down is not known to differ"


def test_time_is_that_of_the_epochs_that_all_seeds_have(tmp_path: Path) -> None:
    runs = [read_run(written(tmp_path / "a", "baseline")), read_run(written(tmp_path / "b", "baseline", 1, done=3))]
    assert elapsed(runs[0]) == {0: 62.0, 1: 124.0, 2: 186.0, 3: 248.0}
    curve = error_over_seconds(runs)
    assert curve.x.tolist() == [62.0, 124.0, 186.0]
    assert curve.mean[0] == pytest.approx(sum(run.epochs[0]["test_error"] for run in runs) / 2)


def test_the_page_takes_no_report_of_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [written(tmp_path / name, seed=seed) for seed, name in enumerate(("a", "b"))]
    for folder in folders:
        (folder / "report.html").write_text("its own")
    page = write_report(*folders, defaults=as_plain(RunConfig()))
    assert page == tmp_path / "comparison.html"
    assert {(folder / "report.html").read_text() for folder in folders} == {"its own"}
    out = tmp_path / "pages" / "mine.html"
    assert main(["report", *map(str, folders), "--out", str(out), "--baseline", str(folders[1])]) == 0
    assert capsys.readouterr().out == f"report: {out}\n"
    assert out.read_bytes() == page.read_bytes(), "both seeds are of one setting"
    shutil.rmtree(folders[1])
    with pytest.raises(ValueError, match=f"got {folders[1]}; give the folder of a run"):
        write_report(*folders)


def test_a_baseline_is_one_of_those_compared(tmp_path: Path) -> None:
    run, other = written(tmp_path / "run"), tmp_path / "other"
    for folders in ([run], [run, written(tmp_path / "second", seed=1)]):
        with pytest.raises(ValueError, match=f"got {other} for .* name its folder among them"):
            write_report(*folders, baseline=other)
