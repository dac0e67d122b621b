"""Streams: draws pick from a window of what was read, in any process, and a resumed run goes on in the same items."""

import random
from collections.abc import Iterator
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset

from infer2train import mine
from infer2train.draws.addresses import Purpose, seeds
from infer2train.loader.loader import MinedLoader
from infer2train.loader.ranks import Ranks
from infer2train.machine.cores import as_text, available_cores
from infer2train.observe.runlog import read_rows
from infer2train.sources.window import HEAD, WindowItems, item_id, pass_and_place, write_items
from mined_runs import CLASSES, SIZE, Jittered, draws, equal, network, sgd, state_of
from rank_processes import in_processes

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

N, BATCH, WINDOW = 45, 4, 12
MINED: dict[str, Any] = {
    "method": "nm-sample",
    "gamma": 3,
    "ramp_start": 0.0,
    "ramp_stop": 0.0,
    "update_every": 3,
    "window": WINDOW,
}


UNRAMPED: dict[str, Any] = {"ramp_start": None, "ramp_stop": None}


class Images(IterableDataset[Any]):
    """Labelled images, one after the other, a little noisy by the global generators."""

    def __init__(self, n: int = N) -> None:
        self.n, self.reads = n, 0

    def item(self, i: int) -> tuple[Tensor, int]:
        self.reads += 1
        generator = torch.Generator().manual_seed(i)
        return torch.randn(1, SIZE, SIZE, generator=generator) + random.random(), i % CLASSES

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return (self.item(i) for i in range(self.n))


class Fixed(Images):
    """The same without noise."""

    def item(self, i: int) -> tuple[Tensor, int]:
        return torch.full((1, SIZE, SIZE), float(i)), i % CLASSES


class Stateful(Images):
    """The same, and can go on where it was."""

    def __init__(self, n: int = N) -> None:
        super().__init__(n)
        self.next, self.first = 0, 0

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        for i in range(self.first, self.n):
            self.next = i + 1
            yield self.item(i)

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.first = state["next"]


class Buffered(Stateful):
    """Shuffles in a buffer, of which its state does not tell."""

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        buffer: list[tuple[Tensor, int]] = []
        for item in super().__iter__():
            buffer.append(item)
            if len(buffer) > 5:
                yield buffer.pop(random.randrange(len(buffer)))
        yield from buffer


def streamed(stream: "IterableDataset[Any]", **options: Any) -> "DataLoader[Any]":
    return DataLoader(stream, **{"batch_size": BATCH, **options})


def mined(stream: "IterableDataset[Any] | None" = None, **settings: Any) -> tuple[MinedLoader, nn.Module, Any]:
    options = {name: settings.pop(name) for name in ("num_workers", "persistent_workers") if name in settings}
    model = network()
    optimizer = sgd(model)
    return mine(streamed(stream or Images(), **options), model, optimizer, **{**MINED, **settings}), model, optimizer


@cache
def unbroken(kind: type[Images]) -> tuple[list[list[int]], dict[str, Tensor]]:
    """The ids and the last weights of two passes."""
    loader, model, optimizer = mined(kind())
    found = ids_of(loader, model, optimizer)
    loader.close()
    return found, state_of(model)


def ids_of(loader: MinedLoader, model: nn.Module, optimizer: Any, epochs: int = 2) -> list[list[int]]:
    found = []
    while loader.epoch < epochs:
        found += [draw.addresses.ids.tolist() for draw in draws(loader, model, optimizer)]
    return found


# What is drawn


@pytest.mark.parametrize("drop_last", [False, True])
def test_baseline_trains_on_the_plain_loaders_batches(drop_last: bool) -> None:
    base = streamed(Fixed(), drop_last=drop_last)
    with_mine = mine(base, network(), method="baseline", window=WINDOW)
    for _ in range(2):
        assert equal([list(batch) for batch in with_mine], [list(batch) for batch in base])
    with_mine.close()


