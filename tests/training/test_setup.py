"""What a run is made of: its data and what is held back, its ramp, its groups of parameters, its device."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from infer2train.data.digits import load
from infer2train.data.images import ImageSplit
from infer2train.draws.randomness import restore_rng, rng_state
from infer2train.settings import as_plain
from infer2train.training.config import RunConfig, from_plain
from infer2train.training.regimes import regime_defaults
from infer2train.training.setup import load_splits, parameter_groups, prepare, resolved


@pytest.fixture(autouse=True)
def _generators() -> Iterator[None]:
    before = rng_state()
    yield
    restore_rng(before)


def digits(**changes: object) -> RunConfig:
    settings = regime_defaults("digits", str(changes.get("method", "baseline")))
    return resolved(from_plain({**settings, "threads": 1, **changes}))


def images_of(split: ImageSplit) -> set[bytes]:
    return {image.tobytes() for image in split.images}


def test_the_test_set_is_what_a_run_is_evaluated_on() -> None:
    data, train, evaluation = load_splits(digits())
    assert train is data.train
    assert evaluation is data.test


def test_a_validation_split_never_touches_the_test_set() -> None:
    data, train, held = load_splits(digits(validation_split=50))
    assert (len(train), len(held)) == (150, 50)
    assert images_of(train) | images_of(held) == images_of(data.train)
    assert not images_of(train) & images_of(held)
    assert not images_of(held) & images_of(data.test)
    assert np.bincount(held.targets).tolist() == [5] * 10
    run = prepare(digits(validation_split=50))
    assert len(run.evaluation_addresses()) == 50
    assert np.array_equal(run.evaluation_images.batch(run.evaluation_addresses())[1], held.targets)


def test_a_limit_is_taken_from_what_is_left_to_train_on() -> None:
    _, held_back, held = load_splits(digits(validation_split=50))
    _, train, held_with_limit = load_splits(digits(validation_split=50, limit=40))
    assert len(train) == 40
    assert images_of(train) < images_of(held_back)
    assert images_of(held_with_limit) == images_of(held)
    assert np.bincount(train.targets).tolist() == [4] * 10
    assert len(prepare(digits(limit=90)).loader) == 2, "the incomplete batch of 10 is dropped"


def test_a_batch_larger_than_the_data() -> None:
    with pytest.raises(ValueError, match="got 60 for 50 images; lower --batch-size"):
        load_splits(digits(limit=50, batch_size=60))


def test_copies_get_wrong_labels_each_for_itself_and_are_held_back_each_for_itself() -> None:
    """As in data of which nobody knows where its copies are."""
    _, plain, _ = load_splits(digits(limit=60, copies=3, batch_size=10))
    assert len(plain) == 60
    assert (plain.targets.reshape(20, 3) == plain.targets[::3, None]).all()
    _, noisy, _ = load_splits(digits(limit=60, copies=3, batch_size=10, label_noise=0.5))
    assert int((noisy.targets != plain.targets).sum()) == 30
    _, rest, _ = load_splits(digits(limit=60, copies=3, batch_size=10, holdout=20))
    assert len(rest) == 40
    with pytest.raises(ValueError, match=r"got copies=3 with imbalance=10.*leave one of them out"):
        digits(copies=3, imbalance=10.0)


def test_bf16_and_self_distillation() -> None:
    with pytest.raises(ValueError, match=r"fp32, since its penalty vanishes.*got bf16"):
        prepare(digits(method="self-distill", precision="bf16"))
    assert prepare(digits(precision="bf16")).config.precision == "bf16"


def test_the_penalty_is_not_rounded_away_in_convolutions() -> None:
    """TF32 has the mantissa of fp16, which the penalty vanishes in too."""
    prepare(digits(method="self-distill"))
    assert not torch.backends.cudnn.allow_tf32
    prepare(digits())
    assert torch.backends.cudnn.allow_tf32, "torch's default; a run does not depend on the one before it"


def test_a_crop_size_that_the_view_does_not_have() -> None:
    with pytest.raises(ValueError, match="random-resized-crop-flip: got 6 for shift-rotate"):
        prepare(digits(crop_size=6))
    run = prepare(digits(crop_size=6, view="random-resized-crop-flip"))
    assert run.evaluation_images.batch(run.evaluation_addresses()[:2])[0].shape[2:] == (6, 6)


def test_the_same_seed_gives_the_same_first_weights() -> None:
    one, same, other = (prepare(digits(seed=seed)).model.state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(same[name], tensor) for name, tensor in one.items())
    assert any(not torch.equal(other[name], tensor) for name, tensor in one.items())


def test_weight_decay_of_shared_and_of_unusual_parameters() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3, 3))
            self.read, self.write = nn.Linear(4, 4), nn.Linear(4, 4)
            self.write.weight = self.read.weight
            self.embedding, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4)

    model = Own()
    decayed, others = parameter_groups(model, 0.5)
    assert decayed["params"] == [model.read.weight]
    assert len(others["params"]) == 6
    assert not any(parameter is model.read.weight for parameter in others["params"])
    torch.optim.SGD([decayed, others], lr=0.1)


def test_global_generators_follow_the_seed() -> None:
    """A model of the user's own may draw from them; a run is a function of its configuration."""

    def drawn(seed: int) -> tuple[float, float, float]:
        prepare(digits(seed=seed))
        return random.random(), float(np.random.random()), float(torch.rand(()))

    first, other, same, far = (drawn(seed) for seed in (1, 2, 1, 1 + (1 << 62)))
    assert first == same
    assert not set(first) & set(other)
    assert first[1] != far[1], "all bits of the seed count"


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"got 'gpu'.*--device cpu"):
        digits(device="gpu")


def test_what_is_left_to_the_machine_is_decided_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFER2TRAIN_CACHE", str(tmp_path / "one"))
    asked = from_plain(regime_defaults("cifar10-resnet44", "baseline"))
    first = resolved(asked)
    assert first.threads is not None
    assert (first.oracle_chunk, first.data_cache) == (32, str(tmp_path / "one"))
    stored = {**as_plain(first), "threads": 17, "lr": 5.0}
    monkeypatch.setenv("INFER2TRAIN_CACHE", str(tmp_path / "two"))
    again = resolved(asked, stored)
    assert (again.threads, again.oracle_chunk, again.data_cache) == (17, 32, str(tmp_path / "one"))
    assert again.lr == asked.lr, "only what was left to the machine is taken over"
    assert resolved(from_plain({**as_plain(asked), "threads": 2}), stored).threads == 2


def test_the_digits_are_those_of_the_name() -> None:
    data, _, _ = load_splits(digits())
    assert data.fingerprint == load().fingerprint
