"""The pages on hosts: each promise names a test, and the test is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
PAGES = sorted((ROOT / "docs" / "hosts").glob("*.md"))
HEADING = "| held by |"


def promises(page: Path) -> list[str]:
    """The rows of those tables that say by what test they are held."""
    rows, is_promise = [], False
    for line in page.read_text("utf-8").splitlines():
        is_promise = line.startswith("|") and (is_promise or line.endswith(HEADING))
        if is_promise and not line.endswith(HEADING) and set(line) - set("|- "):
            rows.append(line)
    return rows


def test_pages_promise_something() -> None:
    assert sum(bool(promises(page)) for page in PAGES) >= 6


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_row_of_a_page_names_a_test_that_is_there(page: Path) -> None:
    for row in promises(page):
        named = NAMED.findall(row)
        assert named, row
        for path, name in named:
            tree = ast.parse((ROOT / path).read_text("utf-8"))
            assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, name
