"""A run as one frozen dataclass: what `train` reads, what `config.yaml` holds, what a checkpoint compares.

Free of torch, so that `--help` answers at once. What the fields do is said in the modules that use them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from infer2train.draws.mining import Mining
from infer2train.settings import at_least, changed, setting


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on."""

    data: str = "digits"
    """A known name (digits, digits-half, cifar10), a data set of the Hugging Face hub (uoft-cs/cifar10), a folder of
    Parquet shards in the hub's image layout, or one of class folders: train/CLASS/*.jpg and test/CLASS/*.jpg (or
    validation, valid, val)."""
    data_cache: str | None = setting(None, is_place=True)
    """Folder of the decoded cache and of downloads. Default: $INFER2TRAIN_CACHE, else the user's cache folder."""
    decode: Literal["once", "on-demand"] = "once"
    """Images of a folder: once, all into the cache and to one size; on-demand, each when a view of it is needed."""
    image_size: int | None = setting(None, at_least=1)
    """Once: height and width in pixels (shorter side resized, centre cropped). On-demand: the most that a shorter side
    may have; larger images are resized in their proportions. Default: as stored."""
    label_column: str | None = None
    """Column of Parquet shards that holds the labels: integers, strings or booleans. Default: the one that its name
    (such as label) or a ClassLabel feature tells."""
    limit: int | None = setting(None, at_least=1)
    """Train on a seeded, class-balanced subset of this many training images. Default: all."""
    imbalance: float = setting(1.0, at_least=1)
    """Long-tailed training set: the last class has this many times fewer images than the first (1: no tail)."""
    copies: int = setting(1, at_least=1)
    """Redundant training set: about as many images, but each this many times, its copies moved by up to a pixel and up
    to a tenth darker or brighter. What label_noise and holdout do, they do to each copy by itself."""
    label_noise: float = 0.0
    """Part of the training labels that are wrong: each moved to another class at random (0 to 1). Tests stay clean."""
    validation_split: int = setting(0, at_least=0)
    """Hold back this many training images and evaluate on those instead of the test set (images)."""
    holdout: int = setting(0, at_least=0)
    """Hold this many training images back, with labels as they are: for the irreducible model of rho and trusted, which
    is trained on them, or for a comparison with those (images). 0: both take a model of each half of them."""
    train_on: Literal["rest", "held"] = "rest"
    """Which part is trained on: what holdout leaves, or what it holds back."""
    on_bad_image: Literal["error", "skip"] = "error"
    """An image that cannot be decoded: stop and name it, or (with decode=once) leave it out and count it."""
    view: str = "shift-rotate"
    """Random transform of each view: pad-crop-flip, random-resized-crop-flip, shift-rotate, identity."""
    crop_size: int | None = setting(None, at_least=1)
    """Height and width in pixels of random-resized-crop views. Default: the images' own."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the trainer trains."""

    regime: str = "digits"
    """The named run whose settings the others are changes of: digits, cifar10-resnet44, imagenet-resnet50."""
    model: str = "resnet8"
    """convnet (three convolutions), resnet8/14/20/32/44/56, imagenet-resnet18/50, or
    package.module:function(num_classes, in_channels)."""
    epochs: int = setting(60, at_least=1)
    """Length of the training (epochs). Of another length than the regime's, its lr_drops, warmup_epochs and ramp_rate
    keep their place in it, unless they are given."""
    batch_size: int = setting(64, at_least=1)
    """Examples trained on in each step (B; images)."""
    lr: float = 0.1
    """Learning rate of stochastic gradient descent at its highest."""
    lr_reference_batch: int | None = setting(None, at_least=1)
    """Scale lr by batch_size over this (the linear rule of Goyal et al.; images). Default: lr as it is."""
    momentum: float = setting(0.9, at_least=0)
    """Momentum of stochastic gradient descent."""
    nesterov: bool = False
    """Nesterov's momentum instead of the plain one."""
    weight_decay: float = setting(1e-4, at_least=0)
    """L2 penalty on convolution and linear weights; not on biases and batch-norm."""
    lr_schedule: Literal["drops", "cosine"] = "drops"
    """How the learning rate falls: ten times lower at each of `lr_drops`, or a half cosine to 0 over the training."""
    lr_drops: tuple[int, ...] = (54,)
    """Epochs (counted from 0) from which the learning rate is ten times lower, under lr_schedule drops."""
    warmup_epochs: float = setting(0.0, at_least=0)
    """Linear warm-up from 0.1 to `lr` when lr is above 0.1 (epochs)."""
    label_smoothing: float = 0.0
    """Share of each target that is spread over all classes in the trained loss (0 to 1); scores stay unsmoothed."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the trainer: fp32, or bf16 autocast."""
    device: str = "cpu"
    """Where the trainer runs: cpu, cuda, cuda:1, mps."""
    compile: Literal["none", "default", "reduce-overhead"] = "none"
    """torch.compile of the trainer's forward and backward pass: none, default, or reduce-overhead, which on CUDA
    records graphs. It rounds otherwise, so a run goes on as it began."""
    threads: int | None = setting(None, at_least=1)
    """Threads of the trainer's CPU arithmetic. Default: as many as there are cores for this process."""
    num_workers: int = setting(0, at_least=0)
    """Processes that make the trainer's views, those of an evaluation, and as many for each oracle; 0 makes them in the
    trainer's own and in the oracle's."""
    train_error_samples: int = setting(2000, at_least=0)
    """Training images on whose random views the training error is measured each epoch (images)."""
    irreducible_model: str | None = None
    """Network of the irreducible model of rho and trusted, as for model. Default: the run's own."""
    irreducible_epochs: int = setting(30, at_least=1)
    """Length of its training on what is held back, or on half of all; once for runs that agree in it (epochs)."""
    evaluate_every: int = setting(1, at_least=1)
    """Epochs between evaluations; the last epoch is evaluated anyway (epochs)."""
    validation: Literal["trainer", "oracle"] = "trainer"
    """Who evaluates before the last epoch, on the test images or those of validation_split: the trainer, or, with
    pool=process or pool=ray, the oracle, each version that it has, in time in which no draw waits for it."""
    stop_after: int | None = setting(None, at_least=1)
    """With validation=oracle, end the training after an epoch when so many versions were evaluated since the best one
    (versions). Default: all epochs."""
    keep_best: bool = False
    """With validation=oracle, keep the weights of the version that was found to be the best, for eval --best."""
    checkpoint_every: int = setting(500, at_least=1)
    """Steps between checkpoints; one is written after each epoch anyway (steps)."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(TrainingConfig, Mining, DataConfig):
    """One complete run: every setting that its result depends on, in one flat namespace."""

    method: str = "baseline"

    def __post_init__(self) -> None:
        Mining.__post_init__(self)
        check_run(self)


def unmined(config: RunConfig) -> RunConfig:
    """The same training as a baseline: without candidates and without an oracle.

    Example:
        >>> unmined(RunConfig(method="nm-augment", pool="process", epochs=3)) == RunConfig(epochs=3)
        True
    """
    config = replace(config, validation="trainer", stop_after=None, keep_best=False)
    kept = ("method", "epochs", "seed", "log_every")
    defaults: dict[str, Any] = {f.name: f.default for f in fields(Mining) if f.name not in kept}
    return replace(config, method="baseline", **defaults)


def as_long_as(config: RunConfig, epochs: int) -> RunConfig:
    """The run over more epochs or fewer: its learning rate and its ramp take their course in that time.

    Of two epochs or more the last one still has the learning rate that the whole run ends with.

    Raises:
        ValueError: there is less than one epoch.

    Example:
        >>> as_long_as(RunConfig(epochs=60, lr_drops=(54,)), 10).lr_drops
        (9,)
    """
    at_least("epochs", epochs, 1)
    longer = epochs / config.epochs
    return replace(
        config,
        epochs=epochs,
        lr_drops=tuple(max(1, min(round(drop * longer), epochs - 1)) for drop in config.lr_drops),
        warmup_epochs=config.warmup_epochs * longer,
        ramp_rate=None if config.ramp_rate is None else config.ramp_rate / longer,
    )


def check_run(config: RunConfig) -> None:
    """Refuse settings that no data and no model could make sense of.

    Raises:
        ValueError: the rule, what was got, the remedy.
    """
    if config.decode == "on-demand" and config.on_bad_image == "skip":
        raise ValueError(
            "images that cannot be decoded are left out before a run, not in the midst of it: got on_bad_image='skip' "
            "with decode='on-demand'; pass --decode once, or remove those that the error names"
        )
    if config.imbalance > 1 and config.copies > 1:
        raise ValueError(
            f"copies are made of a class-balanced part: got copies={config.copies} with imbalance={config.imbalance}; "
            "leave one of them out"
        )
    if config.decode == "on-demand" and config.copies > 1:
        raise ValueError(
            f"copies are made of decoded images: got copies={config.copies} with decode='on-demand'; pass --decode once"
        )
    if config.accumulation_steps != 1:
        raise ValueError(
            f"train steps after every draw: got accumulation_steps={config.accumulation_steps}; lower batch_size, or "
            "accumulate in a loop of your own with mine()"
        )
    if config.train_on == "held" and not config.holdout:
        raise ValueError("train_on='held' trains on what holdout holds back: got holdout=0; pass --holdout 10000, say")
    if config.validation == "trainer" and (config.stop_after is not None or config.keep_best):
        got = "keep_best" if config.keep_best else f"stop_after={config.stop_after}"
        raise ValueError(
            f"versions are compared where the oracle evaluates them: got {got} with validation='trainer'; pass "
            "--validation oracle, or leave it out"
        )
    if not config.validation_split and (config.stop_after is not None or config.keep_best):
        raise ValueError(
            "a version is chosen by images that it is not tested on: got validation_split=0, so by the test images; "
            "pass --validation-split 5000, say"
        )
    if config.lr <= 0:
        raise ValueError(f"lr must be positive: got {config.lr}; use a value such as 0.1")
    for name in ("label_noise", "label_smoothing"):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} must be in [0, 1): got {getattr(config, name)}; use a value such as 0.1")
    if config.lr_schedule == "cosine" and config.warmup_epochs >= config.epochs:
        raise ValueError(
            f"a warm-up must end before the training: got warmup_epochs={config.warmup_epochs} of {config.epochs}; "
            "lower --warmup-epochs"
        )
    if config.nesterov and config.momentum == 0:
        raise ValueError("nesterov needs momentum above 0: got momentum=0; pass --momentum 0.9")


def from_plain(plain: Mapping[str, Any]) -> RunConfig:
    """The run that `as_plain` wrote.

    Raises:
        ValueError: a setting is unknown, or one is out of bounds.
    """
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
    config: RunConfig = changed(RunConfig, None, values)
    return config
