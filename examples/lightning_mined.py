"""Scikit-learn's digits under Lightning. `lightning_mined.py` is the same program, mined: two lines differ.

python examples/lightning_plain.py
python examples/lightning_mined.py
"""

import random
from typing import Any

import lightning.pytorch as L
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset

from infer2train.integrations.lightning import Mining


class Digits(Dataset[tuple[Tensor, int]]):
    """Images, shifted by up to a pixel and a little noisy each time they are read, where that is asked for."""

    def __init__(self, augment: bool) -> None:
        digits = load_digits()
        self.images = torch.from_numpy(digits.images).float() / 16
        self.targets = digits.target
        self.augment = augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        if self.augment:
            image = image.roll((random.randint(-1, 1), random.randint(-1, 1)), dims=(0, 1)) + 0.1 * torch.randn(8, 8)
        return image.flatten(), int(self.targets[index])


class DigitsData(L.LightningDataModule):
    """Three quarters to train on, the rest to validate."""

    def train_dataloader(self) -> DataLoader[Any]:
        """Augmented and shuffled."""
        return DataLoader(Subset(Digits(augment=True), range(1348)), batch_size=64, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """As they are."""
        return DataLoader(Subset(Digits(augment=False), range(1348, 1797)), batch_size=256)


class Classifier(L.LightningModule):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        images, targets = batch
        return F.cross_entropy(self(images), targets)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """The share of digits that are taken for another one."""
        images, targets = batch
        self.log("error", (self(images).argmax(1) != targets).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def main() -> None:
    """Train for a few epochs, and print the error of validation."""
    L.seed_everything(0)
    trainer = L.Trainer(
        max_epochs=2,
        callbacks=[Mining(method="nm-augment", gamma=4, update_every=10)],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(), datamodule=DigitsData())
    print(f"error {trainer.callback_metrics['error']:.3f}")


if __name__ == "__main__":
    main()
