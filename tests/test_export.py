"""What a run is exported to says what the run says, in processes that have never seen it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from infer2train.checkpoint.checkpoint import load_checkpoint, save_checkpoint
from infer2train.cli.main import main
from infer2train.observe.runlog import read_config, write_config
from infer2train.oracle.samples import GivenSamples
from infer2train.oracle.simulated_engine import SimulatedEngine
from infer2train.oracle.snapshot import snapshot
from infer2train.studies.export.export import CARD, FACTS, export
from infer2train.studies.export.formats import FORMATS, Subject
from infer2train.studies.export.judge import ROWS, judged
from infer2train.training.config import RunConfig
from infer2train.training.folder import CHECKPOINTS, evaluate_folder
from infer2train.training.loop import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    train(RunConfig(epochs=4, batch_size=40, lr=0.05, threads=1, train_error_samples=0), folder, quiet=True)
    return folder


@pytest.fixture(scope="module")
def found(run: Path) -> dict[str, dict[str, float]]:
    """Format -> what is said of it; each costs a process."""
    export(run)
    return {file["format"]: file for file in json.loads((run / "export" / FACTS).read_text())["files"]}


def test_every_format_has_the_runs_error(run: Path, found: dict[str, dict[str, float]]) -> None:
    own = evaluate_folder(run)
    assert own.error < 0.85, "it has learned something, so that agreement says something"
    assert set(found) == set(FORMATS)
    assert found["safetensors"]["error"] == pytest.approx(own.error, abs=1e-9)
    for name in ("safetensors", "onnx", "openvino"):
        assert found[name]["loss"] == pytest.approx(own.loss, rel=1e-4), name
    for name in ("onnx-int8", "openvino-int8"):
        assert found[name]["loss"] == pytest.approx(own.loss, rel=0.03), name
        assert found[name]["loss"] != found["onnx"]["loss"]


def test_integers_take_a_third_of_the_room_or_less(run: Path, found: dict[str, dict[str, float]]) -> None:
    assert 3 * found["onnx-int8"]["megabytes"] < 1.05 * found["onnx"]["megabytes"]
    weights = {name: (run / "export" / f"{name}.bin").stat().st_size for name in ("model", "model-int8")}
    assert 3 * weights["model-int8"] < weights["model"]


def test_the_card_says_what_was_found(run: Path, found: dict[str, dict[str, float]]) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(run / "export" / CARD)
    results = {result.metric_name: result.metric_value for result in card.data.eval_results or []}
    assert results == {f"accuracy ({file['file']})": round(1 - file["error"], 4) for file in found.values()}
    for part in (
        "resnet8 on digits",
        "with the method `baseline` for 4 epochs\n",
        "| epochs | 4 |",
        "100.0% of the multiply-adds, in int8",
    ):
        assert part in card.text
    assert f"{100 * evaluate_folder(run).error:.2f} % test error after its last epoch so far, and " in card.text
    assert "(scheme\n`default`)" in card.text
    assert "data_cache" not in card.text, "where a cache lies is nobody's business"


def test_the_card_of_a_run_that_was_stopped_says_how_far_it_came(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    write_config(tmp_path / "run", read_config(run) | {"epochs": 60, "lr_drops": [54]})
    export(tmp_path / "run", formats=["safetensors"])
    assert (
        "with the method `baseline` for 4 of 60 epochs\n(seed 0; " in (tmp_path / "run" / "export" / CARD).read_text()
    )


def test_what_people_named_is_text_in_the_card(run: Path, tmp_path: Path) -> None:
    from PIL import Image

    named = "dog\n\n## Licence: MIT\n\n[pay](x.example) <img src=x> | `a` *b* c_d"
    for part in ("train", "test"):
        for number, name in enumerate(("cat", named)):
            for row in range(4):
                file = tmp_path / "my_data" / part / name / f"{row}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (100 * number, 0, 0)).save(file)
    settings = {"data": str(tmp_path / "my_data"), "data_cache": str(tmp_path / "cache"), "train_error_samples": 0}
    train(RunConfig(epochs=1, batch_size=4, threads=1, **settings), tmp_path / "run", quiet=True, report=False)
    export(tmp_path / "run", formats=["safetensors"])
    text = (tmp_path / "run" / "export" / CARD).read_text()
    told = r"cat, dog \#\# Licence: MIT \[pay\](x.example) \<img src=x\> \| \`a\` \*b\* c\_d."
    assert f"Classes, in the order of the logits: {told}" in text
    assert r"# resnet8 on my\_data" in text


def test_the_command_writes_one_format_where_it_is_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--formats", "safetensors", "--into", str(tmp_path / "there"), "--quiet"]) == 0
    assert {path.name for path in (tmp_path / "there").iterdir()} == {"model.safetensors", FACTS, CARD}
    assert "model.safetensors" in capsys.readouterr().out
    assert read_config(run)["method"] == "baseline"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--formats", "onyx"], ["unknown format 'onyx'", "did you mean 'onnx'"]),
        (["--threads", "0"], ["threads must be at least 1: got 0"]),
    ],
)
def test_what_cannot_be_exported_is_said(
    run: Path, words: list[str], said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), *words]) == 2
    error = capsys.readouterr().err
    for part in said:
        assert part in error


def test_a_run_without_a_checkpoint_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    assert main(["export", str(tmp_path)]) == 2
    assert "export needs a checkpoint" in capsys.readouterr().err


def test_a_loop_of_ones_own_keeps_its_model(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_config(tmp_path, {"method": "nm-sample"})
    for verb in ("export", "eval"):
        assert main([verb, str(tmp_path)]) == 2
        assert f"{verb} needs a run of `infer2train train`" in (error := capsys.readouterr().err)
        assert "the log of a loop of your own" in error


def test_an_export_says_what_it_passed_over_and_leaves_nothing_of_an_earlier_one(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "[old]run"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("export"))
    monkeypatch.setitem(FORMATS, "weights", replace(FORMATS["safetensors"], file="weights.safetensors"))
    assert main(["export", str(folder), "--formats", "safetensors", "--quiet"]) == 0
    assert f"model card: {folder / 'export' / CARD}" in capsys.readouterr().out
    newest = max((folder / "checkpoints").glob("step-*")) / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    export(folder, formats=["weights"])
    assert "damaged checkpoint passed over: step-00000020" in capsys.readouterr().err
    assert {path.name for path in (folder / "export").iterdir()} == {"weights.safetensors", FACTS, CARD}
    text = (folder / "export" / CARD).read_text()
    assert "this is step 15; 1 newer checkpoint was damaged)" in text
    assert f"{100 * evaluate_folder(folder).error:.2f} % test error after epoch 3, and" in text


@pytest.mark.parametrize("change", ["renamed", "added"])
def test_weights_meet_no_images_of_other_labels(
    change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A class folder with another name, or one more, gives the logits other meanings; a card would tell them wrong."""
    data, run = tmp_path / "data", tmp_path / "run"
    for part in ("train", "test"):
        for number, name in enumerate(("cat", "dog", "eel")):
            write_image(data / part / name / "0.png", number)
            write_image(data / part / name / "1.png", number)
    settings = {"data": str(data), "data_cache": str(tmp_path / "cache"), "train_error_samples": 0}
    train(RunConfig(epochs=1, batch_size=2, threads=1, validation_split=3, **settings), run, quiet=True, report=False)
    commands = [
        ["eval", str(run)],
        ["eval", str(run), "--test"],
        ["export", str(run), "--formats", "safetensors", "--quiet"],
    ]
    assert [main(command) for command in commands] == [0, 0, 0]
    card = (run / "export" / CARD).read_text()
    assert " % validation error after its last epoch so far" in card
    if change == "renamed":
        for part in ("train", "test"):
            (data / part / "cat").rename(data / part / "zebra")
    else:
        write_image(data / "train" / "new" / "0.png", 3)
    for command in commands:
        capsys.readouterr()
        assert main(command) == 2
        error = capsys.readouterr().err
        assert f"{command[0]} needs the images that the run was trained on: got others in {data}, of other" in error
        assert "put them back, or train another run on these" in error
    assert (run / "export" / CARD).read_text() == card
    checkpoint = load_checkpoint(run / CHECKPOINTS)
    assert checkpoint is not None
    if change == "renamed":
        earlier = {name: value for name, value in checkpoint.state.items() if name != "data"}
        save_checkpoint(run / CHECKPOINTS, checkpoint.step, earlier)
        assert main(commands[0]) == 0, "a state of an earlier release does not tell"


