"""The page "The paper, part by part": every part of the paper has a row, and every row names what is there."""

import re

import pytest

from page_blocks import ROOT

PAGE = (ROOT / "docs" / "paper-map.md").read_text("utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.partition("## What the paper leaves open")[0].splitlines()
    if line.startswith("|") and not line.startswith(("|---", "| in the paper"))
]
SECTIONS = ("1", "1.1", "2", "3", "3.1", "3.2", "4", "5", "5.1", "5.2", "6")
PARTS = [
    *(f"Section {number}" for number in SECTIONS),
    "Appendix",
    "Equation 1",
    "Algorithm 1",
    *(f"Figure {number}" for number in ("1a", "1b", "2a", "2b", "3")),
]
"""Every section, numbered equation, algorithm and figure; the paper has no tables."""
EQUATIONS = 9
"""Those with a number and those without: seven and a line of two in display, and the mined share in the text."""
FOLDERS = ("src/infer2train", ".")


@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_the_paper_has_a_row(part: str) -> None:
    assert [row for row in ROWS if row[0] == part]


def test_equations_without_a_number_have_one_too() -> None:
    table = PAGE.partition("## Equations")[2].partition("\n## ")[0]
    assert len([line for line in table.splitlines() if line.startswith(("| Section", "| Equation"))]) == EQUATIONS


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_names_files_that_are_there(row: list[str]) -> None:
    named = re.findall(r"`([\w./-]+/[\w./-]+\.\w+|README\.md)`", " ".join(row))
    assert named or "the same" in row[2] or row[0] == "Appendix", "a row without a file"
    for path in named:
        assert any((ROOT / folder / path).is_file() for folder in FOLDERS), path


@pytest.mark.parametrize("row", [row for row in ROWS if len(row) > 3], ids=lambda row: row[0])
def test_a_row_has_a_command(row: list[str]) -> None:
    """That it is understood, tests/test_pages_run.py shows."""
    assert re.match(r"`(infer2train|python) ", row[3])
