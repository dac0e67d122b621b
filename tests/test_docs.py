"""The pages of the documentation: each promise names a test, and the test is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
PAGE = (ROOT / "docs" / "your-loop.md").read_text("utf-8")


@pytest.mark.parametrize(("path", "name"), sorted(set(NAMED.findall(PAGE))))
def test_a_test_that_a_promise_names_is_there(path: str, name: str) -> None:
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_promise_names_a_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and not set(line) <= set("|- ")]
    headed = [row for row in rows if not row.startswith(("| you may", "| is refused", "| promise |", "| a batch, or"))]
    lines_to_write = [row for row in headed if re.search(r"`(split|score)=(lambda|\")", row)]
    without = [row for row in headed if not NAMED.search(row) and row not in lines_to_write]
    assert without == []
    assert len(headed) > 30, "the page was not read"
