"""The run that is inspected: what it picked, and how its samples are read again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader

from infer2train.batches import Split, map_tensors, split_batch
from infer2train.draws.addresses import Addresses
from infer2train.draws.methods.table import choices_of
from infer2train.draws.mining import Mining
from infer2train.observe.picks import Rows, read_picks
from infer2train.observe.runlog import read_config
from infer2train.settings import changed
from infer2train.sources.replay import Replay
from infer2train.sources.source import Source
from infer2train.sources.views.view_dataset import ViewDataset
from infer2train.training.config import from_plain, unmined
from infer2train.training.setup import prepare

READ = 256
"""Samples that are read at a time."""
MOST_READ = 4000
"""Samples whose label is read where each costs a read of the user's data set."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is inspected.

    Args:
        folder: of the run.
        rows: what it picked, see `infer2train.observe.picks`.
        is_of_views: whether views of a sample were picked, and not samples.
        mining: its settings.
        source: reads samples at addresses.
        split: batch -> (inputs, targets).
        class_names: by label; none where they have no names.
    """

    folder: Path
    rows: Rows
    is_of_views: bool
    mining: Mining
    source: Source
    split: Split
    class_names: tuple[str, ...]

    def samples(self, addresses: Addresses) -> list[tuple[Any, Any]]:
        """(inputs, target) of each address, as views of it."""
        found = []
        for start in range(0, len(addresses), READ):
            piece = addresses[start : start + READ]
            inputs, targets = self.split(self.source.batch(piece))
            found += [(_row(inputs, number), _row(targets, number)) for number in range(len(piece))]
        return found

    def labels(self, ids: Int64[np.ndarray, " n"]) -> dict[int, int]:
        """Class of each sample by its id; of some of them where reading all would take long, and none without classes.

        Args:
            ids: each once.
        """
        if len(ids) > MOST_READ and not isinstance(self.source, ViewDataset):
            ids = ids[np.linspace(0, len(ids) - 1, MOST_READ).astype(np.int64)]
        found: dict[int, int] = {}
        for start in range(0, len(ids), READ):
            piece = ids[start : start + READ]
            _, targets = self.split(self.source.batch(Addresses(piece, np.zeros(len(piece), dtype=np.int64))))
            if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.ndim != 1:
                return {}
            found |= dict(zip(piece.tolist(), targets.tolist(), strict=True))
        return found

    def class_name(self, label: Any) -> str:
        """Of a target."""
        if isinstance(label, Tensor):
            label = label.item() if label.ndim == 0 else label.tolist()
        is_named = isinstance(label, int) and 0 <= label < len(self.class_names)
        return self.class_names[label] if is_named else str(label)


def _row(tree: Any, number: int) -> Any:
    if isinstance(tree, (list, tuple)) and not any(isinstance(part, Tensor) for part in tree):
        return tree[number]
    return map_tensors(lambda tensor: tensor[number], tree)


def subject(
    folder: Path,
    data: Any = None,
    *,
    transform: Callable[[Any], Any] | None = None,
    split: Split = split_batch,
    class_names: Sequence[str] = (),
) -> Subject:
    """Read a run.

    Args:
        folder: of `train`, or the `log_dir` of `mine()`.
        data: what `mine()` was given, a DataLoader. Default: what the run's configuration names.
        transform: what `mine()` was given.
        split: likewise.
        class_names: by label. Default: those of the run's data.

    Raises:
        ValueError: the folder holds no picks, or does not say what the data are.
    """
    plain, rows = read_config(folder), read_picks(folder)
    if data is None and "regime" not in plain:
        raise ValueError(
            f"inspect reads the samples again: got {folder}, the log of a loop of your own, without data; call "
            "infer2train.inspect(folder, data=dataloader) with what mine() was given"
        )
    source: Source
    if data is None:
        run = prepare(replace(unmined(from_plain(plain)), device="cpu", compile="none"), progress=False)
        run.loader.close()
        mining: Mining = from_plain(plain)
        source, class_names = run.training_images, class_names or run.data.class_names
    else:
        names = {name for name in plain if name in Mining.__dataclass_fields__}
        mining = changed(Mining, None, {name: plain[name] for name in names})
        source = _source(data, transform)
    is_of_views = choices_of(mining).candidates == "views"
    return Subject(
        folder=folder,
        rows=rows,
        is_of_views=is_of_views,
        mining=mining,
        source=source,
        split=split,
        class_names=tuple(class_names),
    )


def _source(data: "DataLoader[Any]", transform: Callable[[Any], Any] | None) -> Source:
    if isinstance(data.dataset, Source):
        return data.dataset
    return Replay(data.dataset, data.collate_fn, transform=transform, check=False)
