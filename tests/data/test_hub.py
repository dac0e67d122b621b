"""Data sets by their hub name: fetched from a hub on the loopback interface, by the library's real client."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from infer2train.data.hub import NAME, shards
from infer2train.data.load import load_data

Write = Callable[..., Path]
Images = Callable[..., list[bytes | None]]
Load = Callable[..., list[dict[str, Any]]]
REVISIONS = {"main": "a" * 40, "refs/convert/parquet": "b" * 40}
LOAD = """
import json, sys, warnings
from pathlib import Path
from infer2train.data.load import load_data, load_encoded

def load(name, **options):
    data, encoded = load_data(name, **options), load_encoded(name, **options)
    reds = [split.images[:, 0, 0, 0].tolist() for split in (data.train, data.test)]
    assert [int(encoded.train.pixels(row)[0, 0, 0]) for row in range(len(encoded.train))] == reds[0]
    return {"reds": reds, "targets": data.train.targets.tolist(), "names": data.class_names, "name": data.name,
            "fingerprint": data.fingerprint, "imported": "datasets" in sys.modules}

for name in sys.argv[2:]:
    try:
        found = load(name, cache_dir=Path(sys.argv[1]), progress=False)
    except ValueError as error:
        found = {"error": str(error)}
    print(json.dumps(found))
"""


class Hub:
    """Serves the repositories below a folder, OWNER/NAME each, by the routes of the hub that its client asks for."""

    def __init__(self, root: Path) -> None:
        self.requests: list[str] = []
        requests = self.requests

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                requests.append(self.path)

            def do_GET(self) -> None:
                path = self.path.partition("?")[0].removeprefix("/").removeprefix("api/")
                api, *parts = (unquote(part) for part in path.split("/"))
                if api != "datasets" or len(parts) < 2 or not root.joinpath(*parts[:2]).is_dir():
                    return self.answer(404, X_Error_Code="RepoNotFound")
                name, asked = "/".join(parts[:2]), (*parts[3:4], "main")[0]
                sha = REVISIONS.get(asked, asked)
                repository = root / (name if sha == REVISIONS["main"] else f"{name}-as-parquet")
                if parts[2:3] == ["resolve"]:
                    return self.file(repository.joinpath(*parts[4:]), sha)
                if parts[2:3] == ["tree"]:
                    return self.listing(repository, repository.joinpath(*parts[4:]))
                return self.answer(200, json.dumps({"id": name, "sha": sha}).encode())

            do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

            def file(self, path: Path, sha: str) -> None:
                if not path.is_file():
                    return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
                content = path.read_bytes()
                etag = f'"{hashlib.sha1(content, usedforsecurity=False).hexdigest()}"'
                return self.answer(200, content, ETag=etag, X_Repo_Commit=sha)

            def listing(self, repository: Path, folder: Path) -> None:
                if not folder.is_dir():
                    return self.answer(404, X_Error_Code="EntryNotFound")
                entries = [
                    {"type": "directory", "path": str(path.relative_to(repository)), "oid": "0"}
                    if path.is_dir()
                    else {"type": "file", "path": str(path.relative_to(repository)), "oid": "0", "size": 1}
                    for path in sorted(folder.rglob("*") if "recursive=true" in self.path.lower() else folder.iterdir())
                ]
                return self.answer(200, json.dumps(entries).encode())

            def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
                self.send_response(status)
                for key, value in {"Content_Length": str(len(content)), **headers}.items():
                    self.send_header(key.replace("_", "-"), value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
            self._http.server_close()


@pytest.fixture
def hub(tmp_path: Path, write_shard: Write, plain_images: Images) -> Iterator[Hub]:
    """A repository of two configurations in its own folders, one in the hub's usual layout, and one of no images."""
    two = tmp_path / "hub" / "pets" / "cats"
    for place, start in (("small", 10), ("large", 110)):
        write_shard(two / place / "a-0.parquet", plain_images([start, start + 10]), [0, 1])
        write_shard(two / place / "a-1.parquet", plain_images([start + 20]), [1])
        write_shard(two / place / "b.parquet", plain_images([start + 30]), [0])
    configurations = "".join(
        f"- config_name: {place}\n  data_files:\n  - split: train\n    path: {place}/a-*\n"
        f"  - split: validation\n    path: {place}/b.parquet\n"
        for place in ("small", "large")
    )
    (two / "README.md").write_text(f"---\nconfigs:\n{configurations}---\n")
    usual = tmp_path / "hub" / "pets" / "dogs" / "data"
    write_shard(usual / "train-00000-of-00001.parquet", plain_images([50, 60]), [0, 1])
    write_shard(usual / "test-00000-of-00001.parquet", plain_images([70]), [0])
    pictures = tmp_path / "hub" / "pets" / "pictures"
    for split, levels in (("train", [80, 90]), ("test", [100])):
        for image in plain_images(levels):
            path = pictures / split / "cat" / f"{len(list(pictures.rglob('*')))}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image or b"")
        converted = pictures.with_name("pictures-as-parquet") / "default" / split
        write_shard(converted / "0000.parquet", plain_images(levels), [0] * len(levels))
    script = tmp_path / "hub" / "pets" / "code"
    script.mkdir()
    (script / "code.py").write_text("raise SystemExit('run')")
    hub = Hub(tmp_path / "hub")
    yield hub
    hub.close()


