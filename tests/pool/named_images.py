"""Data sets that a machine has of its own, as `ray_data` names them: that of the suite's images, and others."""

from conformance.pool import case
from infer2train.sources.source import Source
from infer2train.sources.views.crops import PadCropFlip
from infer2train.sources.views.image_views import ImageViews


def images() -> ImageViews:
    """A copy of the suite's."""
    found = case("images").task.source
    assert isinstance(found, ImageViews)
    return found


def darker() -> Source:
    """As many, of other pixels."""
    ours = images()
    return ImageViews(ours.images // 2, ours.targets, PadCropFlip(2))


def fewer() -> Source:
    """Some of them."""
    ours = images()
    return ImageViews(ours.images[:5], ours.targets[:5], PadCropFlip(2))


def without_files() -> Source:
    """What a machine says that lacks them."""
    raise FileNotFoundError("no such folder: /data/train")
