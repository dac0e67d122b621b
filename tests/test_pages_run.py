"""Every block of code on a page runs, and every command is one that the program takes.

Blocks of Python run in the order of their page, in one namespace that has what the page calls the reader's own
(`AT_HAND`). Commands go through the real parser; those of the tutorial are run, one after another.
"""

import importlib
import random
import re
import runpy
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import infer2train
from page_blocks import ROOT, SHELL, Block, blocks, spans

pytest.importorskip("jsonargparse", reason="the command line needs jsonargparse")
from infer2train.cli.arguments import parse
from infer2train.cli.main import DONE, main
from infer2train.draws.methods.table import METHODS
from infer2train.pool.pools import POOLS
from infer2train.studies.reproduce.experiments import EXPERIMENTS
from infer2train.training.config import RunConfig, from_plain

pytestmark = [
    pytest.mark.usefixtures("one_thread", "unchecked_types"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

TUTORIAL = "docs/tutorial.md"
NOT_RUN = {
    "docs/alternating-stages.md": "tests/test_alternating_stages.py runs it",
    'docs/how-it-works.md: if __name__ == "__main__":': "wants a second core, for the oracle's process",
    "docs/extending.md: DATA = {": "lines of a dictionary, the others left out",
    "docs/extending.md: METHODS = {": "lines of a dictionary, the others left out",
    "docs/hosts/accelerate.md": "wants an Accelerator: tests/integrations/test_accelerate.py resumes by these lines",
    "docs/hosts/lightning.md": "a line of a LightningModule: tests/integrations/test_lightning.py trains with it",
    "docs/hosts/transformers.md": "names the reader's Trainer: tests/integrations/test_transformers.py has one",
    "docs/more-than-one-machine.md: base = DataLoader(my_data.train_set(), batch_size=64, shuffle=True)": "wants a "
    "module on every machine of a cluster: tests/pool/test_ray.py has both",
    "docs/hosts/streams.md": "streams from the hub: tests/test_docstrings.py runs examples/stream_datasets.py",
}
"""Pages and blocks of Python that are not run here, and why. They compile all the same, unless lines are left out."""


# Python


class Tiny(Dataset[Any]):
    """What a page calls `ImageFolder(root, transform=augment)`: few rows of numbers, the transform inside."""

    def __init__(self, root: str = "", transform: Callable[[Tensor], Tensor] | None = None, n: int = 24) -> None:
        generator = torch.Generator().manual_seed(0)
        self.rows, self.transform = torch.randn(n, 4, generator=generator), transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self.rows[index]
        return row if self.transform is None else self.transform(row), index % 3


def jitter(row: Tensor) -> Tensor:
    return row + 0.1 * torch.randn(4)


def in_this_process(*passed: Any, num_workers: int = 0, **named: Any) -> "DataLoader[Any]":
    """A DataLoader that starts no processes, which would take longer than the rest."""
    return DataLoader(*passed, **named)


def loop() -> dict[str, Any]:
    """A reader's loop; whatever number of epochs a page writes, two are trained."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    return {
        "infer2train": infer2train,
        "torch": torch,
        "F": F,
        "DataLoader": in_this_process,
        "ImageFolder": Tiny,
        "range": lambda epochs: range(min(epochs, 2)),
        "root": "images",
        "augment": jitter,
        "train": Tiny(transform=jitter),
        "base": DataLoader(Tiny(transform=jitter), batch_size=8, shuffle=True),
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "criterion": nn.CrossEntropyLoss(),
    }


def loop_with_weights() -> dict[str, Any]:
    """A reader's loop in the midst of a draw of `infobatch`."""
    names = loop()
    names["loader"] = infer2train.mine(names["base"], names["model"], names["optimizer"], method="infobatch", epochs=3)
    names["x"], names["y"] = next(iter(names["loader"]))
    return names


def loop_over_text() -> dict[str, Any]:
    """Next characters, padded with -100."""
    names, generator = loop(), torch.Generator().manual_seed(0)
    characters = torch.randint(0, 9, (24, 6), generator=generator)
    following = torch.where(torch.arange(6) < 4, characters, -100)
    names["base"] = DataLoader(TensorDataset(characters, following), batch_size=8)
    names["model"] = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9))
    names["optimizer"] = torch.optim.SGD(names["model"].parameters(), lr=0.1)
    return names


