"""Every example in a docstring is run, with the names that a reader has at hand; so are the scripts of examples/."""

import doctest
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import infer2train
from infer2train.draws.addresses import Addresses
from infer2train.observe.timeline import Timeline
from infer2train.sources.replay import Replay

pytestmark = pytest.mark.filterwarnings("ignore:the oracle gets new weights every:RuntimeWarning")

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))
RUN_ELSEWHERE = ("accelerate_", "fabric_", "ignite_")
"""In one process, by integrations/test_examples.py."""
LAUNCHED = {"ddp": ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")}
PACKAGE = Path(infer2train.__file__).parent
NEEDS_A_FOLDER = (
    "infer2train.reporting.report",
    "infer2train.reporting.summary",
    "infer2train.studies.export.export",
    "infer2train.studies.inspection.inspect",
)
"""Whose examples read a run that somebody has trained."""
MODULES = sorted(
    ".".join(("infer2train", *path.relative_to(PACKAGE).with_suffix("").parts))
    for path in PACKAGE.rglob("*.py")
    if ">>>" in path.read_text("utf-8")
)


def at_hand() -> dict[str, Any]:
    """What examples speak of without making it: a user's loop."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    base = DataLoader(TensorDataset(torch.randn(24, 4), torch.arange(24) % 3), batch_size=8, shuffle=True)
    optimizer, criterion = torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss()
    loader = infer2train.mine(base, model, method="baseline")
    x, y = next(iter(loader))
    return {
        "infer2train": infer2train,
        "torch": torch,
        "model": model,
        "base": base,
        "optimizer": optimizer,
        "criterion": criterion,
        "loader": loader,
        "outputs": model(x),
        "y": y,
        "source": Replay(base.dataset, base.collate_fn),
        "addresses": Addresses(np.arange(3), np.arange(3)),
        "timeline": Timeline(),
    }


def examples_of(name: str) -> list[doctest.DocTest]:
    module = importlib.import_module(name)
    found = doctest.DocTestFinder(exclude_empty=True).find(module, name, globs=vars(module) | at_hand())
    return [test for test in found if test.examples]


@pytest.mark.usefixtures("unchecked_types")  # under the hook, a class of a docstring is another one than the module's
@pytest.mark.parametrize("name", [name for name in MODULES if name not in NEEDS_A_FOLDER])
def test_examples_in_docstrings_are_true(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    for test in examples_of(name):
        doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert not said, "".join(said)


def test_there_are_examples_at_all() -> None:
    assert len(MODULES) > 30


@pytest.mark.parametrize(
    "script", [path for path in EXAMPLES if not path.name.startswith(RUN_ELSEWHERE)], ids=lambda path: path.name
)
def test_examples_run(script: Path, tmp_path: Path) -> None:
    source = Path(infer2train.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *LAUNCHED.get(script.stem.split("_")[0], ()), str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "nan" not in done.stdout
    assert done.stdout
