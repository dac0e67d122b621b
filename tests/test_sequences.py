"""Sequences of several lengths, padded batch by batch, mined from end to end: a target for each token."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from infer2train import mine
from infer2train.draws.scores import IGNORED
from infer2train.sources.replay import Replay
from mined_runs import sgd

N, WORDS, BATCH = 32, 9, 8


class Sentences(Dataset[Any]):
    """Words, some of them masked by chance; the target of each is itself."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        words = torch.randint(1, WORDS, (2 + i % 7,), generator=torch.Generator().manual_seed(i))
        return words * (torch.rand(len(words)) < 0.7), words


def collate(items: list[tuple[Tensor, Tensor]], side: str = "right") -> tuple[Tensor, Tensor]:
    seen, wanted = map(list, zip(*items, strict=True))
    return (
        pad_sequence(seen, batch_first=True, padding_side=side),
        pad_sequence(wanted, batch_first=True, padding_value=IGNORED, padding_side=side),
    )


def after_a_prompt(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Only the last token of each counts."""
    seen, wanted = map(list, zip(*items, strict=True))
    last = [F.pad(words[-1:], (len(words) - 1, 0), value=IGNORED) for words in wanted]
    return pad_sequence(seen, batch_first=True), pad_sequence(last, batch_first=True, padding_value=IGNORED)


def to_one_length(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Padded in front."""
    seen, wanted = zip(*items, strict=True)
    return (
        torch.stack([F.pad(words, (9 - len(words), 0)) for words in seen]),
        torch.stack([F.pad(words, (9 - len(words), 0), value=IGNORED) for words in wanted]),
    )


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden, self.head = nn.Embedding(WORDS, 8), nn.Linear(8, 8), nn.Linear(8, WORDS)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(self.embedding(words))))  # type: ignore[no-any-return]


def own_mean(model: nn.Module, words: Tensor, targets: Tensor) -> Tensor:
    """Each sequence's loss as if it were alone in its batch."""
    with torch.no_grad():
        z = model(words)
    pairs = zip(z, targets, strict=True)
    return torch.stack([F.cross_entropy(row, t, ignore_index=IGNORED) for row, t in pairs])


def loop(**settings: Any) -> tuple[Any, nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Tagger()
    optimizer = sgd(model)
    base = DataLoader(Sentences(), batch_size=BATCH, shuffle=True, collate_fn=collate)
    return mine(base, model, optimizer, update_every=1, oracle_chunk=4, **settings), model, optimizer


@pytest.mark.parametrize("oracle", ["torch:fp32", "simulated:b8"])
@pytest.mark.parametrize("method", ["nm-augment", "nm-sample"])
def test_sequences_are_mined_by_the_mean_of_their_own_tokens(oracle: str, method: str) -> None:
    settings = {"balance": "none", "ramp_rate": 1.0} if method == "nm-sample" else {}
    loader, model, optimizer = loop(method=method, gamma=3, oracle=oracle, **settings)
    assert loader.mining.oracle == oracle
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if oracle == "torch:fp32" else {"rtol": 0.1, "atol": 0.1}
    scored = 0
    for _ in range(2):
        for words, targets in loader:
            if loader.last.scores is not None:
                scored += 1
                scores = loader.last.scores[torch.from_numpy(loader.last.chosen)]
                torch.testing.assert_close(scores, own_mean(model, words, targets), **tolerance)
            F.cross_entropy(model(words).transpose(1, 2), targets, ignore_index=IGNORED).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert scored >= N // BATCH


def test_class_quotas_of_token_targets_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"one class label .* for each sample: .*; pass balance='none'"):
        loop(method="nm-sample", gamma=2, epochs=2)


@pytest.mark.parametrize("pool", ["inline", "process"])
def test_the_penalty_of_a_sequence_is_the_mean_over_its_own_tokens(pool: str) -> None:
    loader, model, optimizer = loop(method="self-distill", gamma=3, distill_weight=1.0, pool=pool)
    read = Replay(Sentences(), collate)
    for words, targets in loader:
        outputs = model(words)
        penalty = loader.penalty(outputs)
        expected = torch.zeros(())
        for sample, (row, own) in enumerate(zip(outputs, targets != IGNORED, strict=True)):
            views = read.batch(loader.last.candidates[3 * sample : 3 * sample + 3])[0][:, : int(own.sum())]
            q = model(views).detach().log_softmax(2).mean(0)
            p = row[own].log_softmax(1)
            expected = expected + (p.exp() * (p - q)).sum(1).mean()
        torch.testing.assert_close(penalty, expected / len(words))
        (F.cross_entropy(outputs.transpose(1, 2), targets, ignore_index=IGNORED) + penalty).backward()
        optimizer.step()
        optimizer.zero_grad()
    loader.close()


def test_sequences_padded_in_front_are_refused_by_distillation_alone() -> None:
    base = DataLoader(Sentences(), batch_size=BATCH, collate_fn=partial(collate, side="left"))
    with pytest.raises(ValueError, match=r"padded in front, from 2 to 8; pad behind \(padding_side='right'\)"):
        mine(base, Tagger(), method="self-distill", gamma=2)
    mine(base, Tagger(), method="nm-augment", gamma=2).close()


@pytest.mark.parametrize("collate_fn", [collate, after_a_prompt, to_one_length])
def test_what_distillation_compares_rightly_is_not_refused(collate_fn: Any) -> None:
    base = DataLoader(Sentences(), batch_size=BATCH, collate_fn=collate_fn)
    mine(base, Tagger(), method="self-distill", gamma=2).close()