@pytest.fixture
def load(hub: Hub, tmp_path: Path, cache_dir: Path) -> Load:
    """What a process of its own loads, one result a name: the client reads its environment once."""

    def load(*names: str, **environment: str) -> list[dict[str, Any]]:
        here = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        command = [sys.executable, "-c", LOAD, str(cache_dir), *names]
        done = subprocess.run(command, capture_output=True, text=True, env={**kept, **here, **environment}, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    return load


def test_a_data_set_of_the_hub_is_fetched_once_and_then_read_without_network(
    hub: Hub, load: Load, cache_dir: Path, tmp_path: Path
) -> None:
    (first,) = load("pets/dogs")
    assert (first["reds"], first["targets"], first["names"]) == ([[50, 60], [70]], [0, 1], ["cat", "dog"])
    assert first["name"] == "pets/dogs"
    assert list(tmp_path.rglob("*.arrow")) == [], "no copy beside the files themselves"
    hub.close()
    assert load("pets/dogs") == [{**first, "imported": False}]
    for path in cache_dir.glob("*/manifest.json"):
        path.unlink()
    assert load("pets/dogs", HF_HUB_OFFLINE="1") == [{**first, "imported": False}], "from the files that were fetched"


def test_configurations_other_formats_and_what_cannot_be_had(load: Load) -> None:
    large, converted, *refused = load("pets/cats:large", "pets/pictures", "pets/cats", "pets/birds", "pets/code")
    assert (large["reds"], large["targets"]) == ([[110, 120, 130], [140]], [0, 1, 1])
    assert converted["reds"] == [[80, 90], [100]], "as the hub converts it to Parquet"
    for found, name in zip(refused, ("pets/cats", "pets/birds", "pets/code"), strict=True):
        assert f"got {name!r}, which is no folder here" in found["error"]
    assert "small" in refused[0]["error"]
    assert "OWNER/NAME:CONFIGURATION" in refused[0]["error"]


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_offline_the_error_names_the_data_set_and_the_way_out(load: Load, variable: str) -> None:
    (found,) = load("pets/dogs", **{variable: "1"})
    assert "got 'pets/dogs', which is no folder here" in found["error"]
    assert "connect for the first start" in found["error"]
    assert "pass --data FOLDER with its Parquet shards" in found["error"]


@pytest.mark.parametrize(
    "name", ["uoft-cs/cifar10", "frgfm/imagenette:160px", "a/b:c@refs/convert/parquet", "a/b@1f2e"]
)
def test_names_of_the_hub(name: str) -> None:
    match = NAME.fullmatch(name)
    assert match is not None
    assert match["path"] == name.split("@")[0].split(":")[0]


@pytest.mark.parametrize("damaged", ["{}", '{"train": [1], "test": ["x"]}', '{"train": [], "test": []}', "[", "7"])
def test_an_index_that_says_nothing_is_made_again(
    damaged: str, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = {"train": [cache_dir / "a"], "test": [cache_dir / "b"]}
    index = cache_dir / "hub" / "me%2Fpets.json"
    index.parent.mkdir(parents=True)
    index.write_text(damaged)
    monkeypatch.setattr("infer2train.data.hub._fetched", lambda *_: fetched)
    assert shards("me/pets", cache_dir, progress=False) == fetched
    assert json.loads(index.read_text()) == {split: [str(path)] for split, (path,) in fetched.items()}


@pytest.mark.parametrize("name", ["cifar10", "/a/b", "a/b/c", "a/b:", "https://huggingface.co/a/b", "../a"])
def test_what_is_no_name_of_the_hub(name: str, cache_dir: Path) -> None:
    assert NAME.fullmatch(name) is None or name[0] == "."


def test_without_the_library_the_error_says_which_extra(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"got 'pets/dogs', which is no folder here; pip install 'infer2train\[hub\]'"):
        load_data("pets/dogs", cache_dir=cache_dir)
