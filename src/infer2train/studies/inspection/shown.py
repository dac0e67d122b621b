"""One sample as a person can look at it, as HTML: an image, a text, or what the user's own function makes of it."""

import base64
import html
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

Show = Callable[[Any], Any]
"""The inputs of one sample -> an image (array or tensor of pixels, or a PIL image) or text."""

LARGEST = 160
"""Height and width in pixels up to which a view is shown as it is."""
LONGEST = 400
"""Characters of a text that are shown."""
IMAGE_CHANNELS = (1, 3)


def shown(inputs: Any) -> Any:
    """What is shown of inputs where the user does not say: an image, a text, or their numbers.

    Raises:
        ValueError: they are none of these.
    """
    if isinstance(inputs, Tensor) and inputs.ndim == 3 and inputs.shape[0] in IMAGE_CHANNELS:
        return inputs
    if isinstance(inputs, str):
        return inputs
    if isinstance(inputs, Tensor) and inputs.ndim <= 1:
        return " ".join(str(number) for number in inputs.tolist()) if inputs.ndim else str(inputs.item())
    if isinstance(inputs, dict) and "input_ids" in inputs:
        return shown(inputs["input_ids"])
    raise ValueError(
        f"inspect shows images [c h w], texts and rows of numbers by itself: got {_kind(inputs)}; pass show=, "
        "a function that makes an image or a text of the inputs of one sample"
    )


def _kind(inputs: Any) -> str:
    return f"a tensor of shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__


def as_html(found: Any, alt: str) -> str:
    """What a `show` function gave, as an element.

    Args:
        found: an image or a text.
        alt: for who cannot see it.
    """
    if isinstance(found, str):
        short = found if len(found) <= LONGEST else found[:LONGEST] + " …"
        return f"<p class='text'>{html.escape(short)}</p>"
    uri = base64.b64encode(_png(found)).decode("ascii")
    return f'<img src="data:image/png;base64,{uri}" alt="{html.escape(alt, quote=True)}">'


def _png(found: Any) -> bytes:
    from PIL import Image

    image = found if isinstance(found, Image.Image) else Image.fromarray(_pixels(found))
    image.thumbnail((LARGEST, LARGEST))
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()


def _pixels(found: Any) -> UInt8[np.ndarray, "h w *c"]:
    """Pixels as they are; other numbers stretched from their lowest to their highest."""
    tensor = torch.as_tensor(found)
    if tensor.ndim == 3 and tensor.shape[0] in IMAGE_CHANNELS and tensor.shape[2] not in IMAGE_CHANNELS:
        tensor = tensor.permute(1, 2, 0)
    if tensor.dtype != torch.uint8:
        tensor = tensor.float()
        low, high = tensor.amin(), tensor.amax()
        tensor = ((tensor - low) / (high - low).clamp_min(1e-12) * 255).round().to(torch.uint8)
    return tensor.squeeze(-1).contiguous().cpu().numpy() if tensor.shape[-1] == 1 else tensor.contiguous().cpu().numpy()
