"""What cannot be scored is refused when mine() is called, with a line to write that works."""

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from infer2train import mine
from infer2train.draws.scores import SCORES
from infer2train.loader.rehearsal import _agree
from infer2train.loader.remedies import score_to_write, split_to_write
from mined_runs import Jittered, jittered, network, sgd

N = 24
IMAGES = torch.rand(N, 1, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(N) % 3


class Dictionaries(Dataset[Any]):
    """Samples as mappings of these names."""

    def __init__(self, **columns: Any) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {name: column[i] for name, column in self.columns.items()}


class Tuples(Dictionaries):
    def __getitem__(self, i: int) -> Any:
        return tuple(super().__getitem__(i).values())


def auto_encoder() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 36), nn.Unflatten(1, (1, 6, 6)))


def model_of(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, outputs))


# Batches of other forms than (inputs, targets)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (TensorDataset(IMAGES, LABELS, torch.arange(N)), "lambda batch: (batch[0], batch[1])"),
        (TensorDataset(IMAGES, LABELS, torch.rand(N)), "lambda batch: (batch[0], batch[1])"),
        (Tuples(x=IMAGES, name=["a"] * N, y=LABELS), "lambda batch: (batch[0], batch[2])"),
        (Tuples(index=torch.arange(N), x=IMAGES, y=LABELS), "lambda batch: (batch[1], batch[0])"),
        (Dictionaries(image=IMAGES, label=LABELS), "lambda batch: (batch['image'], batch['label'])"),
        (Dictionaries(image=IMAGES, label=LABELS, path=["a"] * N), "lambda batch: (batch['image'], batch['label'])"),
        ({"x": IMAGES, "class": LABELS}, "lambda batch: (batch['x'], batch['class'])"),
        (TensorDataset((255 * IMAGES).byte(), LABELS), "lambda batch: (batch[0].float(), batch[1])"),
    ],
)
def test_a_batch_of_another_form_is_refused_with_the_split_to_write(data: Any, line: str) -> None:
    data = Dictionaries(**data) if isinstance(data, dict) else data
    base, model = DataLoader(data, batch_size=4), model_of(24)
    with pytest.raises(ValueError, match=r"split=") as error:
        mine(base, model, gamma=2)
    assert f"pass split={line}" in str(error.value)
    loader = mine(base, model, sgd(model), gamma=2, split=eval(line))
    next(iter(loader))
    assert loader.last is not None
    assert loader.last.scores is not None


def test_a_lone_tensor_is_refused_with_the_split_and_then_the_score_to_write() -> None:
    base, model = DataLoader([*IMAGES], batch_size=4), auto_encoder()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"pass split=lambda batch: \(batch, batch\)"):
        mine(base, model, gamma=2)
    split = eval("lambda batch: (batch, batch)")
    with pytest.raises(ValueError, match=r"pass score=\"squared-error\""):
        mine(base, model, gamma=2, split=split)
    loader = mine(base, model, gamma=2, split=split, score="squared-error")
    x = next(iter(loader))
    assert loader.last is not None
    with torch.no_grad():
        expected = (model(x) - x).square().flatten(1).mean(1)
    torch.testing.assert_close(loader.last.scores[torch.from_numpy(loader.last.chosen)], expected)  # type: ignore


def test_the_baseline_takes_any_batch_and_any_model() -> None:
    for data in (TensorDataset(IMAGES, LABELS, LABELS), [*IMAGES]):
        assert next(iter(mine(DataLoader(data, batch_size=4), model_of(3), method="baseline"))) is not None  # type: ignore


def test_where_nothing_fits_the_form_is_named() -> None:
    assert split_to_write(nn.Linear(2, 2), [["a", "b"]]) is None


