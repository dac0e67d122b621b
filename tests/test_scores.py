"""Scores against float64 arithmetic, and what each of them is said to order by."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from infer2train.draws.scores import SCORES, entropy, gradient_norm_bound, loss, margin


def logits(num: int = 50, classes: int = 10, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(num, classes, generator=torch.Generator().manual_seed(0)).mul(4).to(dtype)


def labels(num: int = 50, classes: int = 10) -> Tensor:
    return torch.randint(classes, (num,), generator=torch.Generator().manual_seed(1))


def written_out(name: str, row: list[float], target: int) -> float:
    """One candidate's score from its definition, in Python floats."""
    total = math.fsum(math.exp(z) for z in row)
    p = [math.exp(z) / total for z in row]
    if name == "loss":
        return -math.log(p[target])
    if name == "entropy":
        return -math.fsum(a * math.log(a) for a in p)
    if name == "margin":
        return max(a for k, a in enumerate(p) if k != target) - p[target]
    return math.sqrt(math.fsum((a - (k == target)) ** 2 for k, a in enumerate(p)))


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_every_score_is_its_definition_in_float32(name: str, dtype: torch.dtype) -> None:
    outputs, targets = logits(dtype=dtype), labels()
    scores = SCORES[name](outputs, targets)
    expected = [written_out(name, row, t) for row, t in zip(outputs.tolist(), targets.tolist(), strict=True)]
    assert scores.dtype == torch.float32
    assert scores.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", SCORES)
def test_every_score_is_found_in_what_models_return(name: str) -> None:
    outputs, targets = logits(), labels()
    expected = SCORES[name](outputs, targets)
    assert torch.equal(SCORES[name]({"logits": outputs}, targets), expected)
    assert torch.equal(SCORES[name]((outputs, "hidden states"), targets), expected)


@pytest.mark.parametrize("name", SCORES)
def test_every_score_sees_one_candidate_at_a_time(name: str) -> None:
    outputs, targets = logits(), labels()
    reversed_scores = SCORES[name](outputs.flip(0), targets.flip(0)).flip(0)
    assert torch.allclose(reversed_scores, SCORES[name](outputs, targets), atol=1e-6)
    assert SCORES[name](outputs[:0], targets[:0]).shape == (0,)


@pytest.mark.parametrize("name", SCORES)
def test_every_score_is_finite_on_extreme_logits_and_keeps_no_graph(name: str) -> None:
    outputs = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], requires_grad=True)
    scores = SCORES[name](outputs, torch.tensor([0, 0]))
    assert scores.isfinite().all()
    assert not scores.requires_grad


@pytest.mark.parametrize("name", SCORES)
def test_every_score_lets_nan_through_to_be_counted(name: str) -> None:
    scores = SCORES[name](torch.tensor([[math.nan, 0.0], [1.0, 0.0]]), torch.tensor([0, 0]))
    assert scores.isnan().tolist() == [True, False]


def test_loss_is_unsmoothed_and_unweighted() -> None:
    assert loss(torch.tensor([[100.0, 0.0]]), torch.tensor([0])).item() == 0.0
    assert loss(torch.tensor([[100.0, 0.0]]), torch.tensor([1])).item() == 100.0


def test_entropy_is_highest_where_the_oracle_is_undecided() -> None:
    scores = entropy(torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, -9.0], [9.0, 0.0, 0.0]]), torch.tensor([2, 2, 2]))
    assert scores.argsort(descending=True).tolist() == [0, 1, 2]
    assert scores[0].item() == pytest.approx(math.log(3))


def test_margin_is_positive_exactly_where_the_prediction_is_wrong() -> None:
    outputs, targets = logits(), labels()
    assert torch.equal(margin(outputs, targets) > 0, outputs.argmax(1) != targets)


def test_gradient_norm_bound_is_the_norm_of_the_losss_gradient() -> None:
    outputs, targets = logits(dtype=torch.float64).requires_grad_(), labels()
    (gradient,) = torch.autograd.grad(F.cross_entropy(outputs, targets, reduction="sum"), outputs)
    assert torch.allclose(gradient_norm_bound(outputs, targets).double(), gradient.norm(dim=1), rtol=1e-5)


def test_gradient_norm_bound_still_orders_candidates_that_are_nearly_certain() -> None:
    scores = gradient_norm_bound(torch.tensor([[20.0, 0.0], [25.0, 0.0], [70.0, 0.0]]), torch.tensor([0, 0, 0]))
    assert scores.tolist() == pytest.approx([math.sqrt(2) * math.exp(-z) for z in (20, 25, 70)], rel=1e-5)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(
    "targets",
    [torch.zeros(2), torch.zeros(2, 3), torch.tensor([True, False]), torch.zeros(2, 1, dtype=torch.int64), (0, 1)],
    ids=["float", "probabilities", "bool", "column", "tuple"],
)
def test_targets_that_are_not_classes_are_refused_with_the_remedy(name: str, targets: object) -> None:
    with pytest.raises(ValueError, match=r"integer class.*got .*pass your own score function"):
        SCORES[name](torch.zeros(2, 3), targets)


@pytest.mark.parametrize("wrong", [3, -1, -100])
def test_a_label_that_is_no_class_of_the_model_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match=rf"a class of the model, in \[0, 3\): got {wrong}"):
        loss(torch.zeros(2, 3), torch.tensor([0, wrong]))


def test_dense_outputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"logits \[n, k\].*got shape \[2, 3, 4, 4\]; pass your own"):
        loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64))


def test_small_integer_labels_are_classes_too() -> None:
    outputs, targets = logits(), labels()
    assert torch.equal(loss(outputs, targets.to(torch.uint8)), loss(outputs, targets))
