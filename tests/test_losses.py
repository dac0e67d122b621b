"""Equation 1 against sums written out, its direction, its gradient, and what bfloat16 does to it."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infer2train.draws.losses import distillation, mean_log_probabilities, own_tokens
from infer2train.draws.scores import IGNORED

LAMBDA = 1e-5
"""The paper's weight of the penalty."""


def logits(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(3).to(dtype)


def probabilities(row: list[float]) -> list[float]:
    total = math.fsum(math.exp(z) for z in row)
    return [math.exp(z) / total for z in row]


def divergence(p: list[float], q: list[float]) -> float:
    """KL(p ‖ q)."""
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


class TestMeanLogProbabilities:
    def test_averages_the_views_of_one_sample(self) -> None:
        oracle_B_G_K = logits(4, 3, 5)
        mean_BK = mean_log_probabilities(oracle_B_G_K.reshape(12, 5), views=3)
        for b, k in [(0, 0), (1, 4), (3, 2)]:
            each = [math.log(probabilities(oracle_B_G_K[b, i].tolist())[k]) for i in range(3)]
            assert mean_BK[b, k].item() == pytest.approx(sum(each) / 3, rel=1e-5)

    def test_is_computed_in_float32(self) -> None:
        low = logits(6, 5, dtype=torch.bfloat16)
        mean = mean_log_probabilities(low, views=2)
        assert mean.dtype == torch.float32
        assert torch.equal(mean, mean_log_probabilities(low.float(), views=2))

    @pytest.mark.parametrize("views", [0, 4])
    def test_refuses_half_a_slot(self, views: int) -> None:
        with pytest.raises(ValueError, match=f"got 6 rows for views={views}; score whole slots"):
            mean_log_probabilities(torch.zeros(6, 5), views=views)


class TestDistillation:
    def test_is_the_average_of_the_divergences(self) -> None:
        trained_BK, oracle_B_G_K = logits(6, 10, seed=1), logits(6, 4, 10, seed=2)
        expected = 0.0
        for b in range(6):
            p = probabilities(trained_BK[b].tolist())
            expected += sum(divergence(p, probabilities(oracle_B_G_K[b, i].tolist())) for i in range(4)) / 4
        penalty = distillation(trained_BK, mean_log_probabilities(oracle_B_G_K.reshape(24, 10), views=4))
        assert penalty.item() == pytest.approx(expected / 6, rel=1e-5)

    def test_has_the_trained_model_first(self) -> None:
        trained, oracle = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 4.0]])
        p, q = probabilities(trained[0].tolist()), probabilities(oracle[0].tolist())
        assert divergence(p, q) != pytest.approx(divergence(q, p), rel=0.1), "the case does not tell them apart"
        assert distillation(trained, mean_log_probabilities(oracle, 1)).item() == pytest.approx(divergence(p, q))

    def test_gradient_is_that_of_the_formula(self) -> None:
        trained = logits(5, 7, seed=3, dtype=torch.float64).requires_grad_()
        oracle = mean_log_probabilities(logits(15, 7, seed=4, dtype=torch.float64), views=3)
        assert torch.autograd.gradcheck(lambda z: distillation(z, oracle), trained)

    def test_no_gradient_reaches_the_oracle(self) -> None:
        trained, oracle = logits(2, 3, seed=5).requires_grad_(), logits(2, 3, seed=6).requires_grad_()
        distillation(trained, mean_log_probabilities(oracle, 1)).backward()
        assert oracle.grad is None
        assert trained.grad is not None
        assert trained.grad.abs().max() > 0

    @pytest.mark.parametrize("lowest", [-200.0, -1e30, -math.inf])
    def test_a_probability_that_underflows_is_not_nan(self, lowest: float) -> None:
        row = torch.tensor([[0.0, 1.0, lowest]])
        trained = row.clone().requires_grad_()
        for oracle in (row, torch.zeros(1, 3)):
            penalty = distillation(trained, mean_log_probabilities(oracle, 1))
            (gradient,) = torch.autograd.grad(penalty, trained)
            assert penalty.isfinite()
            assert gradient.isfinite().all()
        two = torch.tensor([[0.0, 1.0]])
        expected = divergence(probabilities(two[0].tolist()), [1 / 3, 1 / 3])
        assert penalty.item() == pytest.approx(expected, rel=1e-5)

    def test_is_infinite_where_the_oracle_excludes_what_the_model_believes(self) -> None:
        oracle = mean_log_probabilities(torch.tensor([[0.0, -math.inf]]), 1)
        assert distillation(torch.zeros(1, 2), oracle).item() == math.inf

    def test_a_sample_of_which_the_oracle_says_nan_adds_nothing(self) -> None:
        trained, oracle = logits(4, 3, seed=7).requires_grad_(), logits(8, 3, seed=8)
        means = mean_log_probabilities(oracle, 2)
        expected = distillation(trained[1:], means[1:]).item() * 3 / 4
        oracle[1, 2] = math.inf  # one view overflows
        penalty = distillation(trained, mean_log_probabilities(oracle, 2))
        (gradient,) = torch.autograd.grad(penalty, trained)
        assert penalty.item() == pytest.approx(expected)
        assert not gradient[0].any()
        assert gradient.isfinite().all()


