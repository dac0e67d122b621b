"""Checkpoints that survive a crash, a full disk and a flipped bit: folders, manifest, rotation, fallback.

Last in the way of the data: what a run is at a step, so that it can go on as if it had never stopped. A checkpoint is a
folder `step-00000150` of

    tensors.safetensors   every tensor and array
    state.json            everything else, and where each tensor belongs (see `state`)
    manifest.json         format, step, versions, and the size and SHA-256 of both (see `manifest`)
    manifest.sha256       the manifest's own SHA-256

It is written under another name, flushed to the disk and renamed, so that under its own name it is whole or not there.
Nothing is used that `manifest` has not checked: torch.load and safetensors alone both accept flipped bits. One process
writes to a folder, any number may read. Saving waits for the disk; what a state holds is the caller's business.
"""

import errno
import itertools
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from infer2train.checkpoint.manifest import DamageError, read_folder, sync, write_folder
from infer2train.checkpoint.state import decode, encode

_TENSORS, _STATE = "tensors.safetensors", "state.json"
_UNFINISHED = ".unfinished-"
"""How a folder's name begins while it is being written or removed; readers pass it over."""
_REPLACED = ".replaced"
"""How it ends while a second checkpoint of its step takes its place; readers take it where there is no other."""
_NAME = re.compile(rf"step-(\d{{8,}})({re.escape(_REPLACED)})?", re.ASCII)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none of those present can be trusted. Nothing good was removed."""


@dataclass(frozen=True)
class Checkpoint:
    """A run at a step, as it was saved.

    Args:
        step: the step it was saved at.
        state: what was saved; tensors on the CPU.
        path: the folder it was read from.
        rejected: newer checkpoints that were passed over, a sentence each: which one, which file, what is wrong.
    """

    step: int
    state: dict[str, Any]
    path: Path
    rejected: tuple[str, ...]


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any], *, keep: int = 3) -> Path:
    """Save a run's state as the checkpoint of `step`, then remove the oldest ones.

    An older checkpoint is removed only when the new one is in place and on the disk. A checkpoint of the same step is
    replaced; at every moment one of the two can be read. Checkpoints of later steps are left alone.

    Args:
        folder: where the run's checkpoints lie; made if need be. One process at a time may save there.
        step: at least 0.
        state: nested, of what `state.encode` takes. It must not change during the call.
        keep: how many checkpoints stay, this one and the ones before it, at least 1.

    Returns:
        The new checkpoint's folder.

    Raises:
        TypeError, ValueError: the state holds what cannot be saved; nothing was touched.
        CheckpointError: writing failed (a full disk, say). The earlier checkpoints are as they were.

    Warns:
        RuntimeWarning: an old checkpoint, or what an earlier save left, cannot be removed. The new one is there.

    Example:
        >>> save_checkpoint(Path("run/checkpoints"), 150, {"model": model.state_dict()}).name
        'step-00000150'
    """
    if step < 0 or keep < 1:
        raise ValueError(f"step must be at least 0 and keep at least 1: got step={step}, keep={keep}; use keep=3")
    text, tensors = encode(state)
    _tidy(folder)
    unfinished = _unused(folder / f"{_UNFINISHED}{_name(step)}")
    try:
        if not folder.exists():
            folder.mkdir(parents=True)
            sync(folder.parent)
        unfinished.mkdir()
        writers = {_TENSORS: lambda path: _write_tensors(path, tensors), _STATE: lambda path: path.write_text(text)}
        write_folder(unfinished, step, writers)
        _put_in_place(unfinished, folder / _name(step))
    except OSError as error:
        _tidy(folder)
        file = Path(error.filename or unfinished).name
        raise CheckpointError(
            f"a checkpoint must be written whole: got '{error.strerror or error}' for {file} of step {step} in "
            f"{folder}; the last good checkpoint is {_last_good(folder)}; free space or mend the disk, then resume"
        ) from error
    _tidy(folder)
    for _, path in list(_checkpoints(folder, until=step))[keep:]:
        with _tried(folder):
            _remove(path)
    return folder / _name(step)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint of which every bit is as it was written.

    Every file's size is compared before it is read, and its SHA-256 before it is used. A checkpoint that fails is
    passed over for the one before it and named in `rejected`, which the user should see.

    Args:
        folder: where the run's checkpoints lie. Nothing in it is changed.

    Returns:
        None if there is no checkpoint, or no folder.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged.
    """
    rejected: list[str] = []
    for step, path in _checkpoints(folder):
        try:
            contents = read_folder(path, step, (_TENSORS, _STATE))
            state = decode(contents[_STATE].decode(), load(contents[_TENSORS]))
        except (DamageError, SafetensorError, ValueError) as error:
            rejected.append(f"{path.name}: {error}")
        else:
            return Checkpoint(step, state, path, tuple(rejected))
    if not rejected:
        return None
    raise CheckpointError(
        f"one checkpoint in {folder} must be undamaged: got {len(rejected)} damaged ({'; '.join(rejected)}); put "
        "back a copy of one, or start again in another folder"
    )


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _checkpoints(folder: Path, until: int | None = None) -> Iterator[tuple[int, Path]]:
    """(step, folder) of each checkpoint, the newest first; a replaced one after the one that replaces it."""
    if not folder.exists():
        return
    matches = [match for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    for match in sorted(matches, key=lambda match: (-int(match[1]), match[0])):
        step = int(match[1])
        if match[0].removesuffix(_REPLACED) == _name(step) and (until is None or step <= until):
            yield step, folder / match[0]


def _write_tensors(path: Path, tensors: Mapping[str, Shaped[torch.Tensor, "..."]]) -> None:
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error)) from error
    # safetensors makes its file readable by the owner alone; the folder was made under the user's umask.
    path.chmod(path.parent.stat().st_mode & 0o666)


