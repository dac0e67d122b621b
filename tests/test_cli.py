"""The command line: what it refuses and how it says so, what it prints, what it leaves behind."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from infer2train.observe.runlog import read_config, read_rows
from infer2train.training.config import RunConfig, from_plain

pytest.importorskip("jsonargparse", reason="the command line needs jsonargparse")
from infer2train.cli.arguments import parse, setting_texts
from infer2train.cli.main import main
from infer2train.cli.verbs import VERBS

TINY = ["--epochs", "1", "--batch-size", "100", "--threads", "1", "--train-error-samples", "0"]

FLAGS = [field.name for field in fields(RunConfig)]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process: exit status, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main(arguments)
        except SystemExit as exit_:  # --help and --version
            status = int(exit_.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(max((run / "checkpoints").iterdir()) / "tensors.safetensors")
    return {name: tensor for name, tensor in tensors.items() if name.startswith("state['model']")}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# What is refused

REFUSED = [
    ("train --method nm-sampel", ["unknown method 'nm-sampel'", "random-sample", "did you mean 'nm-sample'"]),
    ("train --model resnet9", ["unknown model 'resnet9'", "resnet44", "package.module:function", "'resnet8'"]),
    ("train --model no.module:function", ["'no.module:function'", "No module named 'no'"]),
    ("train --data digit", ["unknown data set 'digit'", "cifar10", "did you mean 'digits'"]),
    ("train --regime imagenet-resnet50", ["ImageNet must be fetched by hand", "--data FOLDER"]),
    ("train --regime cifar", ["unknown regime 'cifar'", "imagenet-resnet50", "did you mean 'cifar10-resnet44'"]),
    ("train --view shift", ["unknown view 'shift'", "pad-crop-flip", "did you mean 'shift-rotate'"]),
    ("train --method nm-augment --score los", ["unknown score 'los'", "entropy", "did you mean 'loss'"]),
    ("train --method nm-augment --pick maxx", ["unknown pick 'maxx'", "proportional", "did you mean 'max'"]),
    ("train --method nm-augment --oracle trch:fp32", ["unknown engine 'trch'", "did you mean 'torch'"]),
    ("train --method nm-augment --oracle torch:int3", ["fp32, bf16, fp16: got 'int3'"]),
    ("train --method nm-augment --oracle-workers 2", ["got 2 with pool='inline'; pass pool='process'"]),
    ("train --gamma 0", ["gamma must be at least 1: got 0"]),
    ("train --gamma -3", ["gamma must be at least 1: got -3"]),
    ("train --gamma 1.5", ["gamma", "int", "1.5"]),
    ("train --lr 0", ["lr must be positive"]),
    ("train --lr nan", ["lr", "nan"]),
    ("train --seed 9223372036854775808", ["seed must be in [0, 2^63)"]),
    ("train --weight-decay -1", ["weight_decay must be at least 0"]),
    ("train --distill-weight -1 --method self-distill", ["distill_weight must be at least 0"]),
    ("train --batch-size 201", ["batch_size must be at most the number of training images: got 201 for 200"]),
    ("train --limit 201", ["limit must be in 1..200", "got 201"]),
    ("train --validation-split 200", ["validation_split must leave something to train on", "got 200"]),
    ("train --image-size 16", ["--image-size resizes the images of a folder", "got 16 for 'digits'"]),
    ("train --label-column label", ["--label-column names a column of Parquet shards", "got label for 'digits'"]),
    ("train --crop-size 6", ["got 6 for shift-rotate"]),
    ("train --device gpu", ["device must be one that torch can use here: got 'gpu'", "--device cpu"]),
    ("train --device cuda:99", ["got 'cuda:99'", "--device cpu"]),
    ("train --precision bf16 --method self-distill", ["self-distill runs in fp32", "got bf16"]),
    ("train --ramp-rate 0.1", ["a ramp must be left out", "baseline"]),
    ("train --ramp-rate 0.1 --ramp-stop 1 --method nm-sample", ["got both"]),
    ("train --ramp-start 0.5 --ramp-stop 0.2 --method nm-sample", ["got start 0.5, stop 0.2"]),
    ("train --name r\udce9n", ["a run is called as its folder, in UTF-8: got 'r\\udce9n'; pass another --name"]),
    ("train --score entropy", ["score must be left out", "'entropy' for baseline"]),
    ("train --balance equal", ["balance", "uniform", "equal"]),
    ("train --gama 3", ["--gama 3", "did you mean --gamma?"]),
    ("train --config nothing.yaml", ["nothing.yaml"]),
    ("train baseline", ["baseline"]),
    ("trian", ["'trian'", "'train'"]),
    ("report", ["folder"]),
    ("report nothing", ["got nothing", "runs/NAME"]),
    ("eval nothing", ["got nothing", "runs/NAME"]),
    ("compare --methods nm-augment", ["needs the baseline", "--methods"]),
    ("compare --methods baseline nm-augmnt", ["unknown method 'nm-augmnt'", "did you mean 'nm-augment'"]),
    ("compare --seeds 0", ["seeds must be at least 1: got 0"]),
    ("compare --seeds 1 --jobs 0", ["jobs must be at least 1: got 0"]),
]


@pytest.mark.parametrize(("line", "phrases"), REFUSED, ids=[line for line, _ in REFUSED])
def test_wrong_usage_is_explained_in_two_lines_and_leaves_nothing(
    line: str, phrases: list[str], command: Command, tmp_path: Path
) -> None:
    arguments = line.split()
    fixed = ["--threads", "1", "--quiet"] if arguments[0] in ("train", "compare") and "nothing.yaml" not in line else []
    status, output, error = command(*arguments, *fixed)
    assert status == 2
    assert output == ""
    assert error.startswith("infer2train: ")
    assert len(error.splitlines()) <= 2, error
    assert "Traceback" not in error
    for phrase in phrases:
        assert phrase in error
    assert list(tmp_path.iterdir()) == [], "a run that cannot be made leaves no folder"


def test_no_verb_shows_the_verbs(command: Command) -> None:
    status, output, _ = command()
    assert status == 2
    assert all(verb in output for verb in VERBS)


def test_debug_shows_where(command: Command) -> None:
    with pytest.raises(ValueError, match="unknown method"):
        main(["train", "--method", "nope", "--debug"])
    with pytest.raises(ValueError, match="unknown method"):
        main(["--debug", "train", "--method", "nope"])


def test_an_unexpected_error_says_how_to_see_more(command: Command, tmp_path: Path) -> None:
    (tmp_path / "own_broken.py").write_text("def build(num_classes, in_channels):\n    return {}['weights']\n")
    status, _, error = command("train", "--model", "own_broken:build", *TINY)
    assert status == 1
    assert error == "infer2train: KeyError: 'weights'\n(--debug shows where)\n"


# Data

SIZE = 6


def encoded(level: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.full((SIZE, SIZE, 3), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_unnamed_shard(path: Path, levels: list[int], columns: dict[str, list[int] | list[str]]) -> None:
    """Without the metadata of the `datasets` library."""
    rows = pa.array([{"bytes": encoded(level), "path": None} for level in levels])
    pq.write_table(pa.table({"image": rows, **columns}), path)


def write_shard(path: Path, images: list[bytes], labels: list[int], label: str = "label") -> None:
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": image, "path": None} for image in images], type=struct)
    table = pa.table({"image": rows, label: pa.array(labels, pa.int64())})
    features = json.dumps({"info": {"features": {label: {"names": ["dark", "light"]}}}})
    pq.write_table(table.replace_schema_metadata({"huggingface": features}), path)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """12 training images in two shards and 4 test images, of two classes."""
    folder = tmp_path / "pets"
    folder.mkdir()
    images = [encoded(10 * level) for level in range(12)]
    write_shard(folder / "train-00000-of-00002.parquet", images[:6], [0] * 6)
    write_shard(folder / "train-00001-of-00002.parquet", images[6:], [1] * 6)
    write_shard(folder / "test.parquet", [encoded(5), encoded(25), encoded(65), encoded(115)], [0, 0, 1, 1])
    return folder


def train_pets(command: Command, *more: str) -> tuple[int, str, str]:
    settings = ["--epochs", "1", "--batch-size", "5", "--threads", "1", "--view", "identity", "--name", "pets"]
    return command("train", "--data", "pets", "--data-cache", "cache", *settings, *more)


def _corrupt(folder: Path) -> None:
    images = [encoded(level) for level in range(6)]
    images[4] = images[4][:40]
    write_shard(folder / "train-00001-of-00002.parquet", images, [1] * 6)


def _out_of_range(folder: Path) -> None:
    write_shard(folder / "train-00001-of-00002.parquet", [encoded(1)] * 3, [1, 0, 7])


def _truncated(folder: Path) -> None:
    path = folder / "train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-100])


def _other_columns(folder: Path) -> None:
    write_shard(folder / "train-00001-of-00002.parquet", [encoded(1)] * 3, [1] * 3, label="species")


def _missing(folder: Path) -> None:
    (folder / "train-00000-of-00002.parquet").unlink()


@pytest.mark.parametrize(
    ("damage", "phrases"),
    [
        (_corrupt, ["train-00001-of-00002.parquet, row 4 cannot be decoded", "--on-bad-image skip"]),
        (_out_of_range, ["labels must be in 0..1: got 7 in train-00001-of-00002.parquet, row 2"]),
        (_truncated, ["shards must be whole Parquet files", "train-00001-of-00002.parquet"]),
        (_other_columns, ["same columns", "train-00001-of-00002.parquet", "species"]),
        (_missing, ["lacks 1 of 2", "train-00000-of-00002.parquet"]),
    ],
)
def test_bad_data_is_no_wrong_usage(
    damage: Callable[[Path], None], phrases: list[str], command: Command, pets: Path
) -> None:
    damage(pets)
    status, _, error = train_pets(command, "--quiet")
    assert status == 1
    assert error.startswith("infer2train: ")
    assert len(error.splitlines()) == 1
    for phrase in phrases:
        assert phrase in error
    assert not Path("runs").exists()


def test_bad_images_left_out_are_counted_where_people_look(command: Command, pets: Path) -> None:
    assert train_pets(command)[0] == 0
    assert not [row for row in read_rows(Path("runs/pets")) if row["kind"] == "event" and "images" in row["event"]]
    _corrupt(pets)
    status, _, error = train_pets(command, "--on-bad-image", "skip", "--name", "skipped")
    assert status == 0, error
    sentence = "images left out because they could not be decoded: 1"
    assert sentence in error
    (row,) = [row for row in read_rows(Path("runs/skipped")) if row.get("event") == "images-skipped"]
    assert row["message"] == sentence
    assert sentence in Path("runs/skipped/report.html").read_text()
    status, _, error = train_pets(command, "--on-bad-image", "skip", "--name", "skipped", "--resume")
    assert status == 0, error
    assert sentence in error, "the cache remembers how many"
    assert len([row for row in read_rows(Path("runs/skipped")) if row.get("event") == "images-skipped"]) == 1


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """12 training images and 4 test images, with an id each and a name of what they are under an unusual name."""
    folder = tmp_path / "pets"
    folder.mkdir()
    for split, num in (("train", 12), ("test", 4)):
        kinds = ["dark" if level < num // 2 else "light" for level in range(num)]
        columns: dict[str, list[int] | list[str]] = {"image_id": list(range(num)), "shade": kinds}
        write_unnamed_shard(folder / f"{split}.parquet", [10 * level for level in range(num)], columns)
    return folder


@pytest.mark.usefixtures("numbered")
@pytest.mark.parametrize(
    "more", [[], ["--decode", "on-demand", "--view", "random-resized-crop-flip", "--crop-size", "6"]]
)
def test_an_id_is_never_taken_for_a_label_in_silence(more: list[str], command: Command) -> None:
    status, _, error = train_pets(command, "--quiet", *more)
    assert status == 1
    assert "image_id: int64, shade: string" in error
    assert error.endswith("pass --label-column NAME\n")
    assert not Path("runs").exists()


@pytest.mark.usefixtures("numbered")
def test_the_label_column_is_asked_for_kept_and_resumed(command: Command) -> None:
    status, _, error = train_pets(command, "--label-column", "shade", "--quiet")
    assert (status, error) == (0, "")
    assert weights(Path("runs/pets"))["state['model']['network.classifier.weight']"].shape[0] == 2
    assert read_config(Path("runs/pets"))["label_column"] == "shade"
    status, _, error = train_pets(command, "--label-column", "shade", "--quiet", "--resume")
    assert (status, error) == (0, "")
    status, _, error = train_pets(command, "--label-column", "image_id", "--quiet", "--resume")
    assert status == 2
    assert "label_column: 'shade' -> 'image_id'" in error
    status, _, error = command("train", "--config", "runs/pets/config.yaml", "--name", "again", "--quiet")
    assert (status, error) == (0, "")
    assert same(weights(Path("runs/pets")), weights(Path("runs/again")))
    status, _, error = command("eval", "runs/again")
    assert status == 0, error


# Divergence


@pytest.mark.parametrize("more", [[], ["--method", "nm-augment", "--gamma", "2", "--update-every", "1"]])
def test_a_diverging_run_stops_with_step_rate_and_last_good_checkpoint(more: list[str], command: Command) -> None:
    settings = [*TINY, "--batch-size", "40", "--lr", "1e30", "--checkpoint-every", "1", "--name", "up"]
    status, _, error = command("train", *settings, *more)
    assert status == 1
    (message,) = error.splitlines()
    assert re.search(r"must stay finite: got (nan|NaN or infinity) at step [12] with lr 1e\+30", message)
    assert "the last good checkpoint is runs/up/checkpoints/step-00000001" in message
    assert "--lr" in message
    (row,) = [row for row in read_rows(Path("runs/up")) if row.get("event") == "diverged"]
    assert row["message"] in message


SHARP_MODEL = """
import torch
from torch import nn

