"""Evaluation counts every image once, whatever the model's mode was before."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infer2train.draws.addresses import Addresses
from infer2train.sources.views.identity import Identity
from infer2train.sources.views.image_views import ImageViews
from infer2train.training.evaluation import BATCH, calibration_error, evaluate, every_sample, random_views

CPU = torch.device("cpu")


class Reads(nn.Module):
    """Says what the first pixel says: class `pixel`, then `pixel + 1`, and so on downwards."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes, self.modes = classes, []  # type: ignore[var-annotated]
        self.dropout, self.norm = nn.Dropout(0.9), nn.BatchNorm2d(1)

    def forward(self, images: Tensor) -> Tensor:
        self.modes.append((self.training, torch.is_inference_mode_enabled()))
        said = self.dropout(images)[:, 0, 0, 0].float().round().long()
        self.norm(images.float())
        order = (torch.arange(self.classes)[None] - said[:, None]) % self.classes
        return -order.float()


def source(said: np.ndarray, targets: np.ndarray) -> ImageViews:
    images = np.tile(said.astype(np.uint8)[:, None, None, None], (1, 2, 2, 1))
    return ImageViews(images, targets.astype(np.int64), Identity())


@pytest.mark.parametrize("total", [BATCH - 1, BATCH, BATCH + 1, 2 * BATCH + 77])
def test_the_last_partial_batch_counts(total: int) -> None:
    targets = np.arange(total) % 10
    said = targets.copy()
    said[-3:] = (said[-3:] + 1) % 10  # wrong only at the end
    said[0] = (said[0] - 2) % 10  # wrong by two: the target is the third best
    model = Reads(10)
    result = evaluate(model, source(said, targets), every_sample(total), CPU)
    assert result.error == pytest.approx(4 / total)
    assert result.top5_error == pytest.approx(3 / total), "one after the target is the last of ten"
    assert len(model.modes) == -(-total // BATCH)
    with torch.inference_mode():
        logits = model.eval()(torch.from_numpy(np.tile(said[:, None, None, None], (1, 1, 2, 2))).float())
        expected = F.cross_entropy(logits, torch.from_numpy(targets))
    assert result.loss == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(("classes", "has_top5"), [(2, False), (5, False), (6, True), (10, True)])
def test_top5_error_only_where_it_says_something(classes: int, has_top5: bool) -> None:
    targets = np.arange(12) % classes
    result = evaluate(Reads(classes), source((targets + 1) % classes, targets), every_sample(12), CPU)
    assert result.error == 1.0
    assert (result.top5_error is not None) == has_top5


@pytest.mark.parametrize("mode", [True, False])
def test_mode_weights_and_statistics_are_left_as_they_were(mode: bool) -> None:
    model = Reads(10).train(mode)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model, source(np.arange(10), np.arange(10)), every_sample(10), CPU)
    assert {module.training for module in model.modules()} == {mode}
    assert model.modes == [(False, True)]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.is_grad_enabled()


def test_training_error_is_of_the_same_samples_under_new_views_each_epoch() -> None:
    first, again, later = (random_views(100, 20, seed=3, epoch=epoch) for epoch in (0, 0, 1))
    assert len(first) == 20
    assert len(set(first.ids)) == 20
    assert np.array_equal(first.ids, again.ids)
    assert np.array_equal(first.seeds, again.seeds)
    assert np.array_equal(first.ids, later.ids)
    assert not np.intersect1d(first.seeds, later.seeds).size
    assert not np.array_equal(first.ids, random_views(100, 20, seed=4, epoch=0).ids)
    assert isinstance(first, Addresses)


class Says(nn.Module):
    """Gives the same logits to every image."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Buffer(torch.tensor(logits))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


def test_a_model_without_an_answer_is_wrong_and_of_equals_the_first_class_is_the_answer() -> None:
    targets = np.array([0, 1, 2, 3])
    nothing = evaluate(Says([float("nan")] * 4), source(targets, targets), every_sample(4), CPU)
    assert nothing.error == 1.0
    ties = evaluate(Says([0.0, 1.0, 1.0, 0.0]), source(targets, targets), every_sample(4), CPU)
    assert ties.error == 0.75
    assert ties.error == 1 - float((Says([0.0, 1.0, 1.0, 0.0]).logits.argmax() == torch.from_numpy(targets)).sum()) / 4


def reference_calibration_error(confidences: np.ndarray, right: np.ndarray) -> float:
    total = 0.0
    for low in range(15):
        inside = (confidences > low / 15) & (confidences <= (low + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidences[inside].mean())
    return float(total)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy_bin_by_bin() -> None:
    rng = np.random.default_rng(0)
    confidences = rng.uniform(0.1, 1.0, 500)
    right = rng.uniform(size=500) < confidences**2  # too sure of itself
    found = float(calibration_error(torch.from_numpy(confidences), torch.from_numpy(right)))
    assert found == pytest.approx(reference_calibration_error(confidences, right), abs=1e-12)
    assert found > 0.1
    assert float(calibration_error(torch.ones(3), torch.ones(3, dtype=torch.bool))) == 0.0


def test_an_evaluation_knows_the_models_calibration() -> None:
    targets = np.arange(100) % 4  # a quarter is class 0, of which the model is sure
    result = evaluate(Says([20.0, 0.0, 0.0, 0.0]), source(targets, targets), every_sample(100), CPU)
    assert result.calibration_error == pytest.approx(0.75, abs=1e-4)
