"""A trainer of Ignite's, mined.

    python examples/ignite_mined.py

Two lines are new in it, beside those of examples/ignite_plain.py.
"""

import random

import torch
from ignite.engine import Engine, Events, create_supervised_trainer
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
    """Train for a few epochs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(Digits(), batch_size=64, shuffle=True)
    loader = infer2train.mine(loader, model, optimizer, method="nm-augment-soft", gamma=4, update_every=10)
    trainer = create_supervised_trainer(model, optimizer, F.cross_entropy)

    @trainer.on(Events.EPOCH_COMPLETED)
    def show(engine: Engine) -> None:
        print(f"epoch {engine.state.epoch}: loss {engine.state.output:.3f}")

    trainer.run(loader, max_epochs=3)


if __name__ == "__main__":
    main()
