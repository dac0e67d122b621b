"""The pages of the documentation: each promise names a test that is there, and the reference has every public name."""

import ast
import re
from pathlib import Path

import pytest

import infer2train

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


def test_the_reference_has_every_public_name() -> None:
    page = (ROOT / "docs" / "reference.md").read_text("utf-8")
    shown = dict(re.findall(r"^::: ([\w.]+)\n((?: .*\n|\n(?= ))*)", page + "\n", re.MULTILINE))
    for name in infer2train.__all__:
        if name.startswith("__"):
            continue
        module = getattr(infer2train, name).__module__
        members = re.search(r"members: \[(.*)\]", shown.get(module, "members: []"))
        assert module in shown, f"{name} of {module}"
        assert members is None or name in members[1].split(", "), name


def test_the_reference_names_modules_that_are_there() -> None:
    page = (ROOT / "docs" / "reference.md").read_text("utf-8")
    for module in re.findall(r"^::: ([\w.]+)", page, re.MULTILINE):
        path = ROOT / "src" / Path(*module.split("."))
        assert path.with_suffix(".py").is_file() or path.is_dir(), module


def test_every_event_of_a_run_is_in_its_table() -> None:
    page = (ROOT / "docs" / "run-folder.md").read_text("utf-8")
    named = set(re.findall(r'event="([\w-]+)"', (ROOT / "src/infer2train/training/loop.py").read_text("utf-8")))
    assert len(named) > 8, "the module was not read"
    assert {event for event in named if f"\n| `{event}` | " not in page} == set()
