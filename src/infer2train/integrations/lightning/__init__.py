"""Mining with Lightning: a callback by which a trainer iterates draws; module and data module stay as they are."""

from infer2train.integrations.lightning.batches import Batches
from infer2train.integrations.lightning.callback import Mining

__all__ = ["Batches", "Mining"]
