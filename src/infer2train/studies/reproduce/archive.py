"""What is kept of a finished run, a few kilobytes: its configuration and the rows of its epochs and events.

A sitting may be short and a machine another one the next time: runs that an archive holds are not trained again. What
it holds is what a table is made of, so it can be published beside the table.
"""

import json
from pathlib import Path

from infer2train.data.load import DATA
from infer2train.observe.runlog import CONFIG, METRICS, read_config, read_rows, write_config
from infer2train.training.folder import is_finished

KEPT = ("start", "epoch", "event")


def store(folder: Path, archive: Path) -> None:
    """Put what is kept of a finished run into the archive, under the folder's name.

    A run that came from there stays as it is there: with the folders of the machine that trained it.
    """
    place = archive / folder.name
    kept = "".join(json.dumps(row) + "\n" for row in read_rows(folder) if row["kind"] in KEPT)
    if (place / METRICS).is_file() and (place / METRICS).read_text(encoding="utf-8") == kept:
        return
    write_config(place, read_config(folder))
    partial = place / f".{METRICS}.partial"
    partial.write_text(kept, encoding="utf-8")
    partial.replace(place / METRICS)


def restore(archive: Path, folder: Path, data: str) -> bool:
    """Make a run folder of what the archive has of that name; whether it had it and no such folder was there.

    Args:
        archive: of finished runs.
        folder: of the run.
        data: of this sitting. A folder of images may lie elsewhere than it did, its content is taken on trust.
    """
    place = archive / folder.name
    if not (place / CONFIG).is_file() or not is_finished(place) or (folder / CONFIG).is_file():
        return False
    folder.mkdir(parents=True, exist_ok=True)
    (folder / METRICS).write_bytes((place / METRICS).read_bytes())
    config = {**read_config(place), "data_cache": None}
    if config["data"] not in DATA and data not in DATA:
        config["data"] = data
    write_config(folder, config)  # last: a folder with a configuration is a run
    return True
