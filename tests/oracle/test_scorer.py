"""The scoring task: chunks, padding, and what comes back for each candidate."""

from collections import UserDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import default_collate

from infer2train.batches import batch_size, split_batch
from infer2train.draws.addresses import Addresses, Purpose, seeds
from infer2train.draws.scores import loss
from infer2train.oracle.engine import Engine, Prepared
from infer2train.oracle.scorer import Scorer, Scores, chunks, joined
from infer2train.oracle.snapshot import Record, snapshot
from infer2train.oracle.torch_engine import TorchEngine
from infer2train.sources.replay import Replay

pytestmark = pytest.mark.usefixtures("one_thread")

CANDIDATES, CLASSES = 40, 5
CPU = torch.device("cpu")


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.classifier = nn.Linear(6, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.norm(self.convolution(images)).relu().mean((2, 3)))  # type: ignore[no-any-return]


class Watched(TorchEngine):
    """Notes how many rows it is given at a time."""

    def outputs(self, inputs: Any) -> Any:
        self.seen = [*getattr(self, "seen", []), batch_size(inputs)]
        return super().outputs(inputs)


class Reuses(Engine):
    """Gives the same memory at every call, as the contract allows."""

    name, device, version = "reuses:fp32", CPU, 3

    def __init__(self) -> None:
        self.memory = torch.zeros(8, CLASSES)

    def prepared(self, record: Record) -> Prepared:
        return Prepared(3, None)

    def use(self, prepared: Prepared) -> None: ...

    def outputs(self, inputs: Any) -> Any:
        return self.memory.copy_(inputs[:, :CLASSES])

    def precisions(self) -> dict[str, str]:
        return {}


