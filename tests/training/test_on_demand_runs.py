"""Runs whose images are decoded on demand: the same whoever decodes and whatever the layout, errors with a name."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

pytest.importorskip("jsonargparse", reason="the command line needs jsonargparse")

from infer2train.cli import main as cli
from infer2train.draws.addresses import Addresses
from infer2train.observe.runlog import read_rows
from infer2train.sources.views.on_demand import OnDemandViews
from infer2train.studies.gamma.measure import subject_of
from infer2train.training.config import RunConfig, from_plain
from infer2train.training.decoding_rate import decoding_warning
from infer2train.training.folder import evaluate_folder
from infer2train.training.loop import train
from infer2train.training.regimes import regime_defaults
from infer2train.training.setup import Run, prepare, resolved

CLASSES = ("cat", "dog", "owl")
NUM_TRAIN, NUM_TEST = 24, 6
SMALL: dict[str, Any] = {
    "decode": "on-demand",
    "model": "resnet8",
    "crop_size": 16,
    "batch_size": 8,
    "lr": 0.02,
    "epochs": 1,
    "threads": 1,
    "train_error_samples": 8,
    "gamma": 3,
    "oracle": "torch:fp32",
    "oracle_chunk": 7,
    "update_every": 2,
    "mine_every": 1,
    "log_every": 1,
}


def photo(number: int) -> bytes:
    """A JPEG of a size of its own whose pattern tells its class."""
    rng = np.random.default_rng(number)
    height, width = rng.integers(18, 48, 2).tolist()
    pixels = rng.integers(0, 120, (height, width, 3))
    pixels[..., number % len(CLASSES)] += 130
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders. Nobody writes into them."""
    return write_photos(tmp_path_factory.mktemp("photos"))


def write_photos(root: Path) -> Path:
    for split, numbers in (("train", range(NUM_TRAIN)), ("val", range(100, 100 + NUM_TEST))):
        for number in numbers:
            folder = root / split / CLASSES[number % len(CLASSES)]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:03d}.jpg").write_bytes(photo(number))
    return root


def write_shards(folder: Path, photos: Path) -> Path:
    """The same files in the same order."""
    folder.mkdir()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    names = json.dumps({"info": {"features": {"label": {"names": CLASSES, "_type": "ClassLabel"}}}})
    for split in ("train", "val"):
        files = sorted((photos / split).glob("*/*.jpg"))
        images = pa.array([{"bytes": file.read_bytes(), "path": None} for file in files], type=kind)
        labels = pa.array([CLASSES.index(file.parent.name) for file in files], pa.int64())
        table = pa.table({"image": images, "label": labels}).replace_schema_metadata({"huggingface": names})
        pq.write_table(table, folder / f"{split}.parquet")
    return folder


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFER2TRAIN_CACHE", str(tmp_path / "cache"))


def config(data: Path, method: str = "nm-augment", **changes: Any) -> RunConfig:
    return from_plain({**regime_defaults("imagenet-resnet50", method), **SMALL, "data": str(data), **changes})


def prepared(data: Path, method: str = "nm-augment", **changes: Any) -> Run:
    return prepare(resolved(config(data, method, **changes)), progress=False)


def weights_and_losses(folder: Path) -> tuple[dict[str, torch.Tensor], list[float]]:
    tensors = load_file(max((folder / "checkpoints").glob("step-*")) / "tensors.safetensors")
    rows = read_rows(folder)
    losses = [row["loss"] for row in rows if row["kind"] == "step"]
    ends = [row[name] for row in rows if row["kind"] == "epoch" for name in ("test_loss", "train_error_random")]
    return tensors, losses + ends


