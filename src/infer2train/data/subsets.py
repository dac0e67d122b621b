"""Class-balanced parts of a split: fewer images to train on (`--limit`), or some held back (`--validation-split`).

Between the catalogue and the sampler. Every sample has a sort key that is a pure function of (seed, purpose, its id),
so a part does not depend on how the images are stored, and a larger part contains every smaller one.
"""

import numpy as np
from jaxtyping import Int64

from infer2train.addresses import Purpose, seeds
from infer2train.data.encoded import Split

_SAMPLE, _CLASS = 0, 1
"""Keys of samples and of classes are told apart by the view of their address."""


def limit_split(split: Split, n: int, seed: int) -> Split:
    """A class-balanced subset: ⌊n/K⌋ images of each of the K classes, the remainder from classes in a seeded order.

    What a class is too small to give is passed on to the others. Nested: the images of a smaller n are among those of
    a larger one. The images keep their order; decoded ones are copied into memory.

    Args:
        split: what is chosen from.
        n: how many to keep, in 1..len(split) (images).
        seed: which ones.

    Raises:
        ValueError: n is not in 1..len(split).

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


def hold_out(split: Split, n: int, seed: int) -> tuple[Split, Split]:
    """The rest, and n class-balanced images held back for validation, chosen as by `limit_split` under other keys.

    Args:
        split: what is divided.
        n: how many to hold back, in 1..len(split) - 1 (images).
        seed: which ones.

    Returns:
        (rest, validation), as `part` gives them and in their former order.

    Raises:
        ValueError: n leaves nothing to train on, or is not positive.
    """
    if not 1 <= n < len(split):
        raise ValueError(
            f"validation_split must leave something to train on, so be in 1..{len(split) - 1}: got {n}; "
            f"lower --validation-split"
        )
    held = balanced_ids(split.targets, n, seed, Purpose.VALIDATION)
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
