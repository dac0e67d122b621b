"""Whether decoding on demand keeps up with a method that looks at γ·B different samples a draw; measured at the start.

Methods that look at γ views of each sample decode it once for all of them, and need no such warning.
"""

import numpy as np
import torch

from infer2train.draws.addresses import Addresses, Purpose, integers, seeds
from infer2train.draws.methods.table import choices_of
from infer2train.oracle.measurement import step_seconds, timed
from infer2train.pool.pools import pool_of
from infer2train.training.config import RunConfig
from infer2train.training.setup import Run

PROBED_IMAGES = 32
"""Decoded to see how long that takes."""
PROBED_ROWS_ON_CPU = 8
"""Of a training step, whose time on a CPU is that of its images; other devices get a whole batch."""


def decoding_warning(run: Run) -> str | None:
    """What decoding allows, if that is less than the run asks for.

    γ = images decoded in a second · seconds between two mined draws / B
    """
    config, choices = run.config, choices_of(run.config)
    if config.decode == "once" or choices.candidates != "samples" or not choices.looks_at_candidates:
        return None
    processes = _processes(config)
    per_second = processes / _seconds_an_image(run)
    between_seconds = config.mine_every * _step_seconds(run)
    gamma = per_second * between_seconds / config.batch_size
    if gamma >= config.gamma:
        return None
    num_candidates = config.gamma * config.batch_size
    size = config.image_size or run.training_images.output_size[0]
    cache_gb = (len(run.data.train) + len(run.data.test)) * 3 * size**2 / 1e9
    return (
        f"{config.method} looks at γ·B = {num_candidates} images a draw, and {per_second:.0f} a second can be decoded "
        f"here (processes: {processes}): {num_candidates / per_second:.2g} s, where training takes "
        f"{between_seconds:.2g} s from one such draw to the next. Decoding keeps up with γ = {gamma:.3g}: raise "
        f"--oracle-num-workers, lower --gamma, or pass --decode once --image-size {size} for a cache of "
        f"{cache_gb:.2g} GB"
    )


def _processes(config: RunConfig) -> int:
    """How many decode for the oracle at a time."""
    oracles, trainers = pool_of(config).cores(config)
    workers = config.oracle_workers if oracles else 1
    own = config.num_workers if config.oracle_num_workers is None else config.oracle_num_workers
    return min(workers * max(1, own), len(oracles or trainers))


def _probe(num_samples: int, rows: int) -> Addresses:
    slots = np.arange(rows)
    return Addresses(integers(num_samples, 0, Purpose.PROBE, slot=slots), seeds(0, Purpose.PROBE, slot=slots, view=1))


def _seconds_an_image(run: Run) -> float:
    addresses = _probe(len(run.training_images), PROBED_IMAGES)
    _, first = np.unique(addresses.ids, return_index=True)
    addresses = addresses[first]
    return timed(lambda: run.training_images.batch(addresses), seconds=0.0, least=1) / len(addresses)


def _step_seconds(run: Run) -> float:
    rows = min(run.config.batch_size, PROBED_ROWS_ON_CPU if run.device.type == "cpu" else run.config.batch_size)
    images, _ = run.training_images.batch(_probe(len(run.training_images), rows))
    with torch.autocast(run.device.type, torch.bfloat16, enabled=run.config.precision == "bf16"):
        return step_seconds(run.model, images) * run.config.batch_size / rows
