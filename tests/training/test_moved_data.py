"""A run goes on, and is evaluated, exported and inspected, wherever its images are now: if they are the same."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from infer2train.cli.main import main
from infer2train.observe.runlog import read_config

SETTINGS = ["--method", "nm-augment", "--gamma", "2", "--epochs", "2", "--batch-size", "6", "--threads", "1"]


def write_images(folder: Path, seed: int) -> None:
    values = np.random.default_rng(seed)
    for part in ("train", "test"):
        for label in ("a", "b"):
            (folder / part / label).mkdir(parents=True)
            for number in range(6):
                image = Image.fromarray(values.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                image.save(folder / part / label / f"{number}.png")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(max((run / "checkpoints").glob("step-*")) / "tensors.safetensors")


def test_a_run_finds_its_images_where_they_were_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, moved, others, run = (tmp_path / name for name in ("first", "moved", "others", "run"))
    write_images(first, 0)
    write_images(others, 1)
    places = ["--data-cache", str(tmp_path / "cache"), "--runs-dir", str(tmp_path)]
    train = ["train", *SETTINGS, *places, "--name", "run", "--quiet"]
    readers = [
        ["eval", str(run)],
        ["export", str(run), "--formats", "safetensors", "--quiet"],
        ["inspect", str(run), "--quiet"],
    ]
    assert main([*train, "--data", str(first)]) == 0
    whole = weights(run)

    assert main([*train, "--data", str(others), "--resume"]) == 2
    assert "a resumed run needs the configuration it was started with: got data: " in capsys.readouterr().err

    first.rename(moved)
    for reader in readers:
        assert main(reader) == 2
        assert f"got {first}, which is not there; pass --data with the folder where they are" in capsys.readouterr().err
        assert main([*reader, "--data", str(moved)]) == 0
        capsys.readouterr()
        assert main([*reader, "--data", str(others)]) == 2
        assert "got others in" in capsys.readouterr().err
    shutil.rmtree(max((run / "checkpoints").glob("step-*")))
    assert main([*train, "--data", str(others), "--resume"]) == 2
    assert "a resumed run needs the images that it was started with: got others in" in capsys.readouterr().err

    assert main([*train, "--data", str(moved), "--resume"]) == 0
    assert read_config(run)["data"] == str(moved)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(run).items())
    assert [main(reader) for reader in readers] == [0, 0, 0]


def test_finished_runs_of_a_comparison_are_not_taken_for_those_of_other_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, moved, others = (tmp_path / name for name in ("first", "moved", "others"))
    write_images(first, 0)
    write_images(others, 1)
    compare = ["compare", "--methods", "baseline", "--epochs", "1", "--batch-size", "6", "--threads", "1", "--quiet"]
    compare += ["--seeds", "1", "--runs-dir", str(tmp_path), "--name", "pair", "--data-cache", str(tmp_path / "cache")]
    assert main([*compare, "--data", str(first)]) == 0
    first.rename(moved)
    capsys.readouterr()
    assert main([*compare, "--data", str(others), "--resume"]) == 2
    assert "a finished run is of the images that it was trained on: got others in" in capsys.readouterr().err
    rows = (tmp_path / "pair" / "baseline-seed0" / "metrics.jsonl").read_text()
    assert main([*compare, "--data", str(moved), "--resume"]) == 0
    assert (tmp_path / "pair" / "baseline-seed0" / "metrics.jsonl").read_text() == rows, "it is not trained again"
