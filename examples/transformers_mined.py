"""A tiny ViT on digits under the Hugging Face Trainer: transformers_plain.py as it was, transformers_mined.py mined.

diff examples/transformers_plain.py examples/transformers_mined.py
"""

import random

import torch
from sklearn.datasets import load_digits
from torch.utils.data import Dataset, Subset
from transformers import TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from infer2train.integrations.transformers import MinedTrainer, Mining


class Digits(Dataset[dict[str, object]]):
    """Scikit-learn's digits, shifted by up to a pixel and a little noisy each time they are read."""

    def __init__(self) -> None:
        digits = load_digits()
        self.images = torch.from_numpy(digits.images).float()[:, None] / 16
        self.targets = digits.target

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, object]:
        shifted = self.images[index].roll((random.randint(-1, 1), random.randint(-1, 1)), dims=(1, 2))
        return {"pixel_values": shifted + 0.1 * torch.randn(1, 8, 8), "labels": int(self.targets[index])}


def main() -> None:
    """Train for a few epochs and print what the Trainer logs."""
    set_seed(0)
    shape = {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 10, "initializer_range": 0.1}
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = ViTForImageClassification(ViTConfig(**shape, **size))
    args = TrainingArguments(
        output_dir="runs/digits",
        num_train_epochs=4,
        per_device_train_batch_size=32,
        learning_rate=1e-2,
        logging_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    data = Digits()
    train, test = Subset(data, range(1400)), Subset(data, range(1400, len(data)))
    trainer = MinedTrainer(model, args, train_dataset=train, mining=Mining(method="nm-sample", gamma=4, update_every=5))
    trainer.train()
    print(trainer.evaluate(test))


if __name__ == "__main__":
    main()
