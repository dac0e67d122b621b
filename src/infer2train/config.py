"""A run as frozen dataclasses: what the command line reads, what `config.yaml` holds, what a checkpoint compares.

Free of torch, so that `--help` answers at once. Registries elsewhere are plain dictionaries {name: "module:attribute"};
`resolve` and `unknown` serve them all. What the fields do is said in the modules that use them.
"""

import dataclasses
import difflib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on."""

    data: str = "digits"
    """A catalogue name (digits, cifar10), a folder of Parquet shards in the hub's image layout, or a folder of class
    folders: train/CLASS/*.jpg and test/CLASS/*.jpg (or validation, valid, val)."""
    data_cache: str | None = None
    """Folder of the decoded cache and of downloads. Default: $INFER2TRAIN_CACHE, else the user's cache folder."""
    decode: Literal["once", "on-demand"] = "once"
    """Images of a folder: once, all into the cache and to one size; on-demand, each when a view of it is needed."""
    image_size: int | None = None
    """Once: height and width in pixels (shorter side resized, centre cropped). On-demand: the most that a shorter side
    may have; larger images are resized in their proportions. Default: as stored."""
    label_column: str | None = None
    """Column of Parquet shards that holds the labels: integers, strings or booleans. Default: the one that its name
    (such as label) or a ClassLabel feature tells."""
    limit: int | None = None
    """Train on a seeded, class-balanced subset of this many training images. Default: all."""
    imbalance: float = 1.0
    """Long-tailed training set: the last class has this many times fewer images than the first (1: no tail)."""
    label_noise: float = 0.0
    """Part of the training labels that are wrong: each moved to another class at random (0 to 1). Tests stay clean."""
    validation_split: int = 0
    """Hold back this many training images and evaluate on those instead of the test set (images)."""
    on_bad_image: Literal["error", "skip"] = "error"
    """An image that cannot be decoded: stop and name it, or (with decode=once) leave it out and count it."""
    view: str = "shift-rotate"
    """Random transform of each view: pad-crop-flip, trivial-augment, random-resized-crop-flip, shift-rotate,
    identity."""
    crop_size: int | None = None
    """Height and width in pixels of random-resized-crop views. Default: the images' own."""


@dataclass(frozen=True, kw_only=True)
class MiningConfig:
    """Which candidates are scored, by what, and which are trained on."""

    method: str = "baseline"
    """baseline, batch-augment, nm-sample, random-sample, nm-augment, nm-augment-soft or self-distill."""
    gamma: int = 10
    """Candidates for each trained example (γ; whole number, at least 1)."""
    oracle: str = "torch:fp32"
    """Engine that scores: int8 (the fastest installed), auto (measured here), or ENGINE:PRECISION[@DEVICE]: torch:fp32,
    torch:bf16[+compile], openvino:int8|bf16|fp32, onnxruntime:int8|fp32, simulated:b2 to b8 or b16."""
    quantization: str = "default"
    """Scales of an int8 oracle: default (per channel), paper (per tensor), percentile (without outliers) or tails."""
    oracle_chunk: int | None = None
    """Candidates that the oracle scores at a time (images). Default: 32 on a CPU, a whole draw elsewhere."""
    update_every: int = 100
    """Steps between refreshes of the oracle (T)."""
    delay_steps: int = 0
    """Extra steps of allowed staleness (D), for loops that fetch ahead; 0 is the paper's Algorithm 1."""
    mine_every: int = 1
    """Mine only at every so many steps; the others train on ordinary batches (steps)."""
    score: str | None = None
    """loss, entropy, margin or gradient-norm-bound. Default: the method's own."""
    pick: str | None = None
    """Pick among the views of a sample: max, proportional, quantile or uniform. Default: the method's own."""
    balance: Literal["none", "stratified", "uniform"] = "stratified"
    """Class quotas of nm-sample and random-sample: none, as frequent as in the candidates, or equal (the paper)."""
    ramp_rate: float | None = None
    """Mined share grows by this much each epoch (the paper: 0.01 or 0.1). Default: by ramp_start and ramp_stop."""
    ramp_start: float | None = None
    """Part of the training before which nothing is mined (0 to 1). Default: the method's own; with ramp_stop 0."""
    ramp_stop: float | None = None
    """Part of the training after which all is mined (ramp_start to 1). Default: the method's own; with ramp_start 1."""
    distill_weight: float = 1e-5
    """Weight λ of the distillation penalty of self-distill (equation 1)."""


@dataclass(frozen=True, kw_only=True)
class MachineConfig:
    """Where the oracle runs, and what happens when it is late or lost."""

    pool: Literal["inline", "process", "stream"] = "inline"
    """inline: the oracle scores in the trainer's own time; process: in processes of its own, ahead of the trainer;
    stream: in a CUDA stream beside the trainer's."""
    oracle_workers: int = 1
    """Processes of the oracle, with pool=process."""
    oracle_cores: str | None = None
    """Cores of the oracle, such as 1 or 4-7; the trainer gets the others. Default: the last ones, one a worker."""
    queue_depth: int = 4
    """How far the oracle scores ahead of the trainer, with pool=process (draws)."""
    staleness: Literal["strict", "freshest"] = "strict"
    """strict: the step decides which weights score a draw, so a run repeats bit for bit; freshest: the newest there."""
    when_late: Literal["wait", "skip"] = "wait"
    """When scores are late, with staleness=freshest: wait for them, or train on the draw unmined and count it."""
    on_oracle_loss: Literal["stop", "continue"] = "stop"
    """When no oracle can be started any more, with staleness=freshest: stop with a checkpoint, or go on unmined."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the trainer trains."""

    regime: str = "digits"
    """The named run whose settings the others are changes of: digits, cifar10-resnet44, imagenet-resnet50."""
    model: str = "resnet8"
    """resnet8/14/20/32/44/56, imagenet-resnet18/50, or package.module:function(num_classes, in_channels)."""
    epochs: int = 60
    """Length of the training (epochs)."""
    batch_size: int = 64
    """Examples trained on in each step (B; images)."""
    lr: float = 0.1
    """Learning rate of stochastic gradient descent at its highest."""
    lr_reference_batch: int | None = None
    """Scale lr by batch_size over this (the linear rule of Goyal et al.; images). Default: lr as it is."""
    momentum: float = 0.9
    """Momentum of stochastic gradient descent."""
    nesterov: bool = False
    """Nesterov's momentum instead of the plain one."""
    weight_decay: float = 1e-4
    """L2 penalty on convolution and linear weights; not on biases and batch-norm."""
    lr_schedule: Literal["drops", "cosine"] = "drops"
    """How the learning rate falls: ten times lower at each of `lr_drops`, or a half cosine to 0 over the training."""
    lr_drops: tuple[int, ...] = (54,)
    """Epochs (counted from 0) from which the learning rate is ten times lower, under lr_schedule drops."""
    warmup_epochs: float = 0.0
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
    threads: int | None = None
    """Threads of the trainer's CPU arithmetic. Default: as many as there are cores for this process."""
    num_workers: int = 0
    """Processes that make the trainer's views, those of an evaluation, and as many for each oracle; 0 makes them in the
    trainer's own and in the oracle's."""
    seed: int = 0
    """Seed of everything random in the run (in [0, 2^63))."""
    train_error_samples: int = 2000
    """Training images on whose random views the training error is measured each epoch (images)."""
    evaluate_every: int = 1
    """Epochs between evaluations; the last epoch is evaluated anyway (epochs)."""
    checkpoint_every: int = 500
    """Steps between checkpoints; one is written after each epoch anyway (steps)."""
    log_every: int = 20
    """Steps between rows of metrics.jsonl (steps)."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(DataConfig, MiningConfig, MachineConfig, TrainingConfig):
    """One complete run: every setting that its result depends on, in one flat namespace."""

    def __post_init__(self) -> None:
        check_run(self)


WITHOUT_EFFECT_ON_RESULTS = ("pool", "oracle_workers", "oracle_cores", "queue_depth", "data_cache")
"""Settings that a resumed run may change: where it is computed, not what."""
POSITIVE = (
    *("oracle_workers", "gamma", "update_every", "mine_every", "epochs", "batch_size"),
    *("evaluate_every", "checkpoint_every", "log_every"),
)
NON_NEGATIVE = (
    *("queue_depth", "delay_steps", "validation_split", "num_workers", "train_error_samples", "seed", "warmup_epochs"),
    *("momentum", "weight_decay", "distill_weight"),
)


def check_run(config: RunConfig) -> None:
    """Refuse settings that no data and no model could make sense of.

    Raises:
        ValueError: the rule, what was got, the remedy.
    """
    for name in POSITIVE:
        at_least(name, getattr(config, name), 1)
    for name in NON_NEGATIVE:
        at_least(name, getattr(config, name), 0)
    for name in ("limit", "image_size", "crop_size", "threads", "oracle_chunk", "lr_reference_batch"):
        if getattr(config, name) is not None:
            at_least(name, getattr(config, name), 1)
    check_staleness(config.staleness, config.when_late, config.on_oracle_loss)
    if config.decode == "on-demand" and config.on_bad_image == "skip":
        raise ValueError(
            "images that cannot be decoded are left out before a run, not in the midst of it: got on_bad_image='skip' "
            "with decode='on-demand'; pass --decode once, or remove those that the error names"
        )
    if config.lr <= 0:
        raise ValueError(f"lr must be positive: got {config.lr}; use a value such as 0.1")
    at_least("imbalance", config.imbalance, 1)
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


def check_staleness(staleness: str, when_late: str, on_oracle_loss: str) -> None:
    """Refuse what would make a strict run depend on time.

    Raises:
        ValueError: it would.
    """
    if staleness == "strict" and (when_late == "skip" or on_oracle_loss == "continue"):
        got = "when_late='skip'" if when_late == "skip" else "on_oracle_loss='continue'"
        raise ValueError(
            f"a strict run never depends on how fast an oracle is: got {got}; pass staleness='freshest' too, or leave "
            "it out"
        )


def at_least(name: str, value: float, bound: int) -> None:
    """Refuse a setting below its bound.

    Raises:
        ValueError: it is.
    """
    if value < bound:
        raise ValueError(f"{name} must be at least {bound}: got {value}; pass {name}={bound} or more")


def differences(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """The fields in which two configurations differ, each as `name: stored -> wanted`."""
    return [
        f"{name}: {stored.get(name)!r} -> {wanted.get(name)!r}"
        for name in sorted(stored.keys() | wanted.keys())
        if stored.get(name) != wanted.get(name)
    ]


def as_plain(config: RunConfig) -> dict[str, Any]:
    """The run as a flat mapping of JSON types, as `config.yaml` holds it."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(config).items()
    }


def from_plain(fields: dict[str, Any]) -> RunConfig:
    """The run that `as_plain` wrote.

    Raises:
        ValueError: a field is unknown.
    """
    known = {field.name for field in dataclasses.fields(RunConfig)}
    for name in fields:
        if name not in known:
            raise unknown("setting", name, known)
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return RunConfig(**values)


def resolve(spec: str) -> Any:
    """The object that `package.module:attribute` names.

    Example:
        >>> resolve("math:floor")(1.5)
        1
    """
    module, _, attribute = spec.partition(":")
    return getattr(importlib.import_module(module), attribute)


def unknown(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a name that a registry does not have: what there is, and the nearest."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    suggestion = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"unknown {kind} {name!r}: there is {', '.join(names)}{suggestion}")
