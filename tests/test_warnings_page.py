"""The page "Why did my run warn?": every warning in the source is explained there.

The source is read, not run. What is passed to a function that warns is followed to its text: a string, what its name
was given in the same function, or what the callers of that function in its file pass. Where that leads nowhere,
`PASSED_ON` says whose words they are.
"""

import ast
import re
from collections.abc import Iterator

import pytest

from infer2train.loader.health import COUNTED
from page_blocks import ROOT

SOURCE = ROOT / "src" / "infer2train"
PAGE = ROOT / "docs" / "how-to" / "warnings.md"
WARN = ("warn", "_warn")
PASSED_ON = {
    "oracle/engines.py: message.message": "what an engine said while it was built",
    "pool/supervisor.py: told.message": "what was said in an oracle's process",
    "loader/health.py: message": "those of COUNTED, and of observe/keeping_up.py",
    "loader/feeding.py: said": "what Feed.warning returns",
    "training/loop.py: slow": "what decoding_warning returns",
}
RETURNED = {
    "observe/keeping_up.py": "warning",
    "loader/feeding.py": "warning",
    "training/decoding_rate.py": "decoding_warning",
}
"""Functions that return warnings."""
FEWEST_WORDS, WORDS = 3, 6

Text = list[str]
"""What is fixed in a string, between its values."""


def fixed(node: ast.AST) -> Text:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return [part.value for part in node.values if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return []


def functions_of(tree: ast.AST) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def calls(function: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            yield node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", ""), node


def parameters(function: ast.FunctionDef) -> set[str]:
    return {argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)}


def texts_of(node: ast.AST, function: ast.FunctionDef) -> list[Text]:
    """What a message can be, as far as its function knows."""
    if isinstance(node, ast.Name):
        given = [n for n in ast.walk(function) if isinstance(n, ast.Assign)]
        values = [n.value for n in given if any(isinstance(t, ast.Name) and t.id == node.id for t in n.targets)]
        return [text for value in values if (text := fixed(value))]
    return [text] if (text := fixed(node)) else []


def warned(tree: ast.AST) -> Iterator[tuple[str, list[Text]]]:
    """Each message that is warned of, as it is written, with the texts that it can be."""
    functions, tellers = functions_of(tree), set()
    for name, function in functions.items():
        for called, call in calls(function):
            is_own = called in functions and isinstance(call.func, ast.Attribute)
            if called not in WARN or is_own or not call.args:
                continue
            message = call.args[0]
            told = {node.id for node in ast.walk(message) if isinstance(node, ast.Name)} & parameters(function)
            if told:
                tellers.add(name)
            if not (isinstance(message, ast.Name) and told):
                yield ast.unparse(message), texts_of(message, function)
    for function in functions.values():
        for called, call in calls(function):
            if called in tellers:
                for message in call.args:
                    if isinstance(message, ast.JoinedStr | ast.Constant | ast.Name):
                        yield "", texts_of(message, function)


def texts() -> Iterator[tuple[str, Text]]:
    """Every warning: where, and what is fixed of it."""
    yield from (("loader/health.py", [message]) for _, message in COUNTED.values())
    for path in sorted(SOURCE.rglob("*.py")):
        where, tree = str(path.relative_to(SOURCE)), ast.parse(path.read_text("utf-8"))
        for message, found in warned(tree):
            assert found or not message or f"{where}: {message}" in PASSED_ON, (
                f"{where} warns of {message}: write the text where it is warned of, or say in PASSED_ON whose it is"
            )
            yield from ((where, text) for text in found)
        if where in RETURNED:
            for node in ast.walk(functions_of(tree)[RETURNED[where]]):
                if isinstance(node, ast.Return) and node.value is not None and (text := fixed(node.value)):
                    yield where, text


def plain(text: str) -> str:
    """Without what Markdown adds, in single spaces."""
    return " ".join(re.sub(r"^> ?", "", text, flags=re.MULTILINE).replace("`", "").split())


def first_words(text: Text) -> str:
    """By which a warning is known: of the first piece that has some."""
    said = [plain(piece).strip(" :;,.(") for piece in text]
    chosen = next((piece for piece in said if len(piece.split()) > FEWEST_WORDS), max(said, key=len))
    return " ".join(chosen.split()[:WORDS])


KNOWN = sorted({(where, first_words(text)) for where, text in texts() if " " in first_words(text)})


@pytest.mark.parametrize(("where", "words"), KNOWN)
def test_a_warning_is_explained(where: str, words: str) -> None:
    assert words in plain(PAGE.read_text("utf-8")), f"{where} warns: {words} …"


def test_warnings_are_found_however_they_are_given() -> None:
    assert len(KNOWN) >= 30
    told = """
def at_once(n):
    warnings.warn(f"there are {n} of it", RuntimeWarning)
def by_name(n):
    message = "one that has a name"
    warnings.warn(message)
def passed_on(self, what, message):
    warnings.warn(f"as was said: {message}")
def who_says(self):
    self.passed_on("this", "the words of a caller")
"""
    found = [text for _, several in warned(ast.parse(told)) for text in several]
    assert [first_words(text) for text in found] == [
        "there are",
        "one that has a name",
        "as was said",
        "this",
        "the words of a caller",
    ]


def strings(node: ast.AST, constants: dict[str, ast.expr]) -> Iterator[Text]:
    """Whole strings in an expression; names of constants are looked up."""
    found = constants.get(node.id, node) if isinstance(node, ast.Name) else node
    if isinstance(found, ast.JoinedStr | ast.Constant):
        yield fixed(found)
        return
    for child in ast.iter_child_nodes(found):
        yield from strings(child, constants)


def noted(tree: ast.Module) -> Iterator[Text]:
    """What may be in the notes of a loader: what a name `notes` is given, and what functions return as notes."""
    constants = {
        t.id: n.value for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)
    }
    for node in ast.walk(tree):
        given: list[ast.AST] = []
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(ast.unparse(target).rpartition(".")[2] in ("notes", "told") for target in targets):
                given.append(node.value)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "notes.append":
            given += node.args
        elif isinstance(node, ast.FunctionDef) and (
            node.name == "note" or re.search(r"Notes|Pool, tuple\[str", ast.unparse(node.returns or node))
        ):
            given += [n.value for n in ast.walk(node) if isinstance(n, ast.Return) and n.value is not None]
        for value in given:
            for text in strings(value, constants):
                if len(" ".join(text).split()) > FEWEST_WORDS:
                    yield text


NOTED = sorted(
    {
        (str(path.relative_to(SOURCE)), first_words(text))
        for room in ("loader", "oracle", "pool")
        for path in (SOURCE / room).rglob("*.py")
        for text in noted(ast.parse(path.read_text("utf-8")))
    }
)


@pytest.mark.parametrize(("where", "words"), NOTED)
def test_a_note_is_explained(where: str, words: str) -> None:
    assert words in plain(PAGE.read_text("utf-8")), f"{where} notes: {words} …"


def test_notes_are_found() -> None:
    assert len(NOTED) >= 10
