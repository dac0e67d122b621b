"""`infer2train plan`: what follows from what was measured, and its table."""

import json
from pathlib import Path
from typing import Any

import pytest

from infer2train.cli.main import main
from infer2train.studies.plan import (
    FIELDS,
    MOST,
    Costs,
    Needed,
    bytes_of_a_draw,
    bytes_of_a_record,
    enough,
    needed,
    plan_of,
    planned,
    recommended,
)

KIND = {"oracle": "int8", "step": 1.0, "refresh": 0.0}
MEASURED: dict[str, Any] = {
    "model": "resnet20",
    "batch_size": 64,
    "training_images_per_second": 64.0,
    "views_per_second": 1e9,
    "engines": [
        {"name": "fast", "images_per_second": 160.0, "refresh_seconds": 0.0, "captured_gain": 0.9, "chunk": 32},
        {"name": "wrong", "images_per_second": 1e6, "refresh_seconds": 0.0, "captured_gain": 0.1, "chunk": 32},
    ],
}
"""A step takes 1 s, and the oracle that chooses well 4 s for a draw of 640 candidates."""


def rows(*workers: int, **settings: Any) -> list[Any]:
    return [planned(Costs(**(KIND | settings)), n, update_every=100, delay_steps=10) for n in workers]


def test_workers_share_the_draws_until_the_trainer_is_the_slower_one() -> None:
    assert [row.ratio for row in rows(1, 2, 4, 8, draw=4.0)] == pytest.approx([4.0, 2.0, 1.0, 1.0], rel=0.02)
    found = enough(rows(1, 2, 4, 8, draw=4.0))
    assert found is not None
    assert found.workers == 4


def test_the_best_of_a_few_is_not_enough_where_the_trainer_waits() -> None:
    assert enough(rows(1, 2, draw=4.0)) is None
    plan = plan_of(MEASURED, gamma=10, workers=[1, 2], delay_steps=10)
    assert (plan.recommended.oracle, plan.recommended.workers) == ("fast", 2), "the best of these"
    assert plan.needed == Needed(workers=4, delay_steps=10)
    assert plan_of(MEASURED, gamma=10, delay_steps=10).needed is None


@pytest.mark.parametrize(("draw", "refresh", "update_every"), [(4.0, 0.0, 10), (20.0, 3.0, 100), (20.0, 4.0, 1)])
def test_what_would_be_enough_is_and_one_worker_fewer_is_not(draw: float, refresh: float, update_every: int) -> None:
    costs = Costs(oracle="int8", step=1.0, draw=draw, refresh=refresh)
    found = needed(costs, update_every=update_every)
    assert found is not None
    rule = {"update_every": update_every, "delay_steps": found.delay_steps}
    assert planned(costs, found.workers, **rule).is_enough
    assert not planned(costs, found.workers - 1, **rule).is_enough


def test_what_no_number_of_workers_hides_asks_for_a_delay_or_for_less() -> None:
    assert needed(Costs(**KIND, draw=4.0), update_every=10) == Needed(workers=4, delay_steps=4)
    assert needed(Costs(**KIND, draw=4.0), update_every=100) == Needed(workers=4, delay_steps=0), "4 steps of 100"
    assert needed(Costs(**KIND, draw=2.0 * MOST), update_every=100) is None


def test_what_no_number_of_workers_hides_is_in_the_step() -> None:
    """The first draw of a version is begun when its weights are there, by D = 0, and publishing is the trainer's."""
    alone = Costs(**KIND, draw=4.0, publish=0.5, carry=0.1)
    step = planned(alone, 64, update_every=10).step
    assert step == pytest.approx(1.0 + (4.0 + 0.1 + 0.5) / 10)


def test_enough_workers_have_draws_enough() -> None:
    assert [row.queue_depth for row in rows(1, 4, 8, draw=4.0)] == [4, 4, 8]


