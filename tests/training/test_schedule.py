"""The learning rates of the paper's regimes, at the steps where they change."""

import pytest

from infer2train.training.config import TrainingConfig, from_plain
from infer2train.training.regimes import regime_defaults
from infer2train.training.schedule import learning_rate

CIFAR = TrainingConfig(lr=0.1, lr_drops=(81,), epochs=90)
CIFAR_STEPS = 781
IMAGENET = from_plain(regime_defaults("imagenet-resnet50", "baseline"))


def at(config: TrainingConfig, epoch: float, steps_per_epoch: int) -> float:
    return learning_rate(config, round(epoch * steps_per_epoch), steps_per_epoch)


def test_cifar_drops_once_at_the_first_step_of_epoch_81() -> None:
    regime = from_plain(regime_defaults("cifar10-resnet44", "baseline"))
    for config in (CIFAR, regime):
        rates = [learning_rate(config, step, CIFAR_STEPS) for step in range(90 * CIFAR_STEPS)]
        assert rates[: 81 * CIFAR_STEPS] == [0.1] * (81 * CIFAR_STEPS)
        assert rates[81 * CIFAR_STEPS :] == [0.01] * (9 * CIFAR_STEPS)


@pytest.mark.parametrize("steps_per_epoch", [1, 3, 5, 781, 5004])
def test_a_drop_is_on_the_first_step_of_its_epoch_however_long_epochs_are(steps_per_epoch: int) -> None:
    for drop in range(1, 90):
        config = TrainingConfig(lr=0.1, lr_drops=(drop,))
        assert learning_rate(config, drop * steps_per_epoch, steps_per_epoch) == pytest.approx(0.01)
        assert learning_rate(config, drop * steps_per_epoch - 1, steps_per_epoch) == 0.1


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(0, 0.1), (29.9, 0.1), (30, 0.01), (59.9, 0.01), (60, 1e-3), (79.9, 1e-3), (80, 1e-4), (89.9, 1e-4)],
)
def test_imagenet_with_256_images(epoch: float, rate: float) -> None:
    assert IMAGENET.batch_size == 256
    assert at(IMAGENET, epoch, 1000) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("epoch", "rate"), [(0, 0.1), (1, 0.64), (2.5, 1.45), (4, 2.26), (5, 2.8), (29.9, 2.8), (30, 0.28), (80, 2.8e-3)]
)
def test_a_large_batch_warms_up_from_a_tenth_and_is_scaled(epoch: float, rate: float) -> None:
    config = TrainingConfig(
        lr=0.1, lr_reference_batch=256, batch_size=7168, warmup_epochs=5.0, lr_drops=(30, 60, 80), epochs=90
    )
    assert at(config, epoch, 1000) == pytest.approx(rate)


def test_a_small_batch_is_scaled_down_without_warm_up() -> None:
    config = TrainingConfig(lr=0.1, lr_reference_batch=256, batch_size=64, warmup_epochs=5.0, lr_drops=())
    assert at(config, 0, 100) == pytest.approx(0.025)
    assert at(config, 10, 100) == pytest.approx(0.025)


def test_a_half_cosine_falls_from_the_peak_to_nothing() -> None:
    config = TrainingConfig(lr=0.2, lr_schedule="cosine", epochs=10, lr_drops=(5,))
    assert at(config, 0, 100) == pytest.approx(0.2)
    assert at(config, 5, 100) == pytest.approx(0.1)
    assert at(config, 7.5, 100) == pytest.approx(0.2 * 0.14644661)
    assert at(config, 9.99, 100) < 1e-5
    rates = [learning_rate(config, step, 100) for step in range(1000)]
    assert rates == sorted(rates, reverse=True)


def test_a_cosine_begins_where_the_warm_up_ends() -> None:
    config = TrainingConfig(lr=0.5, lr_schedule="cosine", warmup_epochs=2.0, epochs=10)
    assert at(config, 0, 100) == pytest.approx(0.1)
    assert at(config, 1, 100) == pytest.approx(0.3)
    assert at(config, 2, 100) == pytest.approx(0.5)
    assert at(config, 6, 100) == pytest.approx(0.25)
