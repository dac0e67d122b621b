"""Weights of a checkpoint that the Trainer passes over where it resumes."""

from pathlib import Path

from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME


def mend_weights(model: nn.Module | None, checkpoint: Path) -> None:
    """Load what the Trainer has passed over: it saves some models (ViT) under other names than they have, and loads
    only what is named alike (huggingface/transformers, issue 43701). `from_pretrained` knows both."""
    file = checkpoint / SAFE_WEIGHTS_NAME
    if not isinstance(model, PreTrainedModel) or not file.is_file():
        return
    with safe_open(file, framework="pt") as saved:
        is_named_alike = set(saved.keys()) <= model.state_dict().keys()
    if not is_named_alike:
        loaded = type(model).from_pretrained(checkpoint, config=model.config)
        model.load_state_dict(loaded.state_dict())
