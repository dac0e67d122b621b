"""`infer2train gamma`: what this machine can do for a model, measured in one go."""

import platform
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from infer2train.batches import split_batch
from infer2train.checkpoint.checkpoint import load_checkpoint
from infer2train.data.load import default_cache_dir, load_data
from infer2train.draws.addresses import Addresses, Purpose, seeds
from infer2train.draws.scores import loss
from infer2train.machine.cores import as_text, available_cores, shared_out
from infer2train.machine.memory import keep_freed_memory
from infer2train.machine.place import Place
from infer2train.observe.runlog import cpu_name, read_config
from infer2train.oracle.engines import ENGINES
from infer2train.oracle.rounds import WALL, take_turns
from infer2train.oracle.samples import SourceSamples
from infer2train.settings import at_least
from infer2train.sources.views.image_views import ImageViews
from infer2train.sources.views.named import make_view
from infer2train.sources.views.view_dataset import ViewDataset
from infer2train.studies.gamma.contest import Contest
from infer2train.studies.gamma.recommendation import recommend, side_by_side
from infer2train.studies.gamma.report import GammaReport
from infer2train.training.config import RunConfig, from_plain
from infer2train.training.folder import CHECKPOINTS
from infer2train.training.setup import load_splits, pixel_model, view_size, views_of

DEFAULT_MODEL = "resnet44"
LARGE = 64
"""Images higher than this get random-resized crops, and a thousand classes where no data says otherwise."""
MADE_IMAGES = 256
"""Random images, where no data is given. Speed does not depend on what is seen; captured gain does."""
WARM_UP_STEPS = 5
"""Steps that a fresh model trains before it is measured, so that its views differ for it."""


def measure_gamma(
    *,
    model: str | None = None,
    data: str | None = None,
    data_cache: str | None = None,
    image_size: int | None = None,
    label_column: str | None = None,
    batch_size: int = 64,
    gamma: int = 10,
    threads: int | None = None,
    oracle_cores: str | None = None,
    compiled: bool = False,
    run: Path | None = None,
    engines: tuple[str, ...] = (),
    say: Callable[[str], None] = lambda line: None,
) -> GammaReport:
    """Measure trainer, engines and views of this machine for a model, and say whether mining pays.

    Args:
        model: an entry of `MODELS`. Default: resnet44.
        data: a data set's name or folder. Default: the run's, or random pixels.
        data_cache: folder of the decoded cache.
        image_size: height and width (pixels). Default: as stored; 32 for random pixels.
        label_column: of Parquet shards, where the labels are. Default: found by name and feature.
        batch_size: examples in a step.
        gamma: candidates for each example that are asked for.
        threads: of trainer and engines alike. Default: as many as there are cores.
        oracle_cores: cores of the oracle, such as "1"; the trainer is measured on the others, and what a step takes
            beside the oracle is predicted. Default: both are measured on all cores.
        compiled: try torch.compile for the trainer too, which takes minutes.
        run: a run folder whose model, data, views and newest weights are measured.
        engines: engines to measure. Default: every one of `MEASURED` that is installed.
        say: called with what is being measured.

    Raises:
        ValueError: a setting that cannot be met.
    """
    for name, value in {"batch_size": batch_size, "gamma": gamma, "threads": threads, "image_size": image_size}.items():
        if value is not None:
            at_least(name, value, 2 if name == "batch_size" else 1)
    oracles, trainers = _cores(oracle_cores)
    torch.set_num_threads(threads or len(trainers))
    keep_freed_memory()  # as a training does
    if run is None:
        source, network, described = subject(model or DEFAULT_MODEL, data, data_cache, image_size, label_column)
    else:
        for name, given in {"model": model, "image_size": image_size, "label_column": label_column}.items():
            if given is not None:
                raise ValueError(f"gamma --run measures the run's own {name}: got {given}; leave it out, or --run")
        source, network, described = subject_of(run, data, data_cache)
    samples = SourceSamples(source, lambda: np.arange(len(source)), seed=0, split=split_batch)
    ids = np.resize(np.arange(len(source)), batch_size)
    images, targets = source.batch(Addresses(ids, seeds(0, Purpose.VIEW, slot=np.arange(batch_size))))

    trained_steps = described["steps"] or _warm_up(network, images, targets)
    draw = Addresses(ids, seeds(0, Purpose.VIEW, draw=1, slot=np.arange(batch_size)))
    trainer = Place(cores=trainers if oracles else (), num_threads=threads or len(trainers))
    contest = Contest(
        network,
        images,
        targets,
        views=lambda: source.batch(draw),
        samples=samples,
        engines=engines,
        compiled=compiled,
        trainer=trainer,
        oracle=Place(cores=oracles, num_threads=len(oracles)) if oracles else trainer,
        say=say,
    )
    rounds = take_turns(contest.contestants, say=say)
    train, speeds = contest.training(), contest.speeds(loss)
    best = min(train, key=lambda speed: speed.step_seconds)
    planned: dict[str, Any] = {
        "batch_size": batch_size,
        "views_per_second": contest.views.rate,
        "step_seconds": best.step_seconds + contest.views.fastest_seconds,
    }
    recommended = recommend(speeds, gamma=gamma, step_rounds=contest.step_rounds(), **planned)
    return GammaReport(
        machine={"cpu": cpu_name(), "cores": len(available_cores()), "system": platform.platform()},
        versions=_versions(),
        model=described["model"],
        record_bytes=bytes_of(network),
        data=described["data"],
        image_size=int(images.shape[-1]),
        batch_size=batch_size,
        threads=torch.get_num_threads(),
        trained_steps=trained_steps,
        gamma=gamma,
        rounds=rounds,
        is_cpu_time=contest.clocks != WALL,
        taken_by_others=contest.busyness.share,
        train=train,
        parts=contest.parts_of_a_step(),
        engines=speeds,
        failed=contest.failed,
        views_per_second=contest.views.rate,
        recommended=recommended,
        hybrid=side_by_side(recommended, speeds, oracle_cores=oracles, trainer_cores=trainers, **planned)
        if oracles
        else None,
    )


