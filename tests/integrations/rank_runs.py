"""The same small run on several ranks under each host. As a program, one rank of it:

torchrun --nproc-per-node 2 rank_runs.py HOST FOLDER
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from infer2train.draws.draw import Draw
from infer2train.loader.mine import mine
from mined_runs import CLASSES, SIZE, Jittered, sgd

SAMPLES, BATCH, EPOCHS = 46, 8, 2
"""Six draws an epoch of all ranks, the last of six samples."""
STOP = 8
"""Draws before a run stops, in the midst of its second epoch."""
METHODS: dict[str, dict[str, Any]] = {
    "nm-augment": {"gamma": 3, "update_every": 2},
    "nm-sample": {"gamma": 3, "update_every": 2, "ramp_rate": 1.0},
}
ACCUMULATED = {"nm-augment": 2, "nm-sample": 1}
"""Draws of a step, but under the Trainer."""
Row = tuple[int, int | None, list[tuple[int, int]]]
"""Of a draw its number, its version, and this rank's addresses."""


class Network(nn.Module):
    """Computes in float64 where it is trained, so that summing gradients in another order moves no score."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Linear(SIZE * SIZE, 12).double()
        self.last = nn.Linear(12, CLASSES).double()

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.first(images.flatten(1).to(self.first.weight.dtype)).relu())
        return outputs


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def base(data: Any = None) -> "DataLoader[Any]":
    return DataLoader(data or Jittered(SAMPLES), BATCH // world(), shuffle=True)


def row(draw: Draw | None) -> Row:
    assert draw is not None
    return draw.number, draw.version, [(int(i), int(seed)) for i, seed in draw.addresses]


def loop(method: str) -> list[Row]:
    """The loop of one's own."""
    model, every = Network(), ACCUMULATED[method]
    optimizer = sgd(model)
    loader = mine(base(), model, optimizer, method=method, accumulation_steps=every, **METHODS[method])
    rows: list[Row] = []
    for _ in range(EPOCHS):
        for place, (x, y) in enumerate(loader, 1):
            (F.cross_entropy(model(x), y) / every).backward()
            if place % every == 0:
                optimizer.step()
                optimizer.zero_grad()
            rows.append(row(loader.last))
    loader.close()
    return rows


# Under each host: rows of a method, from the beginning or from what is saved in a folder; and that is saved where the
# run stops


def accelerate(method: str, saved: Path, *, goes_on: bool = False) -> list[Row]:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATED[method])
    model = Network()
    model, optimizer, loader = accelerator.prepare(model, sgd(model), base())
    loader = mine(loader, model, optimizer, method=method, **METHODS[method])
    accelerator.register_for_checkpointing(loader)
    if goes_on:
        accelerator.load_state(saved)
    assert len(loader) == 6
    rows: list[Row] = []
    for _ in range(loader.epoch, EPOCHS):
        for x, y in loader:
            with accelerator.accumulate(model):
                accelerator.backward(F.cross_entropy(model(x), y))
                optimizer.step()
                optimizer.zero_grad()
            rows.append(row(loader.last))
            if len(rows) == STOP:
                accelerator.save_state(saved)
    loader.close()
    return rows


def transformers(method: str, saved: Path, *, goes_on: bool = False) -> list[Row]:
    from transformers import TrainerCallback, TrainingArguments

    from infer2train.integrations.transformers import MinedTrainer, Mining

    arguments = TrainingArguments(
        str(saved),
        per_device_train_batch_size=BATCH // world(),
        num_train_epochs=EPOCHS,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        save_steps=STOP,
        use_cpu=True,
        ddp_backend="gloo" if world() > 1 else None,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = MinedTrainer(
        Labelled(), arguments, train_dataset=Examples(SAMPLES), mining=Mining(method=method, **METHODS[method])
    )
    rows: list[Row] = []

    class Watch(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            assert trainer.loader is not None
            rows.append(row(trainer.loader.last))

    trainer.add_callback(Watch())
    trainer.train(resume_from_checkpoint=str(saved / f"checkpoint-{STOP}") if goes_on else None)
    assert trainer.state.max_steps == 6 * EPOCHS
    return rows


class Labelled(Network):
    """As Transformers' models are: it takes a mapping's entries, and knows its loss."""

    def forward(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:  # type: ignore[override]
        outputs = super().forward(images)
        return {"logits": outputs} | ({} if labels is None else {"loss": F.cross_entropy(outputs, labels)})


class Examples(Jittered):
    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]
        image, label = super().__getitem__(index)
        return {"images": image, "labels": label}


def lightning(method: str, saved: Path, *, goes_on: bool = False) -> list[Row]:
    from lightning_runs import Data, Mining, Module, SaveAt, Watch, trainer

    mining = Mining(method=method, **METHODS[method])
    watch, save = Watch(mining), SaveAt(saved, STOP)
    several: dict[str, Any] = {"devices": 2, "strategy": "ddp"} if world() == 2 else {}
    one = trainer(mining, watch, save, max_epochs=EPOCHS, accumulate_grad_batches=ACCUMULATED[method], **several)
    one.fit(Module(Network()), base(), Data().val_dataloader(), ckpt_path=save.path if goes_on else None)
    assert one.num_training_batches == 6
    return [row(draw) for draw in watch.draws]


HOSTS: dict[str, Callable[..., list[Row]]] = {
    "accelerate": accelerate,
    "transformers": transformers,
    "lightning": lightning,
}


def told(host: str, folder: Path) -> Iterator[tuple[str, list[Row]]]:
    for method in METHODS:
        yield method, HOSTS[host](method, folder / method)
    yield "resumed", HOSTS[host]("nm-sample", folder / "nm-sample", goes_on=True)


if __name__ == "__main__":
    name, place = sys.argv[1:]
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    (Path(place) / f"rows-{rank}.json").write_text(json.dumps(dict(told(name, Path(place)))))
    torch.distributed.destroy_process_group()
