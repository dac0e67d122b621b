"""How good a model is: error and loss over a whole set of images, the last partial batch included."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from infer2train.batches import logits_of
from infer2train.draws.addresses import Addresses, Purpose, seeds
from infer2train.sources.pipeline import AddressPipeline, ViewWorkers
from infer2train.sources.views.view_dataset import ViewDataset

BATCH = 256
"""Images evaluated at a time."""
PIXELS_ON_DEVICE = 2000 * 32 * 32
"""Pixels evaluated at a time where that is more images, on devices that small batches leave idle."""
TOP5_CLASSES = 5
"""Top-5 error says something only above this many classes."""
CONFIDENCE_BINS = 15
"""Of the calibration error."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Errors are fractions of the images; the loss is the mean cross entropy, in nats (the negative log-likelihood)."""

    loss: float
    error: float
    top5_error: float | None
    calibration_error: float
    """Expected calibration error, see `calibration_error`."""


def evaluate(
    model: nn.Module,
    source: ViewDataset,
    addresses: Addresses,
    device: torch.device,
    workers: ViewWorkers = ViewWorkers(),  # noqa: B008 -- frozen
) -> Evaluation:
    """Evaluate a model on the views at `addresses`, in evaluation mode; its mode is put back.

    Everything is added up on the device and read once, at the end.
    """
    was_training = model.training
    model.eval()
    size = BATCH if device.type == "cpu" else max(BATCH, PIXELS_ON_DEVICE // math.prod(source.output_size))
    with torch.inference_mode():
        parts = [_judged(model, *batch, device) for batch in _batches(source, addresses, size, workers)]
        # On the CPU: not every device has float64.
        losses, places, confidences = (
            torch.cat(column).cpu() for column in zip(*(part[:3] for part in parts), strict=True)
        )
        wrong = places > 0
        figures = torch.stack(
            [
                losses.double().mean(),
                wrong.double().mean(),
                (places >= TOP5_CLASSES).double().mean(),
                calibration_error(confidences, ~wrong),
            ]
        ).tolist()
    model.train(was_training)
    loss, error, top5_error, calibration = figures
    has_top5 = parts[0][3] > TOP5_CLASSES
    return Evaluation(
        loss=loss, error=error, top5_error=top5_error if has_top5 else None, calibration_error=calibration
    )


def _batches(
    source: ViewDataset, addresses: Addresses, size: int, workers: ViewWorkers
) -> Iterator[tuple[Tensor, Tensor]]:
    pipeline = AddressPipeline(source, like=workers)
    try:
        for start in range(0, len(addresses), size):
            pipeline.put(addresses[start : start + size])
        while pipeline.waiting:
            yield pipeline.get()
    finally:
        pipeline.close()


def _judged(
    model: nn.Module, images: Tensor, targets: Int64[Tensor, " n"], device: torch.device
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Of each image: its loss, how many classes the model likes better than the right one, the model's confidence."""
    logits, targets = logits_of(model(images.to(device))).float(), targets.to(device)
    losses = F.cross_entropy(logits, targets, reduction="none")
    own = logits.gather(1, targets[:, None])
    # NaN is liked better than anything: a model that has diverged is wrong. Of equals the first class is the answer.
    earlier = torch.arange(logits.shape[1], device=device) < targets[:, None]
    places = (~(logits < own) & ((logits != own) | earlier)).sum(1)
    return losses, places, logits.softmax(1).amax(1), logits.shape[1]


def calibration_error(confidences: Float[Tensor, " n"], right: Bool[Tensor, " n"]) -> Float[Tensor, ""]:
    """How far confidence is from accuracy: Σ_b (n_b / n) · |accuracy of bin b − mean confidence of bin b|.

    Args:
        confidences: the probability of each answer, in [0, 1].
        right: whether it was the right one.

    Returns:
        The expected calibration error over 15 equal bins of confidence, in [0, 1], float64.

    Example:
        >>> float(calibration_error(torch.tensor([1.0, 1.0]), torch.tensor([True, False])))
        0.5

    Source: Guo et al. 2017, arXiv 1706.04599, section 2.
    """
    bins = (confidences.double() * CONFIDENCE_BINS).ceil().long().clamp(1, CONFIDENCE_BINS) - 1
    gaps = torch.zeros(CONFIDENCE_BINS, dtype=torch.float64, device=confidences.device)
    gaps.index_add_(0, bins, right.double() - confidences.double())
    return gaps.abs().sum() / len(confidences)


def every_sample(num_samples: int) -> Addresses:
    """Each sample once, for a view that does not look at its seed."""
    return Addresses(np.arange(num_samples), np.zeros(num_samples, dtype=np.int64))


def random_views(num_samples: int, count: int, seed: int, epoch: int) -> Addresses:
    """The same `count` samples each epoch, under new random views: where the training error is measured."""
    order = np.argsort(seeds(seed, Purpose.TRAINING_ERROR, slot=np.arange(num_samples)), kind="stable")
    ids: Int64[np.ndarray, " n"] = np.sort(order[:count])
    return Addresses(ids, seeds(seed, Purpose.TRAINING_ERROR, epoch=epoch + 1, slot=ids))
