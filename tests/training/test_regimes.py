"""The named runs are whole: their settings are the paper's, and each can be built."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import nn

from infer2train.draws.addresses import Addresses
from infer2train.draws.methods.table import METHODS
from infer2train.sources.views.image_views import ImageViews
from infer2train.sources.views.named import VIEWS, make_view
from infer2train.training.config import RunConfig, from_plain
from infer2train.training.regimes import REGIMES, regime_defaults
from infer2train.training.setup import evaluation_view, parameter_groups, pixel_model

SIZES = {"digits": (8, 1, 10), "cifar10-resnet44": (32, 3, 10), "imagenet-resnet50": (256, 3, 1000)}
"""Height, channels and classes of the images of each regime, as they are stored."""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", REGIMES)
def test_every_field_is_there_and_the_ramp_fits_the_method(name: str, method: str) -> None:
    defaults = regime_defaults(name, method)
    assert defaults.keys() == {field.name for field in fields(RunConfig)}
    config = from_plain(defaults)
    assert (config.regime, config.method) == (name, method)
    if not METHODS[method].is_rampable:
        assert config.ramp is None


@pytest.mark.parametrize("name", REGIMES)
def test_model_and_view_can_be_built(name: str) -> None:
    size, channels, classes = SIZES[name]
    config = from_plain(regime_defaults(name, "baseline"))
    model = pixel_model(config, classes, channels).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, channels), dtype=np.uint8)
    targets = np.zeros(2, dtype=np.int64)
    shown = config.crop_size or size
    trained = make_view(config.view, shown)
    for view in (trained, evaluation_view(trained, (size, size))):
        images, _ = ImageViews(pixels, targets, view).batch(Addresses(np.arange(2), np.arange(2)))
        assert images.shape == (2, channels, shown, shown)
        if size <= 32:  # a forward pass of ResNet-50 takes seconds
            with torch.inference_mode():
                assert model(images).shape == (2, classes)


@pytest.mark.parametrize("stored", [(32, 48), (48, 32), (32, 32)])
@pytest.mark.parametrize("name", VIEWS)
def test_a_run_is_evaluated_on_images_of_the_size_that_it_trains_on(name: str, stored: tuple[int, int]) -> None:
    trained = make_view(name, 32)
    assert evaluation_view(trained, stored).output_size(*stored) == trained.output_size(*stored)


def test_the_papers_cifar_run() -> None:
    config = from_plain(regime_defaults("cifar10-resnet44", "baseline"))
    assert (config.data, config.model, config.view) == ("cifar10", "resnet44", "pad-crop-flip")
    assert (config.epochs, config.batch_size, config.lr, config.lr_drops) == (90, 64, 0.1, (81,))
    assert (config.momentum, config.weight_decay, config.warmup_epochs) == (0.9, 1e-4, 0.0)
    assert config.lr_reference_batch is None
    assert (config.gamma, config.delay_steps, config.mine_every) == (10, 0, 1)
    model = pixel_model(config, 10, 3)
    assert sum(isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) for module in model.modules()) == 43


def test_the_papers_imagenet_run() -> None:
    config = from_plain(regime_defaults("imagenet-resnet50", "baseline"))
    assert (config.model, config.view, config.image_size, config.crop_size) == (
        "imagenet-resnet50",
        "random-resized-crop-flip",
        256,
        224,
    )
    assert (config.epochs, config.lr, config.lr_reference_batch, config.lr_drops) == (90, 0.1, 256, (30, 60, 80))
    assert (config.warmup_epochs, config.momentum, config.weight_decay, config.mine_every) == (5.0, 0.9, 1e-4, 2)


@pytest.mark.parametrize("name", ["cifar10-resnet44", "imagenet-resnet50"])
def test_the_papers_ramp_and_balance_are_of_its_sampling_only(name: str) -> None:
    for method in METHODS:
        config = from_plain(regime_defaults(name, method))
        is_sampling = method in ("nm-sample", "random-sample")
        assert config.ramp_rate == (0.01 if is_sampling else None)
        assert config.balance == ("uniform" if is_sampling else "stratified")


@pytest.mark.parametrize("name", REGIMES)
def test_weights_of_convolutions_and_linear_layers_decay_and_nothing_else(name: str) -> None:
    _, channels, classes = SIZES[name]
    config = from_plain(regime_defaults(name, "baseline"))
    model = pixel_model(config, classes, channels)
    decayed, others = parameter_groups(model, config.weight_decay)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], others["weight_decay"]) == (1e-4, 0.0)
    assert {*decayed["params"], *others["params"]} == {*names}
    assert len(decayed["params"]) + len(others["params"]) == len(names)
    assert all(parameter.ndim in (2, 4) for parameter in decayed["params"])
    assert all(parameter.ndim == 1 for parameter in others["params"])


def test_an_unknown_regime() -> None:
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        regime_defaults("digit", "baseline")
