"""What `MinedTrainer` with the baseline method costs over the Hugging Face Trainer itself.

A ViT on images of 32 pixels, B = 32, no workers, one thread. Both Trainers train one and the same model for real, in
one process: short trainings of the one and of the other alternate, so that a busy machine slows both alike, and all
steps of one but the first are timed. The ratio is the median over pairs, of the wall clock and of the process's own
time, which others on the core disturb less; the bound is 1.02. `--control` compares the Trainer with itself.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/host_transformers.py
"""

import argparse
import statistics
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import accelerate
import torch
import transformers
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification

from infer2train.integrations.transformers import MinedTrainer, Mining
from infer2train.observe.runlog import cpu_name


class Images(Dataset[dict[str, Any]]):
    """Random images, flipped at random when they are read."""

    def __init__(self, samples: int, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self._images = torch.randn(samples, 3, size, size, generator=generator)
        self._labels = torch.randint(0, 10, (samples,), generator=generator).tolist()

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self._images[index]
        return {"pixel_values": image.flip(2) if torch.rand(()) < 0.5 else image, "labels": self._labels[index]}


class Watch(TrainerCallback):
    """Times the steps of a training from the end of its first to the end of its last."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After each step."""
        if state.global_step == 1:
            self._started = perf_counter(), process_time()
        elif state.global_step == state.max_steps:
            self.seconds = perf_counter() - self._started[0], process_time() - self._started[1]


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5, help="steps of a training that are timed")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--control", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = {"hidden_size": options.hidden, "num_hidden_layers": options.layers, "num_attention_heads": 3}
    model = ViTForImageClassification(
        ViTConfig(image_size=32, patch_size=4, num_labels=10, intermediate_size=2 * options.hidden, **size)
    )
    versions = (
        f"torch {torch.__version__}, transformers {transformers.__version__}, accelerate {accelerate.__version__}"
    )
    print(f"{cpu_name()}; {versions}; ViT of {options.layers} layers of {options.hidden}, B = {options.batch}")
    with TemporaryDirectory() as folder:
        trainers = [made(is_mined, model, folder, options) for is_mined in (False, not options.control)]
        for trainer in trainers:
            timed(trainer)
        pairs = [in_turn(trainers, turn) for turn in range(options.pairs)]
    for clock, name in enumerate(("wall clock", "process time")):
        alone, mined = ([pair[which][clock] / options.steps for pair in pairs] for which in (0, 1))
        ratio = statistics.median(second / first for first, second in zip(alone, mined, strict=True))
        print(
            f"{name}: Trainer {1000 * statistics.median(alone):.1f} ms/step, "
            f"{'Trainer' if options.control else 'MinedTrainer'} {1000 * statistics.median(mined):.1f}; "
            f"ratio {ratio:.3f} (median of {len(pairs)} pairs; bound 1.02)"
        )


def made(is_mined: bool, model: nn.Module, folder: str, options: argparse.Namespace) -> Trainer:
    """One of the two Trainers."""
    args = TrainingArguments(
        folder,
        max_steps=options.steps + 1,
        per_device_train_batch_size=options.batch,
        optim="sgd",
        logging_steps=options.steps + 1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        log_level="error",
        use_cpu=True,
    )
    data = Images(20 * options.batch, 32)
    if is_mined:
        trainer: Trainer = MinedTrainer(model, args, train_dataset=data, mining=Mining(method="baseline"))
    else:
        trainer = Trainer(model, args, train_dataset=data)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def timed(trainer: Trainer) -> tuple[float, float]:
    """Seconds of a training's steps, by the wall clock and of the process."""
    watch = Watch()
    trainer.add_callback(watch)
    trainer.train()
    trainer.remove_callback(watch)
    return watch.seconds


def in_turn(trainers: list[Trainer], turn: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """A training of each, the one or the other first."""
    if turn % 2:
        second = timed(trainers[1])
        return timed(trainers[0]), second
    return timed(trainers[0]), timed(trainers[1])


if __name__ == "__main__":
    main()
