"""An engine on images of a fraction of their resolution: less exact, and several times as fast.

Between a pool and the engine that it would ask otherwise. The weights are the trainer's own, so the model must take
images of another size, as networks that end in a mean over positions do.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infer2train.batches import as_float32, call_model, map_tensors, tensors_of, to_device
from infer2train.machine.device import device_of
from infer2train.oracle.engine import Engine, Prepared
from infer2train.oracle.quantization.frozen import frozen_copy
from infer2train.oracle.samples import Samples
from infer2train.oracle.snapshot import Record


def reduced(inputs: Any, divisor: int) -> Any:
    """Images whose height and width are divided, each pixel the mean of those that it stands for.

    Args:
        inputs: a pytree; its tensors of four dimensions are images, [n c h w].
        divisor: at least 2.

    Example:
        >>> reduced(torch.tensor([[[[0.0, 2.0], [4.0, 6.0]]]]), 2).tolist()
        [[[[3.0]]]]
    """

    def smaller(tensor: Tensor) -> Tensor:
        if not _is_image(tensor):
            return tensor
        size = [max(1, side // divisor) for side in tensor.shape[2:]]
        means = F.interpolate(tensor.float(), size=size, mode="area")
        return means.to(tensor.dtype) if tensor.is_floating_point() else means.round().to(tensor.dtype)

    return map_tensors(smaller, inputs)


def _is_image(tensor: Tensor) -> bool:
    return tensor.ndim == 4


class ReducedSamples(Samples):
    """The same samples at the lower resolution.

    Args:
        samples: as they are.
        divisor: of height and width.

    Raises:
        ValueError: there is no image in them.
    """

    def __init__(self, samples: Samples, divisor: int) -> None:
        if not any(_is_image(tensor) for tensor in tensors_of(samples.calibration(0, 2))):
            raise ValueError(
                "what stands behind the / of an oracle divides the height and width of images: got "
                f"/{divisor} for inputs without any of [n, channels, height, width]; leave it out"
            )
        self._samples, self._divisor = samples, divisor

    def calibration(self, version: int, rows: int) -> Any:
        return reduced(self._samples.calibration(version, rows), self._divisor)

    def probe(self, rows: int) -> Any:
        inputs, targets = self._samples.probe(rows)
        return reduced(inputs, self._divisor), targets


def require_any_size(model: nn.Module, inputs: Any, divisor: int) -> None:
    """Refuse a model that cannot be run on smaller images, before an engine is built for them.

    Args:
        model: the trainer's; a copy is run.
        inputs: the smaller images.
        divisor: of their height and width.

    Raises:
        ValueError: it cannot; what it said.
    """
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            call_model(frozen_copy(model).float(), as_float32(to_device(inputs, device_of(model))))
    except Exception as error:  # whatever the user's forward raises
        raise ValueError(
            f"what stands behind the / of an oracle needs a model that takes images of another size: got {error} for "
            f"images at 1/{divisor} of their height and width; leave /{divisor} out"
        ) from error


class ReducedEngine(Engine):
    """Another engine, built on `ReducedSamples`.

    Args:
        engine: runs the reduced images.
        divisor: of their height and width.

    Source: Evans et al. 2023, arXiv 2312.05328 (scoring by models and images that are cheaper than the learner's).
    """

    def __init__(self, engine: Engine, divisor: int) -> None:
        self._engine, self._divisor = engine, divisor
        self.name, self.device = f"{engine.name}/{divisor}", engine.device
        self.takes_any_size = engine.takes_any_size
        self.notes = (*engine.notes, f"{self.name} scores images at 1/{divisor} of their height and width")

    def calibrated(self, record: Record) -> Record:
        return self._engine.calibrated(record)

    def prepared(self, record: Record) -> Prepared:
        return self._engine.prepared(record)

    def use(self, prepared: Prepared) -> None:
        self._engine.use(prepared)
        self.version = prepared.version

    @torch.no_grad()
    def outputs(self, inputs: Any) -> Any:
        self._must_be_refreshed()
        return self._engine.outputs(reduced(inputs, self._divisor))

    def precisions(self) -> dict[str, str]:
        return self._engine.precisions()

    def totals(self) -> dict[str, float]:
        return self._engine.totals()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self.version = None
