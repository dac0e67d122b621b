"""What rho and trusted know of each image, from the command line: what a model loses on it that was trained on others.

That model is a run like any other, a baseline on the images of `--holdout`. It is trained once for all runs that agree
in data, seed and its own settings, and scores every other image once, with the run's oracle. The run and the losses
are kept in the cache, in a folder named by all that they depend on. Where nothing is held back there are two such
models, each trained on one half of the images and asked about the other.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float32

from infer2train.checkpoint.checkpoint import load_checkpoint
from infer2train.checkpoint.manifest import sync
from infer2train.data.fingerprints import write_json
from infer2train.data.images import AnySplit
from infer2train.data.subsets import balanced_ids
from infer2train.draws.addresses import Purpose
from infer2train.draws.scores import loss
from infer2train.oracle.engines import build_engine
from infer2train.oracle.samples import SourceSamples
from infer2train.oracle.scorer import Scorer, chunks
from infer2train.oracle.snapshot import snapshot
from infer2train.settings import as_plain, decisive
from infer2train.training.config import RunConfig, unmined
from infer2train.training.evaluation import every_sample
from infer2train.training.folder import CHECKPOINTS, Result, is_finished, require_same_images, result_of
from infer2train.training.setup import Run, load_splits, prepare, views_of

Train = Callable[[RunConfig, Path], Result]
"""Trains a run in a folder, to its end or on from where it stood."""


@dataclass(frozen=True, kw_only=True)
class Irreducible:
    """Irreducible losses, and what they cost.

    Args:
        file: a .npy of one float32 for each image that is trained on, by sample id.
        note: how they came about, in words.
        seconds: that training the model and scoring with it took, now or when it was done.
    """

    file: Path
    note: str
    seconds: float


def irreducible_run(config: RunConfig) -> RunConfig:
    """The run that trains the irreducible model of another: a baseline on the other part, under half a cosine."""
    return replace(
        unmined(config),
        train_on="held" if config.train_on == "rest" else "rest",
        model=config.irreducible_model or config.model,
        irreducible_model=None,
        irreducible_epochs=RunConfig.irreducible_epochs,
        epochs=config.irreducible_epochs,
        lr_schedule="cosine",
        lr_drops=RunConfig.lr_drops,
        warmup_epochs=0.0,
        train_error_samples=0,
        evaluate_every=config.irreducible_epochs,
    )


def irreducible_losses(config: RunConfig, train: Train) -> Irreducible:
    """The irreducible losses of a resolved run, from the cache where they are there.

    Args:
        config: of the run that mines.
        train: trains the irreducible model, with progress; what it raises comes through.

    Source: Mindermann et al. 2022, arXiv 2206.07137: a model of held-out data, or two of half the data each.
    """
    if not config.holdout:
        return _by_halves(config, train)
    run = irreducible_run(config)
    data, images, _ = load_splits(config, progress=False)
    depends_on = [data.fingerprint, decisive(RunConfig, as_plain(run))]
    name = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:16]
    assert config.data_cache is not None, "resolved"
    folder = Path(config.data_cache) / "irreducible" / name
    file = folder / f"losses-{re.sub('[^0-9a-z]+', '-', config.oracle)}.npy"
    made = file.with_suffix(".json")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):  # of runs side by side, one trains it and the others wait
        seconds = _seconds(made)
        if seconds is None:
            result = result_of(folder / "run") if _is_whole(folder / "run") else train(run, folder / "run")
            started = perf_counter()
            losses = _scored(prepare(run, progress=False), folder / "run", images, config)
            _replace(file, losses)
            seconds = result.seconds + perf_counter() - started
            write_json(made, {"seconds": seconds})  # last: what it stands beside is whole
    others = f"{config.holdout} held back" if run.train_on == "held" else "the others"
    note = (
        f"irreducible losses of {len(images)} images: by {run.model}, trained on {others} for {run.epochs} epochs "
        f"({seconds:.0f} s, once); {file}"
    )
    return Irreducible(file=file, note=note, seconds=seconds)


def _by_halves(config: RunConfig, train: Train) -> Irreducible:
    """Of every image, by the model of the half that it is not in."""
    _, images, _ = load_splits(config, progress=False)
    half = len(images) // 2
    if config.batch_size > half:
        raise ValueError(
            f"{config.method} without --holdout trains a model on each half of {len(images)} images: got batch_size "
            f"{config.batch_size} for {half}; lower --batch-size or pass --holdout"
        )
    held = balanced_ids(images.targets, half, config.seed, Purpose.HOLDOUT)
    parts = {"rest": np.setdiff1d(np.arange(len(images)), held), "held": held}
    halves = {
        part: irreducible_losses(replace(config, holdout=len(held), train_on=part), train)  # type: ignore[arg-type]  # a part is one of two words
        for part in parts
    }
    losses = np.empty(len(images), dtype=np.float32)
    for part, ids in parts.items():
        losses[ids] = np.load(halves[part].file)
    first = halves["rest"].file
    file = first.with_name(f"whole-{first.name}")
    _replace(file, losses)  # of runs side by side, each has the same to write
    seconds = sum(half.seconds for half in halves.values())
    note = (
        f"irreducible losses of {len(images)} images: each half's by a {config.irreducible_model or config.model} of "
        f"the other half, {config.irreducible_epochs} epochs ({seconds:.0f} s, once); {file}"
    )
    return Irreducible(file=file, note=note, seconds=seconds)


def _is_whole(folder: Path) -> bool:
    """Whether a run is finished and its last checkpoint good: from an earlier one it would go on to the same end."""
    checkpoint = load_checkpoint(folder / CHECKPOINTS)
    return is_finished(folder) and checkpoint is not None and not checkpoint.rejected


def _seconds(made: Path) -> float | None:
    """What the losses took, once they are there; None while they have to be made, or made again."""
    try:
        return float(json.loads(made.read_bytes())["seconds"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _replace(file: Path, losses: Float32[np.ndarray, " n"]) -> None:
    """Write beside the file and rename, so that under its name they are whole, also after a power cut."""
    beside = file.with_name(f"{os.getpid()}-{file.name}")
    np.save(beside, losses)
    sync(beside)
    beside.replace(file)


def _scored(run: Run, folder: Path, images: AnySplit, config: RunConfig) -> Float32[np.ndarray, " n"]:
    """What the model in a run's folder loses on other images, in the precision of the oracle."""
    checkpoint = load_checkpoint(folder / CHECKPOINTS)
    assert checkpoint is not None, folder
    require_same_images(
        run,
        checkpoint.state,
        "an irreducible model judges by the images that it was trained on",
        f"remove {folder}, and it is trained anew",
    )
    run.model.load_state_dict(checkpoint.state["model"])
    source = views_of(images, run.evaluation_images.view, torch.device("cpu"))
    everything = every_sample(len(images))
    chunk = config.oracle_chunk or 1
    samples = SourceSamples(source, lambda: everything.ids, config.seed, lambda batch: batch)
    oracle = "int8" if config.oracle == "auto" else config.oracle
    engine = build_engine(oracle, run.model, run.device, samples=samples, rows=chunk)
    engine.refresh(engine.calibrated(snapshot(run.model, 0)))
    scores = Scorer(score=loss, chunk=chunk).score(engine, map(source.batch, chunks(everything, chunk)))
    run.loader.close()
    assert scores.values is not None
    return scores.values.cpu().numpy()
