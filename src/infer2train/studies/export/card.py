"""The model card of an exported run: Markdown for people, with a head that model hubs read."""

import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from infer2train.observe.runlog import cpu_name
from infer2train.reporting.runs import RunFolder, error_name
from infer2train.settings import as_plain
from infer2train.studies.export.formats import FORMATS
from infer2train.training.config import RunConfig
from infer2train.training.setup import Run

TEMPLATE = Path(__file__).with_name("card.md.j2")
PACKAGES = ("infer2train", "torch", "openvino", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """One file, and what a fresh process found of it. The error is a fraction; the loss is in nats."""

    format: str
    file: str
    megabytes: float
    error: float
    loss: float
    images_per_second: float
    notes: tuple[str, ...]


def card(
    run: Run,
    config: RunConfig,
    told: RunFolder,
    step: int,
    files: Sequence[Exported],
    threads: int,
    passed_over: int = 0,
) -> str:
    """The card's text.

    Args:
        run: what was trained, on which data.
        config: of the training, its method included.
        told: what the training has written.
        step: of the checkpoint.
        files: as judged.
        threads: of the runtimes that judged.
        passed_over: how many newer checkpoints were damaged.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    name = f"{config.model} on {run.data.name}"
    head = ModelCardData(
        library_name="infer2train",
        pipeline_tag="image-classification",
        tags=["infer2train", config.method],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=run.data.name,
                dataset_name=run.data.name,
                metric_type="accuracy",
                metric_value=round(1 - found.error, 4),
                metric_name=f"accuracy ({found.file})",
            )
            for found in files
        ],
    )
    changed = {n: value for n, value in as_plain(config, RunConfig).items() if value != getattr(RunConfig(), n)}
    done = [row for row in told.epochs if row.get("step", 0) <= step]
    facts: dict[str, Any] = {
        "name": plain(name),
        "config": config,
        "data": plain(config.data),
        "settings": {n: plain(value) for n, value in changed.items() if n not in ("data_cache", "oracle_cores")},
        "classes": [plain(label) for label in run.data.class_names],
        "num_training": len(run.training_images),
        "num_evaluation": len(run.evaluation_images),
        "fingerprint": run.data.fingerprint,
        "step": step,
        "epochs_done": len(done),
        "passed_over": passed_over,
        "error": done[-1].get("test_error") if done else None,
        "error_name": error_name(config.validation_split),
        "hours": told.seconds.get("total", 0.0) / 3600,
        "scoring": told.scoring_share,
        "trained_on": told.starts[-1]["machine"] if told.starts else None,
        "files": files,
        "formats": FORMATS,
        "threads": threads,
        "cpu": cpu_name(),
        "versions": _versions(),
    }
    return str(ModelCard.from_template(head, template_path=str(TEMPLATE), **facts))


def plain(value: object) -> str:
    """What people named, in one line that Markdown takes for text.

    Example:
        >>> plain("a|b [c]")
        'a\\\\|b \\\\[c\\\\]'
    """
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(str(value).split()))


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
