"""Everything a run consists of, built from its configuration: data, model, optimiser, mined loader."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader

from infer2train.data.digest import digest
from infer2train.data.images import AnySplit, EncodedData, EncodedSplit, ImageData, ImageSplit
from infer2train.data.load import default_cache_dir, load_data, load_encoded
from infer2train.data.subsets import hold_out, limit_split, long_tailed, mislabelled, near_copies
from infer2train.draws.addresses import Addresses, Purpose
from infer2train.draws.methods.table import choices_of
from infer2train.draws.randomness import seed_everything
from infer2train.loader.assembly import CHUNK_ON_CPU
from infer2train.loader.loader import MinedLoader
from infer2train.loader.mine import mine
from infer2train.machine.compilation import compiled
from infer2train.machine.cores import as_text, available_cores
from infer2train.machine.device import allow_tf32, torch_device
from infer2train.machine.memory import keep_freed_memory
from infer2train.models.build import build_model
from infer2train.models.pixels import Pixels
from infer2train.oracle.engines import AUTOMATIC as AUTOMATIC_ORACLES
from infer2train.oracle.engines import resolve_engine
from infer2train.pool.pools import pool_of
from infer2train.sources.pipeline import ViewWorkers
from infer2train.sources.views.identity import EvaluationCrop, Identity
from infer2train.sources.views.image_views import Images, ImageViews
from infer2train.sources.views.named import SIZED, make_view
from infer2train.sources.views.on_demand import OnDemandViews
from infer2train.sources.views.view import View
from infer2train.sources.views.view_dataset import ViewDataset
from infer2train.training.config import RunConfig
from infer2train.training.evaluation import every_sample, random_views

# Of scaled RGB images, as the paper's regimes have it; a grey image has the mean of both.
RGB_MEAN, RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY_MEAN, GREY_STD = (0.449,), (0.226,)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run, ready to train."""

    config: RunConfig
    data: ImageData | EncodedData
    model: nn.Module
    forward: Callable[[Tensor], Any]
    """The model as the trainer calls it: itself, or what torch.compile made of it."""
    optimizer: SGD
    loader: MinedLoader
    training_images: ViewDataset
    evaluation_images: ViewDataset
    device: torch.device
    digest: str
    """Of the images that it trains on."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch; the last incomplete batch is dropped."""
        return len(self.loader)

    @property
    def view_workers(self) -> ViewWorkers:
        """The processes that make views for an evaluation: as many as for a training."""
        return ViewWorkers(num_workers=self.config.num_workers)

    def evaluation_addresses(self) -> Addresses:
        """Every image that the run is evaluated on."""
        return every_sample(len(self.evaluation_images))

    def training_error_addresses(self, epoch: int) -> Addresses:
        """Random views of training images, new ones each epoch."""
        count = min(self.config.train_error_samples, len(self.training_images))
        return random_views(len(self.training_images), count, self.config.seed, epoch)


LARGEST_PART = 0.5
"""Of the free memory of a CUDA device, for images."""
AUTOMATIC = ("threads", "oracle_chunk", "data_cache")
"""Settings that the machine decides where they are left out; once, and never again for the same run."""


def resolved(config: RunConfig, earlier: Mapping[str, Any] | None = None) -> RunConfig:
    """The run with everything decided that was left to the machine.

    Args:
        config: as it was asked for.
        earlier: settings of the run that is to go on; what was decided for it is kept.

    Raises:
        ValueError: the device is not to be had.
    """
    device = torch_device(config.device, "pass --device cpu")
    kept: dict[str, Any] = {name: (earlier or {}).get(name) for name in AUTOMATIC if getattr(config, name) is None}
    config = replace(config, **kept)
    oracle = config.oracle
    if oracle.partition("/")[0] in AUTOMATIC_ORACLES and choices_of(config).has_oracle:
        resolve_engine(oracle)  # refuses what is not installed; which one it is, mine() finds out with the model
        oracle = (earlier or {}).get("oracle") or oracle
    oracles, trainers = cores(config)
    chunk = CHUNK_ON_CPU if device.type == "cpu" else config.gamma * config.batch_size
    return replace(
        config,
        threads=config.threads or len(trainers),
        oracle_cores=as_text(oracles) if oracles else config.oracle_cores,
        oracle=oracle,
        oracle_chunk=config.oracle_chunk or chunk,
        data_cache=config.data_cache or str(default_cache_dir()),
    )


def cores(config: RunConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The oracle's cores and the trainer's; none are the oracle's alone where it scores in the trainer's time."""
    return pool_of(config).cores(config)


def load_splits(config: RunConfig, *, progress: bool = True) -> tuple[ImageData | EncodedData, AnySplit, AnySplit]:
    """The data set, what the run trains on, and what it is evaluated on: the test set, or images held back."""
    data = _load(config, progress)
    train, evaluation = data.train, data.test
    if config.validation_split:
        train, evaluation = hold_out(train, config.validation_split, config.seed)
    if config.limit is not None:
        train = limit_split(train, config.limit, config.seed)
    if config.imbalance > 1:
        train = long_tailed(train, config.imbalance, config.seed)
    if config.copies > 1:
        assert isinstance(train, ImageSplit), "checked with the configuration"
        train = near_copies(train, config.copies, config.seed)
    if config.label_noise:
        train = mislabelled(train, config.label_noise, len(data.class_names), config.seed)
    if config.holdout:
        train, held = hold_out(train, config.holdout, config.seed, Purpose.HOLDOUT)
        train = held if config.train_on == "held" else train
    if config.batch_size > len(train):
        raise ValueError(
            f"batch_size must be at most the number of training images: got {config.batch_size} for {len(train)} "
            "images; lower --batch-size"
        )
    return data, train, evaluation


def _load(config: RunConfig, progress: bool) -> ImageData | EncodedData:
    cache_dir = Path(config.data_cache or default_cache_dir())
    if config.decode == "on-demand":
        return load_encoded(
            config.data,
            cache_dir=cache_dir,
            image_size=config.image_size,
            label_column=config.label_column,
            progress=progress,
        )
    return load_data(
        config.data,
        cache_dir=cache_dir,
        image_size=config.image_size,
        label_column=config.label_column,
        on_bad_image=config.on_bad_image,
        progress=progress,
    )


def prepare(config: RunConfig, *, progress: bool = True, irreducible: Path | None = None) -> Run:
    """Build the run that a resolved configuration describes.

    Args:
        config: of the run.
        progress: show how far the loading is.
        irreducible: file of the losses that rho subtracts, where the configuration names none.

    Raises:
        ValueError: data, model, method or device are not to be had; it says which and what there is.
    """
    device = torch_device(config.device, "pass --device cpu")
    torch.set_num_threads(config.threads or len(available_cores()))
    if device.type == "cpu":
        keep_freed_memory()
    seed_everything(config.seed)
    if config.precision != "fp32" and config.method == "self-distill":
        raise ValueError(
            f"self-distill runs in fp32, since its penalty vanishes in lower precision: got {config.precision}; "
            "pass --precision fp32"
        )
    _check_views(config)
    data, train, evaluation = load_splits(config, progress=progress)
    return assembled(config, data, train, evaluation, device, irreducible)


def assembled(
    config: RunConfig,
    data: ImageData | EncodedData,
    train: AnySplit,
    evaluation: AnySplit,
    device: torch.device,
    irreducible: Path | None = None,
) -> Run:
    """The run on these images.

    Raises:
        ValueError: as `prepare`.
    """
    # Its penalty is a hundred-thousandth of the loss: gradients rounded to ten bits would lose it.
    allow_tf32(config.method != "self-distill")
    stored, channels = _form(train)
    view = make_view(config.view, view_size(config, train))
    # Other processes, which make views or score, read the images where they are.
    home = torch.device("cpu") if config.num_workers or config.oracle_num_workers else device
    training_home = torch.device("cpu") if pool_of(config).runs_beside else home
    training_images = views_of(train, view, training_home)
    model = pixel_model(config, len(data.class_names), channels).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types lack it
    forward = model if config.compile == "none" else compiled(model, device, "pass --compile none", config.compile)
    optimizer = SGD(
        parameter_groups(model, config.weight_decay),
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
    )
    base: DataLoader[Any] = DataLoader(
        training_images,
        batch_size=config.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=config.num_workers,
        pin_memory=device.type == "cuda" and not _is_on_cuda(training_images),
    )
    by_oracle = config.validation == "oracle"
    evaluation_images = views_of(evaluation, evaluation_view(view, stored), training_home if by_oracle else home)
    loader = mine(
        base,
        model,
        mining=replace(config, irreducible=irreducible or config.irreducible),
        validation=evaluation_images if by_oracle else None,
    )
    return Run(
        config=replace(config, oracle=loader.mining.oracle),  # what `auto` was found to be
        data=data,
        model=model,
        forward=forward,
        optimizer=optimizer,
        loader=loader,
        training_images=training_images,
        evaluation_images=evaluation_images,
        device=device,
        digest=digest(train),
    )


def _is_on_cuda(views: ViewDataset) -> bool:
    return isinstance(views, ImageViews) and isinstance(views.images, torch.Tensor)


def placed(split: ImageSplit, device: torch.device) -> tuple[Images, Int64[np.ndarray, " n"] | None]:
    """A split's images, and which of them its samples are: on a CUDA device if they fit there with room to spare."""
    if device.type != "cuda":
        return split.images, split.numbers
    free_bytes, _ = torch.cuda.mem_get_info(device)
    free_bytes += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # of an earlier run
    if len(split) * split.images[:1].nbytes > LARGEST_PART * free_bytes:
        return split.images, split.numbers
    pixels = split.pixels()
    return torch.from_numpy(pixels if pixels.flags.writeable else np.array(pixels)).to(device), None


def pixel_model(config: RunConfig, num_classes: int, channels: int) -> nn.Module:
    """The run's model with its first weights, normalisation in front."""
    network = build_model(config.model, num_classes=num_classes, in_channels=channels, seed=config.seed)
    mean, std = (GREY_MEAN, GREY_STD) if channels == 1 else (RGB_MEAN, RGB_STD)
    return Pixels(network, mean, std)


def _form(split: AnySplit) -> tuple[tuple[int, int] | None, int]:
    """Size (height, width) and channels of all images; no size where they differ."""
    if isinstance(split, EncodedSplit):
        return None, 3
    _, height, width, channels = split.images.shape
    return (height, width), channels


def view_size(config: RunConfig, train: AnySplit) -> int:
    """Height and width of the views that a run trains on (pixels)."""
    if config.crop_size is not None:
        return config.crop_size
    stored, _ = _form(train)
    assert stored is not None, "checked before"
    return stored[0]


def _check_views(config: RunConfig) -> None:
    """Refuse views that the images cannot have, before any image is read.

    Raises:
        ValueError: the size of the views is not known, or not theirs to have.
    """
    sized, is_on_demand = ", ".join(sorted(SIZED)), config.decode == "on-demand"
    if config.view not in SIZED and is_on_demand:
        raise ValueError(
            f"images decoded on demand may differ in size, and need a view that makes them one ({sized}): got "
            f"{config.view}; pass --view random-resized-crop-flip --crop-size 224, or --decode once"
        )
    if config.view not in SIZED and config.crop_size is not None:
        raise ValueError(
            f"crop_size is the size of the views {sized}: got {config.crop_size} for {config.view}; leave it out"
        )
    if config.crop_size is None and is_on_demand:
        raise ValueError(
            "images decoded on demand need the size of their views: got no crop_size; pass --crop-size 224, or what "
            "the model takes"
        )


def views_of(split: AnySplit, view: View, device: torch.device) -> ViewDataset:
    """The views of a split's images: from memory, from a CUDA device where they fit, or decoded on demand."""
    if isinstance(split, EncodedSplit):
        return OnDemandViews(split.pixels, split.targets, view)
    images, numbers = placed(split, device)
    return ImageViews(images, split.targets, view, numbers)


def evaluation_view(trained: View, stored: tuple[int, int] | None) -> View:
    """The whole image, or its centre where the run trains on crops of another size.

    Args:
        trained: the view that the run trains on.
        stored: height and width of the images; None where they differ (pixels).
    """
    size = trained.output_size(*(stored or (1, 1)))  # of images that differ, a view makes one size
    return Identity() if size == stored else EvaluationCrop(size[0])


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights of convolutions and linear layers with weight decay; biases, batch-norm and all else without."""
    layers = (module for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd | nn.Linear))
    # Dictionaries, since two layers may share a weight.
    decayed = dict.fromkeys(layer.weight for layer in layers)
    others = [parameter for parameter in model.parameters() if parameter not in decayed]
    return [{"params": list(decayed), "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
