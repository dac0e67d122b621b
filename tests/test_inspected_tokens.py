"""Which loss is whose: of next tokens, of tokens that are hidden, of tags; padding, shades, and what is refused."""

import math

import pytest
import torch
from torch import Tensor, nn

from infer2train.batches import logits_of
from infer2train.draws.scores import loss
from infer2train.studies.inspection.judge import Judge, losses_like, losses_of_tokens
from infer2train.studies.inspection.tokens import MOST_TOKENS, Token, as_marked, ids_of, shade, tokens_of

NAN = float("nan")


def told(tokens: list[Token]) -> list[tuple[int, float | None, int | None]]:
    return [(token.id, None if math.isnan(token.loss) else round(token.loss, 2), token.wanted) for token in tokens]


def test_a_loss_of_what_comes_next_is_of_the_next_token() -> None:
    ids, targets = torch.tensor([7, 8, 9, 0, 0]), torch.tensor([8, 9, 4, -100, -100])
    found = tokens_of(ids, targets, torch.tensor([0.1, 0.2, 0.3, NAN, NAN]))
    assert told(found) == [(7, None, None), (8, 0.1, None), (9, 0.2, None), (4, 0.3, None)]
    assert told(tokens_of(ids, targets, None)) == [(id_, None, None) for id_ in (7, 8, 9, 4)]


def test_a_prompt_is_read_and_has_no_loss() -> None:
    ids, targets = torch.tensor([7, 8, 9, 5]), torch.tensor([-100, -100, 5, 6])
    found = tokens_of(ids, targets, torch.tensor([NAN, NAN, 0.5, 0.6]))
    assert told(found) == [(7, None, None), (8, None, None), (9, None, None), (5, 0.5, None), (6, 0.6, None)]


def test_labels_that_the_model_moves_itself_have_one_loss_fewer() -> None:
    inputs = {"input_ids": torch.tensor([0, 7, 8, 9]), "attention_mask": torch.tensor([0, 1, 1, 1])}
    found = tokens_of(inputs, torch.tensor([-100, 7, 8, 9]), torch.tensor([NAN, 0.8, 0.9]))
    assert told(found) == [(7, None, None), (8, 0.8, None), (9, 0.9, None)]


def test_a_hidden_token_and_a_tag_have_theirs_where_they_stand() -> None:
    hidden = {"input_ids": torch.tensor([7, 1, 9, 0]), "attention_mask": torch.tensor([1, 1, 1, 0])}
    found = tokens_of(hidden, torch.tensor([-100, 8, -100, -100]), torch.tensor([NAN, 2.0, NAN, NAN]))
    assert told(found) == [(7, None, None), (1, 2.0, 8), (9, None, None)]
    tags = tokens_of(torch.tensor([7, 8, 9]), torch.tensor([0, 2, 0]), torch.tensor([0.1, 0.2, 0.3]))
    assert told(tags) == [(7, 0.1, 0), (8, 0.2, 2), (9, 0.3, 0)]
    assert 'title="loss 0.20, target 2">8 <i> 0.20, target 2 </i>' in as_marked(tags, None)


def test_a_class_of_the_whole_text_shades_no_token() -> None:
    assert told(tokens_of(torch.tensor([3, 3]), torch.tensor(1), torch.tensor(0.7))) == [(3, None, None)] * 2


def test_losses_of_another_number_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a loss for each token, or for each but the first: got \(4,\) for 2 tokens"):
        tokens_of(torch.tensor([3, 3]), torch.tensor([3, 3]), torch.zeros(4))


@pytest.mark.parametrize("inputs", [torch.zeros(3), torch.zeros(2, 3, dtype=torch.long), "text", {"x": torch.ones(2)}])
def test_other_inputs_are_no_tokens(inputs: object) -> None:
    assert ids_of(inputs) is None


def test_whatever_a_token_says_is_text() -> None:
    said = as_marked([Token(0, 9.0), Token(1)], lambda token: ["<script>alert('1')</script>", "\n"][token])
    assert "<script" not in said
    assert '<b class="s4" title="loss 9.00">&lt;script&gt;' in said
    assert "<span>↵\n</span>" in said
    assert as_marked([Token(5)] * (MOST_TOKENS + 1), None).count("<span>") == MOST_TOKENS


@pytest.mark.parametrize(("chance", "expected"), [(1.0, 0), (0.51, 0), (0.49, 1), (0.05, 2), (0.005, 3), (1e-30, 4)])
def test_shades_are_of_chances(chance: float, expected: int) -> None:
    assert shade(-math.log(chance)) == expected
    assert shade(NAN) == 0
    assert shade(float("inf")) == 4


@pytest.mark.parametrize(
    ("logits", "targets"),
    [
        (torch.randn(3, 5), torch.tensor([0, 4, 2])),
        (torch.randn(2, 3, 5), torch.tensor([[0, -100, 1], [-100, -100, 4]])),
        (torch.randn(2, 5, 2, 2), torch.tensor([[[0, -100], [1, 3]], [[2, 2], [4, -100]]])),
    ],
)
def test_losses_of_tokens_are_those_that_the_score_is_the_mean_of(logits: Tensor, targets: Tensor) -> None:
    found = losses_of_tokens({"logits": logits}, targets)
    assert found.shape == targets.shape
    assert torch.equal(found.isnan(), targets == -100)
    torch.testing.assert_close(found.flatten(1).nanmean(1) if found.ndim > 1 else found, loss(logits, targets))


def test_numbers_have_the_loss_of_their_score() -> None:
    found = Judge(nn.Linear(2, 1), losses_like("squared-error"))(torch.ones(3, 2), torch.ones(3, 1))
    assert found.shape == (3,)
    assert losses_like(None) is losses_like("entropy") is losses_of_tokens


def test_a_judge_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 3))
    model[1].eval()
    judge = Judge(model, lambda outputs, targets: logits_of(outputs)[:, 0])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = judge(torch.ones(4, 2), None), judge(torch.ones(4, 2), None)
    assert torch.equal(first, second), "without dropout"
    assert [module.training for module in model] == [True, False, True]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match=r"one loss for each sample, \[n\].*: got a mean"):
        Judge(model, lambda outputs, targets: outputs.mean())(torch.ones(4, 2), None)
