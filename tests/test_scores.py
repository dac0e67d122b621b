"""Scores against float64 arithmetic, and what each of them is said to order by."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from infer2train.draws.scores import IGNORED, SCORES, entropy, gradient_norm_bound, loss, margin

OF_CLASSES = ("loss", "entropy", "margin", "gradient-norm-bound")


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


@pytest.mark.parametrize("name", OF_CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_every_score_is_its_definition_in_float32(name: str, dtype: torch.dtype) -> None:
    outputs, targets = logits(dtype=dtype), labels()
    scores = SCORES[name](outputs, targets)
    expected = [written_out(name, row, t) for row, t in zip(outputs.tolist(), targets.tolist(), strict=True)]
    assert scores.dtype == torch.float32
    assert scores.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", OF_CLASSES)
def test_every_score_is_found_in_what_models_return(name: str) -> None:
    outputs, targets = logits(), labels()
    expected = SCORES[name](outputs, targets)
    assert torch.equal(SCORES[name]({"logits": outputs}, targets), expected)
    assert torch.equal(SCORES[name]((outputs, "hidden states"), targets), expected)


@pytest.mark.parametrize("name", OF_CLASSES)
def test_every_score_sees_one_candidate_at_a_time(name: str) -> None:
    outputs, targets = logits(), labels()
    reversed_scores = SCORES[name](outputs.flip(0), targets.flip(0)).flip(0)
    assert torch.allclose(reversed_scores, SCORES[name](outputs, targets), atol=1e-6)
    assert SCORES[name](outputs[:0], targets[:0]).shape == (0,)


@pytest.mark.parametrize("name", OF_CLASSES)
def test_every_score_is_finite_on_extreme_logits_and_keeps_no_graph(name: str) -> None:
    outputs = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], requires_grad=True)
    scores = SCORES[name](outputs, torch.tensor([0, 0]))
    assert scores.isfinite().all()
    assert not scores.requires_grad


@pytest.mark.parametrize("name", OF_CLASSES)
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


@pytest.mark.parametrize("name", OF_CLASSES)
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


def test_small_integer_labels_are_classes_too() -> None:
    outputs, targets = logits(), labels()
    assert torch.equal(loss(outputs, targets.to(torch.uint8)), loss(outputs, targets))


# Sequences and maps: one class for each token or pixel


def of_tokens(name: str, z: Tensor, targets: Tensor) -> list[float]:
    """The mean of a candidate's own tokens, one after another; its classes last."""
    found = []
    for rows, classes in zip(z.flatten(1, -2).tolist(), targets.flatten(1).tolist(), strict=True):
        own = [written_out(name, row, t) for row, t in zip(rows, classes, strict=True) if t != IGNORED]
        found.append(math.fsum(own) / len(own) if own else {"margin": -1.0}.get(name, 0.0))
    return found


def sequences() -> tuple[Tensor, Tensor]:
    """Of several lengths, padded; one has no token of its own."""
    z, targets = logits(4 * 7, 5).view(4, 7, 5), labels(4 * 7, 5).view(4, 7)
    for sequence, length in enumerate((7, 3, 0, 1)):
        targets[sequence, length:] = IGNORED
    return z, targets


@pytest.mark.parametrize("name", OF_CLASSES)
def test_a_sequence_scores_the_mean_of_its_own_tokens(name: str) -> None:
    z, targets = sequences()
    scores = SCORES[name](z, targets)
    assert scores.tolist() == pytest.approx(of_tokens(name, z, targets), rel=1e-4, abs=1e-6)
    assert scores.argmin() == 2, "nothing to learn from"
    further = torch.cat([z, torch.full((4, 6, 5), torch.nan)], 1), F.pad(targets, (0, 6), value=IGNORED)
    torch.testing.assert_close(SCORES[name](*further), scores)


@pytest.mark.parametrize("name", OF_CLASSES)
def test_a_map_has_its_classes_second_and_ignores_too(name: str) -> None:
    z, targets = logits(3 * 20, 6).view(3, 4, 5, 6), labels(3 * 20, 6).view(3, 4, 5)
    targets[1, :2] = IGNORED
    scores = SCORES[name](z.movedim(-1, 1), targets)
    assert scores.tolist() == pytest.approx(of_tokens(name, z, targets), rel=1e-4, abs=1e-6)


def test_as_many_tokens_as_classes_are_still_a_sequence() -> None:
    z, targets = logits(2 * 5, 5).view(2, 5, 5), labels(2 * 5, 5).view(2, 5)
    assert loss(z, targets).tolist() == pytest.approx(of_tokens("loss", z, targets), rel=1e-4)


