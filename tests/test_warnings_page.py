"""The page "Why did my run warn?": every warning in the source is explained there.

The source is read, not run. Whatever is passed to a function that warns is followed to its text: a literal, what its
name was given in the same function, or what a function returns. Where that is no use, `PASSED_ON` says why.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_blocks import ROOT

SOURCE = ROOT / "src" / "infer2train"
PAGE = ROOT / "docs" / "how-to" / "warnings.md"
WARN = ("warn", "_warn", "_tell")
"""Functions that tell the user; a message is the last of their arguments that is no class and no keyword."""
PASSED_ON = {
    "oracle/engines.py": "says again what an engine said while it was built",
    "training/progress.py": "prints what the loop says",
    "loader/journal.py": "gives what health.py says",
    "loader/health.py": "its own messages are in COUNTED and keeping_up.py, which are read below",
    "pool/supervisor.py: told.message": "says again what was said in an oracle's process",
    "cli/verbs.py": "progress",
}
"""Files, or places in them, that pass on the words of another."""
ALSO = {
    "observe/keeping_up.py": "warning",
    "loader/feeding.py": "warning",
    "training/decoding_rate.py": "decoding_warning",
}
"""Functions whose return values are warnings."""
FEWEST_WORDS, WORDS = 3, 6


def plain(text: str) -> str:
    """Without what Markdown adds, in single spaces."""
    return " ".join(re.sub(r"^> ?", "", text, flags=re.MULTILINE).replace("`", "").split())


def pieces(node: ast.AST) -> list[str]:
    """What is fixed in a string: the parts of an f-string between its values."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return [part.value for part in node.values if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return []


def given_to(name: str, function: ast.AST) -> Iterator[list[str]]:
    """Every text that a name is given in a function."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            if found := pieces(node.value):
                yield found


def warned(path: Path) -> Iterator[tuple[str, list[list[str]]]]:
    """(the message as it is written, the texts that it can be) of each call that warns."""
    functions = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)]
    for function in functions:
        for call in ast.walk(function):
            if not isinstance(call, ast.Call):
                continue
            called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if called not in WARN or not call.args:
                continue
            messages = [arg for arg in call.args if not (isinstance(arg, ast.Name) and arg.id.endswith("Warning"))]
            message = messages[-1]
            literal = pieces(message)
            texts = [literal] if literal else []
            if isinstance(message, ast.Name):
                texts = list(given_to(message.id, function))
            yield ast.unparse(message), texts


def returned(path: Path, name: str) -> Iterator[list[str]]:
    """The texts that functions of this name return."""
    for function in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(function, ast.FunctionDef) and function.name == name:
            for node in ast.walk(function):
                if isinstance(node, ast.Return) and node.value is not None and (found := pieces(node.value)):
                    yield found


def texts() -> Iterator[tuple[str, list[str]]]:
    """Every warning: where, and what is fixed of it."""
    for path in sorted(SOURCE.rglob("*.py")):
        where = str(path.relative_to(SOURCE))
        for message, found in warned(path):
            assert found or where in PASSED_ON or f"{where}: {message}" in PASSED_ON or where in ALSO, (
                f"{where} warns of {message}: write its text where it is given, or say in PASSED_ON whose it is"
            )
            yield from ((where, text) for text in found)
        if where in ALSO:
            yield from ((where, text) for text in returned(path, ALSO[where]))


def first_words(text: list[str]) -> str:
    """By which a warning is known: of its first piece with a few words."""
    said = [plain(piece) for piece in text]
    chosen = next((piece for piece in said if len(piece.split()) > FEWEST_WORDS), max(said, key=len))
    return " ".join(chosen.strip(" :;,.(").split()[:WORDS])


def test_print() -> None:
    for w in sorted({(where, first_words(text)) for where, text in texts()}):
        print(w)


@pytest.mark.parametrize(("where", "words"), sorted({(where, first_words(text)) for where, text in texts()}))
def test_a_warning_is_explained(where: str, words: str) -> None:
    assert words in plain(PAGE.read_text("utf-8")), f"{where} warns: {words} …"