def test_draws_pick_from_the_window_that_the_pass_is_in() -> None:
    loader, model, optimizer = mined(window=10)  # rounded up to three batches of four
    seen: list[set[int]] = []
    for number, draw in enumerate(draws(loader, model, optimizer)):
        assert draw.ids.tolist() == list(range(4 * number, min(4 * number + 4, N)))
        first = min(draw.ids[0] // 12 * 12, N - 12)  # the last window is filled up with what was before it
        assert set(draw.candidates.ids.tolist()) <= set(range(first, first + 12))
        seen.append(set(draw.candidates.ids.tolist()))
    assert len(seen) == 12
    assert all(found - set(range(4 * n, 4 * n + 4)) for n, found in enumerate(seen[:9])), "of the window, not the batch"
    assert next(draws(loader, model, optimizer)).ids.tolist() == [item_id(1, place) for place in range(4)]
    loader.close()


def test_views_of_an_item_are_made_by_a_transform_apart_and_the_hardest_is_trained_on(tmp_path: Path) -> None:
    loader, model, optimizer = mined(
        method="nm-augment", transform=lambda x: x + torch.randn(1), log_dir=tmp_path, log_every=1, **UNRAMPED
    )
    for draw in draws(loader, model, optimizer):
        assert draw.scores is not None
        assert np.array_equal(draw.chosen % 3, draw.scores.view(-1, 3).argmax(1))
    assert loader.mining.window == WINDOW
    assert sum(row["kind"] == "step" for row in read_rows(tmp_path)) == 12
    loader.close()


def test_an_epoch_is_a_pass_and_two_windows_are_held_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    stream = Images()
    loader, model, optimizer = mined(stream)
    before = stream.reads
    held = [len(list(tmp_path.glob("*/*.window"))) for _ in draws(loader, model, optimizer)]
    assert max(held) == 2
    assert stream.reads - before == N, "each item is read once"
    loader.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "where",
    [
        {"num_workers": 2, "persistent_workers": True},
        {"oracle_num_workers": 1},
        {"pool": "process", "queue_depth": 6},
    ],
    ids=str,
)
def test_who_reads_does_not_show_in_what_is_picked(where: dict[str, Any]) -> None:
    loader, model, optimizer = mined(**where)
    expected, ended = unbroken(Images)
    assert ids_of(loader, model, optimizer) == expected
    assert equal(state_of(model), ended)
    loader.close()


def test_a_look_at_a_batch_changes_nothing() -> None:
    loader, model, optimizer = mined(update_every=100)
    expected = ids_of(loader, model, optimizer, 1)
    other, its_model, its_optimizer = mined(update_every=100)
    next(iter(other))
    list(islice(other, 8))  # two windows on
    with pytest.warns(RuntimeWarning, match="the epoch begins again"):
        assert ids_of(other, its_model, its_optimizer, 1) == expected
    loader.close(), other.close()


# Resume


@pytest.mark.parametrize(
    ("kind", "said", "options", "after"),
    [
        (Stateful, None, {}, 4),
        (Stateful, None, {}, 10),
        (Stateful, None, {"num_workers": 1}, 4),
        (Images, "12 items were skipped", {}, 4),
        (Buffered, "24 items were skipped", {}, 10),
    ],
)
def test_a_resumed_run_goes_on_in_the_same_items(
    kind: type[Images], said: str | None, options: dict[str, Any], after: int, recwarn: pytest.WarningsRecorder
) -> None:
    expected, ended = unbroken(kind)
    first, model, optimizer = mined(kind(), **options)
    found = ids_of(first, model, optimizer, epochs=1)
    found += [draw.addresses.ids.tolist() for draw in islice(draws(first, model, optimizer), after)]
    state = first.state_dict()
    first.close()
    stream = kind()
    again = mine(streamed(stream, **options), model, optimizer, **MINED)
    again.load_state_dict(state)
    before, recwarn_before = stream.reads, len(recwarn)
    found += ids_of(again, model, optimizer)
    assert found == expected
    assert equal(state_of(model), ended)
    messages = [str(warning.message) for warning in recwarn.list[recwarn_before:]]
    assert any(said in message for message in messages) if said else not any("skipped" in m for m in messages)
    if not options and said is None:
        assert stream.reads - before == 0, "a copy goes on"
    again.close()


def test_another_stream_than_before_the_resume_is_refused() -> None:
    loader, model, optimizer = mined()
    list(islice(draws(loader, model, optimizer), 5))
    state = loader.state_dict()
    loader.close()
    other, _, _ = mined(Fixed())
    other.load_state_dict(state)
    with pytest.raises(ValueError, match="got others at item 12 of pass 0"):
        next(iter(other))
    other.close()
    narrow, _, _ = mined(window=8)
    with pytest.raises(ValueError, match="got window=12 -> 8; restore it"):
        narrow.load_state_dict(state)
    narrow.close()


