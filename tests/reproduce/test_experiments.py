"""Every experiment at every scale is a set of runs that can be trained."""

import json
from pathlib import Path
from typing import Any

import pytest

from infer2train.draws.methods.table import choices_of
from infer2train.oracle.engines import missing_packages
from infer2train.settings import as_plain
from infer2train.sources.views.named import VIEWS
from infer2train.studies.reproduce.experiments import EXPERIMENTS, Arm, experiment
from infer2train.studies.reproduce.sitting import ORACLE_8_BIT, SCALES, VARIANTS, Sitting
from infer2train.training.config import RunConfig
from infer2train.training.regimes import regime_defaults


def sitting(name: str, **others: Any) -> Sitting:
    return Sitting(experiment=EXPERIMENTS[name], folder=Path("runs"), **others)


def all_arms(name: str) -> list[Arm]:
    one = EXPERIMENTS[name]
    return [*one.arms, *(arm for candidates in one.sweeps.values() for arm in candidates)]


def test_every_run_changes_in_its_regime_what_runs_json_says() -> None:
    """Archived runs are gone on with only under the settings that they were trained with."""
    kept = json.loads(Path(__file__).with_name("runs.json").read_text(encoding="utf-8"))
    found = {}
    for name, one in EXPERIMENTS.items():
        for scale in SCALES:
            plan = sitting(name, scale=scale, common={"device": "cuda", "pool": "process", "threads": 1})
            runs = {arm.name: plan.run(arm) for arm in one.arms}
            for sweep, candidates in one.sweeps.items():
                runs |= {f"{sweep}/{arm}": config for (arm, seed), config in plan.sweep_runs(candidates).items()
                         if seed == 0}  # fmt: skip
            for arm, config in runs.items():
                usual = regime_defaults(one.regime, "baseline")
                own = {n: v for n, v in as_plain(config).items() if v != usual[n] and n not in ("device", "threads")}
                found[f"{name}/{scale}/{arm}"] = own
    assert found == kept


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_arm_is_a_run(name: str, scale: str, device: str) -> None:
    if device == "cpu" and missing_packages("openvino") and missing_packages("onnxruntime"):
        pytest.skip("no int8 engine is installed")
    for variant in VARIANTS:
        plan = sitting(name, scale=scale, variant=variant, common={"device": device})
        for arm in all_arms(name):
            config = plan.run(arm)
            assert config.oracle != ORACLE_8_BIT
            assert config.view in VIEWS
            choices_of(config)


def test_names_of_arms_say_what_is_trained() -> None:
    """Arms of one name share their runs, so they must be the same runs."""
    found: dict[tuple[str, str], RunConfig] = {}
    for name, one in EXPERIMENTS.items():
        plan = sitting(name, common={"device": "cuda"})
        for arm in one.arms:
            if arm.winner_of is None and arm.wall_clock_of is None:
                config = plan.run(arm)
                assert found.setdefault((one.regime, arm.name), config) == config, (name, arm.name)


def test_every_sweep_and_every_arm_that_is_named_exists() -> None:
    for one in EXPERIMENTS.values():
        names = [arm.name for arm in one.arms]
        assert len(set(names)) == len(names)
        for arm in one.arms:
            assert arm.against is None or arm.against in names
            assert set(arm.also_against) <= set(names) - {arm.name, arm.against}
            assert arm.wall_clock_of is None or names.index(arm.wall_clock_of) < names.index(arm.name)
            assert arm.winner_of is None or arm.winner_of in one.sweeps


def test_arms_are_compared_with_the_first_unless_their_file_says_another() -> None:
    arms = {"first": {}, "second": {}, "third": {"against": "second"}, "alone": {"against": None}}
    plain = {"title": "?", "source": "made up", "regime": "digits", "arms": arms}
    found = experiment("made-up", plain)
    assert [arm.against for arm in found.arms] == [None, "first", "second", None]
    with pytest.raises(ValueError, match="did you mean 'settings'"):
        experiment("made-up", {**plain, "arms": {"first": {"setings": {}}}})


def test_a_ramp_of_the_paper_is_scaled_to_the_length_of_the_training() -> None:
    arm = next(arm for arm in EXPERIMENTS["fig3"].arms if arm.name == "nm-sample-0.1")
    full, mini = (sitting("fig3", scale=scale).run(arm) for scale in ("full", "mini"))
    assert full.ramp_rate == pytest.approx(0.1)
    assert mini.ramp_rate is not None
    assert mini.ramp_rate * mini.epochs == pytest.approx(0.1 * 90)
    assert full.balance == mini.balance == "uniform"


def test_a_control_without_an_oracle_runs_without_processes_for_one() -> None:
    plan = sitting("fig1", common={"pool": "process"})
    baseline, mined, _ = (plan.run(arm) for arm in EXPERIMENTS["fig1"].arms)
    assert (baseline.pool, mined.pool) == ("inline", "process")
    control = next(arm for arm in EXPERIMENTS["fig3"].arms if arm.name == "random-sample-0.01")
    assert plan.run(control).pool == "inline"


@pytest.mark.parametrize(("wrong", "message"), [({"scale": "huge"}, "unknown scale"), ({"variant": "x"}, "variant")])
def test_an_unknown_scale_or_variant_is_refused(wrong: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sitting("fig1", **wrong)
