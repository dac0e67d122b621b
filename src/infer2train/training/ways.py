"""The way in which a run's steps are made: batch by batch through the loader, or on the device altogether.

What is selected is the same. Decided when a run starts, and again when it goes on.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from infer2train.device import device_of
from infer2train.pool.inline import InlinePool
from infer2train.training.setup import Run
from infer2train.views.image_views import ImageViews

Way = Literal["loop", "eager", "graph"]


def way_of(run: Run) -> tuple[Way, str | None]:
    """How the run's steps are made, and what its user should know of that.

    `auto` is CUDA graphs where the device, the method and the data allow it, and the loop elsewhere.

    Raises:
        ValueError: it was asked for in so many words, and is not possible here.
    """
    asked = run.config.step
    if asked == "loop" or (asked == "auto" and run.device.type != "cuda"):
        return "loop", None
    way: Way = "graph" if asked == "auto" else asked
    reason = next(_reasons_against(run, way), None)
    if reason is None:
        return way, None
    if asked == "auto":
        return "loop", f"steps are made batch by batch, not as CUDA graphs: {reason}"
    raise ValueError(
        f"step={asked} makes steps on the device altogether, which is not possible here: {reason}; pass --step loop"
    )


def _reasons_against(run: Run, way: Way) -> Iterator[str]:
    """Why steps cannot be made on the device altogether, the first thing first."""
    plan, pool, device = run.loader.plan, run.loader.pool, device_of(run.model)
    if way == "graph" and device.type != "cuda":
        yield f"the device is {device.type}, which has no CUDA graphs"
    if plan.method.candidates == "samples":
        yield "samples are picked by class, and how many of each class there are changes from draw to draw"
    if not isinstance(pool, InlinePool):
        yield f"the oracle runs apart, in pool={run.config.pool}"
        return
    if plan.staleness == "freshest":
        yield "staleness=freshest, so what scores a draw depends on time"
    if plan.method.pick == "proportional" and plan.score == "margin":
        yield "the scores may be negative, which the pick 'proportional' must look at"
    if pool.engine is not None and pool.engine.device != device:
        yield f"the oracle {plan.oracle} takes its inputs on {pool.engine.device}, the trainer is on {device}"
    if way == "graph" and pool.engine is not None and not pool.engine.is_capturable:
        yield f"the oracle {plan.oracle} cannot be recorded as a CUDA graph"
    if not isinstance(run.training_images, ImageViews):
        yield "the images are read when they are needed"
    elif device.type == "cuda" and not isinstance(run.training_images.images, Tensor):
        yield "the images are not on the device: they do not fit, or num_workers is not 0"


def images_on_device(run: Run) -> UInt8[Tensor, "n h w c"]:
    """The training images as one tensor beside the model."""
    assert isinstance(run.training_images, ImageViews), "checked by `way_of`"
    images = run.training_images.images
    if isinstance(images, Tensor):
        return images
    return torch.from_numpy(np.array(images))
