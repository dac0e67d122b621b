"""What of a split is trained on: fewer images (`--limit`, `--imbalance`), or as many of which most are near copies
(`--copies`); some held back, some with wrong labels.

Between what was loaded and the sampler. Every sample has a sort key that is a pure function of (seed, purpose, its id),
so a part does not depend on how the images are stored, and a larger part contains every smaller one.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Int64

from infer2train.data.images import AnySplit, ImageSplit
from infer2train.draws.addresses import Purpose, as_uniform, integers, seeds, words

_SAMPLE, _CLASS = 0, 1
"""Keys of samples and of classes are told apart by the view of their address."""


def limit_split(split: AnySplit, n: int, seed: int) -> AnySplit:
    """A class-balanced subset: ⌊n/K⌋ images of each of the K classes, the remainder from classes in a seeded order.

    What a class is too small to give is passed on to the others. Nested: the images of a smaller n are among those of
    a larger one. The images keep their order; decoded ones are copied into memory.

    Example:
        >>> from infer2train.data.images import ImageSplit
        >>> split = ImageSplit(np.zeros((6, 1, 1, 1), np.uint8), np.array([0, 0, 0, 0, 1, 1]))
        >>> limit_split(split, 4, seed=0).targets.tolist()
        [0, 0, 1, 1]
    """
    if not 1 <= n <= len(split):
        raise ValueError(
            f"limit must be in 1..{len(split)}, the number of training images: got {n}; lower --limit or leave it out"
        )
    return split.part(balanced_ids(split.targets, n, seed))


def hold_out(split: AnySplit, n: int, seed: int, purpose: Purpose = Purpose.VALIDATION) -> tuple[AnySplit, AnySplit]:
    """The rest, and n class-balanced images held back, chosen as by `limit_split` under keys of another purpose."""
    if not 1 <= n < len(split):
        name = "holdout" if purpose is Purpose.HOLDOUT else "validation_split"
        raise ValueError(
            f"{name} must leave something to train on, so be in 1..{len(split) - 1}: got {n}; "
            f"lower --{name.replace('_', '-')}"
        )
    held = balanced_ids(split.targets, n, seed, purpose)
    rest = np.setdiff1d(np.arange(len(split)), held)
    return split.part(rest), split.part(held)


def balanced_ids(
    targets: Int64[np.ndarray, " n"], num: int, seed: int, purpose: Purpose = Purpose.SUBSET
) -> Int64[np.ndarray, " m"]:
    """Which `num` samples a class-balanced choice takes, ascending.

    Samples are ranked within their class by a seeded key; all first ones go before all second ones, classes in a seeded
    order; the first `num` of that list are taken. Quotas, remainder and nesting all follow from this one order.
    """
    ids = np.arange(len(targets), dtype=np.int64)
    classes, members = np.unique(targets, return_inverse=True)
    by_key = np.lexsort((seeds(seed, purpose, slot=ids, view=_SAMPLE), members))
    starts = np.searchsorted(members[by_key], np.arange(len(classes)))
    ranks = np.empty_like(ids)
    ranks[by_key] = ids - starts[members[by_key]]
    class_keys = seeds(seed, purpose, slot=classes, view=_CLASS)
    taken = np.lexsort((class_keys[members], ranks))[:num]
    return np.sort(taken)


def long_tailed(split: AnySplit, imbalance: float, seed: int) -> AnySplit:
    """A long-tailed part: n_k = round(n · μ^(k / (K − 1))) images of class k of K, μ = 1 / imbalance.

    n is the size of the smallest class in `split`, which all of them could have. Which images stay is decided as by
    `limit_split`, so a longer tail is part of a shorter one.

    Example:
        >>> from infer2train.data.images import ImageSplit
        >>> split = ImageSplit(np.zeros((8, 1, 1, 1), np.uint8), np.array([0, 0, 0, 0, 1, 1, 1, 1]))
        >>> np.bincount(long_tailed(split, 4, seed=0).targets).tolist()
        [4, 1]

    Source: Cui et al. 2019, arXiv 1901.05555, section 5.1 (long-tailed CIFAR).
    """
    classes, counts = np.unique(split.targets, return_counts=True)
    most = int(counts.min())
    if len(classes) < 2 or round(most / imbalance) < 1:
        raise ValueError(
            f"imbalance must leave an image of each of two classes or more: got {imbalance} for {len(classes)} classes "
            f"of {most} images; pass at most --imbalance {max(1, most)}"
        )
    kept = []
    for place, label in enumerate(classes):
        members = np.flatnonzero(split.targets == label)
        order = np.argsort(seeds(seed, Purpose.SUBSET, slot=members, view=_SAMPLE), kind="stable")
        kept.append(members[order[: round(most * imbalance ** (-place / (len(classes) - 1)))]])
    return split.part(np.sort(np.concatenate(kept)))


def mislabelled(split: AnySplit, share: float, num_classes: int, seed: int) -> AnySplit:
    """The same images, of which ⌊share·n + ½⌋ have another label, uniform over the other classes.

    The wrong labels of a smaller share are among those of a larger one.

    Example:
        >>> from infer2train.data.images import ImageSplit
        >>> split = ImageSplit(np.zeros((10, 1, 1, 1), np.uint8), np.zeros(10, np.int64))
        >>> int((mislabelled(split, 0.3, 4, seed=0).targets != 0).sum())
        3

    Source: Zhang et al. 2017, arXiv 1611.03530 (random labels); here never the true one, so `share` is what is wrong.
    """
    if num_classes < 2:
        raise ValueError("label_noise needs two classes or more: got one; leave --label-noise out")
    ids = np.arange(len(split), dtype=np.int64)
    order = np.argsort(seeds(seed, Purpose.LABEL_NOISE, slot=ids, view=_SAMPLE), kind="stable")
    wrong = order[: int(share * len(split) + 0.5)]
    targets = split.targets.copy()
    steps = 1 + integers(num_classes - 1, seed, Purpose.LABEL_NOISE, slot=wrong, view=_CLASS)
    targets[wrong] = (targets[wrong] + steps) % num_classes
    targets.flags.writeable = False
    return replace(split, targets=targets)


def near_copies(split: ImageSplit, copies: int, seed: int) -> ImageSplit:
    """About as many images, which are ⌊n/copies⌋ class-balanced ones, each of them `copies` times.

    The first is the image itself. The others are moved by at most a pixel in each direction, the border repeated, and
    made darker or brighter by at most a tenth. An image and its copies stand side by side.

    Example:
        >>> split = ImageSplit(np.zeros((7, 2, 2, 1), np.uint8), np.array([0, 0, 0, 0, 1, 1, 1]))
        >>> near_copies(split, 3, seed=0).targets.tolist()
        [0, 0, 0, 1, 1, 1]
    """
    if not 1 <= copies <= len(split):
        raise ValueError(f"copies must leave an image to copy, so be in 1..{len(split)}: got {copies}; lower --copies")
    once = split.part(balanced_ids(split.targets, len(split) // copies, seed))
    pixels = once.pixels()
    n, h, w, _ = pixels.shape
    padded = np.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    images = np.repeat(pixels, copies, axis=0)
    for copy in range(1, copies):
        down, right, light, _ = words(seed, Purpose.COPY, slot=np.arange(n), view=copy)
        rows, columns = ((3 * start >> 32)[:, None] + np.arange(size) for start, size in ((down, h), (right, w)))
        moved = padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
        lit = moved * (0.9 + 0.2 * as_uniform(light))[:, None, None, None]
        images[copy::copies] = np.clip(np.rint(lit), 0, 255).astype(np.uint8)
    images.flags.writeable = False
    return ImageSplit(images, np.repeat(once.targets, copies))
