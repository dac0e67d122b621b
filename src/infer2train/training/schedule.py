"""The learning rate at each step, as a pure function of the configuration."""

import math

from infer2train.training.config import TrainingConfig

WARMUP_FROM = 0.1
"""Where a warm-up starts; there is none where the learning rate is not above it (Goyal et al. 2017)."""


def learning_rate(config: TrainingConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate of `step` (counted from 0).

    Example:
        >>> learning_rate(TrainingConfig(lr=0.1, lr_drops=(81,)), step=81 * 781, steps_per_epoch=781)
        0.01

    Source: paper, section 5.1 (÷10 at epoch 81); Goyal et al. 2017 (linear scaling, warm-up from 0.1); Loshchilov and
    Hutter, arXiv 1608.03983 (cosine, here without restarts and from the end of the warm-up).
    """
    peak = config.lr * (config.batch_size / config.lr_reference_batch if config.lr_reference_batch else 1.0)
    epoch = step / steps_per_epoch
    if epoch < config.warmup_epochs and peak > WARMUP_FROM:
        return WARMUP_FROM + (peak - WARMUP_FROM) * epoch / config.warmup_epochs
    if config.lr_schedule == "cosine":
        done = (epoch - config.warmup_epochs) / (config.epochs - config.warmup_epochs)
        return peak * (1.0 + math.cos(math.pi * max(0.0, done))) / 2.0
    drops = sum(epoch >= drop for drop in config.lr_drops)
    return float(peak / 10**drops)