@pytest.mark.parametrize("pack", [list, tuple, lambda pair: dict(zip("ab", pair, strict=True))])
def test_a_model_that_takes_one_container_gets_it_whole(pack: Callable[[Any], Any]) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(36, 3)

        def forward(self, pair: Any) -> Tensor:
            first, second = pair.values() if isinstance(pair, dict) else pair
            return self.linear((first - second).flatten(1))  # type: ignore[no-any-return]

    pairs = [(pack((image, 1 - image)), label) for image, label in zip(IMAGES, LABELS, strict=True)]
    base: DataLoader[Any] = DataLoader(pairs, batch_size=4)  # type: ignore[arg-type]
    line = "split=lambda batch: ((batch[0],), batch[1])"
    with pytest.raises(ValueError, match=re.escape(line)):
        mine(base, Pair(), method="nm-augment", gamma=2)
    loader = mine(base, Pair(), gamma=2, split=lambda batch: ((batch[0],), batch[1]))
    next(iter(loader))


# Scores


def test_a_score_that_compares_candidates_with_each_other_is_refused() -> None:
    def among_others(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs)), reduction="none")

    base = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4)
    with pytest.raises(ValueError, match=r"must not depend on the others .*oracle_chunk"):
        mine(base, model_of(3), gamma=2, score=among_others)


@pytest.mark.parametrize("mark", [255, -1])
def test_what_does_not_count_is_made_100_below_0_by_the_line_in_the_error(mark: int) -> None:
    model, maps = nn.Conv2d(1, 3, 1), LABELS[:, None, None].expand(N, 6, 6).clone()
    maps[:, 0] = mark
    base = DataLoader(TensorDataset(IMAGES, maps), batch_size=4)
    line = f"split=lambda batch: (batch[0], batch[1].masked_fill(batch[1] == {mark}, -100))"
    with pytest.raises(ValueError, match=re.escape(line)) as told:
        mine(base, model, gamma=2)
    assert "score=" not in str(told.value), "none that does not work"
    split = eval(line.removeprefix("split="))
    mine(base, model, gamma=2, split=split).close()


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [(1, torch.rand(N)), (1, LABELS % 2), (3, torch.rand(N, 3)), (3, F.one_hot(LABELS, 3) | 1)],
    ids=["number", "binary", "numbers", "many-hot"],
)
def test_distillation_needs_classes(outputs: int, targets: Tensor) -> None:
    base = DataLoader(TensorDataset(IMAGES, targets), batch_size=4)
    with pytest.raises(ValueError, match="self-distill compares class probabilities"):
        mine(base, model_of(outputs), method="self-distill", gamma=2)


def test_a_batch_of_three_is_told_of_its_split_before_its_classes() -> None:
    base = DataLoader(Tuples(x=IMAGES, y=LABELS, name=["a"] * N), batch_size=4)
    with pytest.raises(ValueError, match=re.escape("split=lambda batch: (batch[0], batch[1])")):
        mine(base, model_of(3), method="nm-sample", gamma=2, epochs=2)


SHAPES = [
    (
        torch.rand(4, 3),
        torch.tensor([0, -100, 2, 1]),
        'lambda outputs, y: F.cross_entropy(outputs, y, reduction="none", ignore_index=-100)',
    ),
    (
        torch.rand(4, 3),
        torch.tensor([[0], [1], [2], [1]]),
        'lambda outputs, y: F.cross_entropy(outputs, y.squeeze(1), reduction="none")',
    ),
    (torch.rand(4, 1), torch.tensor([0, 1, 1, 0]), '"multi-label-loss"'),
    (torch.rand(4, 1), torch.tensor([0.0, 1, 1, 0]), '"multi-label-loss"'),
    (torch.rand(4, 1), torch.tensor([0.5, 2, 3, 4]), '"squared-error"'),
    (torch.rand(4), torch.tensor([0.5, 2, 3, 4]), '"squared-error"'),
    (torch.rand(4, 3), F.one_hot(torch.tensor([0, 1, 2, 1])).float(), '"soft-loss"'),
    (torch.rand(4, 3), torch.tensor([[1.0, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]]), '"multi-label-loss"'),
    (torch.rand(4, 3), torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]]), '"multi-label-loss"'),
    (torch.rand(4, 2, 5), 3 * torch.rand(4, 2, 5), '"squared-error"'),
    (
        torch.rand(4, 3, 5),
        torch.randint(3, (4, 5)),
        'lambda outputs, y: F.cross_entropy(outputs, y, reduction="none").flatten(1).mean(1)',
    ),
    (
        torch.rand(4, 5, 7, 3),
        torch.randint(3, (4, 5, 7)),
        'lambda outputs, y: F.cross_entropy(outputs.movedim(-1, 1), y, reduction="none").flatten(1).mean(1)',
    ),
    (
        torch.rand(4, 3, 7),
        torch.tensor([[0, 1, -100, -100, 2, 1, 0]] * 4),
        'lambda outputs, y: F.cross_entropy(outputs, y, reduction="none").flatten(1).sum(1) / '
        "(y != -100).flatten(1).sum(1).clamp(min=1)",
    ),
]


