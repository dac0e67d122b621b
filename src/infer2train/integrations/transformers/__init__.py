"""Mining with the Hugging Face Trainer: `MinedTrainer`, or `MiningMixin` for a Trainer of one's own."""

from infer2train.draws.mining import Mining
from infer2train.integrations.transformers.trainer import MinedTrainer, MiningMixin

__all__ = ["MinedTrainer", "Mining", "MiningMixin"]