def write_image(file: Path, number: int) -> None:
    from PIL import Image

    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (80 * number, 0, 0)).save(file)


def test_ranges_are_those_of_the_runs_own_oracle(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(tmp_path, {**read_config(run), "quantization": "percentile"})
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    seen: list[Subject] = []

    def write(subject: Subject, path: Path) -> tuple[str, ...]:
        seen.append(subject)
        return FORMATS["safetensors"].write(subject, path)

    monkeypatch.setitem(FORMATS, "weights", replace(FORMATS["safetensors"], write=write))
    export(tmp_path, formats=["weights"])
    assert (seen[0].scheme, seen[0].version) == ("percentile", 4 * 5), "scheme of the run, and its steps"


def test_what_cannot_be_written_keeps_nothing_else_from_being_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(subject: Subject, path: Path) -> tuple[str, ...]:
        path.write_bytes(b"no ONNX")
        return ()

    for name in set(FORMATS) - {"safetensors", "onnx"}:
        monkeypatch.delitem(FORMATS, name)
    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], write=write))
    into = tmp_path / "there"
    assert main(["export", str(run), "--into", str(into), "--quiet"]) == 0
    assert "onnx: not written: an exported file must run in a fresh process" in capsys.readouterr().out
    assert {path.name for path in into.iterdir()} == {"model.safetensors", FACTS, CARD}
    facts = json.loads((into / FACTS).read_text())
    assert [file["format"] for file in facts["files"]] == ["safetensors"]
    assert list(facts["failed"]) == ["onnx"]
    assert main(["export", str(run), "--into", str(into), "--formats", "onnx", "--quiet"]) == 1, "it was asked for"


