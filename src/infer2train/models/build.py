"""Models by name: ours, and any that the user's own code builds."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from infer2train.draws.addresses import Purpose, check_seed, seeds
from infer2train.settings import resolve, unknown

MODELS = {
    "convnet": "infer2train.models.convnet:convnet",
    "resnet8": "infer2train.models.cifar_resnet:resnet8",
    "resnet14": "infer2train.models.cifar_resnet:resnet14",
    "resnet20": "infer2train.models.cifar_resnet:resnet20",
    "resnet32": "infer2train.models.cifar_resnet:resnet32",
    "resnet44": "infer2train.models.cifar_resnet:resnet44",
    "resnet56": "infer2train.models.cifar_resnet:resnet56",
    "imagenet-resnet18": "infer2train.models.imagenet_resnet:resnet18",
    "imagenet-resnet50": "infer2train.models.imagenet_resnet:resnet50",
}


def build_model(name: str, *, num_classes: int, in_channels: int, seed: int) -> nn.Module:
    """A model with its first weights, on the CPU. The same seed gives the same weights; torch's own state stays.

    Args:
        name: an entry of `MODELS`, or `package.module:function`, called with num_classes= and in_channels=.
        num_classes: logits.
        in_channels: channels of the images.
        seed: the run's seed, in [0, 2^63).

    Returns:
        A module that takes normalised images, [b c h w], and gives logits, [b k].

    Raises:
        ValueError: there is no such model, or it cannot be imported, or it is not a module.

    Example:
        >>> model = build_model("resnet20", num_classes=10, in_channels=3, seed=0)
    """
    function = _function(name)
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the accelerators too, whose states are not put back here.
        torch.default_generator.manual_seed(int(seeds(check_seed(seed), Purpose.WEIGHTS)))
        model = function(num_classes=num_classes, in_channels=in_channels)
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"a model's function must return a torch.nn.Module: got {type(model)} from {name}; let it return one"
        )
    return model


def _function(name: str) -> Any:
    if name in MODELS:
        return resolve(MODELS[name])
    if ":" not in name:
        raise unknown("model", name, [*MODELS, "package.module:function"])
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:  # an installed command does not look there; `python -m` does
        sys.path.insert(0, here)
    try:
        return resolve(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"a model must be one of {', '.join(MODELS)} or package.module:function that can be imported: got {name!r} "
            f"({type(error).__name__}: {error}); start in the folder that holds the module, or install it"
        ) from error
