"""The audit shows what was trained on: the marked view is, bit for bit, the one that the batch held."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from conformance.method import draw_at, made
from infer2train.draws.draw import Draw
from infer2train.loader.loader import MinedLoader
from infer2train.loader.mine import mine
from infer2train.reporting.audit import as_pixels, audit_draw
from infer2train.sources.replay import Replay
from infer2train.sources.views.crops import PadCropFlip
from infer2train.sources.views.image_views import ImageViews

pytestmark = pytest.mark.usefixtures("one_thread")

GAMMA, BATCH, NAMES = 4, 6, ("cat", "dog", "emu")
IMAGES = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
TARGETS = np.arange(30) % 3
VIEWS = ImageViews(IMAGES, TARGETS, PadCropFlip(2))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(8 * 8 * 3, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images.float().flatten(1) / 255)  # type: ignore[no-any-return]


def mined(method: str, **settings: Any) -> MinedLoader:
    torch.manual_seed(0)
    base: DataLoader[Any] = DataLoader(VIEWS, batch_size=BATCH, shuffle=True)
    return mine(base, Network(), method=method, gamma=GAMMA, **settings)


@pytest.mark.parametrize("method", ["nm-augment", "nm-augment-soft", "nm-sample"])
def test_the_marked_view_is_the_one_trained_on(method: str) -> None:
    loader = mined(method, ramp_stop=0.0)
    for pixels, targets in loader:
        loader.step_done()
        draw = loader.last
        assert draw is not None
        rows = audit_draw(draw, VIEWS, gamma=GAMMA, class_names=NAMES, rows=BATCH)
        assert len(rows) == BATCH
        for place, row in enumerate(rows):
            assert np.array_equal(row.pixels[row.chosen], pixels[place].permute(1, 2, 0).numpy())
            assert (row.sample_id, row.label) == (int(draw.addresses.ids[place]), NAMES[int(targets[place])])
            assert row.scores[row.chosen] == draw.scores[draw.chosen[place]]
            assert (row.epoch, row.draw) == (draw.epoch, draw.number)
            assert len(row.pixels) == GAMMA


def test_a_view_is_shown_beside_the_others_of_its_sample() -> None:
    draw = drawn("nm-augment")
    for slot, row in enumerate(audit_draw(draw, VIEWS, gamma=GAMMA, rows=BATCH)):
        own = np.arange(slot * GAMMA, (slot + 1) * GAMMA)
        views, _ = VIEWS.batch(draw.candidates[own])
        assert np.array_equal(row.pixels, views.permute(0, 2, 3, 1).numpy())
        assert np.array_equal(row.scores, draw.scores[own].numpy())
        assert row.ranking()[0] == row.chosen, "the hardest was picked"
        assert row.name_of(1) == "view 1"


def test_a_batch_of_single_candidates_is_shown_to_its_last() -> None:
    """infobatch has one candidate a sample, of which there need be no whole number of γ."""
    loader = mined("infobatch", epochs=4)
    next(iter(loader))
    assert loader.last is not None
    rows = audit_draw(loader.last, VIEWS, gamma=GAMMA, class_names=NAMES, rows=BATCH)
    assert [row.sample_id for row in rows] == loader.last.addresses.ids.tolist()
    loader.close()


def test_a_sample_is_shown_beside_candidates_that_lost() -> None:
    draw = drawn("nm-sample")
    chosen = {float(score) for score in draw.scores[torch.from_numpy(draw.chosen)]}
    ids = {float(score): int(one) for score, one in zip(draw.scores, draw.candidates.ids, strict=True)}
    for row in audit_draw(draw, VIEWS, gamma=GAMMA, class_names=NAMES, rows=BATCH):
        names = [f"{NAMES[TARGETS[ids[float(score)]]]} · {ids[float(score)]}" for score in row.scores]
        assert [row.name_of(one) for one in range(GAMMA)] == names, "each by its own label and id"
        losers = np.delete(row.scores, row.chosen)
        assert len(losers) == GAMMA - 1
        assert not chosen & set(losers.tolist()), "those that were picked too are not shown as losers"


def test_only_mined_examples_are_shown_and_only_so_many() -> None:
    draw = drawn("nm-augment", share=0.5)
    rows = audit_draw(draw, VIEWS, gamma=GAMMA, rows=BATCH)
    assert [row.sample_id for row in rows] == draw.addresses.ids[draw.mined].tolist()
    assert 0 < len(rows) < BATCH
    assert len(audit_draw(draw, VIEWS, gamma=GAMMA, rows=2)) == 2


def test_one_candidate_each_is_shown_alone() -> None:
    row = audit_draw(drawn("nm-augment", gamma=1), VIEWS, gamma=1, rows=1)[0]
    assert (len(row.pixels), row.chosen) == (1, 0)


@pytest.mark.parametrize("field", ["scores", "chosen", "mined"])
def test_where_nothing_was_scored_nothing_is_shown(field: str) -> None:
    assert audit_draw(replace(drawn("nm-augment"), **{field: None}), VIEWS, gamma=GAMMA) == []


@pytest.mark.parametrize("method", ["baseline", "random-sample", "self-distill"])
def test_methods_without_a_score_show_nothing(method: str) -> None:
    loader = mined(method, **({"ramp_stop": 0.0} if method == "random-sample" else {}))
    next(iter(loader))
    assert loader.last is not None
    assert audit_draw(loader.last, VIEWS, gamma=GAMMA) == []


@pytest.mark.parametrize(
    "shape", [(5,), (8, 8), (2, 8, 8), (4, 8, 8), (3, 2, 8, 8)], ids=["vector", "map", "2", "4 channels", "video"]
)
def test_inputs_that_are_no_images_give_no_rows(shape: tuple[int, ...]) -> None:
    source = Replay([(torch.ones(shape), 0)] * 30, default_collate)
    assert audit_draw(drawn("nm-augment"), source, gamma=GAMMA) == []


@pytest.mark.parametrize("channels", [1, 3])
def test_float_images_are_stretched(channels: int) -> None:
    images = torch.linspace(-2, 5, 2 * channels * 16).view(2, channels, 4, 4)
    pixels = as_pixels(images)
    assert pixels.shape == (2, 4, 4, channels)
    assert (pixels.dtype, pixels.min(), pixels.max()) == (np.uint8, 0, 255)
    wanted = np.round((images.permute(0, 2, 3, 1).numpy() + 2) / 7 * 255)
    assert np.abs(pixels - wanted).max() <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_images_of_one_value_are_black(dtype: torch.dtype) -> None:
    assert not as_pixels(torch.full((1, 3, 2, 2), 3, dtype=dtype)).any()


def test_pixels_are_shown_as_they_are() -> None:
    images = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
    assert np.array_equal(as_pixels(images), IMAGES)


class Dictionaries(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": torch.rand(3, 4, 4), "labels": index % 3}


def test_inputs_in_a_dictionary_are_shown_too() -> None:
    rows = audit_draw(drawn("nm-augment"), Replay(Dictionaries(), default_collate), gamma=GAMMA, class_names=NAMES)
    assert {row.label for row in rows} <= set(NAMES)
    assert rows[0].pixels.shape == (GAMMA, 4, 4, 3)


@pytest.mark.parametrize(
    ("targets", "names", "label"),
    [
        (TARGETS, NAMES, None),
        (TARGETS, (), "number"),
        (TARGETS + 7, NAMES, "number"),
        (TARGETS - 3, NAMES, "number"),
        (TARGETS + 0.5, NAMES, "number"),
        (np.stack([TARGETS, TARGETS], 1), NAMES, ""),
    ],
    ids=["names", "no names", "too few names", "negative", "regression", "several"],
)
def test_labels_are_names_where_there_are_names(targets: Any, names: tuple[str, ...], label: str | None) -> None:
    source = Replay(list(zip(torch.from_numpy(IMAGES).permute(0, 3, 1, 2), targets, strict=True)), default_collate)
    for row in audit_draw(drawn("nm-augment"), source, gamma=GAMMA, class_names=names):
        target = targets[row.sample_id]
        wanted = str(target) if label == "number" else NAMES[target] if label is None else label
        assert row.label == wanted


def drawn(method: str, share: float = 1.0, gamma: int = GAMMA) -> Draw:
    """A draw of that method with scores of chance."""
    own = made(method, gamma=gamma, balance="stratified")
    draw = draw_at(own, share, number=5, epoch=2, ids=np.array([3, 9, 4, 20, 29, 11]), epoch_ids=np.arange(30))
    scores = torch.rand(len(draw.candidates), generator=torch.Generator().manual_seed(1))
    targets = torch.from_numpy(TARGETS[draw.candidates.ids])
    return own.select(replace(draw, scores=scores), scores, targets)
