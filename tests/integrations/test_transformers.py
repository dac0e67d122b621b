"""Mining under the Hugging Face Trainer: the plain loop's picks, resumed exactly, and nothing else moved."""

import difflib
import itertools
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from sklearn import datasets
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    default_data_collator,
    set_seed,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

import infer2train
from infer2train.draws.draw import Draw
from infer2train.integrations.transformers import MinedTrainer, Mining, MiningMixin
from integrations.host_runs import die, killed

ROOT = Path(__file__).resolve().parents[2]
BATCH, SEED, LR = 8, 42, 0.1
SAMPLES = 5 * BATCH
pytestmark = [
    pytest.mark.usefixtures("unchecked_types"),  # as users call: what the Trainer hands on is its own business
    pytest.mark.filterwarnings("ignore:the oracle gets new weights every:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]


# What is trained: a tiny ViT on digits, a tiny BERT on sentences of scikit-learn's descriptions


class Digits(Dataset[Any]):
    """Digits with noise that differs each time, and a column that no model takes."""

    def __init__(self, noise: float = 0.3) -> None:
        digits = datasets.load_digits()
        self.images = torch.from_numpy(digits.images[:SAMPLES]).float()[:, None] / 16
        self.labels, self.noise = digits.target[:SAMPLES], noise

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.images[index] + self.noise * torch.randn(1, 8, 8)
        return {"pixel_values": image, "labels": int(self.labels[index]), "no_argument_of_forward": "a name"}


class Sentences(Dataset[Any]):
    """Lines of descriptions of data sets, each without a random part of its words; the label is the data set."""

    def __init__(self) -> None:
        sources = (datasets.load_iris, datasets.load_wine, datasets.load_breast_cancer, datasets.load_diabetes)
        lines = [[line for line in load().DESCR.splitlines() if len(line.split()) > 3][:10] for load in sources]
        self.texts = [(line, label) for label, some in enumerate(lines) for line in some]
        words = sorted({word for line, _ in self.texts for word in line.split()})
        vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *words])}
        model = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
        model.pre_tokenizer = Whitespace()
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, pad_token="[PAD]", unk_token="[UNK]")

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        line, label = self.texts[index]
        kept = [word for word in line.split() if random.random() < 0.8] or ["data"]
        return {**self.tokenizer(" ".join(kept), max_length=32, truncation=True), "label": label}


def vit(dropout: float = 0.1) -> nn.Module:
    torch.manual_seed(0)
    shape = {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 10, "initializer_range": 0.3}
    return ViTForImageClassification(ViTConfig(**shape, **small(dropout)))


def bert(dropout: float = 0.1) -> nn.Module:
    torch.manual_seed(0)
    shape = {"vocab_size": 400, "max_position_embeddings": 32, "num_labels": 4, "initializer_range": 0.3}
    return BertForSequenceClassification(BertConfig(**shape, **small(dropout)))


def small(dropout: float) -> dict[str, Any]:
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return size | {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}


# The Trainer, and the plain loop


