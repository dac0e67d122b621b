"""How good a model is: error and loss over a whole set of images, the last partial batch included."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn import functional as F

from infer2train.addresses import Addresses, Purpose, seeds
from infer2train.batches import logits_of
from infer2train.pipeline import AddressPipeline, ViewWorkers
from infer2train.source import Source

BATCH = 256
"""Images evaluated at a time."""
TOP5_CLASSES = 5
"""Top-5 error says something only above this many classes."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Errors are fractions of the images; the loss is the mean cross entropy."""

    loss: float
    error: float
    top5_error: float | None


def evaluate(
    model: nn.Module,
    source: Source,
    addresses: Addresses,
    device: torch.device,
    workers: ViewWorkers = ViewWorkers(),  # noqa: B008 -- frozen
) -> Evaluation:
    """Evaluate a model on the views at `addresses`, in evaluation mode; its mode is put back."""
    was_training = model.training
    model.eval()
    loss, wrong, wrong5, classes = 0.0, 0, 0, 0
    with torch.inference_mode():
        for images, targets in _batches(source, addresses, workers):
            logits, targets = logits_of(model(images.to(device))).float(), targets.to(device)
            classes = logits.shape[1]
            loss += float(F.cross_entropy(logits, targets, reduction="sum"))
            best = logits.topk(min(TOP5_CLASSES, classes), dim=1).indices == targets[:, None]
            wrong += int((~best[:, 0]).sum())
            wrong5 += int((~best.any(dim=1)).sum())
    model.train(was_training)
    total = len(addresses)
    return Evaluation(
        loss=loss / total, error=wrong / total, top5_error=wrong5 / total if classes > TOP5_CLASSES else None
    )


def _batches(source: Source, addresses: Addresses, workers: ViewWorkers) -> Iterator[tuple[Tensor, Tensor]]:
    pipeline = AddressPipeline(source, like=workers)
    try:
        for start in range(0, len(addresses), BATCH):
            pipeline.put(addresses[start : start + BATCH])
        while pipeline.waiting:
            yield pipeline.get()
    finally:
        pipeline.close()


def every_sample(num_samples: int) -> Addresses:
    """Each sample once, for a view that does not look at its seed."""
    return Addresses(np.arange(num_samples), np.zeros(num_samples, dtype=np.int64))


def random_views(num_samples: int, count: int, seed: int, epoch: int) -> Addresses:
    """The same `count` samples each epoch, under new random views: where the training error is measured."""
    order = np.argsort(seeds(seed, Purpose.TRAINING_ERROR, slot=np.arange(num_samples)), kind="stable")
    ids: Int64[np.ndarray, " n"] = np.sort(order[:count])
    return Addresses(ids, seeds(seed, Purpose.TRAINING_ERROR, epoch=epoch + 1, slot=ids))