@pytest.mark.parametrize(("outputs", "targets", "line"), SHAPES)
def test_the_score_to_write_fits_the_shapes_and_works(outputs: Tensor, targets: Tensor, line: str) -> None:
    assert score_to_write(outputs, targets) == line
    written = eval(line, {"F": F})
    score: Callable[..., Tensor] = SCORES[written] if isinstance(written, str) else written
    found = score(outputs, targets)
    assert found.shape == (4,)
    alone = torch.stack([score(outputs[i : i + 1], targets[i : i + 1])[0] for i in range(4)])
    torch.testing.assert_close(found, alone, msg="one number for each candidate")


def test_logits_inside_other_outputs_are_written_as_they_are_found() -> None:
    z, y = torch.rand(4, 3), torch.tensor([0, -100, 2, 1])
    line = 'F.cross_entropy(outputs{}, y, reduction="none", ignore_index=-100)'
    assert score_to_write({"logits": z}, y) == "lambda outputs, y: " + line.format("['logits']")
    assert score_to_write((z, None), y) == "lambda outputs, y: " + line.format("[0]")
    assert score_to_write({"loss": None}, y) is None
    assert score_to_write(torch.rand(4, 3), torch.tensor([0, 1, 2, 7])) is None, "labels to correct"


@pytest.mark.parametrize(
    ("outputs", "targets", "said"),
    [
        (1, LABELS % 2, r"two outputs or more.*here, pass score=\"multi-label-loss\""),
        (3, LABELS - 100 * (LABELS == 0), r"in \[0, 3\): got -100; leave such samples out.*ignore_index=-100"),
        (3, LABELS + 3, r"in \[0, 3\): got 5; give the model more outputs or correct the labels"),
        (3, LABELS.float(), "integer classes as targets: got torch.float32"),
        (3, torch.nn.functional.one_hot(LABELS).float(), r"pass score=\"soft-loss\""),
    ],
)
def test_labels_that_are_no_classes_are_refused_with_the_score_to_write(
    outputs: int, targets: Tensor, said: str
) -> None:
    base = DataLoader(TensorDataset(IMAGES, targets), batch_size=4)
    with pytest.raises(ValueError, match=said):
        mine(base, model_of(outputs), gamma=2)


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (
            lambda outputs, y: (outputs - y[:, None]).square(),
            r"got shape \(8, 1\) for 8 candidates; append .squeeze\(1\)",
        ),
        (lambda outputs, y: (outputs - y).square(), r"\(8, 8\) .*combined with each other: write outputs.squeeze\(1\)"),
        (
            lambda outputs, y: F.mse_loss(outputs.squeeze(1), y),
            r"got shape \(\) for 8 .*mean over every dimension but",
        ),
        (lambda outputs, y: float(outputs.mean()), "got a float for 8 candidates"),
        (
            lambda outputs, y: outputs.no_such(),
            r"score= must work on a model's outputs and the targets: got AttributeError: .*no_such",
        ),
    ],
)
def test_a_score_of_another_shape_is_refused_with_the_remedy(score: Any, said: str) -> None:
    base = DataLoader(TensorDataset(IMAGES, torch.rand(N)), batch_size=4)
    with pytest.raises(ValueError, match=said):
        mine(base, model_of(1), gamma=2, score=score)


