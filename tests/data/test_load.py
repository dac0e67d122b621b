import subprocess
import sys
from pathlib import Path

import pytest

from infer2train.data.load import DATA, default_cache_dir, load_data
from infer2train.settings import resolve


def test_every_name_leads_to_a_loader() -> None:
    assert {"digits", "cifar10"} <= DATA.keys()
    assert all(callable(resolve(spec)) for spec in DATA.values())


def test_a_name_is_loaded(cache_dir: Path) -> None:
    data = load_data("digits", cache_dir=cache_dir, progress=False)
    assert (data.name, len(data.train)) == ("digits", 200)


def test_a_folder_is_loaded(folder: Path, cache_dir: Path) -> None:
    data = load_data(str(folder), cache_dir=cache_dir, image_size=3, progress=False)
    assert (data.name, data.train.images.shape) == ("pets", (5, 3, 3, 3))


def test_a_name_wins_over_a_folder_unless_it_is_a_path(
    folder: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.rename(folder.with_name("digits"))
    monkeypatch.chdir(folder.parent)
    assert len(load_data("digits", cache_dir=cache_dir, progress=False).train) == 200
    assert len(load_data("./digits", cache_dir=cache_dir, progress=False).train) == 5


def test_an_unknown_name_lists_names_and_the_nearest(cache_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"cifar10, digits.*'cifar10'.*folder of Parquet shards"):
        load_data("cifar-10", cache_dir=cache_dir)


def test_a_file_is_not_a_folder(folder: Path, cache_dir: Path) -> None:
    with pytest.raises(ValueError, match="name its folder"):
        load_data(str(folder / "test-00000-of-00001.parquet"), cache_dir=cache_dir)


def test_a_setting_that_would_have_no_effect_is_refused(cache_dir: Path) -> None:
    with pytest.raises(ValueError, match="leave --image-size out"):
        load_data("digits", cache_dir=cache_dir, image_size=8)
    with pytest.raises(ValueError, match="got label for 'digits', which has none; leave --label-column out"):
        load_data("digits", cache_dir=cache_dir, label_column="label")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INFER2TRAIN_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("INFER2TRAIN_CACHE")
    pooch = pytest.importorskip("pooch", reason="what the folder is compared with")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert default_cache_dir() == tmp_path / "caches" / "infer2train" == Path(pooch.os_cache("infer2train"))


def test_there_is_a_cache_where_pooch_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("INFER2TRAIN_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pooch", None)
    assert default_cache_dir() == tmp_path / ".cache" / "infer2train"


def test_importing_it_is_cheap() -> None:
    heavy = ("torch", "sklearn", "pyarrow", "pooch", "PIL", "rich", "datasets")
    code = f"import sys, infer2train.data.load; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
