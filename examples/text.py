"""A model of text, trained on the sentences that it finds hardest: two lines differ from what the loop was before.

    python examples/text.py

The text is Python's own reference, which every installation has. A sentence is padded to the longest of its batch, and
what is padded has the target -100: a sentence scores the mean loss of its own characters. `oracle="int8"` would score
in integers, whatever the lengths.
"""

from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

import infer2train

CHARACTERS, SHORTEST, LONGEST, IGNORED = 128, 8, 128, -100


def sentences() -> list[Tensor]:
    """Lines of the reference as ASCII codes."""
    lines = (line.strip() for text in topics.values() for line in text.splitlines())
    return [torch.tensor([*line.encode("ascii", "replace")]) for line in lines if SHORTEST <= len(line) <= LONGEST]


def collate(items: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Characters, and for each the one that follows."""
    characters = pad_sequence([item[:-1] for item in items], batch_first=True)
    following = pad_sequence([item[1:] for item in items], batch_first=True, padding_value=IGNORED)
    return characters, following


class Characters(nn.Module):
    """Predicts each character from the eight before it."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, width)
        self.near, self.far = nn.Conv1d(width, width, 4), nn.Conv1d(width, width, 3, dilation=2)
        self.head = nn.Linear(width, CHARACTERS)

    def forward(self, characters: Tensor) -> Tensor:
        x = self.embedding(characters).transpose(1, 2)
        x = x + F.relu(self.near(F.pad(x, (3, 0))))
        x = x + F.relu(self.far(F.pad(x, (4, 0))))
        return self.head(x.transpose(1, 2))  # type: ignore[no-any-return]


def main() -> None:
    """Train for a few epochs and print what the oracle did."""
    torch.manual_seed(0)
    model = Characters()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    base = DataLoader(sentences()[:1024], batch_size=64, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]
    loader = infer2train.mine(
        base, model, optimizer, method="nm-sample", gamma=4, balance="none", epochs=3, update_every=10
    )
    for epoch in range(3):
        for characters, following in loader:
            loss = F.cross_entropy(model(characters).transpose(1, 2), following, ignore_index=IGNORED)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        metrics = loader.metrics()
        print(
            f"epoch {epoch}: loss {loss.item():.3f}, mean candidate loss {metrics['score_mean']:.3f}, mean chosen loss "
            f"{metrics['score_chosen']:.3f}"
        )


if __name__ == "__main__":
    main()
