"""A stream of Hugging Face `datasets`, mined: its shards are read once through in an epoch, window by window.

    pip install datasets
    python examples/stream_datasets.py

Here the shards are scikit-learn's digits as Parquet; `load_dataset("OWNER/NAME", split="train", streaming=True)` gives
the same kind of stream.
"""

import tempfile
from pathlib import Path
from typing import Any

import datasets
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import infer2train


def write_shards(folder: Path, count: int = 4) -> None:
    """The digits as Parquet shards."""
    digits = load_digits()
    whole = datasets.Dataset.from_dict({"image": digits.images / 16, "label": digits.target})
    for i in range(count):
        whole.shard(count, i).to_parquet(folder / f"train-{i:05d}-of-{count:05d}.parquet")


def shifted(item: dict[str, Any]) -> dict[str, Tensor]:
    """The random transform, apart from the stream: every view of an item is made of the one that was read."""
    by = torch.randint(-1, 2, (2,)).tolist()
    return {"image": item["image"].roll(by, dims=(0, 1)).flatten(), "label": item["label"]}


def main() -> None:
    """Train for a few passes and print what the oracle did."""
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder))
        stream = datasets.load_dataset("parquet", data_dir=folder, split="train", streaming=True, cache_dir=folder)
        stream = stream.with_format("torch").shuffle(seed=0, buffer_size=100)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        base = DataLoader(stream, batch_size=64, drop_last=True)
        loader = infer2train.mine(
            base,
            model,
            optimizer,
            method="nm-augment-soft",
            gamma=4,
            update_every=10,
            window=512,
            transform=shifted,
            split=lambda batch: (batch["image"], batch["label"]),
        )
        for epoch in range(2):
            for batch in loader:
                loss = F.cross_entropy(model(batch["image"]), batch["label"])
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            metrics = loader.metrics()
            print(
                f"pass {epoch}: loss {loss.item():.3f}, mean candidate loss {metrics['score_mean']:.3f}, "
                f"mean chosen loss {metrics['score_chosen']:.3f}"
            )
        loader.close()


if __name__ == "__main__":
    main()
