"""The rooms and what is in them: a module imports, even lazily inside a function, only what stands above it here."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "infer2train"
ROOMS = {
    "settings": "",
    "batches": "",
    "machine": "cores place memory device compilation",
    "draws": "addresses randomness ramp versions mining draw selection number_scores scores losses methods collapse",
    "sources": "albumentations source bits pipeline views collation reader trial replay seeded held_out window "
    "streaming",
    "models": "initialisation pixels convnet cifar_resnet imagenet_resnet build",
    "data": "decoding fingerprints images digest subsets cache once labels digits cifar10 hub class_folders parquet "
    "load",
    "observe": "timeline trace keeping_up metrics picks runlog warned",
    "checkpoint": "state manifest checkpoint",
    "oracle": "telemetry quantization weight_bits rounds snapshot samples engine reduced_engine scorer "
    "torch_engine fidelity live refresher trial verification lowered_engine simulated_engine "
    "openvino_engine onnxruntime_engine engines measurement",
    "pool": "task packing validated pool pools inline stream fingerprint messages transport worker seat jobs "
    "supervisor segment channel pulse process_desk worker_process process ray_desk ray_link ray_cluster ray_pool",
    "reporting": "svg gallery audit statistics evidence runs summary curves lanes tables gathering sections plots "
    "bars figures report",
    "loader": "ranks order sharding acknowledgement surroundings likeness accumulation admission shares passes "
    "remedies rehearsal course parts publisher planning validation picking health measured journal progress handing "
    "saving loader feeding assembly mine making made generate",
    "integrations": "lightning transformers",
    "training": "config regimes schedule interrupt progress evaluation setup step decoding_rate folder irreducible "
    "watch loop",
    "studies": "advise compare export inspection gamma plan reproduce demo",
    "cli": "arguments arms verbs main",
    "__main__": "",
}
"""In the way of the data; behind each room its modules in theirs."""
MOST_ROOMS, MOST_ARROWS = 20, 100
ROOM_PATHS = [path for path in PACKAGE.iterdir() if path.name != "__pycache__"]
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
    """What a module (`pool.process` in `infer2train.pool`) imports although it stands on no place above."""
    found = []
    for name in imported(source, package):
        top, *inside = name.split(".")
        if top == "infer2train" and inside != ["__version__"] and not _is_above(inside, module.split(".")):
            found.append(f"{module} imports {'.'.join(inside) or 'infer2train'}")
    return found


def _is_above(other: list[str], module: list[str]) -> bool:
    rooms = list(ROOMS)
    if not other or other[0] not in rooms:
        return False
    if other[0] != module[0]:
        return rooms.index(other[0]) < rooms.index(module[0])
    order = ROOMS[module[0]].split()
    return other[1:2] == module[1:2] or order.index(other[1]) < order.index(module[1])


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_from_above(path: Path) -> None:
    parts = [part for part in path.relative_to(PACKAGE).with_suffix("").parts if part != "__init__"]
    package = ".".join(["infer2train", *path.relative_to(PACKAGE).parts[:-1]])
    assert violations(path.read_text("utf-8"), ".".join(parts), package) == []


@pytest.mark.parametrize(
    "source",
    [
        "from infer2train.loader.mine import mine",
        "import infer2train.loader.mine",
        "from infer2train import miner",
        "def lazily():\n    from infer2train.loader.mine import mine",
        "from ..miner import mine",
        "from .. import miner",
        "from infer2train import mine",
        "import infer2train",
    ],
)
def test_an_import_from_below_is_seen(source: str) -> None:
    assert violations(source, "pool.inline", "infer2train.pool")
    allowed = "from infer2train.pool.pool import x\nfrom .task import y\nfrom infer2train import draws, __version__"
    assert violations(allowed, "pool.inline", "infer2train.pool") == []


@pytest.mark.parametrize("file", ["settings.py", "draws/mining.py", "draws/ramp.py", "training/config.py"])
def test_configuration_is_free_of_torch(file: str) -> None:
    names = {name.split(".")[0] for name in imported((PACKAGE / file).read_text("utf-8"), "infer2train")}
    assert "torch" not in names
    assert "dataclasses" in names, "the reader of imports saw nothing"


def test_every_room_and_every_module_has_its_place() -> None:
    assert {path.name.removesuffix(".py") for path in ROOM_PATHS} <= {*ROOMS, "__init__", "py.typed"}
    for room, order in ROOMS.items():
        there = {path.stem for path in (PACKAGE / room).glob("*") if path.is_dir() or path.suffix == ".py"}
        assert there - {"__init__", "__pycache__"} == set(order.split()), room


def test_the_house_stays_small() -> None:
    arrows = {
        (path.relative_to(PACKAGE).parts[0].removesuffix(".py"), name.split(".")[1])
        for path in MODULES
        for name in imported(path.read_text("utf-8"), "infer2train")
        if name.startswith("infer2train.") and name.split(".")[1] in ROOMS
    }
    assert len(ROOM_PATHS) <= MOST_ROOMS
    assert len({(a, b) for a, b in arrows if a != b}) <= MOST_ARROWS


@pytest.mark.parametrize("name", ["utils", "helpers", "common", "misc"])
def test_every_name_says_what_it_holds(name: str) -> None:
    assert [path for path in PACKAGE.rglob("*") if path.stem in (name, f"_{name}")] == []
