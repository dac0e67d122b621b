"""A task as another process unpacks it: pickled, and a data set that each machine has of its own by its name only.

Between `task`, which the trainer's process builds, and the transports that send it.
"""

import io
import pickle
import pickletools
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from infer2train.pool.task import Task
from infer2train.settings import resolve

_WORDS = {
    "source": "the data set (with its transforms and its collate_fn)",
    "reader": "the data set and the DataLoader's worker_init_fn",
    "view_workers": "the DataLoader's worker_init_fn",
    "engine": "the model",
    "scorer": "score= and split=",
    "monitor": "score= and split=",
    "split": "split=",
    "sample": "sample=",
}


def packed(task: Task) -> bytes:
    """The task as a process of this machine can unpack it.

    Raises:
        ValueError: a part of it cannot be sent; it says which.
    """
    content = _pickled(task, pickle.dumps)
    if not _is_main_importable() and (name := _first_of_main(content)) is not None:
        raise ValueError(
            f"an oracle in another process imports what it needs: got {name}, which was defined in this session and is "
            f"in no file; put it into a module of yours (from my_data import {name}), or use pool='inline'"
        )
    return content


def packed_for_cluster(task: Task, data: str | None = None) -> bytes:
    """The task as an actor of Ray can unpack it: with what stands in the script or notebook itself.

    Args:
        task: what is sent.
        data: `module:function` that gives each machine its own copy of the data set, which is not sent then.

    Raises:
        ValueError: a part of it cannot be sent; it says which.
    """
    from ray import cloudpickle

    if data is None:
        return _pickled(task, cloudpickle.dumps)
    given, named = task.source.dataset, NamedData.of(data, task.source.dataset)

    class Naming(cloudpickle.CloudPickler):
        def persistent_id(self, part: Any) -> NamedData | None:
            return named if part is given else None

    def naming(part: Any) -> bytes:
        file = io.BytesIO()
        Naming(file).dump(part)  # type: ignore[no-untyped-call]  # Ray's
        return file.getvalue()

    return _pickled(task, naming)


def unpacked(content: bytes) -> Task:
    """The task that was packed, in the process that does it.

    Raises:
        ValueError: its data set is named, and is not to be had here, or is another one.
    """
    task: Task = _Unpickler(content).load()
    return task


@dataclass(frozen=True)
class NamedData:
    """What is sent instead of a data set that each machine has; two are alike where their samples are, which is seen
    by `fingerprint`."""

    name: str
    kind: str
    length: int | None
    """None where it has none, as a stream."""

    @classmethod
    def of(cls, name: str, data: Any) -> "NamedData":
        """What tells of a data set at the first look."""
        return cls(name, type(data).__qualname__, len(data) if callable(getattr(data, "__len__", None)) else None)

    def found(self) -> Any:
        """The copy that this machine has.

        Raises:
            ValueError: there is none, or it is another one.
        """
        try:
            data = resolve(self.name)()
        except Exception as error:  # the user's function and module raise what they like
            raise ValueError(
                f"ray_data must name a function without arguments that gives each machine its copy of the data set: "
                f"got {self.name}, which on {platform.node()} is {type(error).__name__}: {error}; put its module and "
                "files there, or leave ray_data out to have the data set sent"
            ) from error
        if (here := NamedData.of(self.name, data)) != self:
            raise ValueError(
                f"ray_data must name the data set that the trainer reads: got {self.name}, which on "
                f"{platform.node()} gives {here}, and the trainer has {self}; give both the same files, or leave "
                "ray_data out to have the data set sent"
            )
        return data

    def __str__(self) -> str:
        return self.kind if self.length is None else f"{self.kind} of {self.length} samples"


class _Unpickler(pickle.Unpickler):
    """Puts this machine's copy wherever the named data set was."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self._found: dict[NamedData, Any] = {}

    def persistent_load(self, named: NamedData) -> Any:
        if named not in self._found:
            self._found[named] = named.found()
        return self._found[named]


def _pickled(task: Task, dumps: Callable[[Any], bytes]) -> bytes:
    try:
        return dumps(task)
    except Exception as error:  # pickle raises several kinds, and __reduce__ of the user's objects any
        part = next((f.name for f in fields(task) if not _can_be_sent(getattr(task, f.name), dumps)), "source")
        raise ValueError(
            f"an oracle in another process needs {_WORDS.get(part, part)} to be picklable: got "
            f"{type(error).__name__}: {error}; define classes and functions at the top of a module (no lambda, no "
            "local function, no open file), or use pool='inline'"
        ) from error


def _can_be_sent(part: object, dumps: Callable[[Any], bytes]) -> bool:
    try:
        dumps(part)
    except Exception:  # a part's own __reduce__ may raise anything, and all of it means no
        return False
    return True


def _is_main_importable() -> bool:
    """Whether a process that is started can import the script that this one runs: a notebook and a prompt are none."""
    main = sys.modules["__main__"]
    return getattr(main, "__spec__", None) is not None or getattr(main, "__file__", None) is not None


def _first_of_main(content: bytes) -> str | None:
    """The name of the first thing in a pickle that its reader would look for in the script."""
    if b"__main__" not in content:  # looking at every operation of a large one takes long
        return None
    texts = (text for _, text, _ in pickletools.genops(content) if isinstance(text, str))
    return next((next(texts, None) for text in texts if text == "__main__"), None)
