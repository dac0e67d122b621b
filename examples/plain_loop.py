"""A training loop of one's own, mined: two lines differ from what it was before.

    python examples/plain_loop.py

The data set augments inside `__getitem__` with whatever generators it likes; it and the DataLoader stay as they are.
"""

import random

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import infer2train


class Digits(Dataset[tuple[Tensor, int]]):
    """Scikit-learn's digits, shifted by up to a pixel and a little noisy each time they are read."""

    def __init__(self) -> None:
        digits = load_digits()
        self.images = torch.from_numpy(digits.images).float() / 16
        self.targets = digits.target

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        shifted = self.images[index].roll((random.randint(-1, 1), random.randint(-1, 1)), dims=(0, 1))
        return (shifted + 0.1 * torch.randn(8, 8)).flatten(), int(self.targets[index])


def main() -> None:
    """Train for a few epochs and print what the oracle did."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    base = DataLoader(Digits(), batch_size=64, shuffle=True, num_workers=2)
    loader = infer2train.mine(base, model, optimizer, method="nm-augment-soft", gamma=10, update_every=10)
    for epoch in range(5):
        for images, targets in loader:
            loss = F.cross_entropy(model(images), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        metrics = loader.metrics()
        print(
            f"epoch {epoch}: loss {loss.item():.3f}, lag {metrics['lag']:.1f} steps, mean candidate loss "
            f"{metrics['score_mean']:.3f}, mean chosen loss {metrics['score_chosen']:.3f}"
        )


if __name__ == "__main__":
    main()
