"""infer2train: inference silicon put to work on training accuracy.

The way of the data, in one direction:

    sampler -> addresses -> pool -> [ view -> engine -> score ] -> pick -> [ view ] -> training step

`draws` names candidates and picks among them, `sources` shows them, `oracle` scores them with weights of the version
that a draw may have, `pool` runs that, `loader` joins it for anybody's training loop, and `training` is our
own such loop. A room imports only what stands before it in this way; docs/how-it-works.md has the list.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from infer2train.draws.mining import Mining
    from infer2train.loader.generate import generate
    from infer2train.loader.loader import MinedLoader
    from infer2train.loader.made import MadeLoader
    from infer2train.loader.mine import mine
    from infer2train.sources.replay import Replay
    from infer2train.sources.views.image_views import ImageViews
    from infer2train.studies.inspection.inspect import inspect

__all__ = [
    "mine",
    "generate",
    "inspect",
    "Mining",
    "MinedLoader",
    "MadeLoader",
    "Replay",
    "ImageViews",
    "__version__",
]

_PUBLIC = {
    "mine": "infer2train.loader.mine:mine",
    "generate": "infer2train.loader.generate:generate",
    "MadeLoader": "infer2train.loader.made:MadeLoader",
    "MinedLoader": "infer2train.loader.loader:MinedLoader",
    "Mining": "infer2train.draws.mining:Mining",
    "Replay": "infer2train.sources.replay:Replay",
    "inspect": "infer2train.studies.inspection.inspect:inspect",
    "ImageViews": "infer2train.sources.views.image_views:ImageViews",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'infer2train' has no attribute {name!r}")
    from infer2train.settings import resolve

    return resolve(_PUBLIC[name])
