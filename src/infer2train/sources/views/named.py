"""Which views there are, by name. One class and one entry here add a view; the conformance suite then covers it."""

from infer2train.settings import resolve, unknown
from infer2train.sources.views.view import View

VIEWS: dict[str, str] = {
    "pad-crop-flip": "infer2train.sources.views.crops:PadCropFlip",
    "random-resized-crop-flip": "infer2train.sources.views.crops:RandomResizedCropFlip",
    "shift-rotate": "infer2train.sources.views.affine:ShiftRotate",
    "identity": "infer2train.sources.views.identity:Identity",
}
"""Views as "module:attribute"."""

SIZED = frozenset({"random-resized-crop-flip"})
"""Those whose result has a size of its own; the others keep the image's."""


def make_view(name: str, size: int) -> View:
    """A view of `VIEWS`, with its default settings.

    Args:
        name: a key of `VIEWS`.
        size: height and width of the result (pixels), for those in `SIZED`.

    Raises:
        ValueError: there is no such view; it names the nearest.

    Example:
        >>> make_view("random-resized-crop-flip", size=56).output_size(64, 64)
        (56, 56)
    """
    if name not in VIEWS:
        raise unknown("view", name, VIEWS)
    make = resolve(VIEWS[name])
    view: View = make(size) if name in SIZED else make()
    return view