class TestPrecision:
    """Why self-distillation is trained in float32 (design: λ = 1e-5)."""

    @staticmethod
    def gradients(weight: float, precision: torch.dtype) -> list[Tensor]:
        """Gradients of a small network for L + weight · penalty, under autocast to `precision` if that is lower."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10))
        inputs, targets = torch.randn(64, 16), torch.randint(10, (64,))
        oracle = mean_log_probabilities(model(torch.randn(640, 16)).detach(), views=10)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            outputs = model(inputs)
            assert outputs.dtype == precision
            total = F.cross_entropy(outputs, targets) + weight * distillation(outputs, oracle)
        total.backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    def test_the_penalty_vanishes_in_bfloat16(self) -> None:
        without, penalised = (self.gradients(weight, torch.bfloat16) for weight in (0.0, LAMBDA))
        assert all(torch.equal(a, b) for a, b in zip(without, penalised, strict=True))

    def test_the_penalty_is_felt_in_float32(self) -> None:
        without, penalised = (self.gradients(weight, torch.float32) for weight in (0.0, LAMBDA))
        assert not any(torch.equal(a, b) for a, b in zip(without, penalised, strict=True))

    def test_a_large_penalty_survives_bfloat16(self) -> None:
        without, penalised = (self.gradients(weight, torch.bfloat16) for weight in (0.0, 1e4 * LAMBDA))
        assert not any(torch.equal(a, b) for a, b in zip(without, penalised, strict=True))


class TestSequences:
    LENGTHS = (5, 2, 0)

    def targets(self, views: int, longest: int) -> Tensor:
        """Of views next to each other, padded with `IGNORED`."""
        lengths = torch.tensor(self.LENGTHS).repeat_interleave(views)[:, None]
        return torch.zeros(len(lengths), longest).long().masked_fill(torch.arange(longest) >= lengths, IGNORED)

    @pytest.mark.parametrize("padded_to", [5, 9])
    @pytest.mark.parametrize("batch_padded_to", [5, 7])
    def test_is_the_mean_over_own_tokens(self, padded_to: int, batch_padded_to: int) -> None:
        oracle = logits(3 * 4, padded_to, 6, seed=2)
        trained = logits(3, batch_padded_to, 6, seed=1).requires_grad_()
        expected = 0.0
        for b, length in enumerate(self.LENGTHS):
            for t in range(length):
                p = probabilities(trained[b, t].tolist())
                each = [divergence(p, probabilities(oracle[4 * b + i, t].tolist())) for i in range(4)]
                expected += math.fsum(each) / 4 / length
        means = mean_log_probabilities(own_tokens(oracle, self.targets(4, padded_to)), views=4)
        penalty = distillation(trained, means)
        assert penalty.item() == pytest.approx(expected / 3, rel=1e-5)
        penalty.backward()  # type: ignore[no-untyped-call]
        assert trained.grad is not None
        assert trained.grad.isfinite().all()
        assert trained.grad[0, :5].abs().min() > 0
        assert not trained.grad[1, 2:].any(), "what is padded teaches nothing"

    def test_one_prediction_a_sample_needs_no_mask(self) -> None:
        z = logits(4, 3, dtype=torch.bfloat16)
        assert torch.equal(own_tokens(z, "whatever"), z.float())

    @pytest.mark.parametrize("targets", [torch.zeros(2).long(), torch.zeros(2, 5).long(), None])
    def test_targets_that_do_not_tell_which_tokens_count_are_refused(self, targets: object) -> None:
        with pytest.raises(ValueError, match=r"\[n, t, k\] with targets \[n, t\] that tell which tokens count"):
            own_tokens(torch.zeros(2, 4, 3), targets)
