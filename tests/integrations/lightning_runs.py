"""A small module under Lightning, and the plain loop that does the same."""

import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from infer2train.draws.draw import Draw
from infer2train.integrations.lightning import Mining
from infer2train.loader.mine import mine
from mined_runs import SIZE, jittered, network, sgd

DRAWS, EPOCHS = 6, 3
SETTINGS: dict[str, Any] = {"method": "nm-augment", "gamma": 3, "update_every": 4}


class Data(L.LightningDataModule):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def train_dataloader(self) -> Any:
        return jittered(**self.options)

    def val_dataloader(self) -> Any:
        # Nothing random: what validation draws from the global generators, dropout would not.
        still = TensorDataset(torch.zeros(4, 1, SIZE, SIZE), torch.zeros(4, dtype=torch.long))
        return DataLoader(still, batch_size=4, generator=torch.Generator())


class Module(L.LightningModule):
    """Batch-norm and dropout, so that whatever draws or trains out of turn is seen in the weights."""

    def __init__(self, trained: torch.nn.Module | None = None) -> None:
        super().__init__()
        self.network = trained or network(norm=True, dropout=0.3)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return sgd(self)


class Distilled(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        outputs = self(batch[0])
        return F.cross_entropy(outputs, batch[1]) + self.trainer.train_dataloader.penalty(outputs)


class ByHand(Module):
    """Manual optimisation, a step every `every` batches, by as many optimisers as are asked for."""

    def __init__(self, every: int = 1, parts: int = 1) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.every, self.parts = every, parts

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(super().training_step(batch, batch_idx) / self.every)
        if (batch_idx + 1) % self.every == 0:
            optimizers = self.optimizers()
            for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
                optimizer.step()
                optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        parameters = list(self.parameters())
        return [torch.optim.SGD(parameters[part :: self.parts], lr=0.1, momentum=0.9) for part in range(self.parts)]


class Iterates(Module):
    """Fetches its batches itself."""

    def training_step(self, dataloader_iter: Iterator[Any]) -> Any:  # type: ignore[override]
        batch, batch_idx, _ = next(dataloader_iter)
        return super().training_step(batch, batch_idx)


class Watch(L.Callback):
    """Keeps each draw, after its batch."""

    def __init__(self, mining: Mining) -> None:
        self.mining = mining
        self.draws: list[Draw] = []

    def on_train_batch_end(self, *_: Any) -> None:
        assert self.mining.loader is not None
        assert self.mining.loader.last is not None
        self.draws.append(self.mining.loader.last)


class SaveAt(L.Callback):
    """Saves once so many batches are done, and then does what it is told to."""

    def __init__(self, folder: Path, batches: int, then: Any = None) -> None:
        self.path, self.batches, self.then, self.seen = folder / "at.ckpt", batches, then, 0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.seen += 1
        if self.seen == self.batches:
            trainer.save_checkpoint(self.path)
            if self.then is not None:
                self.then()


def trainer(mining: Mining | None, *callbacks: Any, **options: Any) -> L.Trainer:
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    own = [] if mining is None else [mining]
    warnings.filterwarnings("ignore", module="lightning")
    return L.Trainer(callbacks=[*own, *callbacks], **{"max_epochs": EPOCHS, "accelerator": "cpu", **quiet, **options})


def seed_all(seed: int) -> None:
    for set_seed in (torch.manual_seed, random.seed, np.random.seed):
        set_seed(seed)


def fitted(
    module: L.LightningModule | None = None,
    *callbacks: Any,
    settings: dict[str, Any] = SETTINGS,
    data: dict[str, Any] | None = None,
    ckpt_path: Path | None = None,
    **options: Any,
) -> tuple[L.LightningModule, list[Draw], Mining]:
    """The module after `fit`, the draws that it was trained on, and the callback."""
    seed_all(5)
    module, mining = module or Module(), Mining(**settings)
    watch = Watch(mining)
    trainer(mining, watch, *callbacks, **options).fit(module, datamodule=Data(**data or {}), ckpt_path=ckpt_path)
    return module, watch.draws, mining


def plain(
    *, accumulate: int = 1, limit: int = DRAWS, settings: dict[str, Any] = SETTINGS, epochs: int = EPOCHS
) -> tuple[Module, list[Draw]]:
    """The loop that Lightning is to do the same as."""
    seed_all(5)
    module = Module()
    optimizer = sgd(module)
    loader = mine(jittered(), module, optimizer, accumulation_steps=accumulate, **settings)
    seen = [draw for _ in range(epochs) for draw in _epoch(loader, module, optimizer, accumulate, limit)]
    loader.close()
    return module, seen


def _epoch(loader: Any, module: Module, optimizer: Any, accumulate: int, limit: int) -> Iterator[Draw]:
    for number, (x, y) in enumerate(loader, start=1):
        if (number - 1) % accumulate == 0:
            optimizer.zero_grad()
        outputs = module(x)
        ((F.cross_entropy(outputs, y) + loader.penalty(outputs)) / accumulate).backward()
        if number % accumulate == 0 or number == limit:
            optimizer.step()
        yield loader.last
        if number == limit:
            return