# Several ranks


class Shared(Fixed):
    """A third of it is one rank's, two thirds are another's."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return (self.item(i) for i in range(self.n) if (i % 3 > 0) == self.rank)


Told = tuple[list[Any], dict[str, Any]]
"""Of each draw its candidates and what was trained on; and what there is to save."""


def ranked(rank: int, until: int = 8, state: dict[str, Any] | None = None, lr: float = 0.1, **settings: Any) -> Told:
    """Two passes of a rank's share, or what is left of them from a state on, up to so many draws of all."""
    inner = network().double()
    model = DistributedDataParallel(inner) if Ranks.here().world > 1 else inner
    optimizer = sgd(inner, lr)
    loader = mine(streamed(Shared(rank)), model, optimizer, **{**MINED, "update_every": 2, **settings})
    parts = {"model": inner, "optimizer": optimizer, "loader": loader}
    for name, part in parts.items() if state is not None else ():
        part.load_state_dict(state[name])
    found: list[Any] = []
    while loader.epoch < 2 and loader.steps < until:
        for x, y in loader:
            torch.nn.functional.cross_entropy(model(x.double()), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            assert loader.last is not None
            found.append([list(part) for part in (loader.last.candidates, loader.last.addresses)])
            if loader.steps == until:
                break
    saved = {name: part.state_dict() for name, part in parts.items()}
    loader.close()
    return found, saved


def on_rank(**options: Any) -> Told:
    return ranked(Ranks.here().rank, **options)


@pytest.mark.filterwarnings("ignore:.*use_fork|.*fork.*:DeprecationWarning")
def test_each_rank_picks_from_its_own_share_until_one_has_no_draw_left(tmp_path: Path) -> None:
    """Weights that do not move are those of a rank alone, which then picks the same."""
    for rank, (found, saved) in enumerate(in_processes(2, partial(on_rank, lr=0.0), tmp_path)):
        seed = int(seeds(0, Purpose.RANK, slot=1)) if rank else 0
        alone, _ = ranked(rank, until=4, lr=0.0, seed=seed)
        assert found[:4] == alone[:4], "rank 0 has 15 items, four draws of them"
        assert {pass_and_place(address[0])[0] for _, picked in found[4:] for address in picked} == {1}
        assert (len(found), saved["loader"]["epoch"], saved["loader"]["position"]) == (8, 1, 4)


@pytest.mark.filterwarnings("ignore:.*use_fork|.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("draws", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_each_rank_goes_on_in_its_own_share(draws: int, tmp_path: Path) -> None:
    whole = in_processes(2, on_rank, tmp_path)
    first = in_processes(2, partial(on_rank, until=draws), tmp_path)
    states = [saved for _, saved in first]
    rest = in_processes(2, lambda: on_rank(state=states[Ranks.here().rank]), tmp_path)
    for rank in range(2):
        assert first[rank][0] + rest[rank][0] == whole[rank][0]
        assert equal(rest[rank][1]["model"], whole[rank][1]["model"])
    tensors = [{v: record["tensors"] for v, record in state["loader"]["records"].items()} for state in states]
    assert equal(*tensors), "all publish what the first rank has"
    said = in_processes(2, lambda: on_rank(state=states[0]), tmp_path)[1]
    assert "each rank reads a stream of its own: got a state of rank 0 of 2 on rank 1 of 2; have each rank save" in said


@pytest.mark.filterwarnings("ignore:.*use_fork|.*fork.*:DeprecationWarning")
def test_ranks_that_read_the_same_stream_are_refused(tmp_path: Path) -> None:
    for said in in_processes(2, partial(ranked, 1), tmp_path):
        assert "a share of the stream that is its own: got the same items on ranks [0, 1]; share it out by rank" in said


# Streams of `datasets`


def test_a_stream_of_datasets_is_shuffled_anew_in_each_pass_and_resumes() -> None:
    datasets = pytest.importorskip("datasets")
    images = Jittered(N)
    rows = [{"image": images.images[i][None], "label": int(images.labels[i])} for i in range(N)]
    whole = datasets.Dataset.from_list(rows).with_format("torch")

    def run(epochs: int, state: Any = None, model: nn.Module | None = None) -> Any:
        stream = whole.to_iterable_dataset(num_shards=5).shuffle(seed=0, buffer_size=1)
        model = model or network()
        loader = mine(
            streamed(stream), model, score="loss", split=lambda batch: (batch["image"], batch["label"]), **MINED
        )
        if state is not None:
            loader.load_state_dict(state)
        labels = []
        while loader.epoch < epochs:
            for batch in loader:
                labels.append(batch["label"].tolist())
                loader.step_done()
                if state is None and epochs == 1 and len(labels) == 5:
                    return labels, loader.state_dict(), model
        loader.close()
        return labels

    expected = run(2)
    assert len(expected) == 24
    assert expected[:12] != expected[12:]
    before, state, model = run(1)
    assert state["stream"]["mark"]["state"] is not None
    assert before + run(2, state, model) == expected


# What is refused


class Once(IterableDataset[Any]):
    def __init__(self) -> None:
        self.items = iter(Fixed())

    def __iter__(self) -> Iterator[Any]:
        return self.items


class Own(Fixed):
    generator = np.random.default_rng()

    def item(self, i: int) -> tuple[Tensor, int]:
        return torch.tensor(self.generator.random()), i


class Unpicklable(Fixed):
    def item(self, i: int) -> Any:
        return super().item(i), lambda: None


@pytest.mark.parametrize(
    ("stream", "settings", "said"),
    [
        (Fixed(), {"method": "nm-augment", **UNRAMPED}, "is read once: got .* without transform=; take"),
        (Fixed(), {"method": "self-distill", **UNRAMPED}, "is read once: got .* without transform=; take"),
        (Fixed(), {"method": "infobatch", "epochs": 3, **UNRAMPED}, "an id|by their ids.*use nm-sample"),
        (Once(), {}, "whenever it begins anew: got another .* Make __iter__ begin anew"),
        (Own(), {}, "whenever it begins anew: got another item.*draw from `random`"),
        (Unpicklable(), {}, "items of a stream must be picklable.*in transform="),
        (Fixed(0), {}, "at least one item: got none"),
    ],
)
def test_what_cannot_be_mined_in_a_stream_is_refused(
    stream: "IterableDataset[Any]", settings: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ValueError, match=said) as error:
        mined(stream, **settings)
    assert "\n" not in str(error.value)


class Epochs(Fixed):
    """Is told which epoch begins."""

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def test_a_stream_that_is_told_the_epoch_is_mined_under_a_host_by_oracles_elsewhere() -> None:
    fabric = pytest.importorskip("lightning.fabric").Fabric(accelerator="cpu", devices=1)
    own = network()
    model, optimizer = fabric.setup(own, sgd(own))
    base = fabric.setup_dataloaders(streamed(Epochs()))
    loader = mine(base, model, optimizer, pool="process", oracle_cores=as_text(available_cores()[-1:]), **MINED)
    next(iter(loader))
    loader.close()


def test_a_window_is_for_streams_and_a_batch_for_windows() -> None:
    with pytest.raises(ValueError, match="window is for streams: got window=8 for a map-style data set"):
        mine(DataLoader(Jittered(), batch_size=4), network(), window=8)
    with pytest.raises(ValueError, match="got batch_size=None; pass batch_size"):
        mine(DataLoader(Fixed(), batch_size=None), network())
    loader = mine(streamed(Fixed(3), drop_last=True), network(), method="baseline")
    with pytest.raises(ValueError, match="got none from a stream of 3 items at batch_size=4"):
        next(iter(loader))


# Files


def test_items_come_back_as_they_were_and_belong_to_who_reads_them(tmp_path: Path) -> None:
    item = {
        "view": torch.arange(12.0).view(3, 4).T[1:],
        "half": torch.ones(2, dtype=torch.bfloat16),
        "flag": torch.tensor(True),
        "bytes": b"raw",
        "array": np.arange(3),
    }
    write_items(tmp_path / HEAD, [item, 5])
    items = WindowItems(tmp_path, 4, 2)
    first = items[0]
    assert equal({k: v for k, v in first.items() if k != "array"}, {k: v for k, v in item.items() if k != "array"})
    first["view"] += 1
    assert equal(items[0]["view"], item["view"])
    assert items[1] == 5