@pytest.mark.parametrize(
    ("outputs", "targets", "said"),
    [
        (
            torch.zeros(2, 3, 7),
            torch.zeros(2, 7).long(),
            r"got logits of shape \[2, 3, 7\] with targets \[2, 7\]; move",
        ),
        (
            torch.zeros(2, 4, 4, 3),
            torch.zeros(2, 4, 4).long(),
            r"\[n, k, h, w\] with \[n, h, w\]: got .*; move the classes",
        ),
        (torch.zeros(2, 7, 3), torch.zeros(2).long(), r"with targets \[2\]"),
        (torch.zeros(2, 2, 3), torch.full((2, 2), 3), r"in \[0, 3\): got 3"),
        (torch.zeros(2, 2, 3), torch.full((2, 2), -1), r"in \[0, 3\): got -1"),
        (torch.zeros(2, 2, 3), torch.zeros(2, 2), "integer classes as targets: got torch.float32"),
    ],
)
def test_tokens_of_another_layout_are_refused_with_the_remedy(outputs: Tensor, targets: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        loss(outputs, targets)


# Targets that are numbers

SOFT = logits(50, 4).softmax(1)
MANY_HOT = (logits(50, 4) > 0).float()


def of_numbers(name: str, z: list[float], t: list[float]) -> float:
    """One candidate's score from its definition, in Python floats."""
    if name == "multi-label-loss":
        each = [
            -a * math.log(1 / (1 + math.exp(-x))) - (1 - a) * math.log(1 / (1 + math.exp(x)))
            for x, a in zip(z, t, strict=True)
        ]
        return math.fsum(each) / len(each)
    if name == "soft-loss":
        total = math.fsum(math.exp(x) for x in z)
        return -math.fsum(a * math.log(math.exp(x) / total) for x, a in zip(z, t, strict=True))
    return math.fsum((x - a) ** 2 for x, a in zip(z, t, strict=True)) / len(z)


@pytest.mark.parametrize(
    ("name", "targets"),
    [("multi-label-loss", MANY_HOT), ("multi-label-loss", SOFT), ("soft-loss", SOFT), ("squared-error", 3 * SOFT)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_score_of_numbers_is_its_definition_in_float32(name: str, targets: Tensor, dtype: torch.dtype) -> None:
    outputs = logits(50, 4, dtype).flip(0)
    scores = SCORES[name](outputs.requires_grad_(), targets.double())
    expected = [of_numbers(name, z, t) for z, t in zip(outputs.tolist(), targets.tolist(), strict=True)]
    assert scores.dtype == torch.float32
    assert not scores.requires_grad
    assert scores.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert torch.equal(SCORES[name]({"logits": outputs}, targets), SCORES[name](outputs, targets))


@pytest.mark.parametrize("name", ["multi-label-loss", "squared-error"])
@pytest.mark.parametrize("columns", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_one_number_each_is_not_combined_with_the_others(name: str, columns: tuple[int, int]) -> None:
    z, t = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1.0, 0.0, 1.0])
    shaped = [x[:, None] if column else x for x, column in zip((z, t), columns, strict=True)]
    expected = [of_numbers(name, [a], [b]) for a, b in zip(z.tolist(), t.tolist(), strict=True)]
    assert SCORES[name](*shaped).tolist() == pytest.approx(expected, rel=1e-5)


def test_numbers_of_any_shape_are_averaged() -> None:
    z, t = logits(3, 20).view(3, 2, 2, 5), logits(3, 20).view(3, 2, 2, 5).flip(0)
    torch.testing.assert_close(SCORES["squared-error"](z, t), (z - t).square().mean((1, 2, 3)))


@pytest.mark.parametrize(
    ("name", "targets", "said"),
    [
        ("soft-loss", MANY_HOT, r"sum to 1 .* row of sum \d; use score='multi-label-loss'"),
        ("soft-loss", 2 * SOFT - SOFT.flip(1), "sum to 1"),
        ("multi-label-loss", 3 * SOFT, r"0 or 1 for each label: got numbers from .*; use score='squared-error'"),
        *((name, labels(), "targets of the outputs' shape") for name in ("soft-loss", "multi-label-loss")),
        ("squared-error", SOFT[:, 0], r"targets of the outputs' shape: got \[50\] for outputs \[50, 4\]; make them"),
        ("squared-error", [0.0] * 50, "a tensor of targets: got <class 'list'>"),
    ],
)
def test_targets_that_are_not_what_the_name_says_are_refused_with_the_remedy(
    name: str, targets: object, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        SCORES[name](logits(50, 4), targets)
