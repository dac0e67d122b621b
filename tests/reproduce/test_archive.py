"""What an archive of finished runs gives back, on another machine."""

import json
import shutil
from pathlib import Path

import pytest

from conformance.engine import needs
from infer2train.observe.runlog import METRICS, read_config, write_config
from infer2train.settings import as_plain
from infer2train.studies.reproduce import run
from infer2train.studies.reproduce.archive import restore, store
from infer2train.studies.reproduce.costs import Cost
from infer2train.studies.reproduce.experiments import EXPERIMENTS
from infer2train.studies.reproduce.run import reproduce
from infer2train.studies.reproduce.sitting import Sitting
from infer2train.training.config import RunConfig, from_plain
from infer2train.training.folder import enter_folder

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


def finished(folder: Path, data: str) -> RunConfig:
    """The folder of a run that is over."""
    config = RunConfig(data=data, data_cache="/a/cache", threads=1, oracle_chunk=32)
    write_config(folder, as_plain(config))
    (folder / METRICS).write_text('{"kind": "event", "event": "finished", "step": 1}\n', encoding="utf-8")
    return config


@pytest.mark.parametrize(
    ("then", "now", "stored"),
    [
        ("/there/cifar10", "/here/images", "/here/images"),
        ("cifar10", "/here/images", "cifar10"),
        ("/there/images", "digits", "/there/images"),
    ],
)
def test_images_may_lie_elsewhere_but_a_data_set_by_name_is_that(
    then: str, now: str, stored: str, tmp_path: Path
) -> None:
    finished(tmp_path / "run-seed0", then)
    store(tmp_path / "run-seed0", tmp_path / "archive")
    assert restore(tmp_path / "archive", tmp_path / "runs" / "run-seed0", now)
    assert read_config(tmp_path / "runs" / "run-seed0")["data"] == stored


def test_a_restored_run_is_the_run_of_a_sitting_with_other_folders(tmp_path: Path) -> None:
    config = finished(tmp_path / "run-seed0", "/there/cifar10")
    store(tmp_path / "run-seed0", tmp_path / "archive")
    restore(tmp_path / "archive", tmp_path / "runs" / "run-seed0", "/here/images")
    changes = {"data": "/here/images", "data_cache": "/another/cache"}
    here = RunConfig(**{**vars(config), **changes})
    assert enter_folder(here, tmp_path / "runs" / "run-seed0", resume=True).data_cache == "/another/cache"
    unsaid = RunConfig(**{**vars(here), "data_cache": None})
    cache = enter_folder(unsaid, tmp_path / "runs" / "run-seed0", resume=True).data_cache
    assert cache not in (None, "/a/cache"), "the other machine's, which this one may not have"
    with pytest.raises(ValueError, match=r"started with: got epochs: .* in .*run-seed0; .* --runs-dir"):
        enter_folder(RunConfig(**{**vars(here), "epochs": 7}), tmp_path / "runs" / "run-seed0", resume=True)


def test_what_came_from_the_archive_stays_as_it_is_there(tmp_path: Path) -> None:
    archive, restored = tmp_path / "archive", tmp_path / "runs" / "run-seed0"
    finished(tmp_path / "run-seed0", "/there/cifar10")
    store(tmp_path / "run-seed0", archive)
    restore(archive, restored, "/here/images")
    store(restored, archive)
    assert read_config(archive / "run-seed0")["data"] == "/there/cifar10"
    with (restored / METRICS).open("a", encoding="utf-8") as rows:  # looked at again: something new to keep
        rows.write('{"kind": "event", "event": "diagnosis", "step": 1}\n')
    store(restored, archive)
    assert (archive / "run-seed0" / METRICS).read_bytes() == (restored / METRICS).read_bytes()


def test_what_is_published_can_still_be_restored() -> None:
    """`reproduce --archive docs/results/…` reads the configuration of each run, whatever release trained it."""
    places = list(RESULTS.glob("runs-*/*/config.yaml"))
    assert len(places) > 50
    for place in places:
        assert from_plain(read_config(place.parent)).seed >= 0


def test_the_published_table_is_made_again_from_what_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is trained, for which there are no images here, and nothing is timed."""
    monkeypatch.setattr(run, "cost", lambda *_: Cost(devices=1, epochs=1, epoch_seconds=1.0))
    needs("openvino")
    published, archive = RESULTS / "fig1-mini" / "results.json", tmp_path / "archive"
    experiment = EXPERIMENTS["fig1"]
    for arm in experiment.arms:
        for place in (RESULTS / "runs-mini").glob(f"{arm.name}-seed?"):
            shutil.copytree(place, archive / place.name)
    common = {"data": str(tmp_path / "images"), "pool": "process", "threads": 1}
    found = reproduce(
        Sitting(experiment=experiment, folder=tmp_path / "runs", archive=archive, common=common, quiet=True)
    )
    again = json.loads(json.dumps([line.as_plain() for line in found]))
    for made, kept in zip(again, json.loads(published.read_text(encoding="utf-8")), strict=True):
        names = kept.keys() - {"num_devices", "wall", "device_seconds"}
        assert {name: made[name] for name in names} == {name: kept[name] for name in names}
    assert "Not finished" not in (tmp_path / "runs" / "fig1" / "page.md").read_text(encoding="utf-8")
