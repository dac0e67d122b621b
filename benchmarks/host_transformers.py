"""What `MinedTrainer` with the baseline method costs over the Hugging Face Trainer itself.

A ViT on images of 32 pixels, B = 32, no workers, one thread. Both Trainers train for real, side by side in one process:
blocks of steps of the one and of the other alternate, so that a busy machine slows both alike. The ratio is the median
over pairs of blocks, of the wall clock and of the process's own time, which others on the core disturb less; the bound
is 1.02. Most of the difference is what `mine()` itself does to each sample that a map-style data set reads in this
process (seeding the global generators), and does not grow with the model.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/host_transformers.py
"""

import argparse
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import accelerate
import torch
import transformers
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


class Turns:
    """Two threads that run by turns, never both: each Trainer has one, since `train()` returns only at its end."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._whose = -1

    @contextmanager
    def of(self, who: int) -> Iterator[None]:
        """Within, it is that one's turn."""
        self.wait_for(who)
        yield
        self.give(-1)

    def wait_for(self, who: int) -> None:
        """Wait until it is."""
        with self._turn:
            self._turn.wait_for(lambda: self._whose == who)

    def give(self, who: int) -> None:
        """Let another one run."""
        with self._turn:
            self._whose = who
            self._turn.notify_all()


class Blocks(TrainerCallback):
    """Hands the turn back after each block of steps, with the seconds that it took."""

    def __init__(self, turns: Turns, who: int, steps: int) -> None:
        self._turns, self._who, self._steps = turns, who, steps
        self.seconds: list[tuple[float, float]] = []
        """Of each block: by the wall clock, of the process."""
        self._started: tuple[float, float] | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Between two steps of the Trainer."""
        if state.global_step % self._steps:
            return
        if self._started is not None:
            self.seconds.append((perf_counter() - self._started[0], process_time() - self._started[1]))
        self._turns.give(-1)
        self._turns.wait_for(self._who)
        self._started = perf_counter(), process_time()


def main() -> None:
    """Measure, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4, help="steps in a block")
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    turns = Turns()
    with TemporaryDirectory() as folder:
        threads, blocks = [], []
        for who, make in enumerate((Trainer, baseline)):
            callback = Blocks(turns, who, options.steps)
            trainer = made(make, folder, options, callback)
            blocks.append(callback)
            threads.append(threading.Thread(target=run, args=(turns, who, trainer), daemon=True))
        for thread in threads:
            thread.start()
        for block in range(options.blocks + 1):  # the first turn ends where the first block begins
            for who in (0, 1) if block % 2 else (1, 0):
                turns.give(who)
                turns.wait_for(-1)
    versions = (
        f"torch {torch.__version__}, transformers {transformers.__version__}, accelerate {accelerate.__version__}"
    )
    print(f"{cpu_name()}; {versions}; ViT of {options.layers} layers of {options.hidden}, B = {options.batch}")
    for clock, name in enumerate(("wall clock", "process time")):
        pairs = [(a[clock], b[clock]) for a, b in zip(*(callback.seconds for callback in blocks), strict=True)]
        alone, mined = (1000 * statistics.median(column) / options.steps for column in zip(*pairs, strict=True))
        ratio = statistics.median(second / first for first, second in pairs)
        print(
            f"{name}: Trainer {alone:.1f} ms/step, MinedTrainer(method='baseline') {mined:.1f}; ratio {ratio:.3f} "
            f"(median of {len(pairs)} pairs of {options.steps} steps; bound 1.02)"
        )


def baseline(*given: Any, **named: Any) -> MinedTrainer:
    """Mining that only hands on what the Trainer's own loader would give."""
    return MinedTrainer(*given, mining=Mining(method="baseline"), **named)


def made(make: Callable[..., Any], folder: str, options: argparse.Namespace, callback: TrainerCallback) -> Any:
    """One of the two Trainers."""
    torch.manual_seed(0)
    size = {"hidden_size": options.hidden, "num_hidden_layers": options.layers, "num_attention_heads": 3}
    config = ViTConfig(image_size=32, patch_size=4, num_labels=10, intermediate_size=2 * options.hidden, **size)
    args = TrainingArguments(
        folder,
        max_steps=options.steps * (options.blocks + 2),
        per_device_train_batch_size=options.batch,
        logging_steps=options.steps,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        log_level="error",
        use_cpu=True,
    )
    trainer = make(ViTForImageClassification(config), args, train_dataset=Images(50 * options.batch, 32))
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.add_callback(callback)
    return trainer


def run(turns: Turns, who: int, trainer: Any) -> None:
    """Train, from the first turn on."""
    turns.wait_for(who)
    trainer.train()


if __name__ == "__main__":
    main()
