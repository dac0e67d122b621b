"""Any data set at an address: repeatable, without a trace in the caller's random state; and what is refused."""

import random
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from conformance.views import check_source, same
from infer2train.draws.addresses import Addresses, Purpose, seeds
from infer2train.draws.randomness import seeded
from infer2train.sources.replay import Replay
from infer2train.sources.source import Source

HERE = Addresses(np.array([3, 3, 1, 4]), np.array([5, 6, 7, 8]))


class Draws(Dataset[Any]):
    """Samples that draw from every global generator, in turn or together."""

    def __init__(self, n: int = 100) -> None:
        self.n = n
        self.read: list[Any] = []

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.read.append(index)
        drawn = [random.random(), np.random.random(), torch.rand(1, dtype=torch.float64).item()]
        numbers = torch.tensor(drawn, dtype=torch.float64)
        return {"numbers": numbers, "id": index}


class Images(Dataset[Any]):
    """Un-augmented samples of (image, target) that count how often they are read."""

    def __init__(self) -> None:
        self.reads = 0

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.reads += 1
        return torch.full((3,), float(index)), index


def jitter(image: torch.Tensor) -> torch.Tensor:
    return image + torch.randn(3) + random.random() + float(np.random.random())


def test_conformance() -> None:
    check_source(Replay(Draws(), default_collate))


def test_conformance_with_the_transform_apart() -> None:
    check_source(Replay(Images(), default_collate, transform=jitter))


class IgnoresOrder(Source):
    """Broken on purpose: what is read depends on what was read before."""

    def __init__(self) -> None:
        self.generator = random.Random(0)

    def __len__(self) -> int:
        return 10

    def batch(self, addresses: Addresses) -> torch.Tensor:
        return torch.tensor([self.generator.random() for _ in addresses])


class DependsOnPlace(IgnoresOrder):
    def batch(self, addresses: Addresses) -> torch.Tensor:
        return torch.tensor([seed % 1000 + place for place, (_, seed) in enumerate(addresses)])


class DependsOnProcess(IgnoresOrder):
    def __init__(self) -> None:
        self.salt = hash("strings have another hash in every process")

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()

    def batch(self, addresses: Addresses) -> torch.Tensor:
        return torch.tensor([self.salt % 1_000_003 + seed % 1000 for _, seed in addresses])


