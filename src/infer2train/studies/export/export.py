"""`infer2train export`: the trained network of a run as files for other programs, each judged in a fresh process."""

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from infer2train.batches import split_batch
from infer2train.checkpoint.checkpoint import load_checkpoint
from infer2train.draws.addresses import Addresses
from infer2train.oracle.samples import SourceSamples
from infer2train.reporting.runs import read_run
from infer2train.settings import unknown
from infer2train.sources.views.view_dataset import ViewDataset
from infer2train.studies.export.card import Exported, card
from infer2train.studies.export.formats import FORMATS, Format, Subject
from infer2train.training.config import unmined
from infer2train.training.folder import CHECKPOINTS, config_of, require_same_images, tell_rejected
from infer2train.training.setup import Run, prepare

FACTS = "export.json"
CARD = "README.md"
READ = 256
"""Images that are read at a time."""


@dataclass(frozen=True, kw_only=True)
class Exports:
    """What was written, and why what was not: format -> reason."""

    files: list[Exported]
    failed: dict[str, str]


def export(
    folder: Path,
    into: Path | None = None,
    *,
    formats: Sequence[str] = (),
    threads: int = 1,
    data: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Exports:
    """Write the newest good checkpoint of a run in several formats, with a model card beside them.

    Of formats that nobody named, one that this model cannot be written in does not keep the others from being written.

    Args:
        folder: of a run of `train`.
        into: where the files go. Default: `export` in it.
        formats: of `FORMATS`. Default: all whose packages are installed.
        threads: of the runtimes that judge.
        data: what the run's images are called now, or the folder where they are. Default: as trained.
        say: called with what is being done.

    Raises:
        ValueError: there is no run or no checkpoint, or the images are not those that it was trained on, or a format is
            unknown or lacks a package, or `into` has a README.md that no export wrote.
        Exception: a format that was named cannot be written, or none can: what its engine or runtime says.

    Example:
        >>> export(Path("runs/first"), formats=["openvino-int8"]).files[0].file
        'model-int8.xml'
    """
    chosen = _chosen(formats)
    config = config_of(folder, "export", "your model is yours to save, by torch.onnx.export, say", data)
    checkpoint = load_checkpoint(folder / CHECKPOINTS)
    if checkpoint is None:
        raise ValueError(f"export needs a checkpoint: got none in {folder}; train the run first")
    tell_rejected(checkpoint)
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ValueError(
            "export writes a model card, for which it needs huggingface_hub, which this Python does not have: "
            "pip install 'infer2train[export]'"
        )
    into = into or folder / "export"
    if (into / CARD).exists() and not (into / FACTS).exists():
        raise ValueError(
            f"export writes its model card as {CARD}: got {into}, which holds one that no export wrote; pass --into "
            "another folder"
        )
    say("data and weights")
    run = prepare(replace(unmined(config), device="cpu", compile="none"), progress=False)
    step = int(checkpoint.state["loader"]["steps"])
    try:
        require_same_images(
            run, checkpoint.state, "export needs the images that the run was trained on", "train another run on these"
        )
        into.mkdir(parents=True, exist_ok=True)
        run.model.load_state_dict(checkpoint.state["model"])
        subject = _subject(run, step, config.quantization)
        made = _written_and_judged(subject, run, into, chosen, threads, say, must=formats)
    finally:
        run.loader.close()
    facts = {"run": str(folder), "step": step, "threads": threads, **asdict(made)}
    _remove_earlier(into, made.files)
    (into / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (into / CARD).write_text(
        card(run, config, read_run(folder), step, made.files, threads, passed_over=len(checkpoint.rejected)),
        encoding="utf-8",
    )
    return made


def _chosen(formats: Sequence[str]) -> dict[str, Format]:
    for name in formats:
        if name not in FORMATS:
            raise unknown("format", name, FORMATS)
        if missing := FORMATS[name].missing:
            raise ValueError(
                f"format {name} needs {' and '.join(missing)}, which this Python does not have: "
                f"pip install 'infer2train[{FORMATS[name].engine}]'"
            )
    return {name: FORMATS[name] for name in formats} or {n: f for n, f in FORMATS.items() if not f.missing}


def _subject(run: Run, step: int, scheme: str) -> Subject:
    source = run.training_images
    samples = SourceSamples(source, lambda: np.arange(len(source)), seed=run.config.seed, split=split_batch)
    channels = int(_pixels(source, np.arange(1)).shape[1])
    facts: dict[str, str | int] = {
        "model": run.config.model,
        "classes": len(run.data.class_names),
        "channels": channels,
    }
    run.model.eval()
    return Subject(model=run.model, samples=samples, version=step, scheme=scheme, facts=facts)


def _written_and_judged(
    subject: Subject,
    run: Run,
    into: Path,
    formats: dict[str, Format],
    threads: int,
    say: Callable[[str], None],
    must: Sequence[str],
) -> Exports:
    """Every format, as far as it can be; `must` names those that have to be. A file gives way to a good one alone."""
    files, failed = list[Exported](), dict[str, str]()
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory(prefix=".", dir=into) as unfinished:
        pixels, targets = _evaluation_set(run.evaluation_images, Path(scratch))
        for name, kind in formats.items():
            written = Path(unfinished) / kind.file
            try:
                say(f"{kind.title}: writing {kind.file}")
                notes = kind.write(subject, written)
                say(f"{kind.title}: judging {kind.file}")
                figures = _judged(written, pixels, targets, threads)
            except Exception as error:  # an engine's and a runtime's errors are of many kinds
                failed[name] = " ".join(str(error).split()) or type(error).__name__
                if name in must or len(failed) == len(formats):
                    raise
            else:
                size = sum(path.stat().st_size for path in _parts(written)) / 1e6
                for path in _parts(written):
                    path.replace(into / path.name)
                files.append(Exported(format=name, file=kind.file, megabytes=size, notes=notes, **figures))
    return Exports(files=files, failed=failed)


def _parts(path: Path) -> list[Path]:
    return [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]


def _remove_earlier(into: Path, files: Sequence[Exported]) -> None:
    """Remove what an earlier export wrote and this one did not: the card beside it would say nothing of it."""
    try:
        earlier = {file["file"] for file in json.loads((into / FACTS).read_bytes())["files"]}
    except (OSError, ValueError, TypeError, KeyError):
        return
    for kind in FORMATS.values():
        if kind.file in earlier - {file.file for file in files}:
            for path in _parts(into / kind.file):
                path.unlink(missing_ok=True)


def _evaluation_set(images: ViewDataset, scratch: Path) -> tuple[Path, Path]:
    """What the run is evaluated on, as arrays in files, which another process reads as it needs them."""
    pixels, targets = scratch / "pixels.npy", scratch / "targets.npy"
    first = _pixels(images, np.arange(1))
    kept = np.lib.format.open_memmap(pixels, "w+", dtype=np.uint8, shape=(len(images), *first.shape[1:]))
    labels = []
    for start in range(0, len(images), READ):
        ids = np.arange(start, min(start + READ, len(images)))
        batch, target = images.batch(Addresses(ids, np.zeros(len(ids), dtype=np.int64)))
        kept[ids] = batch.numpy()
        labels.append(target.numpy())
    kept.flush()
    np.save(targets, np.concatenate(labels).astype(np.int64))
    return pixels, targets


def _pixels(images: ViewDataset, ids: Int64[np.ndarray, " n"]) -> Tensor:
    pixels: Tensor = images.batch(Addresses(ids, np.zeros(len(ids), dtype=np.int64)))[0]
    return pixels


def _judged(file: Path, pixels: Path, targets: Path, threads: int) -> dict[str, float]:
    """By a process that has never seen the model.

    Raises:
        RuntimeError: it could not run the file.
    """
    command = [sys.executable, "-m", "infer2train.studies.export.judge", *map(str, (file, pixels, targets, threads))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"an exported file must run in a fresh process: got this of {file}: {done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures
