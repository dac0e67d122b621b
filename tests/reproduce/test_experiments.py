"""Every experiment at every scale is a set of runs that can be trained."""

import pytest

from infer2train.draws.methods.table import choices_of
from infer2train.oracle.catalogue import missing_packages
from infer2train.sources.views.catalogue import VIEWS
from infer2train.studies.reproduce.arms import ORACLE_8_BIT, Arm
from infer2train.studies.reproduce.experiments import EXPERIMENTS
from infer2train.studies.reproduce.plan import SCALES, VARIANTS, Plan
from infer2train.training.config import RunConfig


def all_arms(name: str) -> list[Arm]:
    experiment = EXPERIMENTS[name]
    return [*experiment.arms, *(arm for sweep in experiment.sweeps for arm in sweep.candidates)]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_arm_is_a_run(name: str, scale: str, device: str) -> None:
    if device == "cpu" and missing_packages("openvino") and missing_packages("onnxruntime"):
        pytest.skip("no int8 engine is installed")
    for variant in VARIANTS:
        plan = Plan(regime=EXPERIMENTS[name].regime, scale=scale, variant=variant, common={"device": device})
        for arm in all_arms(name):
            config = plan.run(arm, seed=3)
            assert isinstance(config, RunConfig)
            assert config.seed == 3
            assert config.oracle != ORACLE_8_BIT
            assert config.view in VIEWS
            choices_of(config)


def test_names_of_arms_say_what_is_trained() -> None:
    """Arms of one name share their runs, so they must be the same runs."""
    for regime in {experiment.regime for experiment in EXPERIMENTS.values()}:
        plan = Plan(regime=regime, common={"device": "cuda"})
        found: dict[str, RunConfig] = {}
        for name, experiment in EXPERIMENTS.items():
            if experiment.regime == regime:
                for arm in experiment.arms:
                    if arm.winner_of is None and arm.wall_clock_of is None:
                        config = plan.run(arm, 0)
                        assert found.setdefault(arm.name, config) == config, (name, arm.name)


def test_every_sweep_and_every_arm_that_is_named_exists() -> None:
    for experiment in EXPERIMENTS.values():
        names = [arm.name for arm in experiment.arms]
        assert len(set(names)) == len(names)
        for arm in experiment.arms:
            assert arm.against is None or arm.against in names
            assert arm.wall_clock_of is None or names.index(arm.wall_clock_of) < names.index(arm.name)
            assert arm.winner_of is None or arm.winner_of in [sweep.name for sweep in experiment.sweeps]


def test_a_ramp_of_the_paper_is_scaled_to_the_length_of_the_training() -> None:
    arm = next(arm for arm in EXPERIMENTS["fig3"].arms if arm.name == "nm-sample-0.1")
    full, mini = (Plan(regime=EXPERIMENTS["fig3"].regime, scale=scale).run(arm, 0) for scale in ("full", "mini"))
    assert full.ramp_rate == pytest.approx(0.1)
    assert mini.ramp_rate is not None
    assert mini.ramp_rate * mini.epochs == pytest.approx(0.1 * 90)
    assert full.balance == mini.balance == "uniform"


def test_a_control_without_an_oracle_runs_without_processes_for_one() -> None:
    plan = Plan(regime=EXPERIMENTS["fig1"].regime, common={"pool": "process"})
    baseline, mined, _ = (plan.run(arm, 0) for arm in EXPERIMENTS["fig1"].arms)
    assert (baseline.pool, mined.pool) == ("inline", "process")
    control = next(arm for arm in EXPERIMENTS["fig3"].arms if arm.name == "random-sample-0.01")
    assert plan.run(control, 0).pool == "inline"


@pytest.mark.parametrize(("wrong", "message"), [({"scale": "huge"}, "unknown scale"), ({"variant": "x"}, "variant")])
def test_an_unknown_scale_or_variant_is_refused(wrong: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan(regime="digits", **wrong)
