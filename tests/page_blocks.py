"""The pages of the documentation, cut into blocks of code, and the commands that they show."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    *(page for folder in ("", "hosts", "how-to") for page in (ROOT / "docs" / folder).glob("*.md")),
]
"""Pages for readers of today; what stands below docs/results and docs/decisions is of its day."""
FENCE = re.compile(r"^( *)```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`((?:infer2train|python|make|torchrun) [^`…]+)`")
SHELL = ("sh", "bash")


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: str
    kind: str
    title: str
    code: str

    @property
    def name(self) -> str:
        """How tests name it: by its page and its first line that is no comment."""
        return f"{self.page}: {next(line for line in self.code.splitlines() if line.strip() and line[0] != '#')}"

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command; of a transcript, of the lines behind `$`."""
        if self.kind in SHELL:
            return commands(self.code)
        return commands("\n".join(line[2:] for line in self.code.splitlines() if line.startswith("$ ")))


def commands(text: str) -> list[list[str]]:
    """The words of each command of a shell script, without comments and settings of variables."""
    lines = [shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines()]
    found: list[list[str]] = []
    for words in lines:
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        while "&&" in words:
            end = words.index("&&")
            found.append(words[:end])
            words = words[end + 1 :]
        if words:
            found.append(words)
    return found


@cache
def blocks() -> tuple[Block, ...]:
    """All of them, page by page."""
    return tuple(block for page in sorted(PAGES) for block in _blocks_of(page))


def _blocks_of(page: Path) -> Iterator[Block]:
    name = str(page.relative_to(ROOT))
    for found in FENCE.finditer(page.read_text("utf-8")):
        indent, kind, title, code = found.groups()
        yield Block(name, kind, title or "", re.sub(f"^{indent}", "", code, flags=re.MULTILINE))


def spans() -> Iterator[tuple[str, list[str]]]:
    """Commands in the midst of a sentence, each with its page."""
    for page in sorted(PAGES):
        for found in SPAN.findall(FENCE.sub("", page.read_text("utf-8"))):
            yield str(page.relative_to(ROOT)), shlex.split(found, comments=True)
