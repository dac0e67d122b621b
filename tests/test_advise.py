"""What is advised follows from what was measured: every entry from a page, the nearest first, and no more than that."""

import json
import math
from pathlib import Path

import pytest

from infer2train.cli.main import main
from infer2train.draws.methods.table import METHODS
from infer2train.observe.runlog import write_config
from infer2train.reporting.evidence import Evidence, Fitted, distance, evidence, nearest
from infer2train.settings import as_plain
from infer2train.studies.advise import COSTS, EVEN, advice, read_baseline, rule_of_labels, rule_of_views
from infer2train.training.config import RunConfig

REPOSITORY = Path(__file__).resolve().parents[1]


def entry(method: str = "nm-augment", view_error: float = 4.0, difference: float = -1.0, **more: object) -> Evidence:
    bounds = {"low": difference - 0.5, "high": difference + 0.5, "seeds": 5, "page": "", "trained": ""}
    return Evidence(method=method, view_error=view_error, difference=difference, **{**bounds, **more})  # type: ignore[arg-type]


def folder_of(path: Path, rows: list[dict[str, object]], **settings: object) -> Path:
    path.mkdir()
    write_config(path, as_plain(RunConfig(epochs=10, **settings)))  # type: ignore[arg-type]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_entry_is_of_a_method_and_a_page_that_has_its_figure() -> None:
    for found in evidence():
        assert found.method in METHODS
        assert found.low <= found.difference <= found.high
        page = (REPOSITORY / found.page).read_text(encoding="utf-8").replace("−", "-")
        assert f"{found.difference:+.2f}" in page, found
        assert found.on_equal_hardware is None or f"{found.on_equal_hardware:+.2f}" in page, found


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(-2, -0.1, "helps"), (0.1, 2, "hurts"), (-1, 1, "no difference seen")]
)
def test_a_verdict_is_what_the_interval_says(low: float, high: float, verdict: str) -> None:
    assert entry(low=low, high=high).verdict == verdict


def test_the_nearest_by_the_error_on_training_views_is_looked_up() -> None:
    near, far, other = entry(view_error=4.0), entry(view_error=40.0, difference=2.0), entry("rho", 400.0, -3.0)
    found = nearest(Fitted(view_error=5.0, label_noise=0.0), [far, near, other])
    assert [measured for measured, _ in found] == [other, near], "the most helpful first, one for each method"
    assert [away for _, away in found] == pytest.approx([80.0, 1.25])


def test_noisy_labels_are_compared_with_noisy_ones() -> None:
    clean, noisy = Fitted(view_error=4.0, label_noise=0.0), Fitted(view_error=4.0, label_noise=0.3)
    assert distance(clean, entry(label_noise=0.1)) == math.inf
    assert distance(noisy, entry(label_noise=0.3)) == 1.0
    assert distance(noisy, entry(label_noise=0.1)) == pytest.approx(3.0), "however alike the errors on views are"
    assert distance(noisy, entry(view_error=24.0, label_noise=0.1)) == pytest.approx(6.0)
    assert nearest(noisy, [entry()]) == []
    assert advice(noisy, [])[0].startswith("Nothing was measured with labels like these")


def test_how_many_labels_were_wrong_where_it_helped_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    helped = entry("trusted-random", label_noise=0.3, trained="500 digits")
    (said, *_) = advice(Fitted(view_error=4.0, label_noise=0.1), [(helped, 3.0)])
    assert "points where 30% of the labels were wrong and the error on training views and that part within 3.0" in said
    assert helped.where == "500 digits, 30% of the labels wrong"
    assert main(["advise", "--view-error", "0", "--label-noise", "0.05"]) == 0
    told = capsys.readouterr().out
    assert "30% of the labels wrong; 0.0 % error on random training views" in told
    assert "Mining has helped nowhere near here" in told, "what 30 % were like is not what 5 % are like"


def test_what_says_something_else_is_not_kept_back() -> None:
    baseline = Fitted(view_error=50.0, label_noise=0.3)
    helps, hurts = (entry("trusted", view_error, d, label_noise=0.3) for view_error, d in ((55.0, -5.0), (52.0, 3.0)))
    further = entry("trusted", 60.0, -9.0, label_noise=0.3)
    found = nearest(baseline, [further, helps, hurts])
    assert [measured for measured, _ in found] == [helps, hurts]
    said = advice(baseline, found)
    assert said[0].startswith("Try trusted: -5.0 points")
    assert said[1].startswith("It was +3.0 [+2.5, +3.5] points elsewhere, which is as much like yours: ")
    far = entry("trusted", 5.0, 3.0, label_noise=0.3)
    assert nearest(baseline, [helps, far]) == [(helps, pytest.approx(1.1))], "what is far tells nothing against it"


def test_only_what_helped_near_by_is_recommended() -> None:
    baseline = Fitted(view_error=4.0, label_noise=0.3)
    helps, hurts = entry("rho", 8.0, -3.0), entry("nm-augment", 4.0, 2.0)
    assert advice(baseline, [(helps, 2.0), (hurts, 1.0)])[0].startswith("Try rho: -3.0 points")
    for found in ([(helps, 80.0)], [(hurts, 1.0)], [(entry(low=-2, high=0.1), 1.0)]):
        assert advice(baseline, found)[0].startswith("Mining has helped nowhere near here")


@pytest.mark.parametrize(("on_equal_hardware", "is_said"), [(None, False), (-3.0, False), (2.0, True)])
def test_what_longer_training_does_as_well_is_said(on_equal_hardware: float | None, is_said: bool) -> None:
    helped = entry(on_equal_hardware=on_equal_hardware)
    said = " ".join(advice(Fitted(view_error=4.0, label_noise=0.0), [(helped, 1.0)]))
    assert ("by training longer (nm-augment +2.0 points" in said) == is_said


@pytest.mark.parametrize(("view_error", "said"), [(0.1, "hardly a difference"), (1.5, ""), (5.3, "costs test error")])
def test_the_rule_of_views_is_as_the_page_has_it(view_error: float, said: str) -> None:
    assert said in rule_of_views(view_error)
    assert bool(said) == bool(rule_of_views(view_error))
    page = (REPOSITORY / "docs/results/2026-11-29-demo-and-map.md").read_text(encoding="utf-8")
    assert f"where v is {COSTS:.0f} or more" in page
    assert f"where v is below {EVEN:.0f}" in page


@pytest.mark.parametrize(
    ("view_error", "said"),
    [(17.1, "are being learned by heart"), (29.9, "are being learned"), (30.0, "longer comes first")],
)
def test_the_rule_of_labels_is_as_the_page_has_it(view_error: float, said: str) -> None:
    baseline = Fitted(view_error=view_error, label_noise=0.3)
    assert said in rule_of_labels(baseline)
    assert rule_of_labels(baseline) in advice(baseline, [])
    assert "the 30 % of labels that are wrong" in rule_of_labels(baseline)
    page = (REPOSITORY / "docs/results/2026-11-30-by-heart.md").read_text(encoding="utf-8")
    assert "Where the baseline ends with a lower error on random training views than labels are wrong" in page


def test_a_run_that_is_not_over_is_said_to_be_none(tmp_path: Path) -> None:
    rows = [{"kind": "epoch", "epoch": 4, "train_error_random": 0.2}]
    found = read_baseline(folder_of(tmp_path / "a", rows, label_noise=0.1), None)
    assert (found.view_error, found.progress, found.label_noise) == (20.0, 0.5, 0.1)
    assert advice(found, [])[0].startswith("The run is at 50%")
    assert read_baseline(tmp_path / "a", 0.4).label_noise == 0.4
    with pytest.raises(ValueError, match=r"error on random training views: got none in .*; wait for"):
        read_baseline(folder_of(tmp_path / "b", [{"kind": "epoch", "epoch": 0}]), None)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"kind": "epoch", "epoch": 9, "train_error_random": 0.036}, {"kind": "event", "event": "finished"}]
    assert main(["advise", str(folder_of(tmp_path / "run", rows, model="resnet20"))]) == 0
    said = capsys.readouterr().out
    assert "resnet20, epoch 10 of 10, 3.6 % error on random training views" in said
    assert "docs/results/2026-11-25-reproduction.md" in said
    assert main(["advise"]) == 2
    assert main(["advise", "--view-error", "3", "--label-noise", "30"]) == 2
    assert "label_noise must be from 0 to 1: got 30.0; give the part of the labels" in capsys.readouterr().err
    assert main(["advise", str(tmp_path / "run"), "--view-error", "3"]) == 2
    assert "advise looks at one baseline" in capsys.readouterr().err
