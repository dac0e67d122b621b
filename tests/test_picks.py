"""What was picked is on record: the same numbers as the loop sees, after a resume too, and never too many."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infer2train import mine
from infer2train.draws.draw import Draw
from infer2train.observe import picks
from infer2train.observe.picks import COLUMNS, PICKS, PickLog, read_picks, rows_of
from mined_runs import draws, jittered, network, sgd

pytestmark = pytest.mark.filterwarnings("ignore:the oracle gets new weights every:RuntimeWarning")

SAMPLES: dict[str, Any] = {"method": "nm-sample", "gamma": 3, "ramp_start": 0.0, "ramp_stop": 0.0}


def seen(folder: Path | None, epochs: int = 2, stop_after: int | None = None, **settings: Any) -> list[Draw]:
    """The draws of a run that writes into the folder; broken off without a word where it is told to."""
    torch.manual_seed(0)
    model = network()
    optimizer = sgd(model)
    loader = mine(jittered(), model, optimizer, update_every=2, log_dir=folder, **{"gamma": 4, **settings})
    found: list[Draw] = []
    for _ in range(epochs):
        for draw in draws(loader, model, optimizer):
            found.append(draw)
            if len(found) == stop_after:
                loader.state_dict()
                return found
    loader.close()
    return found


def test_views_have_the_scores_that_the_loop_saw(tmp_path: Path) -> None:
    found, rows = seen(tmp_path), read_picks(tmp_path)
    trained = rows["is_trained"]
    assert {name: str(column.dtype) for name, column in rows.items()} == COLUMNS
    assert rows["id"][trained].tolist() == [i for draw in found for i in draw.addresses.ids.tolist()]
    assert rows["seed"][trained].tolist() == [s for draw in found for s in draw.addresses.seeds.tolist()]
    assert rows["version"][trained].tolist() == [draw.version for draw in found for _ in draw.addresses.ids]
    assert rows["is_picked"].tolist() == trained.tolist()
    for draw in found:
        own = (rows["draw"] == draw.number) & trained
        assert draw.scores is not None
        assert draw.chosen is not None
        table = draw.scores.view(len(draw.ids), 4).numpy()
        np.testing.assert_array_equal(rows["score"][own], table.max(1))
        np.testing.assert_allclose(rows["rival_max"][own], np.sort(table, axis=1)[:, -2])
        np.testing.assert_allclose(rows["rival_median"][own], np.median(np.sort(table, axis=1)[:, :-1], axis=1))
        whole = (rows["draw"] == draw.number) & (rows["slot"] < picks.WHOLE_SLOTS)
        assert sorted(rows["score"][whole].tolist()) == sorted(table[: picks.WHOLE_SLOTS].reshape(-1).tolist())
        assert {*rows["seed"][whole].tolist()} == {*draw.candidates.seeds[: 4 * picks.WHOLE_SLOTS].tolist()}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_not_finite_hides_no_other(bad: float) -> None:
    scores = np.float32([3.0, bad, 1.0, 2.0, bad, 5.0, bad, bad])
    _, of_views = picks._of_views(np.array([0, 5]), scores)
    assert of_views["rival_median"][:2].tolist() == pytest.approx([1.5, np.nan], nan_ok=True)
    assert of_views["rival_max"][:2].tolist() == pytest.approx([2.0, np.nan], nan_ok=True)
    _, of_samples = picks._of_samples(np.array([0, 5]), scores)
    assert (of_samples["rival_median"], of_samples["rival_max"]) == (1.5, 2.0)


def test_samples_have_every_candidate(tmp_path: Path) -> None:
    found, rows = seen(tmp_path, **SAMPLES), read_picks(tmp_path)
    for draw in found:
        own = rows["draw"] == draw.number
        assert draw.scores is not None
        assert draw.chosen is not None
        np.testing.assert_array_equal(rows["score"][own], draw.scores.numpy())
        assert np.flatnonzero(rows["is_trained"][own]).tolist() == sorted(draw.chosen.tolist())
        lost = np.delete(draw.scores.numpy(), draw.chosen)
        np.testing.assert_allclose(rows["rival_max"][own], lost.max())
        np.testing.assert_allclose(rows["rival_median"][own], np.median(lost))


def test_what_only_fills_a_batch_is_not_picked(tmp_path: Path) -> None:
    seen(tmp_path, epochs=4, method="nm-augment", ramp_rate=0.25)
    rows = read_picks(tmp_path)
    shares = [rows["is_picked"][(rows["epoch"] == e) & rows["is_trained"]].mean() for e in (1, 2, 3)]
    assert shares == [0.25, 0.5, 0.75]


@pytest.mark.parametrize("settings", [{}, SAMPLES])
def test_a_run_that_was_broken_off_and_goes_on_has_the_rows_of_one_that_was_not(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    seen(tmp_path / "whole", **settings)
    torch.manual_seed(0)
    model = network()
    optimizer = sgd(model)

    def made() -> Any:
        given = {"gamma": 4, "update_every": 2, "log_dir": tmp_path / "parts", **settings}
        return mine(jittered(), model, optimizer, **given)

    loader, steps = made(), draws
    for draw in steps(loader, model, optimizer):
        if draw.number == 2:
            break
    saved = {"loader": loader.state_dict(), "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    saved = torch.load(_written(saved, tmp_path / "state.pt"), weights_only=True)
    for draw in steps(loader, model, optimizer):  # what a kill takes back
        if draw.number == 4:
            break
    loader.journal.flush()
    loader.close()
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    again = made()
    again.load_state_dict(saved["loader"])
    for _ in range(again.epoch, 2):
        list(steps(again, model, optimizer))
    again.close()
    one, other = read_picks(tmp_path / "whole"), read_picks(tmp_path / "parts")
    for name in COLUMNS:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_a_state_taken_between_micro_batches_keeps_their_rows(tmp_path: Path) -> None:
    def made() -> Any:
        return mine(jittered(), model, optimizer, gamma=2, accumulation_steps=3, update_every=2, log_dir=tmp_path)

    torch.manual_seed(0)
    model = network()
    optimizer = sgd(model)
    loader = made()
    for number, (images, targets) in enumerate(loader):
        torch.nn.functional.cross_entropy(model(images), targets).backward()
        if number == 2:
            optimizer.step()
            optimizer.zero_grad()
        if number == 4:
            break
    saved = {"loader": loader.state_dict(), "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    saved = torch.load(_written(saved, tmp_path / "state.pt"), weights_only=True)
    loader.close()
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    again = made()
    again.load_state_dict(saved["loader"])
    for images, targets in again:
        torch.nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()
    again.close()
    assert np.unique(read_picks(tmp_path)["draw"]).tolist() == list(range(6)), "also of draws 3 and 4, done before"


def _written(state: Any, path: Path) -> Path:
    torch.save(state, path)
    return path


def test_too_many_rows_are_thinned_over_the_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picks, "PART_ROWS", 40)
    monkeypatch.setattr(picks, "MOST_ROWS", 150)
    found = seen(None, epochs=8)
    for folder, keeps_all in ((tmp_path / "all", True), (tmp_path / "some", False)):
        log = PickLog(folder, is_of_views=True, draws=0, keeps_all=keeps_all)
        for draw in found:
            log.add(draw)
        log.flush()
    all_of_them, some = read_picks(tmp_path / "all"), read_picks(tmp_path / "some")
    assert np.unique(all_of_them["draw"]).tolist() == list(range(48))
    kept = np.unique(some["draw"])
    stride = kept[1]
    assert stride in (4, 8)
    assert kept.tolist() == list(range(0, 48, stride))
    assert len(some["draw"]) <= 150
    expected = all_of_them["draw"] % stride == 0
    for name in COLUMNS:
        np.testing.assert_array_equal(some[name], all_of_them[name][expected])
    again = PickLog(tmp_path / "some", is_of_views=True, draws=40)
    again.add(found[41])
    again.flush()
    assert np.unique(read_picks(tmp_path / "some")["draw"]).tolist() == list(range(0, 40, stride)), "the stride is kept"


def test_a_damaged_part_is_moved_aside_when_a_run_goes_on(tmp_path: Path) -> None:
    seen(tmp_path)
    first, *_ = sorted((tmp_path / PICKS).iterdir())
    content = first.read_bytes()
    for number, kept in enumerate((0, len(content) // 2, None)):
        first.with_stem(f"part-{number:05d}").write_bytes(content[:kept])
    with pytest.warns(RuntimeWarning, match=r"part-0000\d\.parquet is not \(.*\), and is part-0000\d\.damaged") as told:
        PickLog(tmp_path, is_of_views=True, draws=1000)
    assert len(told) == 2
    names = sorted(path.name for path in first.parent.iterdir())
    assert names == ["part-00000.damaged", "part-00001.damaged", "part-00002.parquet"]
    assert len(read_picks(tmp_path)["id"]) > 0


def test_one_view_has_no_rival() -> None:
    (draw,) = seen(None, epochs=1, stop_after=1, gamma=1)
    rows = rows_of(draw, is_of_views=True)
    assert np.isnan(rows["rival_max"]).all()
    assert rows["is_trained"].all()


@pytest.mark.parametrize("settings", [{"audit": "off"}, {"method": "baseline"}])
def test_nothing_is_kept_where_nothing_was_asked_for_or_scored(tmp_path: Path, settings: dict[str, Any]) -> None:
    seen(tmp_path, epochs=1, **settings)
    assert not (tmp_path / PICKS).exists()
    with pytest.raises(ValueError, match="train with a method that picks by scores"):
        read_picks(tmp_path)