def test_what_lies_in_the_folder_gives_way_to_nothing_but_what_is_good(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = {"model.onnx": b"yesterday's", "model.bin": b"mine"}
    for name, content in mine.items():
        (tmp_path / name).write_bytes(content)

    def write(subject: Subject, path: Path) -> tuple[str, ...]:
        path.write_bytes(b"half of it")
        raise RuntimeError("it cannot be written")

    for name in set(FORMATS) - {"safetensors"}:
        monkeypatch.setitem(FORMATS, name, replace(FORMATS[name], write=write, engine=None))
    assert main(["export", str(run), "--into", str(tmp_path), "--quiet"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {*mine, "model.safetensors", FACTS, CARD}
    assert {name: (tmp_path / name).read_bytes() for name in mine} == mine
    assert main(["export", str(run), "--into", str(tmp_path), "--formats", "safetensors", "--quiet"]) == 0, "again"
    (tmp_path / FACTS).unlink()
    (tmp_path / CARD).write_text("my project")
    assert main(["export", str(run), "--into", str(tmp_path), "--quiet"]) == 2
    assert "holds one that no export wrote; pass --into another folder" in capsys.readouterr().err
    assert (tmp_path / CARD).read_text() == "my project"


def test_an_engine_without_files_says_so(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 16, 3)).eval()
    engine = SimulatedEngine(model, samples=GivenSamples(torch.randn(16, 1, 6, 6), torch.arange(16) % 3))
    with pytest.raises(ValueError, match="a program is saved by an engine that has files: got simulated"):
        engine.save(snapshot(model, 0), tmp_path / "program")


def test_a_judge_counts_the_last_images_too() -> None:
    logits = np.eye(3, dtype=np.float32)[np.arange(ROWS + 6) % 3] * 2
    images = np.arange(ROWS + 6, dtype=np.uint8)[:, None, None, None]
    targets = np.arange(ROWS + 6) % 3
    targets[-3:] = (targets[-3:] + 1) % 3
    found = judged(lambda pixels: logits[pixels[:, 0, 0, 0]], images, targets)
    expected = nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(targets))
    assert found["error"] == pytest.approx(3 / (ROWS + 6))
    assert found["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert found["images_per_second"] > 0