@pytest.mark.parametrize(
    ("broken", "said"),
    [(IgnoresOrder, "global random state"), (DependsOnPlace, "alone"), (DependsOnProcess, "another process")],
)
def test_suite_fails_on_broken_sources(broken: type[Source], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_source(broken())


def test_every_generator_follows_the_seed_and_draws_its_own_numbers() -> None:
    own = seeds(0, Purpose.VIEW, slot=np.arange(2000))
    numbers = Replay(Draws(), default_collate).batch(Addresses(np.zeros(2000, dtype=np.int64), own))["numbers"].numpy()
    for column in numbers.T:
        assert stats.kstest(column, "uniform").pvalue > 0.001
    assert np.abs(np.corrcoef(numbers.T) - np.eye(3)).max() < 0.1, "the generators are not independent"
    assert len(np.unique(numbers)) == numbers.size


def test_numpy_and_torch_do_not_share_a_stream() -> None:
    """They are one algorithm: from one seed, torch's bits are NumPy's, every other one of them here."""

    class Bits(Draws):
        def __getitem__(self, index: int) -> Any:
            return np.random.randint(0, 1 << 32, 64, dtype=np.uint32).tolist(), torch.randint(
                0, 1 << 32, (32,)
            ).tolist()

    for in_numpy, in_torch in Replay(Bits(), list).batch(HERE):
        assert not set(in_numpy) & set(in_torch)


def test_the_data_set_is_asked_for_plain_ints_one_for_each_address() -> None:
    data = Draws()
    source = Replay(data, default_collate, check=False)
    source.batch(HERE)
    assert data.read == [3, 3, 1, 4]
    assert {type(index) for index in data.read} == {int}


def test_random_states_are_put_back_also_after_an_exception() -> None:
    class Fails(Draws):
        def __getitem__(self, index: int) -> Any:
            super().__getitem__(index)
            raise KeyError(index)

    def fingerprint() -> list[Any]:
        return [
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
            torch.initial_seed(),
        ]

    before = fingerprint()
    source = Replay(Fails(), default_collate, check=False)
    with pytest.raises(KeyError) as caught:
        source.batch(HERE)
    assert fingerprint() == before
    assert caught.value.__notes__ == ["while reading sample 3 under seed 5"]
    Replay(Draws(), default_collate).batch(HERE)
    assert fingerprint() == before, "also after the check at construction"


def test_two_threads_read_one_after_the_other() -> None:
    """An oracle's process makes views in one thread and calibrates in another."""

    class Slow(Draws):
        def __getitem__(self, index: int) -> Any:
            time.sleep(0.002)
            return super().__getitem__(index)

    source = Replay(Slow(), default_collate, check=False)
    several = [Addresses(np.arange(10), np.arange(10) + 10 * i) for i in range(6)]
    alone = [source.batch(addresses) for addresses in several]
    with ThreadPoolExecutor(3) as threads:
        assert same(list(threads.map(source.batch, several)), alone)


def test_cuda_is_not_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", asked.append)
    Replay(Draws(), default_collate).batch(HERE)
    with seeded(3):
        pass
    assert asked == []


def test_collation_follows_the_address_too() -> None:
    def mixup(items: list[Any]) -> torch.Tensor:
        return torch.stack([item["numbers"] for item in items]) * torch.rand(1)

    source = Replay(Draws(), mixup, may_mix=True)
    first = source.batch(HERE)
    torch.rand(3)
    assert torch.equal(first, source.batch(HERE))
    assert not torch.equal(first, source.batch(HERE[::-1]).flip(0))


def test_apart_transform_reads_consecutive_views_once_and_changes_nothing() -> None:
    data = Images()
    source = Replay(data, default_collate, transform=jitter, check=False)
    ids = np.repeat([7, 2, 7], [5, 5, 5])
    addresses = Addresses(ids, np.arange(15))
    images, targets = source.batch(addresses)
    assert data.reads == 3
    assert targets.tolist() == ids.tolist()
    assert len(torch.unique(images[:, 0])) == 15, "every view is another"
    for i in (0, 4, 9, 14):
        assert same(source.batch(addresses[i : i + 1]), [images[i : i + 1], targets[i : i + 1]])


def test_apart_loading_has_a_seed_of_its_own() -> None:
    """A random decoder must load the same whichever view of the sample comes first, and differ between samples."""
    source = Replay(Draws(), default_collate, transform=lambda item: item)
    numbers = source.batch(Addresses(np.array([3, 3, 4, 3]), np.array([5, 6, 7, 9])))["numbers"]
    assert torch.equal(numbers[0], numbers[1])
    assert torch.equal(numbers[0], numbers[3])
    assert not torch.equal(numbers[0], numbers[2])


Pair = namedtuple("Pair", "image target")


@pytest.mark.parametrize(
    ("item", "expected"),
    [((1, 2), (11, 2)), ([1, 2, 3], [11, 2, 3]), (Pair(1, 2), Pair(11, 2)), (1, 11), ((1,), (11,))],
)
def test_apart_transform_is_given_the_first_element(item: Any, expected: Any) -> None:
    got = Replay([item], list, transform=lambda x: x + 10).batch(Addresses(np.array([0]), np.array([1])))
    assert got == [expected]
    assert type(got[0]) is type(expected)


def test_items_may_be_anything() -> None:
    class Anything(Draws):
        def __getitem__(self, index: int) -> Any:
            pixels = np.random.randint(0, 256, (4, 4, 3), dtype=np.uint8)
            box = None if random.random() < 0.5 else (1, float("nan"))
            return {
                "image": Image.fromarray(pixels),
                "text": f"sample {index}",
                "boxes": [box, {"half": torch.rand(2).half()}],
            }

    items = Replay(Anything(), list).batch(HERE)
    again = Replay(Anything(), list).batch(HERE)
    assert [item["text"] for item in items] == ["sample 3", "sample 3", "sample 1", "sample 4"]
    assert all(a["image"].tobytes() == b["image"].tobytes() for a, b in zip(items, again, strict=True))


class Private(Draws):
    """A generator of its own, in a transform as popular libraries write them."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(0)

    def __getitem__(self, index: int) -> Any:
        return {"id": index, "views": (index, [torch.zeros(2), torch.tensor(self.generator.random() < 0.5)])}


class Clock(Draws):
    def __getitem__(self, index: int) -> Any:
        return time.perf_counter_ns()


class Counter(Draws):
    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        return np.full(3, len(self.read))


class LastBit(Draws):
    """Only the sign of a zero changes: equal as numbers, not as bits."""

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        return torch.tensor([0.0 if len(self.read) % 3 else -0.0])


@pytest.mark.parametrize(
    ("data", "leaf"),
    [(Private, r"item\['views'\]\[1\]\[1\]"), (Clock, "item"), (Counter, "item"), (LastBit, "item")],
)
def test_what_cannot_be_replayed_is_refused_with_the_reason(data: type[Dataset[Any]], leaf: str) -> None:
    with pytest.raises(
        ValueError, match=rf"got another {leaf} of sample \d+ under seed \d+.*default_rng.*Albumentations"
    ):
        Replay(data(), default_collate)
    Replay(data(), default_collate, check=False)


def test_a_transform_that_changes_its_argument_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got another item\[0\].*in place"):
        Replay(Images(), default_collate, transform=lambda image: image.add_(torch.rand(3)))


def test_iterable_data_is_refused() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter(range(3))

    with pytest.raises(ValueError, match=r"must be map-style.*got an IterableDataset; give it __getitem__ and __len__"):
        Replay(Stream(), default_collate)


def test_an_empty_data_set_has_nothing_to_check() -> None:
    assert len(Replay([], default_collate)) == 0


def test_seeded_is_the_same_again_and_leaves_no_trace() -> None:
    def numbers() -> tuple[float, float, float]:
        return random.random(), np.random.random(), float(torch.rand(1))

    with seeded(7):
        first = numbers()
    random.seed(1)
    expected = random.random()
    random.seed(1)
    with seeded(7):
        assert numbers() == first
    assert random.random() == expected
    with seeded(8):
        assert numbers() != first


def test_it_is_a_batch_like_the_loader_s() -> None:
    data = Images()
    loader = DataLoader(data, batch_size=4)
    expected = next(iter(loader))
    got = Replay(data, loader.collate_fn).batch(Addresses(np.arange(4), np.arange(4)))
    assert same(expected, got)
