"""The layers: a module imports, even lazily inside a function, only what stands above it here."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "infer2train"
ORDER = """
config timeline trace addresses source device compilation batches bits pipeline reader collation trial replay views
data models scores losses selection methods versions quantization state oracle pool metrics keeping_up runlog
manifest checkpoint statistics reporting order acknowledgement admission remedies rehearsal plan collapse picking
audit loader miner training compare gamma demo integrations reproduce cli __main__
"""
LAYERS = ORDER.split()
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported(source: str, package: str) -> Iterator[str]:
    """Full names of all that the source of a module in `package` imports, at any depth."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (above, node.module) if part)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def violations(source: str, module: str, package: str) -> list[str]:
    """What a module (`pool.process` in `infer2train.pool`) imports although it stands on no layer above."""
    layer = module.split(".")[0]
    inside = [name.split(".")[1:] for name in imported(source, package) if name.split(".")[0] == "infer2train"]
    allowed = {*LAYERS[: LAYERS.index(layer) + 1], "__version__"}
    return [
        f"{module} imports {'.'.join(name) or 'infer2train'}" for name in inside if {*name[:1]} - allowed or not name
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_from_above(path: Path) -> None:
    parts = [part for part in path.relative_to(PACKAGE).with_suffix("").parts if part != "__init__"]
    package = ".".join(["infer2train", *path.relative_to(PACKAGE).parts[:-1]])
    assert violations(path.read_text("utf-8"), ".".join(parts), package) == []


@pytest.mark.parametrize(
    "source",
    [
        "from infer2train.miner import mine",
        "import infer2train.miner",
        "from infer2train import miner",
        "def lazily():\n    from infer2train.miner import mine",
        "from ..miner import mine",
        "from .. import miner",
        "from infer2train import mine",
        "import infer2train",
    ],
)
def test_an_import_from_below_is_seen(source: str) -> None:
    assert violations(source, "pool.inline", "infer2train.pool")
    allowed = (
        "from infer2train.pool.process import x\nfrom .process import y\nfrom infer2train import addresses, __version__"
    )
    assert violations(allowed, "pool.inline", "infer2train.pool") == []


def test_configuration_is_free_of_torch() -> None:
    names = {name.split(".")[0] for name in imported((PACKAGE / "config.py").read_text("utf-8"), "infer2train")}
    assert "torch" not in names
    assert "dataclasses" in names, "the reader of imports saw nothing"


@pytest.mark.parametrize("name", ["utils", "helpers", "common", "misc"])
def test_every_name_says_what_it_holds(name: str) -> None:
    assert [path for path in PACKAGE.rglob("*") if path.stem in (name, f"_{name}")] == []
