"""The run that is inspected: what it picked, and how its samples are read again."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn
from torch.utils.data import DataLoader

from infer2train.batches import Split, map_tensors, split_batch
from infer2train.data.class_folders import has_class_folders
from infer2train.data.images import AnySplit, EncodedSplit
from infer2train.draws.addresses import Addresses
from infer2train.draws.methods.table import choices_of
from infer2train.draws.mining import Mining
from infer2train.draws.scores import OF_NUMBERS, SCORES
from infer2train.observe.picks import Rows, read_picks
from infer2train.observe.runlog import read_config
from infer2train.settings import changed
from infer2train.sources.replay import Replay
from infer2train.sources.source import Source
from infer2train.sources.views.image_views import ImageViews
from infer2train.sources.views.named import make_view
from infer2train.sources.views.on_demand import OnDemandViews
from infer2train.studies.inspection.judge import Judge, Losses, losses_like
from infer2train.training.config import RunConfig
from infer2train.training.folder import config_of, is_trained_on
from infer2train.training.setup import load_splits, view_size, views_of

READ = 256
"""Samples that are read at a time."""
JUDGED = 8
"""Likewise where a model looks at them: it may have a logit for each of many words at each place of a long text."""
MOST_READ = 4000
"""Samples whose label is read where each costs a read of the user's data set."""


@dataclass(frozen=True)
class Sample:
    """One sample under one seed: what the model would get, what it should say, and its losses now.

    Args:
        inputs: without the dimension of the batch.
        target: likewise.
        losses: of the sample, [], or of its parts; None where no model was given.
    """

    inputs: Any
    target: Any
    losses: Float32[Tensor, "*t"] | None

    @property
    def now(self) -> float | None:
        """The mean of its losses."""
        return None if self.losses is None else float(self.losses.nanmean())


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
        judge: knows the losses of samples now; None where no model was given.
        file_of: the file of a sample, by its id; None where samples are no files, or some were left out and ids moved.
    """

    folder: Path
    rows: Rows
    is_of_views: bool
    mining: Mining
    source: Source
    split: Split
    class_names: tuple[str, ...]
    judge: Judge | None
    file_of: Callable[[int], str] | None

    @property
    def has_losses(self) -> bool:
        """Whether its scores are losses, as those of a user's own function are taken to be. Our other scores, and a
        loss less what of it is irreducible, are high for other reasons than a wrong label."""
        choices = choices_of(self.mining)
        is_other = choices.score in SCORES and choices.score not in ("loss", *OF_NUMBERS)
        return not is_other and choices.pick != "learnable"

    def samples(self, addresses: Addresses) -> list[Sample]:
        """What is at each address."""
        found, size = [], READ if self.judge is None else JUDGED
        for start in range(0, len(addresses), size):
            piece = addresses[start : start + size]
            inputs, targets = self.split(self.source.batch(piece))
            losses = None if self.judge is None else self.judge(inputs, targets)
            found += [
                Sample(_row(inputs, number), _row(targets, number), None if losses is None else losses[number])
                for number in range(len(piece))
            ]
        return found

    def labels(self, ids: Int64[np.ndarray, " n"]) -> dict[int, int]:
        """Class of each sample by its id; of some of them where reading all would take long, and none without classes.

        Args:
            ids: each once.
        """
        if isinstance(self.source, ImageViews | OnDemandViews):
            return dict(zip(ids.tolist(), self.source.targets[torch.from_numpy(ids)].tolist(), strict=True))
        if len(ids) > MOST_READ:
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
        """Of a target; nothing where it is not one number or word."""
        if isinstance(label, Tensor) and label.ndim == 0:
            label = label.item()
        if not isinstance(label, int | float | str):
            return ""
        if isinstance(label, int) and 0 <= label < len(self.class_names):
            return self.class_names[label]
        return str(label)


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
    model: nn.Module | None = None,
    losses: Losses | None = None,
) -> Subject:
    """Read a run.

    Args:
        folder: of `train`, or the `log_dir` of `mine()`.
        data: what `mine()` was given, a DataLoader; of a run of `train`, what its images are called now, or the folder
            where they are. Default: what the run's configuration names.
        transform: what `mine()` was given.
        split: likewise.
        class_names: by label. Default: those of the run's data.
        model: with the weights that samples are looked at with. Default: they are not.
        losses: of what it gives. Default: those that the run's score is the mean of.

    Raises:
        ValueError: the folder holds no picks, does not say what the data are, or was trained on others.
    """
    plain, rows = read_config(folder), read_picks(folder)
    is_named = data is None or isinstance(data, str)
    if is_named and "regime" not in plain:
        raise ValueError(
            f"inspect reads the samples again: got {folder}, the log of your own loop, without its DataLoader; call "
            "infer2train.inspect(folder, data=dataloader) with what mine() was given"
        )
    source: Source
    mining: Mining
    file_of = None
    if is_named:
        mining = config = config_of(folder, "inspect", "pass it the data", data)
        images, train, _ = load_splits(config, progress=False)
        _require_same(train, folder, config.data)
        source = views_of(train, make_view(config.view, view_size(config, train)), torch.device("cpu"))
        class_names = class_names or images.class_names
        file_of = None if images.skipped else _files(config, train)
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
        judge=None if model is None else Judge(model, losses or losses_like(mining.score)),
        file_of=file_of,
    )


def _require_same(train: AnySplit, folder: Path, place: str) -> None:
    """Refuse images whose ids are no longer those of the run."""
    if not is_trained_on(folder, train):
        raise ValueError(
            f"inspect finds a run's images by their numbers, which change where one is moved, added or removed: got "
            f"others in {place} than {folder} was trained on; put them back, or train anew and inspect that"
        )


def _files(config: RunConfig, train: AnySplit) -> Callable[[int], str] | None:
    """Where each training image is, by its id, if images are files in class folders or are decoded on demand."""
    if isinstance(train, EncodedSplit):
        return partial(_file, train)
    folder = Path(config.data).expanduser()
    if config.copies > 1 or not folder.is_dir() or not has_class_folders(folder):
        return None  # near copies are in no file
    listed = load_splits(replace(config, decode="on-demand", on_bad_image="error"), progress=False)[1]
    assert isinstance(listed, EncodedSplit), type(listed)
    return partial(_file, listed)


def _file(images: EncodedSplit, number: int) -> str:
    """Where an image is, as text: bytes of its path that are none as \\x…"""
    return os.fsencode(images.place(number)).decode(errors="backslashreplace")


def _source(data: "DataLoader[Any]", transform: Callable[[Any], Any] | None) -> Source:
    if isinstance(data.dataset, Source):
        return data.dataset
    return Replay(data.dataset, data.collate_fn, transform=transform, check=False)