class Recording(MinedTrainer):
    """Keeps which draws were fetched, and how many of them before each step."""

    picked: list[Draw]

    def get_batch_samples(self, epoch_iterator: Iterator[Any], *rest: Any) -> Any:
        return super().get_batch_samples(self._watched(epoch_iterator), *rest)

    def _watched(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            assert self.loader is not None
            assert self.loader.last is not None
            self.picked.append(self.loader.last)
            yield batch


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    usual = {
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 3,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "seed": SEED,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return TrainingArguments(str(folder), **usual | changes)


def images(folder: Path, mining: Mining, *, dropout: float = 0.1, data: Any = None, **changes: Any) -> Recording:
    trainer = Recording(vit(dropout), arguments(folder, **changes), train_dataset=data or Digits(), mining=mining)
    trainer.picked = []
    return trainer


def text(folder: Path, mining: Mining, **changes: Any) -> Recording:
    data = Sentences()
    collate, settings = DataCollatorWithPadding(data.tokenizer), arguments(folder, **changes)
    trainer = Recording(bert(), settings, collate, data, processing_class=data.tokenizer, mining=mining)
    trainer.picked = []
    return trainer


def plain_loop(model: nn.Module, base: "DataLoader[Any]", mining: Mining, micro: int = 1) -> list[Draw]:
    """The loop that a user without a Trainer writes, whose loss is a mean over all micro-batches of a step."""
    optimizer, picked = torch.optim.SGD(model.parameters(), lr=LR), []
    loader = infer2train.mine(base, model, optimizer, replace(mining, accumulation_steps=micro, epochs=3))
    torch.manual_seed(SEED)
    for _ in range(3):
        for place, batch in enumerate(loader):
            group = min(micro, len(loader) - place // micro * micro)
            outputs = model.train()(**batch, num_items_in_batch=torch.tensor(BATCH * group))
            (outputs.loss + loader.penalty(outputs) / group).backward()
            picked.append(loader.last)
            if (place + 1) % micro == 0 or place + 1 == len(loader):
                optimizer.step()
                optimizer.zero_grad()
    loader.close()
    return picked


def base_of(data: Any, collate: Any, sampler: "Sampler[int] | None" = None) -> "DataLoader[Any]":
    """A DataLoader in the order that the Trainer has."""
    sampler = SeedableRandomSampler(data, data_seed=SEED) if sampler is None else sampler
    return DataLoader(data, batch_sampler=BatchSampler(sampler, BATCH, drop_last=False), collate_fn=collate)


def without_names(collate: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda items: collate([{k: v for k, v in item.items() if k != "no_argument_of_forward"} for item in items])


def addresses(picked: list[Draw]) -> list[tuple[list[int], list[int], int | None]]:
    return [(draw.addresses.ids.tolist(), draw.addresses.seeds.tolist(), draw.version) for draw in picked]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_weights(first: nn.Module, second: nn.Module) -> None:
    theirs = second.state_dict()
    assert [name for name, tensor in first.state_dict().items() if not torch.equal(tensor, theirs[name])] == []


SAMPLE = Mining(method="nm-sample", gamma=4, update_every=3, ramp_start=0.0, ramp_stop=0.5)
VIEWS = Mining(method="nm-augment", gamma=4, update_every=3)
DISTILL = Mining(method="self-distill", gamma=3, update_every=2, distill_weight=0.5)


@pytest.mark.parametrize(
    ("mining", "micro"), [(SAMPLE, 2), (VIEWS, 1), (DISTILL, 2)], ids=["sample", "views", "distil"]
)
def test_images_are_picked_and_trained_on_as_in_the_plain_loop(mining: Mining, micro: int, tmp_path: Path) -> None:
    trainer = images(tmp_path, mining, gradient_accumulation_steps=micro)
    trainer.train()
    model = vit()
    picked = plain_loop(model, base_of(Digits(), without_names(default_data_collator)), mining, micro)
    assert len(picked) == 15
    assert any(draw.version not in (None, 0) for draw in picked), "the oracle never changed"
    assert addresses(trainer.picked) == addresses(picked)
    assert_same_weights(trainer.model, model)


@pytest.mark.parametrize("grouped", [False, True], ids=["shuffled", "by-length"])
def test_padded_text_is_picked_and_trained_on_as_in_the_plain_loop(grouped: bool, tmp_path: Path) -> None:
    strategy = "group_by_length" if grouped else "random"
    trainer = text(tmp_path, VIEWS, train_sampling_strategy=strategy, gradient_accumulation_steps=2)
    trainer.train()
    model, data = bert(), Sentences()
    set_seed(SEED)  # lengths are those of sentences without a random part
    sampler = LengthGroupedSampler(2 * BATCH, dataset=data, model_input_name="input_ids") if grouped else None
    picked = plain_loop(model, base_of(data, DataCollatorWithPadding(data.tokenizer), sampler), VIEWS, 2)
    assert addresses(trainer.picked) == addresses(picked)
    assert_same_weights(trainer.model, model)


def test_baseline_trains_the_very_weights_that_the_trainer_trains(tmp_path: Path) -> None:
    mined = images(
        tmp_path, Mining(method="baseline"), dropout=0.0, data=Digits(noise=0.0), gradient_accumulation_steps=2
    )
    mined.train()
    plain = Trainer(vit(0.0), arguments(tmp_path, gradient_accumulation_steps=2), train_dataset=Digits(noise=0.0))
    plain.train()
    assert_same_weights(mined.model, plain.model)


# Resume


@pytest.mark.parametrize("saved", [3, 4])
def test_a_resumed_training_ends_in_the_same_bits(saved: int, tmp_path: Path) -> None:
    """At an epoch's end (three steps of five draws), and within the second."""
    steps = {"save_strategy": "steps", "save_steps": saved, "gradient_accumulation_steps": 2}
    whole = images(tmp_path, SAMPLE, **steps)
    whole.train()
    resumed = images(tmp_path, SAMPLE, **steps)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{saved}"))
    done = {3: 5, 4: 7}[saved]
    assert addresses(resumed.picked) == addresses(whole.picked[done:])
    assert_same_weights(resumed.model, whole.model)


def test_draws_that_are_skipped_are_neither_read_nor_scored(tmp_path: Path) -> None:
    steps = {"save_strategy": "steps", "save_steps": 4, "num_train_epochs": 1}
    images(tmp_path, VIEWS, **steps).train()
    resumed = images(tmp_path, VIEWS, **steps)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))  # of five draws
    assert resumed.state.global_step == 5
    assert resumed.loader is not None
    totals = resumed.loader.totals()
    assert (totals["draws"], totals["mined_draws"], totals["scored"]) == (1, 1, BATCH * VIEWS.gamma)
    assert len(resumed.picked) == 1


@pytest.mark.parametrize(("make", "micro"), [(images, 2), (text, 1)], ids=["images-mid-accumulation", "text-mid-epoch"])
def test_a_training_that_is_killed_resumes_to_the_same_bits(make: Any, micro: int, tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": micro}
    killed(lambda: train_until_killed(make(tmp_path / "killed", VIEWS, **settings), draw=9))
    whole, resumed = make(tmp_path / "whole", VIEWS, **settings), make(tmp_path / "killed", VIEWS, **settings)
    whole.train()
    resumed.train(resume_from_checkpoint=True)
    assert len(resumed.picked) == 15 - {2: 7, 1: 8}[micro]  # saved after two steps of two draws, one of one, one of two
    assert addresses(resumed.picked) == addresses(whole.picked)[-len(resumed.picked) :]
    assert_same_weights(resumed.model, whole.model)


def test_what_cannot_be_resumed_is_refused(tmp_path: Path) -> None:
    steps = {"save_strategy": "steps", "save_steps": 3, "max_steps": 3}
    Trainer(vit(), arguments(tmp_path / "plain", **steps), train_dataset=Digits()).train()
    with pytest.raises(ValueError, match="which has no folder 'mining'"):
        images(tmp_path / "plain", VIEWS).train(resume_from_checkpoint=True)
    images(tmp_path / "mined", VIEWS, **steps).train()
    with pytest.raises(ValueError, match="got ignore_data_skip=True"):
        images(tmp_path / "mined", VIEWS, ignore_data_skip=True).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="gamma: 4 -> 2"):
        images(tmp_path / "mined", replace(VIEWS, gamma=2)).train(resume_from_checkpoint=True)
    other = images(tmp_path / "mined", VIEWS, per_device_train_batch_size=4)
    with pytest.raises(ValueError, match="a sampler that gives the same order"):
        other.train(resume_from_checkpoint=True)


# What the Trainer does besides


def test_a_label_smoother_smooths_the_loss_and_no_score(tmp_path: Path) -> None:
    """All draws are scored by version 0, before smoothing has changed a weight."""
    first = replace(VIEWS, update_every=100)
    plain, smooth = (images(tmp_path, first, label_smoothing_factor=factor) for factor in (0.0, 0.4))
    for trainer in (plain, smooth):
        trainer.train()
    for one, other in zip(plain.picked, smooth.picked, strict=True):
        assert one.scores is not None
        assert other.scores is not None
        assert torch.equal(one.scores, other.scores)
    assert not torch.equal(plain.model.classifier.weight, smooth.model.classifier.weight)


def test_what_was_measured_is_in_the_trainers_logs(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []

    class Told(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            told.append(dict(logs))

    trainer = images(tmp_path, VIEWS, logging_steps=5)
    trainer.add_callback(Told())
    trainer.train()
    rows = [row for row in told if "loss" in row]
    assert [row["mining/draws"] for row in rows] == [5.0, 5.0, 5.0]
    assert all(row["mining/score_chosen"] > row["mining/score_mean"] > 0 for row in rows)
    assert all(isinstance(value, float) for row in rows for name, value in row.items() if name.startswith("mining/"))
    assert [row["mining/lag"] for row in trainer.state.log_history if "loss" in row] == [
        row["mining/lag"] for row in rows
    ]
    assert not any(name.startswith("mining/") for row in told if "loss" not in row for name in row)


def test_evaluation_is_the_trainers_and_changes_no_pick(tmp_path: Path) -> None:
    quiet = images(tmp_path, VIEWS, dropout=0.0)  # an evaluation draws from the global state, whatever the Trainer
    quiet.train()
    data = Digits(noise=0.0)
    watched = Recording(
        vit(0.0),
        arguments(tmp_path, eval_strategy="steps", eval_steps=2),
        train_dataset=Digits(),
        eval_dataset=data,
        mining=VIEWS,
        log_dir=tmp_path / "log",
    )
    watched.picked = []
    watched.train()
    assert addresses(watched.picked) == addresses(quiet.picked)
    assert_same_weights(watched.model, quiet.model)
    said = Trainer(watched.model, arguments(tmp_path)).evaluate(data)["eval_loss"]
    assert watched.evaluate()["eval_loss"] == said
    assert (tmp_path / "log" / "report.html").is_file()
    assert watched.get_train_dataloader().dataset is watched.train_dataset


def test_max_steps_ends_within_an_epoch_and_a_second_training_begins_anew(tmp_path: Path) -> None:
    trainer = images(tmp_path, VIEWS, max_steps=4, gradient_accumulation_steps=2)
    trainer.train()
    first, loader = trainer.picked, trainer.loader
    trainer.picked = []
    trainer.train()
    assert [len(picked) for picked in (first, trainer.picked)] == [7, 7]  # 2 + 2 + 1, and 2
    assert [draw.number for draw in trainer.picked] == list(range(7))
    assert trainer.loader is not loader
    assert trainer.loader is not None
    assert trainer.loader.steps == 4


def test_an_oracle_scores_in_its_own_precision_whatever_the_trainers(tmp_path: Path) -> None:
    """Accelerate puts bfloat16 around the model's forward pass in the first training, and leaves it there."""
    exact, mixed = images(tmp_path, VIEWS), images(tmp_path, VIEWS, bf16=True)
    first = weights(mixed.model)
    exact.train()
    for _ in range(2):
        mixed.model.load_state_dict(first)
        mixed.picked = []
        mixed.train()
        assert mixed.picked[0].scores is not None
        assert torch.equal(mixed.picked[0].scores, exact.picked[0].scores)
        assert not torch.equal(mixed.model.classifier.weight, exact.model.classifier.weight)


@pytest.mark.parametrize(
    ("error", "pool"),
    [(KeyboardInterrupt, "inline"), pytest.param(RuntimeError, "process", marks=pytest.mark.slow)],
)
def test_whoever_stops_a_training_leaves_no_process(error: type[BaseException], pool: str, tmp_path: Path) -> None:
    class Stops(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 2:
                assert processes() - before
                raise error

    def processes() -> set[int]:
        return {child.pid for child in psutil.Process().children() if "resource_tracker" not in str(child.cmdline())}

    before = processes()
    workers = 1 if pool == "inline" else 0
    trainer = images(tmp_path, replace(VIEWS, pool=pool), dataloader_num_workers=workers)
    trainer.add_callback(Stops())
    with pytest.raises(error):
        trainer.train()
    assert processes() <= before


class Halved(Trainer):
    """A Trainer of somebody's own."""

    calls = 0

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **named: Any) -> Any:
        self.calls += 1
        loss, outputs = super().compute_loss(model, inputs, True, **named)
        return (loss / 2, outputs) if return_outputs else loss / 2


class HalvedAndMined(MiningMixin, Halved):
    pass


def test_a_trainer_of_ones_own_mines(tmp_path: Path) -> None:
    changes = {"learning_rate": 2 * LR, "gradient_accumulation_steps": 2}
    trainer = HalvedAndMined(vit(), arguments(tmp_path, **changes), train_dataset=Digits(), mining=SAMPLE)
    trainer.train()
    whole = images(tmp_path, SAMPLE, gradient_accumulation_steps=2)
    whole.train()
    assert trainer.calls == 15
    for one, other in zip(trainer.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("mining", "message"),
    [
        (Mining(method="infobatch"), "the Trainer's loss counts every example alike: got infobatch"),
        (replace(VIEWS, accumulation_steps=4), "gradient_accumulation_steps=1: got Mining\\(accumulation_steps=4\\)"),
        (Mining(method="nm-sampel"), "did you mean 'nm-sample'"),
    ],
)
def test_settings_that_do_not_go_with_the_trainer_are_refused_at_once(
    mining: Mining, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        images(tmp_path, mining)


class Flow(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from ({"pixel_values": torch.zeros(1, 8, 8), "labels": 0} for _ in range(16))


def test_a_stream_is_refused(tmp_path: Path) -> None:
    trainer = images(tmp_path, Mining(method="nm-sample", gamma=2), max_steps=2)
    trainer.train_dataset = Flow()
    with pytest.raises(ValueError, match=r"the length of an epoch must be known: got a stream, \w+; mine it by mine"):
        trainer.train()


def test_the_length_of_a_ramp_is_the_trainers(tmp_path: Path) -> None:
    trainer = images(tmp_path, Mining(method="nm-sample", gamma=2), max_steps=13)
    trainer.train()
    assert trainer.loader is not None
    assert trainer.loader.mining.epochs == 3
    assert {draw.epoch: draw.share for draw in trainer.picked}[0] == 0.0


def test_each_test_that_the_page_names_is_there() -> None:
    page = (ROOT / "docs" / "hosts" / "transformers.md").read_text("utf-8")
    named = set(re.findall(r"`tests/integrations/test_transformers\.py::(test_\w+)`", page))
    assert len(named) > 10
    assert named <= globals().keys()


def test_the_example_changes_three_lines() -> None:
    plain, mined = (
        (ROOT / "examples" / f"transformers_{name}.py").read_text("utf-8").splitlines() for name in ("plain", "mined")
    )
    lines = [line for line in difflib.ndiff(plain, mined) if line.startswith("+ ") and line.strip() != "+"]
    assert len(lines) <= 3
    assert any("MinedTrainer(" in line for line in lines)


def train_until_killed(trainer: Recording, draw: int) -> None:
    """Train, and die before a draw is trained on."""
    steps, step = itertools.count(1), trainer.training_step

    def training_step(*passed: Any, **named: Any) -> Any:
        if next(steps) == draw:
            die()
        return step(*passed, **named)

    trainer.training_step = training_step  # type: ignore[method-assign]
    trainer.train()