@pytest.mark.parametrize("targets", [LABELS.float(), F.one_hot(LABELS), ["a"] * N])
@pytest.mark.parametrize("method", ["nm-sample", "random-sample"])
def test_labels_that_cannot_be_balanced_are_refused_before_the_first_epoch(targets: Any, method: str) -> None:
    base = DataLoader(Tuples(x=IMAGES, y=targets), batch_size=4)
    with pytest.raises(ValueError, match=r"balance needs one class label .* pass balance='none'"):
        mine(base, model_of(3), gamma=2, method=method, epochs=3)


def test_self_distillation_needs_logits() -> None:
    with pytest.raises(ValueError, match=r"self-distill needs logits \[n, k\], or .*: got shape \(8, 1, 6, 6\)"):
        mine(jittered(), auto_encoder(), gamma=2, method="self-distill")


# Models


class Noisy(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x.flatten(1), 0.5, training=True))


@pytest.mark.parametrize("oracle", ["torch:fp32", "int8", "simulated:b8"])
def test_a_model_that_is_random_in_evaluation_is_refused(oracle: str) -> None:
    model = Noisy(36, 3)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"deterministic in evaluation mode.*F.dropout\(x, p, self.training\)"):
        mine(jittered(), model, gamma=2, oracle=oracle)
    assert torch.equal(torch.get_rng_state(), before)


def test_scoring_moves_no_random_state_of_a_model_with_dropout() -> None:
    model = network(dropout=0.5)
    loader = mine(jittered(), model, sgd(model), gamma=3)
    before = torch.get_rng_state()
    next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before)


def test_batch_statistics_are_refused_with_the_module() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten(), nn.Linear(32, 3)
    )
    with pytest.raises(ValueError, match=r"batch statistics in 1\); use running statistics \(track_running_stats=True"):
        mine(jittered(), model, gamma=2)


class Centred(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1) - x.flatten(1).mean(0))


def test_any_dependence_on_the_rest_of_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must not depend on the others in its batch.*evaluation mode; use running"):
        mine(jittered(), Centred(36, 3), gamma=2)


class Balanced(nn.Module):
    """Logits, and a term of the whole batch, as mixtures of experts return it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(36, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.layer(x.flatten(1))
        return logits, logits.softmax(1).mean(0).square().sum()


class Recurrent(nn.LSTM):
    """Logits, and the states of the layers, [2, n, 3]."""

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:  # type: ignore[override]
        seen, states = super().forward(x[:, 0])
        return seen[:, -1], states


@pytest.mark.parametrize(
    "build", [Balanced, lambda: Recurrent(6, 3, num_layers=2, batch_first=True)], ids=["term", "states"]
)
@pytest.mark.parametrize("method", ["nm-augment", "self-distill"])
def test_what_a_model_returns_beside_a_row_for_each_sample_is_not_compared(
    build: Callable[[], nn.Module], method: str
) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "an oracle sees parameters and buffers change")
        loader = mine(jittered(), build(), method=method, gamma=2)
        assert next(iter(loader)) is not None


class InPlace(nn.Module):
    """Normalises what it is given where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        x /= 0.1
        return self.layer(x.flatten(1))  # type: ignore[no-any-return]


def test_a_model_that_writes_to_its_inputs_is_asked_of_copies() -> None:
    model = InPlace()
    loader = mine(jittered(), model, gamma=2, oracle="torch:bf16")
    x, y = next(iter(loader))
    assert loader.last is not None
    with torch.no_grad():
        fresh = F.cross_entropy(model(x), y, reduction="none")
    torch.testing.assert_close(loader.last.scores[torch.from_numpy(loader.last.chosen)], fresh, atol=0.05, rtol=0.05)  # type: ignore
    assert loader.metrics()["captured_gain"] > 0.9


# Sizes


class Lengths(Dataset[Any]):
    """Sequences of several lengths, padded in the batch to its longest."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.full((3 + i % 5,), 1 + i % 7), i % 3


def padded(items: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    tokens = nn.utils.rnn.pad_sequence([tokens for tokens, _ in items], batch_first=True)
    return tokens, torch.tensor([label for _, label in items])


class Bag(nn.Module):
    """Whatever the padding, the same."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(8, 4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        weight = (tokens > 0).float()[..., None]
        return self.head((self.embedding(tokens) * weight).sum(1) / weight.sum(1))


