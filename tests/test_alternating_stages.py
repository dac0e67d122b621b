"""The page "Alternating stages": each block of code runs, in order; each promise names a test that is there."""

import ast
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "alternating-stages.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


@pytest.mark.usefixtures("one_thread", "unchecked_types")
@pytest.mark.filterwarnings("ignore:the oracle gets new weights every")
def test_every_block_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    state = torch.get_rng_state()
    said = []
    for block in BLOCKS:
        exec(compile(block, "docs/alternating-stages.md", "exec"), names)
        said.append(capsys.readouterr().out)
    torch.set_rng_state(state)
    assert len(said) == 3
    assert said[:2] == ["10 9 5.75\n", "torch.Size([32, 12]) torch.Size([32, 8])\n"]


def test_every_promise_names_a_test_that_is_there() -> None:
    rows = [
        line for line in PAGE.splitlines() if line.startswith("|") and "held by" not in line and set(line) - {*"|- "}
    ]
    promises = [row for row in rows if "::" in row]
    assert len(promises) >= len(rows) - 3, "the table of versions has no tests"
    for path, name in NAMED.findall("\n".join(promises)):
        tree = ast.parse((ROOT / path).read_text("utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
