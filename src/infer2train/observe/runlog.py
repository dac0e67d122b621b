"""The run folder's record: `config.yaml` to run it again, `metrics.jsonl` to see how it went.

Rows are JSON objects with a `kind`: start, step, epoch, event; docs/run-folder.md lists their fields. A resumed run
takes back the rows that its checkpoint does not know of, so that no step is reported twice. TensorBoard gets the same
numbers where it is installed.
"""

import json
import os
import platform
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from infer2train import __version__
from infer2train.observe.metrics import scalars

CONFIG, METRICS = "config.yaml", "metrics.jsonl"
SAID_AGAIN = ("finished", "images-skipped")
"""Events that a run which goes on writes again."""


class RunLog:
    """Appends rows to a run folder. One process writes; any may read.

    Args:
        folder: made if it is missing.
        tensorboard: write TensorBoard event files too, if the extra is installed.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._file = (folder / METRICS).open("a", encoding="utf-8")
        if not _ends_with_newline(folder / METRICS):
            self._file.write("\n")  # a kill has cut the last line short
        self._board = _summary_writer(folder) if tensorboard else None

    def write(self, kind: str, **fields: Any) -> None:
        """Append one row; it is on its way to the disk when this returns.

        Raises:
            OSError: the disk is full, say.
        """
        line = json.dumps({"kind": kind, **fields}, allow_nan=True) + "\n"
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise _not_written(METRICS, self.folder, error) from error
        if self._board is not None and "step" in fields:
            for name, value in scalars(fields).items():
                self._board.add_scalar(f"{kind}/{name}", value, int(fields["step"]))

    def start(self, device: str, threads: int, **more: Any) -> None:
        """Append what the run runs on, and more that is known of it."""
        import torch

        versions = {
            "infer2train": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        machine = {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": threads, "device": device}
        self.write("start", time=time.time(), versions=versions, machine=machine, **more)

    def rows(self) -> list[dict[str, Any]]:
        """What has been written so far, by earlier processes too."""
        return read_rows(self.folder)

    def take_back(self, step: int, epoch: int) -> None:
        """Drop the rows that going on after `step`, in `epoch`, will write again."""
        self.close()
        take_back(self.folder, step, epoch)
        self._file = (self.folder / METRICS).open("a", encoding="utf-8")
        if self._board is not None:
            self._board = _summary_writer(self.folder)

    def close(self) -> None:
        """Close the files. May be called twice; what could not be written was said by then."""
        for file in (self._file, self._board):
            if file is not None:
                with suppress(OSError):
                    file.close()


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write `config.yaml`, whole or not at all.

    Raises:
        OSError: the disk is full, say.
    """
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{CONFIG}.partial"
    try:
        partial.write_text(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")
        partial.replace(folder / CONFIG)
    except OSError as error:
        raise _not_written(CONFIG, folder, error) from error


def read_config(folder: Path) -> dict[str, Any]:
    """The flat mapping in `config.yaml`.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    import yaml

    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"a run folder holds {CONFIG}: got {folder} without one; name a folder such as runs/NAME")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{path} must be whole YAML: got {reason}; restore it or start a new run") from error
    if not isinstance(loaded, dict):
        raise ValueError(
            f"{path} must hold settings by name: got {type(loaded).__name__}; restore it or start a new run"
        )
    return loaded


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`, without lines that a kill has cut short; none where there is no file."""
    return rows_and_rest(folder)[0]


def rows_and_rest(folder: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of `metrics.jsonl`, and how many lines are none."""
    path = folder / METRICS
    if not path.is_file():
        return [], 0
    rows, rest = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            row = None
        if isinstance(row, dict) and isinstance(row.get("kind"), str):
            rows.append(row)
        else:
            rest += bool(line.strip())
    return rows, rest


def says_finished(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a run came to its end: it says so in an event."""
    return any(row.get("kind") == "event" and row.get("event") == "finished" for row in rows)


def take_back(folder: Path, step: int, epoch: int) -> None:
    """Drop the rows that a run which goes on after `step`, in `epoch`, will write again."""

    def is_kept(row: dict[str, Any]) -> bool:
        if row["kind"] == "event":
            return row["event"] not in SAID_AGAIN
        return bool(row["epoch"] < epoch) if row["kind"] == "epoch" else row.get("step", 0) <= step

    partial = folder / f".{METRICS}.partial"
    rows = [row for row in read_rows(folder) if is_kept(row)]
    try:
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        partial.replace(folder / METRICS)
    except OSError as error:
        raise _not_written(METRICS, folder, error) from error


def _not_written(file: str, folder: Path, error: OSError) -> OSError:
    return OSError(
        f"what a run does must be written down in its folder: got '{error.strerror or error}' for {file} in "
        f"{folder}; free space or mend the disk, then go on from the last checkpoint (train --resume)"
    )


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def cpu_name() -> str:
    """The processor's name, as the operating system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _summary_writer(folder: Path) -> Any:
    """Of TensorBoard, which shows none of the steps that were taken back."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    board = folder / "tensorboard"
    told = [int(row["step"]) for row in read_rows(folder) if row["kind"] in ("step", "epoch")]
    return SummaryWriter(str(board), purge_step=1 + max(told, default=-1) if board.is_dir() else None)