def test_a_kind_that_chooses_otherwise_is_recommended_only_where_there_is_no_other() -> None:
    plan = plan_of(MEASURED, gamma=10, delay_steps=10)
    assert (plan.recommended.oracle, plan.recommended.workers) == ("fast", 4)
    costs = [Costs(**KIND, draw=0.1, captured_gain=0.1)]
    kinds = {"int8": [planned(costs[0], 1, update_every=100)]}
    assert recommended(kinds, costs).oracle == "int8"


def test_a_slow_link_makes_refresh_and_draws_slower() -> None:
    slow, quick = (plan_of(MEASURED, gamma=10, link_megabits=m, update_every=10) for m in (1.0, 1e6))
    assert slow.kinds["fast"][2].step > quick.kinds["fast"][2].step + 0.2


def test_bytes_are_those_of_addresses_scores_and_weights() -> None:
    assert 640 * 28 < bytes_of_a_draw(640, 32) < 640 * 28 + 8192
    assert bytes_of_a_record("resnet20") == pytest.approx(4 * 272_474, rel=0.02)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"gamma": 0}, "must be at least 1"),
        ({"workers": []}, "must be at least 1"),
        ({"update_every": 0}, "must be at least 1"),
        ({"delay_steps": -1}, "delay_steps must be at least 0: got -1"),
        ({"link_megabits": 0.0}, "link_megabits must be positive: got 0.0"),
        ({"link_megabits": -5.0}, "link_megabits must be positive: got -5.0"),
    ],
)
def test_what_cannot_be_planned_is_refused(settings: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        plan_of(MEASURED, **{"gamma": 1} | settings)


def test_the_verb_reads_what_gamma_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gamma.json"
    file.write_text(json.dumps(MEASURED))
    assert main(["plan", "--measured", str(file), "--delay-steps", "10", "--workers", "2", "4"]) == 0
    told = capsys.readouterr().out
    assert "a step alone takes 1000 ms" in told
    assert (
        "recommended: --oracle fast --gamma 10 --update-every 100 --delay-steps 10 --pool process --oracle-workers 4 "
        "--queue-depth 4 (--pool ray on other machines); a step is predicted"
    ) in told
    assert main(["plan", "--measured", str(file), "--workers", "1", "2"]) == 0
    told = capsys.readouterr().out
    assert "none of these is enough: about 4 workers of fast would be\n" in told
    assert "the best of these: --oracle fast --gamma 10 --update-every 100 --delay-steps 0 --pool process" in told
    assert "recommended" not in told
    assert main(["plan", "--measured", str(file), "--workers", "1", "--gamma", "9999"]) == 0
    assert f"none of these is enough, and {MOST} workers would not be either: lower" in capsys.readouterr().out


ENGINE = MEASURED["engines"][0]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("xx", "that is no JSON"),
        ("[]", f"without {', '.join(FIELDS)}"),
        (json.dumps({**MEASURED, "engines": []}), "without engines"),
        (json.dumps({**MEASURED, "engines": [{k: v for k, v in ENGINE.items() if k != "chunk"}]}), "without chunk"),
        (json.dumps({k: v for k, v in MEASURED.items() if k != "batch_size"}), "without batch_size"),
    ],
)
def test_a_file_that_gamma_did_not_write_is_named(
    text: str, found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gamma.json"
    file.write_text(text)
    assert main(["plan", "--measured", str(file)]) == 2
    assert f"got {file} {found}; write it with gamma --json {file}" in capsys.readouterr().err


def test_what_cannot_be_planned_is_refused_before_it_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--engines", "none", "--link-mbit", "0"]) == 2
    told = capsys.readouterr().err
    assert "link_megabits must be positive" in told
    assert "measuring" not in told


@pytest.mark.parametrize("given", ["--batch-size=256", "--model=resnet20", "--compile"])
def test_what_only_a_measurement_would_heed_is_refused_beside_a_file(
    given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gamma.json"
    file.write_text(json.dumps(MEASURED))
    assert main(["plan", "--measured", str(file), "--gamma", "4", "--quiet"]) == 0
    assert main(["plan", "--measured", str(file), given]) == 2
    assert f"was measured before: got {given.partition('=')[0]}; leave it out" in capsys.readouterr().err