def scored(oracle: str, model: nn.Module) -> tuple[Any, list[tuple[Tensor, Tensor]]]:
    """The loader after an epoch, and each batch's scores by the oracle beside those of the model itself."""
    base = DataLoader(Lengths(), batch_size=4, shuffle=True, collate_fn=padded)
    loader = mine(base, model, sgd(model), gamma=2, oracle=oracle)
    found = []
    for x, y in loader:
        assert loader.last is not None
        with torch.no_grad():
            fresh = F.cross_entropy(model(x), y, reduction="none")
        found.append((loader.last.scores[torch.from_numpy(loader.last.chosen)], fresh))  # type: ignore[index,arg-type]
    return loader, found


@pytest.mark.parametrize("oracle", ["simulated:b8", "onnxruntime:int8"])
def test_batches_that_change_their_size_are_scored_in_integers(oracle: str) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    loader, found = scored(oracle, Bag())
    assert loader.mining.oracle == oracle
    assert any("collate_fn rounds lengths up" in note for note in loader.notes)
    errors = torch.cat([oracles - fresh for oracles, fresh in found]).abs()
    assert errors.median() < 0.1, "eight bits of a network of four units"


class OfPadding(Bag):
    """The mean over all tokens, padding too."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens).mean(1))  # type: ignore[no-any-return]


class OfOneLength(Bag):
    """Whose graph holds the length that it was traced with."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(F.pad(tokens, (0, 16 - int(tokens.shape[1]))))


@pytest.mark.parametrize("oracle", ["simulated:b8", "auto"])
@pytest.mark.parametrize(
    ("build", "why"), [(OfPadding, "depends on how far it is padded; give the model a mask"), (OfOneLength, "")]
)
def test_what_no_engine_can_follow_is_scored_in_fp32_and_that_is_said(
    oracle: str, build: Callable[[], nn.Module], why: str
) -> None:
    torch.manual_seed(0)
    if build is OfOneLength and oracle == "auto":
        pytest.skip("auto leaves such engines out by itself")
    with pytest.warns(RuntimeWarning, match=rf"change their size \(\[n, 6\] or \[n, 7\]\), .*by torch:fp32: .*{why}"):
        loader, found = scored(oracle, build())
    assert loader.mining.oracle == "torch:fp32"
    assert any("pad them to one length in collate_fn" in note for note in loader.notes)
    if build is OfOneLength:
        for oracles, fresh in found:
            torch.testing.assert_close(oracles, fresh)


class Among(Bag):
    """Each token among all of its sequence: its own, or those that are padded too."""

    def __init__(self, has_mask: bool) -> None:
        super().__init__()
        self.has_mask = has_mask

    def forward(self, tokens: Tensor) -> Tensor:
        counts = (tokens > 0) if self.has_mask else torch.ones_like(tokens, dtype=torch.bool)
        words = self.embedding(tokens) * counts[..., None]
        return self.head(words + words.sum(1, keepdim=True) / counts.sum(1)[:, None, None])  # type: ignore[no-any-return]


@pytest.mark.parametrize("has_mask", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_is_seen_by_a_model_without_a_mask_alone(side: str, has_mask: bool) -> None:
    torch.manual_seed(0)
    model, rows = Among(has_mask).eval(), [torch.full((3 + i % 5,), 1 + i % 7) for i in range(8)]

    def said(rows: list[Tensor]) -> Tensor:
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side=side)
        return model(tokens).detach()  # type: ignore[no-any-return]

    assert all(_agree(said(rows[i : i + 2]), said(rows)[i : i + 2]) for i in range(0, 8, 2)) == has_mask


def test_a_collate_fn_that_drops_a_sample_at_last_names_a_subset() -> None:
    def dropping(items: list[Any]) -> Any:
        kept = [item for item in items if item[1] != 1]
        return torch.stack([x for x, _ in kept]), torch.tensor([y for _, y in kept])

    with pytest.raises(ValueError, match=r"torch.utils.data.Subset"):
        mine(DataLoader(Jittered(), batch_size=4, collate_fn=dropping), network(), gamma=2)