def _cores(oracle_cores: str | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The oracle's, if it has its own, and the trainer's."""
    if oracle_cores is None:
        return (), available_cores()
    oracles, trainers = shared_out(oracle_cores, 1)
    if set(oracles) & set(trainers):
        raise ValueError(
            f"beside an oracle on cores of its own the trainer needs one: got oracle_cores {oracle_cores!r} of "
            f"{as_text(available_cores())}; name fewer, or leave --oracle-cores out"
        )
    return oracles, trainers


Subject = tuple[ViewDataset, nn.Module, dict[str, Any]]
"""What is measured: views, a network, and what they are called."""


def subject(
    model: str, data: str | None, data_cache: str | None, image_size: int | None, label_column: str | None = None
) -> Subject:
    """A model that is not trained, on the views that images of that size mostly get."""
    if data is None:
        size = image_size or 32
        generator = np.random.default_rng(0)
        pixels = generator.integers(0, 256, (MADE_IMAGES, size, size, 3), dtype=np.uint8)
        classes = 1000 if size > LARGE else 10
        labels, name = generator.integers(0, classes, MADE_IMAGES), "random pixels"
    else:
        cache_dir = Path(data_cache or default_cache_dir())
        loaded = load_data(data, cache_dir=cache_dir, image_size=image_size, label_column=label_column)
        pixels, labels, classes, name = loaded.train.images, loaded.train.targets, len(loaded.class_names), loaded.name
        size = pixels.shape[1]
    view = make_view("random-resized-crop-flip" if size > LARGE else "pad-crop-flip", size)
    network = _network(RunConfig(model=model), classes, channels=pixels.shape[3])
    return ImageViews(pixels, labels, view), network, {"model": model, "data": name, "steps": 0}


def subject_of(run: Path, data: str | None = None, data_cache: str | None = None) -> Subject:
    """What a run trains: its model with the newest weights, on the views that it trains on.

    Args:
        run: its folder.
        data: where its images are. Default: where they were.
        data_cache: folder of the decoded cache. Default: the run's.

    Raises:
        ValueError: there is no run or no checkpoint, or its images are not there.
    """
    config = from_plain(read_config(run))
    checkpoint = load_checkpoint(run / CHECKPOINTS)
    if checkpoint is None:
        raise ValueError(f"gamma --run needs a run with a checkpoint: got none in {run}; train it first")
    config = replace(config, data=data or config.data, data_cache=data_cache or config.data_cache)
    loaded, train, _ = load_splits(config, progress=False)
    source = views_of(train, make_view(config.view, view_size(config, train)), torch.device("cpu"))
    channels = source.batch(Addresses(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)))[0].shape[1]
    network = _network(config, len(loaded.class_names), channels)
    network.load_state_dict(checkpoint.state["model"])
    steps = int(checkpoint.state["loader"]["steps"])
    return source, network, {"model": config.model, "data": loaded.name, "steps": steps}


def _network(config: RunConfig, classes: int, channels: int) -> nn.Module:
    return pixel_model(config, classes, channels).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]  # torch's types lack it


def bytes_of(network: nn.Module) -> int:
    """Its weights and statistics: what an oracle gets at a refresh."""
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())


def _warm_up(network: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> int:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    network.train()
    for _ in range(WARM_UP_STEPS):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(network(images), targets))
        optimizer.step()
    return WARM_UP_STEPS


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("infer2train", "torch", *ENGINES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
