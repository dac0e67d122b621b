import base64
import io

import numpy as np
import pytest
from jaxtyping import TypeCheckError
from PIL import Image

from infer2train.reporting import gallery
from infer2train.reporting.gallery import TENSORS, GalleryRow, data_uri, load_gallery, png, save_gallery, spread


def row(size=4, channels=3, views=3, chosen=1, scores=(0.5, 2.0, 1.0), number=0):
    pixels = np.random.default_rng(number).integers(0, 256, (views, size, size, channels), dtype=np.uint8)
    return GalleryRow(2, 40, 7, "ship", pixels, np.array(scores, np.float32), chosen)


def test_what_is_saved_is_loaded(tmp_path):
    rows = [row(), row(size=8, channels=1, scores=(np.nan, np.inf, -1.0), number=1)]
    save_gallery(tmp_path, rows)
    for saved, loaded in zip(rows, load_gallery(tmp_path), strict=True):
        assert (loaded.epoch, loaded.draw, loaded.sample_id, loaded.label, loaded.chosen) == (2, 40, 7, "ship", 1)
        np.testing.assert_array_equal(saved.pixels, loaded.pixels)
        np.testing.assert_array_equal(saved.scores, loaded.scores)
    assert {path.name for path in tmp_path.iterdir()} == {"gallery.safetensors", "gallery.json"}


def test_a_run_without_a_gallery_has_no_rows(tmp_path):
    assert load_gallery(tmp_path) == []
    save_gallery(tmp_path, [])
    assert load_gallery(tmp_path) == []


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    save_gallery(tmp_path, [row(), row()])
    index = (tmp_path / "gallery.json").read_bytes()
    save_gallery(tmp_path, [row()])
    (tmp_path / "gallery.json").write_bytes(index)
    with pytest.raises(ValueError, match="written together"):
        load_gallery(tmp_path)


def test_pixels_of_other_rows_are_not_shown(tmp_path, monkeypatch):
    """A kill comes between the two files: labels of before, pixels of after."""
    save_gallery(tmp_path, [row()])
    replace = gallery.replace_file
    monkeypatch.setattr(gallery, "replace_file", lambda path, to: replace(path, to) if path.name == TENSORS else None)
    save_gallery(tmp_path, [row(number=1, chosen=2)])
    with pytest.raises(ValueError, match=r"written together: got ValueError.*pixels of other rows"):
        load_gallery(tmp_path)


@pytest.mark.parametrize("wrong", [{"chosen": 3}, {"scores": (1.0, 2.0)}, {"channels": 4}])
def test_rows_that_contradict_themselves_are_refused(wrong):
    with pytest.raises((ValueError, TypeCheckError), match=r"one score for each view|scores"):
        row(**wrong)


def test_ranking_goes_from_the_hardest_view_to_the_easiest():
    assert row(scores=(0.5, 2.0, 1.0)).ranking() == [1, 2, 0]
    assert row(scores=(np.nan, 2.0, np.inf)).ranking() == [2, 1, 0]
    assert row(scores=(1.0, 1.0, 1.0)).ranking() == [0, 1, 2]


@pytest.mark.parametrize("channels", [1, 3])
def test_small_views_are_enlarged_without_blurring(channels):
    pixels = row(size=8, channels=channels).pixels[0]
    shown = np.asarray(Image.open(io.BytesIO(png(pixels)))).reshape(64, 64, channels)
    np.testing.assert_array_equal(shown, pixels.repeat(8, axis=0).repeat(8, axis=1))


def test_large_views_are_reduced_and_keep_their_shape():
    pixels = np.zeros((448, 224, 3), np.uint8)
    assert Image.open(io.BytesIO(png(pixels))).size == (80, 160)


def test_a_data_uri_holds_the_png():
    pixels = row(size=64).pixels[0]
    prefix, content = data_uri(pixels).split(",")
    assert prefix == "data:image/png;base64"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))), pixels)


def test_spread_keeps_the_first_and_the_last():
    rows = [row(number=number) for number in range(10)]
    assert [id(kept) for kept in spread(rows, 4)] == [id(rows[n]) for n in (0, 3, 6, 9)]
    assert [id(kept) for kept in spread(rows, 20)] == [id(kept) for kept in rows]
