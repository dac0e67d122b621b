"""One step is plain stochastic gradient descent on L + λ·penalty, and its sums survive a checkpoint."""

import copy

import pytest
import torch
from torch.nn import functional as F

from infer2train.draws.methods.table import choices_of
from infer2train.training.config import from_plain
from infer2train.training.regimes import regime_defaults
from infer2train.training.setup import Run, prepare, resolved
from infer2train.training.step import EpochSums, penalty_gradient_ratio, train_step


def digits(method: str, **changes: object) -> Run:
    settings = {"threads": 1, "lr": 0.1, "gamma": 3, "batch_size": 20, **changes}
    return prepare(resolved(from_plain({**regime_defaults("digits", method), **settings})))


def test_a_step_is_sgd_with_decay_on_matrices_only() -> None:
    run = digits("baseline", weight_decay=0.1, momentum=0.0)
    images, targets = next(iter(run.loader))
    reference = copy.deepcopy(run.model).train()
    before = {name: tensor.clone() for name, tensor in run.model.named_parameters()}
    logits = reference(images)
    loss = F.cross_entropy(logits, targets)
    loss.backward()
    sums = EpochSums()
    result = train_step(run, images, targets, sums)
    assert result.loss == float(loss.detach())
    assert result.penalty is None
    assert torch.equal(result.logits, logits)
    assert not result.logits.requires_grad
    for (name, parameter), other in zip(run.model.named_parameters(), reference.parameters(), strict=True):
        assert other.grad is not None
        decay = 0.1 if parameter.ndim > 1 else 0.0
        torch.testing.assert_close(parameter.data, before[name] - 0.1 * (other.grad + decay * before[name]))
        assert parameter.grad is None
    wrong = int((logits.argmax(dim=1) != targets).sum())
    assert (sums.loss, sums.wrong, sums.examples, sums.steps) == (result.loss, wrong, 20, 1)
    assert run.loader.steps == 1, "the optimiser's step was acknowledged"


def test_self_distillation_adds_its_penalty() -> None:
    run = digits("self-distill", distill_weight=0.5)
    images, targets = next(iter(run.loader))
    assert run.loader.last is not None
    assert run.loader.last.log_probabilities is not None
    log_oracle = run.loader.last.log_probabilities
    reference = copy.deepcopy(run.model).train()
    log_model = F.log_softmax(reference(images), dim=1)
    # KL(F ‖ F̃) with the mean of log F̃ over the views: equation 1.
    expected = 0.5 * (log_model.exp() * (log_model - log_oracle)).sum(dim=1).mean()
    result = train_step(run, images, targets, EpochSums())
    assert result.penalty == pytest.approx(float(expected.detach()), rel=1e-4)
    assert result.loss == pytest.approx(float((F.nll_loss(log_model, targets) + expected).detach()), rel=1e-5)
    ratio = penalty_gradient_ratio(0.5, run.loader.last, result.logits, result.targets)
    assert ratio is not None
    assert ratio > 0
    smooth = penalty_gradient_ratio(0.5, run.loader.last, result.logits, result.targets, smoothing=0.1)
    logits = result.logits.clone().requires_grad_()
    (plain,) = torch.autograd.grad(F.cross_entropy(logits, targets, label_smoothing=0.1), logits)
    (sharp,) = torch.autograd.grad(F.cross_entropy(logits, targets), logits)
    assert smooth == pytest.approx(ratio * float(sharp.norm() / plain.norm()), rel=1e-4)
    assert smooth != pytest.approx(ratio, rel=1e-3)
    twice = penalty_gradient_ratio(1.0, run.loader.last, result.logits, result.targets)
    assert twice == pytest.approx(2 * ratio)


def test_no_penalty_no_ratio() -> None:
    run = digits("nm-augment")
    images, targets = next(iter(run.loader))
    result = train_step(run, images, targets, EpochSums())
    assert result.penalty is None
    assert run.loader.last is not None
    assert penalty_gradient_ratio(1.0, run.loader.last, result.logits, result.targets) is None


def test_bf16_computes_in_bf16_and_keeps_fp32_weights() -> None:
    run, exact = (digits("baseline", precision=precision) for precision in ("bf16", "fp32"))
    images, targets = next(iter(run.loader))
    result = train_step(run, images, targets, EpochSums())
    assert result.logits.dtype == torch.float32
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}
    other = train_step(exact, *next(iter(exact.loader)), EpochSums())
    assert not torch.equal(result.logits, other.logits)
    torch.testing.assert_close(result.logits, other.logits, rtol=0.1, atol=0.1)


def test_sums_go_through_a_checkpoint() -> None:
    sums = EpochSums()
    sums.add(0.5, wrong=3, examples=10)
    sums.add(1.5, wrong=1, examples=10)
    sums.add_seconds(training=1.0, scoring=2.0)
    sums.add_seconds(training=0.5)
    state = sums.state_dict()
    again = EpochSums.from_state(state)
    assert again == sums
    assert (again.loss, again.wrong, again.examples, again.steps) == (2.0, 4, 20, 2)
    assert again.seconds == {"training": 1.5, "scoring": 2.0}
    again.add_seconds(training=9.0)
    assert state["seconds"] == {"training": 1.5, "scoring": 2.0}
    again.reset()
    assert again == EpochSums()


def test_smoothed_targets_and_nesterov_are_the_trained_losss_and_the_optimisers() -> None:
    run = digits("nm-augment", label_smoothing=0.2, nesterov=True)
    images, targets = next(iter(run.loader))
    reference = copy.deepcopy(run.model).train()
    plain = F.cross_entropy(reference(images), targets)
    result = train_step(run, images, targets, EpochSums())
    uniform = -F.log_softmax(result.logits, 1).mean()
    assert result.loss == pytest.approx(float(0.8 * plain + 0.2 * uniform), rel=1e-5)
    assert all(group["nesterov"] for group in run.optimizer.param_groups)
    assert run.loader.last is not None
    assert choices_of(run.config).score == "loss", "what is scored is the loss without smoothing"