class Sharp(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.corner, self.linear = nn.Parameter(torch.zeros(1)), nn.Linear(in_channels * 64, num_classes)

    def forward(self, images):
        return self.linear(images.flatten(1)) + 0 * self.corner.sqrt()

def build(num_classes, in_channels):
    return Sharp(num_classes, in_channels)
"""


def test_weights_that_are_no_numbers_are_never_saved(command: Command) -> None:
    """The loss of the last step was finite, its gradient was not: the slope of a square root at 0 is infinite."""
    Path("own_sharp.py").write_text(SHARP_MODEL)
    settings = [*TINY, "--model", "own_sharp:build", "--limit", "100", "--name", "up"]
    status, _, error = command("train", *settings)
    assert status == 1
    assert "the weights must stay finite: got NaN or infinity at step 1" in error
    assert "there is no checkpoint yet" in error
    assert not Path("runs/up/checkpoints").exists()


# Help

HEAVY = ["torch", "numpy", "matplotlib", "sklearn", "pyarrow", "rich.progress", "PIL", "jinja2"]


def test_help_is_light_and_explains_every_flag() -> None:
    """In a fresh process: what a verb's help imports decides how long it takes."""
    code = f"""
import sys
from infer2train.cli.main import VERBS, main
for verb in [None, *VERBS]:
    try:
        main([*([verb] if verb else []), "--help"])
    except SystemExit as exit_:
        assert not exit_.code, (verb, exit_.code)
found = [name for name in {HEAVY} if name in sys.modules]
assert not found, found
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"usage: infer2train [options] {verb}" in done.stdout for verb in VERBS)


@pytest.mark.parametrize("debug", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_warning_is_one_line_and_is_read_once(debug: bool, tmp_path: Path) -> None:
    """Where each seed of each method would give it; in a process of its own, since pytest keeps warnings to itself."""
    twice = [
        "--methods",
        "baseline",
        "nm-sample",
        "nm-augment",
        "--seeds",
        "2",
        "--epochs",
        "1",
        "--limit",
        "100",
        "--gamma",
        "1",
    ]
    command = [sys.executable, "-m", "infer2train", "compare", *twice, "--batch-size", "50", "--update-every", "40"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command + ["--debug"] * debug, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    sentence = "the oracle gets new weights every 40 steps, an epoch has 2: lower update_every, to 1 for example"
    if debug:
        assert re.search(rf"loop\.py:\d+: RuntimeWarning: {re.escape(sentence)}", done.stderr)
    else:
        assert done.stderr.splitlines().count(f"infer2train: warning: {sentence}") == 1
        assert "RuntimeWarning" not in done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_each_flag_has_words_and_a_default(verb: str, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    status, output, _ = command(verb, "--help")
    assert status == 0
    entries = [" ".join(entry.split()) for entry in re.split(r"\n(?=  -)", output)[1:]]
    flags = {entry.split()[0].rstrip(","): entry for entry in entries if entry.startswith("--")}
    for flag, entry in flags.items():
        if flag not in ("--config", "--print_config"):
            assert len(re.sub(r"\(type.*", "", entry).split()) > 4, entry
            assert re.search(r"default: \S|Default: (?!null)\S", entry), entry
    if verb in ("train", "compare"):
        wanted = {"--" + name.replace("_", "-") for name in FLAGS}
        assert wanted <= flags.keys()


def test_every_number_has_its_unit() -> None:
    texts = {name: text for name, (_, text) in setting_texts().items()}
    assert texts.keys() == {field.name for field in fields(RunConfig)}
    units = (
        r"images?|pixels|nats|epochs?|steps?|candidates|draws|part of the training|share|threads|processes|seed|λ|rate"
    )
    dimensionless = {"momentum", "weight_decay"}
    for field in fields(RunConfig):
        if field.type in (int, float, int | None, float | None) and field.name not in dimensionless:
            assert re.search(units, texts[field.name], re.IGNORECASE), (field.name, texts[field.name])


def test_help_shows_the_defaults_of_the_regime_that_was_named(command: Command) -> None:
    _, output, _ = command("train", "--regime", "cifar10-resnet44", "--method", "nm-sample", "--help")
    flat = " ".join(output.split())
    for shown in ("default: 90", "default: resnet44", "default: 0.01", "default: pad-crop-flip", "default: uniform"):
        assert shown in flat


def test_version(command: Command) -> None:
    from infer2train import __version__

    status, output, _ = command("--version")
    assert (status, output.split()[-1]) == (0, __version__)


# Settings


def settings_of(*arguments: str) -> RunConfig:
    _, options = parse(arguments)
    return from_plain({name: options[name] for name in FLAGS})


def test_regime_then_file_then_flags(tmp_path: Path) -> None:
    regime = settings_of("train", "--regime=cifar10-resnet44", "--method", "nm-sample")
    assert (regime.epochs, regime.model, regime.balance, regime.ramp_rate) == (90, "resnet44", "uniform", 0.01)
    assert settings_of("train").model == "resnet8"
    (tmp_path / "own.yaml").write_text("regime: cifar10-resnet44\nmethod: nm-sample\nepochs: 7\nlr: 0.3\n")
    file = settings_of("train", "--config", "own.yaml")
    assert (file.epochs, file.lr, file.model, file.balance) == (7, 0.3, "resnet44", "uniform")
    flags = settings_of("train", "--config", "own.yaml", "--lr", "0.7", "--balance", "none")
    assert (flags.epochs, flags.lr, flags.model, flags.balance) == (7, 0.7, "resnet44", "none")
    first = settings_of("train", "--lr", "0.7", "--config", "own.yaml")
    assert first.lr == 0.7, "wherever the flag stands"


def test_a_regime_over_another_length_takes_its_whole_course_in_it(tmp_path: Path) -> None:
    shorter = settings_of("train", "--regime", "cifar10-resnet44", "--method", "nm-sample", "--epochs", "30")
    assert (shorter.lr_drops, shorter.ramp_rate) == ((27,), pytest.approx(0.03))
    assert settings_of("train", "--regime", "imagenet-resnet50", "--epochs=18").lr_drops == (6, 12, 16)
    assert settings_of("train", "--epochs", "10", "--lr-drops", "[3]").lr_drops == (3,), "what was given stays"
    (tmp_path / "own.yaml").write_text("regime: cifar10-resnet44\nepochs: 10\n")
    assert settings_of("train", "--config", "own.yaml").lr_drops == (9,)
    (tmp_path / "own.yaml").write_text("regime: cifar10-resnet44\nlr_drops: [50]\n")
    assert settings_of("train", "--config", "own.yaml", "--epochs", "60").lr_drops == (50,)


@pytest.mark.parametrize(
    "words", [["train", "--regim", "cifar10-resnet44"], ["train", "--metho=rho"], ["reproduce", "fig1", "--seed", "3"]]
)
def test_a_part_of_a_flags_name_is_no_flag(words: list[str], command: Command) -> None:
    """What looks for the regime, and what asks which flags were given, would not see it."""
    status, _, error = command(*words)
    assert status == 2
    assert f"unrecognized arguments: {words[-2] if words[-1][0] != '-' else words[-1]}" in error


@pytest.mark.parametrize(
    ("line", "near"),
    [
        ("export runs/a --format onnx", "--formats"),
        ("compare --sedes 3", "--seeds"),
        ("plan --worker 2", "--workers"),
        ("reproduce fig1 --arm=baseline", "--arms"),
        ("eval runs/a --bets", "--best"),
        ("--vresion", "--version"),
        ("gamma --worker 3", None),
        ("inspect runs/a --model x", None),
        ("reproduce fig1 --epochs 3", None),
    ],
)
def test_the_flag_that_is_suggested_is_one_of_the_verbs_own(line: str, near: str | None, command: Command) -> None:
    status, _, error = command(*line.split())
    assert status == 2
    assert re.findall(r"did you mean (\S+)\?", error) == ([near] if near else [])


def test_a_file_with_an_unknown_setting(command: Command, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("gama: 3\n")
    status, _, error = command("train", "--config", "own.yaml")
    assert status == 2
    assert "gama" in error
    assert len(error.splitlines()) <= 2


def test_a_runs_own_file_trains_it_again_bit_for_bit(command: Command) -> None:
    more = ["--method", "nm-augment-soft", "--gamma", "3", "--epochs", "2", "--seed", "5", "--update-every", "1"]
    status, output, error = command("train", *TINY, *more, "--name", "first")
    assert status == 0, error
    assert re.fullmatch(
        r"first: test error \d+\.\d\d%, top-5 error \d+\.\d\d%, loss \d\.\d{4}, \d+\.\d s, \d+% of it scoring\n"
        r"report: runs/first/report.html\n",
        output,
    )
    status, _, error = command("train", "--config", "runs/first/config.yaml", "--name", "second", "--quiet")
    assert (status, error) == (0, "")
    assert read_config(Path("runs/first")) == read_config(Path("runs/second"))
    assert same(weights(Path("runs/first")), weights(Path("runs/second")))
    command("train", "--config", "runs/first/config.yaml", "--seed", "6", "--name", "third")
    assert {**read_config(Path("runs/first")), "seed": 6} == read_config(Path("runs/third"))
    assert not same(weights(Path("runs/first")), weights(Path("runs/third")))


# Evaluation and report


def test_eval_and_report_of_a_run(command: Command) -> None:
    status, _, error = command("train", *TINY, "--epochs", "2", "--name", "one", "--quiet")
    assert status == 0, error
    last = [row for row in read_rows(Path("runs/one")) if row["kind"] == "epoch"][-1]
    status, output, error = command("eval", "runs/one", "--json")
    assert (status, error) == (0, "")
    told = json.loads(output)
    names = ("loss", "error", "top5_error", "calibration_error")
    assert told == {name: last[f"test_{name}"] for name in names}
    status, output, _ = command("eval", "runs/one")
    assert output.startswith(f"runs/one: test error {told['error']:.2%}, top-5 error {told['top5_error']:.2%}, loss")
    page = Path("runs/one/report.html")
    before = page.read_bytes()
    page.unlink()
    status, output, _ = command("report", "runs/one")
    assert (status, output) == (0, f"report: {page}\n")
    assert page.read_bytes() == before


def test_eval_says_which_checkpoint_it_passed_over(command: Command) -> None:
    command("train", *TINY, "--epochs", "2", "--name", "one", "--quiet")
    newest = Path("runs/one/checkpoints/step-00000004/state.json")
    content = bytearray(newest.read_bytes())
    content[7] ^= 4
    newest.write_bytes(content)
    first = next(row for row in read_rows(Path("runs/one")) if row["kind"] == "epoch")
    status, output, error = command("eval", "runs/one", "--json")
    assert status == 0
    assert error.startswith("damaged checkpoint passed over: step-00000004: state.json")
    assert json.loads(output)["error"] == first["test_error"]
    for file in Path("runs/one/checkpoints").glob("*/state.json"):
        file.write_text("{}")
    status, _, error = command("eval", "runs/one")
    assert status == 1
    assert "got 2 damaged" in error
    assert len(error.splitlines()) == 1


def test_eval_of_a_run_without_a_checkpoint(command: Command) -> None:
    command("train", *TINY, "--epochs", "1", "--lr", "1e38", "--name", "none", "--quiet")
    status, _, error = command("eval", "runs/none")
    assert status == 2
    assert "eval needs a checkpoint: got none in runs/none" in error


def test_validation_and_limit_are_told_and_kept(command: Command) -> None:
    status, _, error = command("train", *TINY, "--validation-split", "50", "--limit", "100", "--name", "held")
    assert status == 0, error
    (epoch,) = [row for row in read_rows(Path("runs/held")) if row["kind"] == "epoch"]
    assert epoch["step"] == 1, "one batch of 100"
    assert epoch["test_error"] * 50 == pytest.approx(round(epoch["test_error"] * 50)), "of 50 images"
    status, output, _ = command("eval", "runs/held", "--json")
    assert json.loads(output)["error"] == epoch["test_error"]
    assert command("eval", "runs/held")[1].startswith(f"runs/held: validation error {epoch['test_error']:.2%}")
    assert command("eval", "runs/held", "--test")[1].startswith("runs/held: test error ")
    tested = json.loads(command("eval", "runs/held", "--test", "--json")[1])["error"]
    assert tested * 1597 == pytest.approx(round(tested * 1597)), "of all that nobody held back"