class Images(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(2, 6, 6) * (1 + index % 7), index % CLASSES


SOURCE = Replay(Images(), default_collate)
ADDRESSES = Addresses(np.arange(640) % 50, seeds(0, Purpose.PROBE, slot=np.arange(640)))


@pytest.fixture(scope="module")
def engine() -> Watched:
    torch.manual_seed(0)
    model = Network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    watched = Watched(model)
    watched.refresh(snapshot(model, 100))
    return watched


def ask(engine: Engine | None, addresses: Addresses, chunk: int, **settings: Any) -> Scores:
    scorer = Scorer(**({"score": loss, "chunk": chunk} | settings))
    return scorer.score(engine, (SOURCE.batch(piece) for piece in chunks(addresses, chunk)))


@given(n=st.integers(1, 60), size=st.integers(1, 70))
def test_chunks_are_the_candidates_in_order(n: int, size: int) -> None:
    pieces = chunks(ADDRESSES[:n], size)
    assert [pair for piece in pieces for pair in piece] == list(ADDRESSES[:n])
    assert all(len(piece) == size for piece in pieces[:-1])
    assert 1 <= len(pieces[-1]) <= size


@pytest.mark.parametrize("chunk", [1, 7, 32, 640])
@pytest.mark.parametrize("n", [1, 7, CANDIDATES])
def test_the_engine_sees_only_whole_chunks(chunk: int, n: int, engine: Watched) -> None:
    engine.seen = []
    scores = ask(engine, ADDRESSES[:n], chunk)
    assert engine.seen == [chunk] * -(-n // chunk)
    assert scores.values is not None
    assert scores.values.shape == scores.targets.shape == (n,)


@pytest.mark.parametrize("chunk", [1, 7, 32, 640])
def test_the_chunk_is_a_matter_of_speed(chunk: int, engine: Watched) -> None:
    wanted = ask(engine, ADDRESSES[:CANDIDATES], CANDIDATES)
    got = ask(engine, ADDRESSES[:CANDIDATES], chunk)
    assert wanted.values is not None
    assert wanted.values.std() > 0.1
    torch.testing.assert_close(got.values, wanted.values, rtol=1e-4, atol=1e-4)
    assert torch.equal(got.targets, wanted.targets)
    distilled = ask(engine, ADDRESSES[:CANDIDATES], chunk, score=None, distill_views=4).log_probabilities
    whole = ask(engine, ADDRESSES[:CANDIDATES], CANDIDATES, score=None, distill_views=4).log_probabilities
    torch.testing.assert_close(distilled, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 7, 32])
def test_what_follows_in_the_list_changes_no_bit(chunk: int, engine: Watched) -> None:
    whole = ask(engine, ADDRESSES[:CANDIDATES], chunk).values
    assert whole is not None
    for n in (1, 6, 7, 8, 31, 32, 33, CANDIDATES - 1):
        assert torch.equal(ask(engine, ADDRESSES[:n], chunk).values, whole[:n]), f"{n} candidates alone"
    other = Addresses(np.concatenate([ADDRESSES.ids[:11], ADDRESSES.ids[300:310]]), ADDRESSES.seeds[:21])
    assert torch.equal(ask(engine, other, chunk).values[:11], whole[:11])  # type: ignore[index]


def test_scores_are_those_of_the_candidates_alone(engine: Watched) -> None:
    got = ask(engine, ADDRESSES[:CANDIDATES], 7).values
    for i in range(CANDIDATES):
        inputs, targets = SOURCE.batch(ADDRESSES[i : i + 1])
        torch.testing.assert_close(got[i : i + 1], loss(engine.outputs(inputs), targets), rtol=1e-4, atol=1e-4)


def test_an_engine_may_reuse_its_memory() -> None:
    """The outputs of one call are gone at the next: a scorer copies what it keeps."""

    def first(outputs: Tensor, targets: Any) -> Tensor:
        return outputs[:, 0]

    rows = torch.arange(24.0).view(24, 1) * torch.ones(1, CLASSES) * torch.linspace(0.1, 1, CLASSES)
    batches = [(rows[start : start + 8], torch.zeros(8, dtype=torch.int64)) for start in (0, 8, 16)]
    scores = Scorer(score=first, chunk=8).score(Reuses(), batches)
    assert torch.equal(scores.values, rows[:, 0])
    said = Scorer(score=None, distill_views=1, chunk=8).score(Reuses(), batches).log_probabilities
    torch.testing.assert_close(said, rows.log_softmax(1))


def test_without_an_engine_there_are_only_targets() -> None:
    labels = ask(None, ADDRESSES[:3], 2, score=None)
    assert (labels.values, labels.log_probabilities) == (None, None)
    assert labels.targets.tolist() == [0, 1, 2]


def test_scores_are_float32_and_carry_no_graph(engine: Watched) -> None:
    weight = torch.ones((), requires_grad=True)

    def own(outputs: Tensor, targets: Any) -> Tensor:
        return (outputs.sum(1) * weight).double()

    values = ask(engine, ADDRESSES[:5], 2, score=own).values
    assert values is not None
    assert values.dtype == torch.float32
    assert not values.requires_grad


@pytest.mark.parametrize(
    ("score", "shape"),
    [
        (lambda outputs, targets: outputs, r"\(2, 5\)"),
        (lambda outputs, targets: outputs.mean(), r"\(\)"),
        (lambda outputs, targets: outputs[:1, 0], r"\(1,\)"),
    ],
)
def test_a_score_must_be_one_number_each(score: Callable[..., Tensor], shape: str, engine: Watched) -> None:
    with pytest.raises(ValueError, match=rf"one number for each candidate: got shape {shape} for 2 candidates"):
        ask(engine, ADDRESSES[:4], 2, score=score)


def test_inputs_may_be_any_pytree() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
            return {"logits": self.scale * (a + b), "loss": (a + b).mean()}

    model = Sum()
    engine = TorchEngine(model)
    engine.refresh(snapshot(model, 0))
    rows = torch.randn(5, CLASSES)
    targets = torch.arange(5)
    scorer = Scorer(score=loss, chunk=3)
    for whole in ({"a": rows, "b": rows, "labels": targets}, (rows, rows, targets)):
        pieces = [_rows(whole, start, start + 3) for start in (0, 3)]
        torch.testing.assert_close(scorer.score(engine, pieces).values, loss(2 * rows, targets))


def test_the_users_own_split_is_used(engine: Watched) -> None:
    def split(batch: Any) -> tuple[Any, Any]:
        inputs, targets = split_batch(batch)
        return inputs, {"label": targets, "double": 2 * targets}

    def second(outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
        return targets["double"].float()

    scores = ask(engine, ADDRESSES[:5], 2, split=split, score=second)
    assert scores.values.tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]  # type: ignore[union-attr]
    assert {name: target.tolist() for name, target in scores.targets.items()} == {
        "label": [0, 1, 2, 3, 4],
        "double": [0, 2, 4, 6, 8],
    }


class Boxes(NamedTuple):
    label: Tensor
    names: list[str]


JOINED = {
    "tensors": (lambda a, b: torch.arange(a, b), lambda got: got.tolist(), [0, 1, 2, 3, 4]),
    "a tuple": (
        lambda a, b: (torch.arange(a, b), torch.arange(a, b) * 2),
        lambda got: got[1].tolist(),
        [0, 2, 4, 6, 8],
    ),
    "strings": (lambda a, b: [f"caption {i}" for i in range(a, b)], list, [f"caption {i}" for i in range(5)]),
    "sizes that differ": (
        lambda a, b: [torch.full((i + 1,), i) for i in range(a, b)],
        lambda got: [tensor.tolist() for tensor in got],
        [[i] * (i + 1) for i in range(5)],
    ),
    "a list a candidate": (
        lambda a, b: [{"boxes": torch.full((i, 4), i)} for i in range(a, b)],
        lambda got: [len(entry["boxes"]) for entry in got],
        [0, 1, 2, 3, 4],
    ),
    "a named tuple": (
        lambda a, b: Boxes(torch.arange(a, b), [str(i) for i in range(a, b)]),
        lambda got: (type(got), got.label.tolist(), got.names),
        (Boxes, [0, 1, 2, 3, 4], ["0", "1", "2", "3", "4"]),
    ),
    "columns of strings": (
        lambda a, b: [tuple(map(str, range(a, b))), tuple("abcde"[a:b])],
        lambda got: [list(column) for column in got],
        [list("01234"), list("abcde")],
    ),
    "a mapping of any type": (
        lambda a, b: UserDict(label=torch.arange(a, b), deep={"er": (torch.arange(a, b),)}),
        lambda got: (got["label"].tolist(), got["deep"]["er"][0].tolist()),
        ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
    ),
    "nothing": (lambda a, b: None, lambda got: got, None),
    "one number a chunk": (lambda a, b: torch.tensor(a), lambda got: [int(part) for part in got], [0, 3, 4]),
}


@pytest.mark.parametrize("kind", JOINED)
def test_targets_of_chunks_are_joined(kind: str) -> None:
    make, read, wanted = JOINED[kind]
    assert read(joined([make(0, 3), make(3, 4), make(4, 5)], [3, 1, 1])) == wanted


def _rows(tree: Any, start: int, stop: int) -> Any:
    if isinstance(tree, Tensor):
        return tree[start:stop]
    if isinstance(tree, dict):
        return {key: _rows(part, start, stop) for key, part in tree.items()}
    return tuple(_rows(part, start, stop) for part in tree)


def test_labels_of_tokens_that_were_padded_chunk_by_chunk_are_padded_on() -> None:
    short, longer = torch.ones(2, 3).long(), torch.ones(1, 5).long()
    assert joined([short, longer], [2, 1]).tolist() == [[1, 1, 1, -100, -100]] * 2 + [[1] * 5]
    tree = joined([{"tags": short}, {"tags": longer}], [2, 1])
    assert tree["tags"].shape == (3, 5)
    apart = joined([torch.rand(2, 3), torch.rand(1, 5)], [2, 1])
    assert [part.shape for part in apart] == [(2, 3), (1, 5)], "nobody knows with what"