class Spoken(Dataset[Any]):
    """Rows of tokens with what they sound like; each token is to be named again."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens = (torch.arange(6) + index + random.randrange(2)) % 9
        return {"input_ids": tokens, "spectrogram": torch.rand(4, 6), "labels": tokens}


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9))

    def forward(self, input_ids: Tensor, spectrogram: Tensor) -> dict[str, Tensor]:
        return {"logits": self.network(input_ids) + spectrogram.mean((1, 2))[:, None, None]}


class Tokenizer:
    """As far as pages use one."""

    def decode(self, tokens: Iterable[int]) -> str:
        return " ".join("abcdefghi"[token] for token in tokens)


def runs_to_inspect() -> dict[str, Any]:
    """Finished loops in runs/a, runs/b and runs/c."""
    base, model = DataLoader(Spoken(), batch_size=8), Reader()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for folder in ("runs/a", "runs/b", "runs/c"):
        with closing(infer2train.mine(base, model, optimizer, gamma=2, update_every=1, log_dir=folder)) as loader:
            for batch in loader:
                targets = batch.pop("labels")
                F.cross_entropy(model(**batch)["logits"].movedim(-1, 1), targets).backward()
                optimizer.step()
    return {"infer2train": infer2train, "base": base, "model": model, "tokenizer": Tokenizer()}


def of_the_package(*modules: str) -> Callable[[], dict[str, Any]]:
    """What files of the package have imported, where a page says that it leaves imports out."""
    return lambda: {name: thing for module in modules for name, thing in vars(importlib.import_module(module)).items()}


AT_HAND: dict[str, Callable[[], dict[str, Any]]] = {
    "docs/methods.md": loop_with_weights,
    "docs/inspect.md": runs_to_inspect,
    "docs/hosts/text-and-tasks.md": loop_over_text,
    "docs/extending.md": of_the_package(
        "infer2train.sources.views.crops",
        "infer2train.draws.scores",
        "infer2train.draws.selection",
        "infer2train.draws.methods.views",
        "infer2train.pool.process",
    ),
}
"""What is at hand on a page, where it is not `loop`."""
PYTHON = [block for block in blocks() if block.kind == "python" and not block.title]


def is_left_out(block: Block) -> bool:
    return block.page in NOT_RUN or block.name in NOT_RUN


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


@pytest.mark.parametrize("page", sorted({block.page for block in PYTHON if not is_left_out(block)}))
def test_the_python_of_a_page_runs(page: str) -> None:
    names = AT_HAND.get(page, loop)()
    for block in PYTHON:
        if block.page == page and not is_left_out(block):
            exec(compile(block.code, block.name, "exec"), names)


def test_what_is_not_run_is_there_and_can_be_read() -> None:
    names = {block.name: block for block in PYTHON}
    assert NOT_RUN.keys() <= names.keys() | {block.page for block in PYTHON}, "an entry that nothing needs any more"
    for name in NOT_RUN.keys() & names.keys():
        if "left out" not in NOT_RUN[name]:
            compile(names[name].code, name, "exec")


def test_the_tests_that_run_something_instead_are_there() -> None:
    for reason in NOT_RUN.values():
        for path in re.findall(r"tests/[\w/]+\.py|examples/\w+\.py", reason):
            assert (ROOT / path).is_file(), reason


def test_what_one_may_add_does_what_its_page_says() -> None:
    names = AT_HAND["docs/extending.md"]()
    for block in PYTHON:
        if block.page == "docs/extending.md" and not is_left_out(block):
            exec(compile(block.code, block.name, "exec"), names)
    sure, unsure = names["confidence"](torch.tensor([[9.0, 0.0], [0.1, 0.0]]), None).tolist()
    assert sure < unsure
    assert names["pick_second"](torch.tensor([[1.0, 3.0, 2.0]]), torch.zeros(1)).tolist() == [2]
    image = torch.arange(6, dtype=torch.uint8).view(1, 2, 3, 1)
    mirrored = names["Flip"]().apply(image, {"flip": [1]})
    assert mirrored.flatten().tolist() == [2, 1, 0, 5, 4, 3]


# Diffs


@pytest.mark.parametrize("block", [b for b in blocks() if b.kind == "diff"], ids=lambda block: block.name)
def test_a_diff_is_that_of_an_example(block: Block) -> None:
    """But for what stands in brackets: the settings of a page need not be those of a script that must be quick."""
    name = {"several-ranks": "ddp", "ignite-fabric": "fabric" if "fabric" in block.code else "ignite"}
    page = Path(block.page).stem
    scripts = [ROOT / "examples" / f"{name.get(page, page)}_{which}.py" for which in ("plain", "mined")]
    plain, mined = (script.read_text("utf-8") for script in scripts)
    lines = [line for line in block.code.splitlines() if line[:1] in ("+", "-") and line[1:].strip()]
    assert lines
    for line in lines:
        assert line[1:].strip().partition("(")[0] in (mined if line[0] == "+" else plain)


# Commands

SHOWN = [(block.name, words) for block in blocks() for words in block.commands] + list(spans())
OURS = {" ".join(words): (where, words) for where, words in SHOWN if words[0] == "infer2train"}


def understood(words: list[str]) -> None:
    """Have the real parser read a command of ours, and check the names that it leaves to its verb.

    Raises:
        Exception: whatever a user would be told.
    """
    verb, options = parse([word for word in words[1:] if word != "--help"])
    if verb in ("train", "compare"):
        names = {field.name for field in fields(RunConfig)}
        config = from_plain({name: value for name, value in options.items() if name in names})
        assert config.pool in POOLS
        assert {arm.partition("@")[0] for arm in options.get("methods", [config.method])} <= METHODS.keys()
    if verb == "reproduce":
        assert options["experiment"] in EXPERIMENTS


@pytest.mark.parametrize("command", OURS, ids=lambda command: command[:60])
def test_a_command_of_ours_is_understood(command: str) -> None:
    where, words = OURS[command]
    try:
        understood(words)
    except Exception as error:
        error.add_note(f"on the page {where}")
        raise


def test_a_command_that_needs_no_run_is_run(capsys: pytest.CaptureFixture[str]) -> None:
    (asked,) = [
        words for command, (_, words) in OURS.items() if command.startswith("infer2train advise --view-error 3")
    ]
    assert main(asked[1:]) == DONE
    assert "trusted" in capsys.readouterr().out


def test_a_command_that_is_none_is_not_understood() -> None:
    for wrong in ("infer2train train --gama 3", "infer2train reprot runs/a", "infer2train train --regime cifar"):
        with pytest.raises(Exception, match=r"gama|reprot|cifar"):
            understood(wrong.split())


def test_other_commands_name_what_is_there() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    extras = re.findall(r"^([a-z0-9]+) = \[", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    for where, words in SHOWN:
        if words[0] == "make":
            assert words[1].partition("=")[0] in targets, where
        for path in re.findall(r"(?:examples|benchmarks)/\w+\.py", " ".join(words)):
            text = (ROOT / path).read_text("utf-8")
            flags = [word.partition("=")[0] for word in words[words.index(path) :] if word.startswith("--")]
            assert all(f'"{flag}"' in text for flag in flags), f"{where}: {words}"
        if words[0] == "pip":
            for named in re.findall(r"\[([\w,]+)\]", " ".join(words)):
                assert set(named.split(",")) <= set(extras), where


# The tutorial

SHORTER = {"train": ["--limit", "40", "--epochs", "1", "--train-error-samples", "40", "--quiet"]}
"""What is added to a command of the tutorial, so that it takes a second."""
TOO_LONG = {
    "gamma": "measures for half a minute: tests/gamma",
    "export": "starts a process for each format: tests/test_export.py",
}
"""Verbs of the tutorial that are understood, and not run."""
OF_THE_SHELL = ("git", "cd", "python3", ".", "pip", "ls")


def test_the_tutorial_runs_to_the_letter_but_shorter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INFER2TRAIN_CACHE", str(tmp_path / "cache"))
    left_out = set()
    for block in (block for block in blocks() if block.page == TUTORIAL):
        if block.title:
            Path(block.title).write_text(block.code, "utf-8")
        for words in block.commands if block.kind in SHELL else ():
            if words[0] == "infer2train" and words[1] in TOO_LONG:
                left_out.add(words[1])
            elif words[0] == "infer2train":
                assert main([*words[1:], *SHORTER.get(words[1], [])]) == DONE, capsys.readouterr().err
            elif words[0] == "python":
                keep_few(Path("pictures"))
                runpy.run_path(words[1], run_name="__main__")
            else:
                assert words[0] in OF_THE_SHELL
    assert TOO_LONG.keys() == left_out
    for left in (
        "plain/report.html",
        "comparison.html",
        "mined/report.html",
        "mined/inspect.html",
        "mined/suspects.csv",
        "mine/report.html",
    ):
        assert Path("runs", left).is_file()


def keep_few(folder: Path) -> None:
    """Every twentieth image."""
    for number, file in enumerate(sorted(folder.glob("*/*/*"))):
        if number % 20:
            file.unlink()
