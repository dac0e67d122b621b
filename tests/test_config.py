"""A run's configuration: whole, checked, and the same after a trip through a file."""

import json
from dataclasses import fields

import numpy as np
import pytest
import yaml

from infer2train.settings import as_plain, differences, resolve, unknown
from infer2train.training.config import RunConfig, from_plain
from infer2train.training.regimes import REGIMES


def test_a_file_gives_the_same_run_back() -> None:
    config = RunConfig(lr=1e-5, lr_drops=(30, 60), limit=None, distill_weight=1e-05, data="./ünïcode folder")
    plain = as_plain(config)
    assert from_plain(yaml.safe_load(yaml.safe_dump(plain, allow_unicode=True))) == config
    assert from_plain(json.loads(json.dumps(plain))) == config
    assert plain.keys() == {field.name for field in fields(RunConfig)}


@pytest.mark.usefixtures("unchecked_types")
def test_numbers_of_numpy_are_held_as_numbers() -> None:
    of_numpy = RunConfig(seed=np.int64(1), lr=np.float64(0.05), lr_drops=(np.int64(30), np.int64(60)))  # type: ignore[arg-type]
    plain = yaml.safe_load(yaml.safe_dump(as_plain(of_numpy)))
    assert plain == as_plain(RunConfig(seed=1, lr=0.05, lr_drops=(30, 60)))


@pytest.mark.parametrize(
    "name",
    ["gamma", "update_every", "mine_every", "epochs", "batch_size", "evaluate_every", "checkpoint_every", "log_every"],
)
def test_what_must_be_at_least_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be at least 1: got 0; pass {name}=1 or more$"):
        RunConfig(**{name: 0})
    RunConfig(**{name: 1})


@pytest.mark.parametrize(
    "name",
    [
        *("delay_steps", "validation_split", "num_workers", "train_error_samples", "seed", "warmup_epochs"),
        *("momentum", "weight_decay", "distill_weight"),
    ],
)
def test_what_must_not_be_negative(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be at least 0: got -1"):
        RunConfig(**{name: -1})
    RunConfig(**{name: 0})


@pytest.mark.parametrize("name", ["limit", "image_size", "crop_size", "threads", "oracle_chunk", "lr_reference_batch"])
def test_what_may_be_left_out_but_not_be_zero(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be at least 1: got 0"):
        RunConfig(**{name: 0})
    RunConfig(**{name: None})


@pytest.mark.parametrize("lr", [0.0, -0.1])
def test_a_learning_rate_is_positive(lr: float) -> None:
    with pytest.raises(ValueError, match="lr must be positive"):
        RunConfig(lr=lr)


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        RunConfig().lr = 0.5  # type: ignore[misc]


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown setting 'gama'.*did you mean 'gamma'"):
        from_plain({"gama": 3})


def test_differences_name_each_field_both_ways() -> None:
    stored, wanted = {"lr": 0.1, "seed": 0, "gone": 1}, {"lr": 0.2, "seed": 0, "new": [1]}
    assert differences(stored, wanted) == ["gone: 1 -> None", "lr: 0.1 -> 0.2", "new: None -> [1]"]
    assert differences(as_plain(RunConfig()), as_plain(RunConfig())) == []


def test_unknown_lists_all_and_suggests_only_what_is_near() -> None:
    assert "did you mean 'cifar10-resnet44'?" in str(unknown("regime", "cifar", REGIMES))
    far = str(unknown("regime", "zzz", REGIMES))
    assert "did you mean" not in far
    assert all(name in far for name in REGIMES)


def test_resolve_finds_what_it_names() -> None:
    assert resolve("infer2train.training.config:RunConfig") is RunConfig
    with pytest.raises(AttributeError):
        resolve("infer2train.training.config:Nothing")