def _put_in_place(unfinished: Path, target: Path) -> None:
    """Rename the finished folder to its own name; one that has the name already waits beside it until that is done."""
    if target.exists():
        target.rename(target.with_name(target.name + _REPLACED))
    unfinished.rename(target)
    sync(target.parent)


@contextmanager
def _tried(folder: Path) -> Iterator[None]:
    """Within, something is removed; where that cannot be (open files on NFS, say), it is no reason to stop."""
    try:
        yield
    except OSError as error:
        warnings.warn(
            f"old checkpoints must be removed: got '{error.strerror or error}' in {folder}; the next save tries again, "
            f"and what stays there under names like {_UNFINISHED}… can be removed by hand",
            RuntimeWarning,
            stacklevel=4,
        )


def _remove(path: Path) -> None:
    """Remove a checkpoint under another name, so that half of one is never taken for a damaged one."""
    doomed = _unused(path.with_name(f"{_UNFINISHED}{path.name}"))
    path.rename(doomed)
    shutil.rmtree(doomed)


def _unused(path: Path) -> Path:
    """This path, or one like it where something is in its way that could not be removed."""
    others = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    return next(one for one in itertools.chain([path], others) if not one.exists())


def _tidy(folder: Path) -> None:
    """Clear up after a save that was killed or failed: remove what is unfinished, finish or undo a replacement."""
    for unfinished in folder.glob(f"{_UNFINISHED}step-*"):
        with _tried(folder):
            shutil.rmtree(unfinished)
    for replaced in folder.glob(f"step-*{_REPLACED}"):
        target = replaced.with_name(replaced.name.removesuffix(_REPLACED))
        with _tried(folder):
            if target.exists():
                _remove(replaced)
            else:
                replaced.rename(target)


def _last_good(folder: Path) -> str:
    for step, path in _checkpoints(folder):
        with suppress(DamageError):
            read_folder(path, step, (_TENSORS, _STATE))
            return path.name
    return "none"
