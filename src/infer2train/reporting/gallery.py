"""The gallery: what was chosen in a run, for a few samples, beside what was not: their other views, or other samples.

The training loop saves it beside the run; the report shows it. Pixels and scores are kept in safetensors, the rest in
JSON: nothing is executed when it is read.
"""

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

TENSORS, INDEX = "gallery.safetensors", "gallery.json"
SMALLEST, LARGEST = 64, 160
"""Height and width in pixels between which a view is shown."""


@dataclass(frozen=True)
class GalleryRow:
    """One chosen example of one draw beside candidates that were not: the sample's other views, or other samples.

    Args:
        epoch: counted from 0.
        draw: counted from 0 over the run.
        sample_id: which sample was chosen.
        label: its class, by name or number.
        pixels: the candidates, uint8; c is 1 (grey) or 3 (red, green, blue).
        scores: the oracle's score of each candidate, its loss by default.
        chosen: which candidate was trained on.
        samples: what each candidate is, where they are samples of their own; none where they are views of one.
    """

    epoch: int
    draw: int
    sample_id: int
    label: str
    pixels: UInt8[np.ndarray, "g h w c"]
    scores: Float[np.ndarray, " g"]
    chosen: int
    samples: Sequence[str] = ()

    def __post_init__(self) -> None:
        views, _, _, channels = self.pixels.shape
        if self.scores.shape != (views,) or not 0 <= self.chosen < views or channels not in (1, 3):
            raise ValueError(
                "a gallery row needs one score for each view, a chosen view among them, and 1 or 3 channels: got "
                f"pixels {self.pixels.shape}, scores {self.scores.shape}, chosen {self.chosen}; log another draw"
            )

    def name_of(self, candidate: int) -> str:
        """What a candidate is called under its picture."""
        return self.samples[candidate] if self.samples else f"view {candidate}"

    def ranking(self) -> list[int]:
        """The candidates from the highest score to the lowest, those that are not a number last."""
        return sorted(range(len(self.scores)), key=lambda view: (np.isnan(self.scores[view]), -self.scores[view], view))


def save_gallery(folder: Path, rows: Sequence[GalleryRow]) -> None:
    """Write `gallery.safetensors` and `gallery.json` into an existing folder, each whole or not at all.

    The first says to which of the second it belongs: a kill may come between them.

    Args:
        folder: the run's.
        rows: any number, also of different sizes.
    """
    from safetensors.numpy import save

    tensors = {}
    for number, row in enumerate(rows):
        tensors[f"{number}.pixels"] = np.ascontiguousarray(row.pixels)
        tensors[f"{number}.scores"] = np.ascontiguousarray(row.scores)
    kept = ("epoch", "draw", "sample_id", "label", "chosen", "samples")
    rest = [{name: getattr(row, name) for name in kept} for row in rows]
    index = json.dumps(rest, indent=1, ensure_ascii=False).encode()
    replace_file(folder / TENSORS, save(tensors, {INDEX: hashlib.sha256(index).hexdigest()}))
    replace_file(folder / INDEX, index)


def load_gallery(folder: Path) -> list[GalleryRow]:
    """The rows that `save_gallery` wrote; none where there is no gallery.

    Raises:
        ValueError: the two files do not belong together.
    """
    from safetensors import SafetensorError, safe_open

    if not ((folder / INDEX).is_file() and (folder / TENSORS).is_file()):
        return []
    try:
        index = (folder / INDEX).read_bytes()
        with safe_open(folder / TENSORS, framework="numpy") as tensors:
            if (tensors.metadata() or {}).get(INDEX) not in (None, hashlib.sha256(index).hexdigest()):
                raise ValueError("pixels of other rows")
            return [
                GalleryRow(
                    pixels=tensors.get_tensor(f"{number}.pixels"),
                    scores=tensors.get_tensor(f"{number}.scores"),
                    **entry,
                )
                for number, entry in enumerate(json.loads(index))
            ]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{INDEX} and {TENSORS} must have been written together: got {error!r} in {folder}; remove both to report "
            "without a gallery"
        ) from error


def spread(rows: Sequence[GalleryRow], count: int) -> list[GalleryRow]:
    """At most `count` rows, from the first to the last at equal distances."""
    if len(rows) <= count:
        return list(rows)
    return [rows[position] for position in np.linspace(0, len(rows) - 1, count).round().astype(int)]


def png(pixels: UInt8[np.ndarray, "h w c"]) -> bytes:
    """One view as a PNG of 64 to 160 pixels: a small one with every pixel a whole square, a large one reduced.

    Args:
        pixels: uint8; c is 1 (grey) or 3 (red, green, blue).
    """
    from PIL import Image

    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    if (factor := -(-SMALLEST // max(image.size))) > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((LARGEST, LARGEST))
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()


def data_uri(pixels: UInt8[np.ndarray, "h w c"]) -> str:
    """One view for the `src` of an HTML image."""
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode("ascii")


def replace_file(path: Path, content: bytes) -> None:
    """Write beside the file and rename, so that a reader sees the old or the new one; a kill leaves a hidden file."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)