@pytest.fixture(scope="module")
def alone(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in one process."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    train(config(photos), folder, quiet=True, report=False)
    return folder


@pytest.mark.parametrize(
    "changes",
    [pytest.param({"num_workers": 2}, marks=pytest.mark.slow), {"num_workers": 2, "pool": "process", "queue_depth": 2}],
    ids=["the trainer's workers", "the oracle's too"],
)
def test_whoever_decodes_the_run_is_the_same_bit_for_bit(
    photos: Path, alone: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    train(config(photos, **changes), tmp_path / "run", quiet=True, report=False)
    (here, losses), (there, others) = weights_and_losses(alone), weights_and_losses(tmp_path / "run")
    assert len(losses) == 3 + 2
    assert losses == others
    assert here.keys() == there.keys()
    assert all(torch.equal(tensor, there[name]) for name, tensor in here.items())


def test_shards_and_class_folders_of_the_same_files_are_the_same_run(photos: Path, alone: Path, tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", photos)
    train(config(shards), tmp_path / "run", quiet=True, report=False)
    assert weights_and_losses(tmp_path / "run")[1] == weights_and_losses(alone)[1]


def test_a_finished_run_is_evaluated_again(alone: Path) -> None:
    (end,) = [row for row in read_rows(alone) if row["kind"] == "epoch"]
    assert evaluate_folder(alone).loss == end["test_loss"]


def test_the_imagenet_regime_on_the_command_line(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = f"train --regime imagenet-resnet50 --model imagenet-resnet18 --data {photos} --decode on-demand"
    sizes = "--image-size 40 --crop-size 32 --batch-size 12 --epochs 1 --threads 1 --train-error-samples 0"
    assert cli.main([*command.split(), *sizes.split(), "--name", "a", "--quiet"]) == 0
    assert "a: test error" in capsys.readouterr().out
    (end,) = [row for row in read_rows(Path("runs/a")) if row["kind"] == "epoch"]
    assert (end["step"], end["epoch"]) == (2, 0)
    assert "report.html" in {path.name for path in Path("runs/a").iterdir()}


def test_its_gamma_is_measured_on_its_own_images(alone: Path) -> None:
    source, network, about = subject_of(alone)
    assert isinstance(source, OnDemandViews)
    images, _ = source.batch(Addresses(np.arange(2), np.arange(2)))
    assert network(images).shape[0] == 2
    assert about["steps"] > 0


def test_limit_and_validation_split(photos: Path) -> None:
    run = prepared(photos, limit=9, validation_split=12)
    assert len(run.training_images) == 9
    images, targets = run.evaluation_images.batch(run.evaluation_addresses())
    assert (tuple(images.shape), np.bincount(targets).tolist()) == ((12, 3, 16, 16), [4, 4, 4])


@pytest.mark.parametrize("changes", [{}, {"num_workers": 1}], ids=["own process", "worker"])
@pytest.mark.parametrize("pool", ["inline", "process"])
def test_a_broken_image_names_itself_wherever_it_is_decoded(tmp_path: Path, changes: dict[str, Any], pool: str) -> None:
    root = write_photos(tmp_path / "photos")
    for path in (root / "train" / "owl").iterdir():
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(Exception, match=r"train/owl/\d+\.jpg cannot be decoded"):
        train(config(root, pool=pool, **changes), tmp_path / "run", quiet=True, report=False)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_goes_away_during_the_run_names_itself(tmp_path: Path, num_workers: int) -> None:
    root = write_photos(tmp_path / "photos")
    run = prepared(root, "baseline", num_workers=num_workers)
    for path in (root / "train").glob("*/*.jpg"):
        path.unlink()
    with pytest.raises(ValueError, match=r"train/\w+/\d+\.jpg is not \(No such file"):
        next(iter(run.loader))
    run.loader.close()


def test_a_broken_image_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = write_photos(tmp_path / "photos")
    (root / "val" / "dog" / "100.jpg").unlink(missing_ok=True)
    for path in (root / "train").glob("*/*.jpg"):
        path.write_bytes(b"")
    command = f"train --regime imagenet-resnet50 --data {root} --decode on-demand --crop-size 16 --model resnet8"
    assert cli.main([*command.split(), "--batch-size", "8", "--quiet"]) == cli.FAILED
    assert "images must be whole" in capsys.readouterr().err


def test_what_decoding_allows_is_measured_and_said(photos: Path, tmp_path: Path) -> None:
    train(config(photos, "nm-sample", gamma=300, limit=8), tmp_path / "run", quiet=True, report=False)
    (said,) = [row["message"] for row in read_rows(tmp_path / "run") if row.get("event") == "decoding-too-slow"]
    assert "nm-sample looks at γ·B = 2400 images a draw" in said
    assert "(processes: 1)" in said
    gamma = float(said.partition("keeps up with γ = ")[2].partition(":")[0])
    assert 0 < gamma < 300
    assert "--decode once --image-size 256 for a cache of 0.0059 GB" in said


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("nm-sample", {"gamma": 1, "mine_every": 1000}),
        ("nm-augment", {"gamma": 10**6}),
        ("baseline", {"gamma": 10**6}),
        ("nm-sample", {"gamma": 10**6, "decode": "once", "image_size": 16}),
    ],
)
def test_no_warning_without_a_reason(photos: Path, method: str, changes: dict[str, Any]) -> None:
    assert decoding_warning(prepared(photos, method, **changes)) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"view": "pad-crop-flip", "crop_size": None}, "got pad-crop-flip; pass --view random-resized-crop-flip"),
        ({"view": "pad-crop-flip"}, "got pad-crop-flip; pass --view random-resized-crop-flip"),
        ({"crop_size": None}, "need the size of their views: got no crop_size; pass --crop-size 224"),
        ({"data": "digits"}, "on-demand is for folders of images: got 'digits'"),
        ({"on_bad_image": "skip"}, "got on_bad_image='skip' with decode='on-demand'; pass --decode once"),
        ({"copies": 3}, "got copies=3 with decode='on-demand'; pass --decode once"),
    ],
)
def test_what_cannot_be_decoded_on_demand(photos: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        prepared(**{"data": photos, **changes})
