"""A single run's figures; and what was measured nearest, by the baseline's error on random views."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from run_folders import START, step_rows, write_comparison, write_rows, write_run

from infer2train.reporting.evidence import evidence
from infer2train.reporting.report import write_report
from infer2train.reporting.runs import read
from infer2train.reporting.sections import advised, facts


def test_a_comparison_is_told_what_was_measured_nearest(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "both", ["baseline", "nm-augment-soft"], [0, 1])
    said = advised(read(folder))
    ends = [read(folder / f"baseline-seed{seed}").runs["baseline", seed].epochs[-1] for seed in (0, 1)]
    error = 50 * sum(row["train_error_random"] for row in ends)
    assert said.startswith(f"measured nearest to {error:.1f} % error on random training views: nm-augment-soft ")
    assert said.endswith(f"infer2train advise {folder / 'baseline-seed0'}")
    assert said[1:] in write_report(folder).read_text("utf-8")


@pytest.mark.parametrize("method", ["baseline", "nm-sample"])
def test_a_run_is_told_of_its_own_method_if_it_has_one(tmp_path: Path, method: str) -> None:
    said = advised(read(write_run(tmp_path / "run", method, 0)))
    methods = {entry.method for entry in evidence()} - ({"nm-augment"} if method == "nm-sample" else set())
    assert any(f"views: {known} " in said for known in methods)
    assert method == "baseline" or "views: nm-sample " in said
    assert ("this is a run of nm-sample, and it is a baseline's error that counts; the others:" in said) == (
        method == "nm-sample"
    )


def test_an_arm_is_known_by_its_method_whatever_it_is_called(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "both", ["baseline", "nm-augment-soft"], [0])
    (folder / "nm-augment-soft-seed0").rename(folder / "nm-augment-soft@int8-seed0")
    (folder / "comparison.json").write_text('{"methods": ["baseline", "nm-augment-soft@int8"], "seeds": [0]}')
    assert "random training views: nm-augment-soft " in advised(read(folder))


def test_labels_like_none_are_said_to_be(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "baseline", 0)
    config = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "label_noise": 0.3}))
    assert "views: trusted" in advised(read(folder))


def test_a_loop_of_ones_own_is_told_how_to_ask(tmp_path: Path) -> None:
    rows = step_rows("nm-augment", np.random.default_rng(0), 1)
    write_rows(tmp_path, [START, *rows])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"method": "nm-augment", "gamma": 10, "seed": 0}))
    assert "infer2train advise --view-error E" in advised(read(tmp_path))
    assert advised(read(write_run(tmp_path / "train", "baseline", 0, done=0))) == "", "it will be measured"


def test_steps_are_all_that_were_done_and_their_speed_is_that_of_the_loop(tmp_path: Path) -> None:
    rows = [{"kind": "step", "step": step, "steps_per_second": rate} for step, rate in ((20, 1.0), (40, 3.0))]
    seconds = {"total": 40.0, "evaluation": 10.0, "checkpoint": 5.0}
    ended: dict[str, object] = {"kind": "epoch", "epoch": 0, "step": 50, "seconds": seconds}
    stopped: dict[str, object] = {"kind": "event", "event": "interrupted", "step": 55}
    for name, told, speed, steps in (
        ("own", rows, "1.50 steps/s", "40"),
        ("trained", [*rows, ended], "2.00 steps/s", "50"),
        ("short", [ended, stopped], "2.00 steps/s", "55"),
    ):
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name, [START, *told])
        found = dict(facts(read(tmp_path / name)))
        assert (found["Speed"], found["Steps"]) == (speed, steps), name


@pytest.mark.parametrize(("method", "has_gamma"), [("baseline", False), ("infobatch", False), ("nm-sample", True)])
def test_gamma_is_that_of_methods_with_candidates(tmp_path: Path, method: str, has_gamma: bool) -> None:
    write_rows(tmp_path, [START])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"method": method, "gamma": 10}))
    assert ("γ asked for" in dict(facts(read(tmp_path)))) == has_gamma
