"""The user's own sampler, as a pure function of seed and epoch, and left as it was."""

import itertools
import random
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, WeightedRandomSampler

from infer2train import mine
from infer2train.loader.order import epoch_batches, fingerprint, readable_ids
from mined_runs import Jittered, Monotone, Uniform, draws, network, sgd

N = 24


class Grouped(Sampler[list[int]]):
    """A batch sampler of batches of unequal size, shuffled with `random`."""

    def __iter__(self) -> Iterator[list[int]]:
        ids = list(range(N))
        random.shuffle(ids)
        yield ids[:7]
        yield ids[7:9]
        yield ids[9:]


class NumpyBatches(Sampler[list[int]]):
    """NumPy's legacy generator, NumPy integers, and a different number of batches each time."""

    def __iter__(self) -> Iterator[Any]:
        yield from np.array_split(np.random.permutation(N), np.random.randint(2, 6))


class Endless(Sampler[int]):
    """As of loops by steps."""

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from torch.randperm(N).tolist()


class Holds(Sampler[int]):
    """Draws from a generator of its own, as RandomSampler does where it is given one."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(8)

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(N, generator=self.generator).tolist())

    def __len__(self) -> int:
        return N


def shuffled(**options: Any) -> "DataLoader[Any]":
    return DataLoader(Jittered(N), batch_size=5, shuffle=True, **options)


LOADERS = {
    "shuffle": shuffled,
    "shuffle and a generator": lambda: shuffled(generator=torch.Generator().manual_seed(3)),
    "weighted": lambda: DataLoader(Jittered(N), 5, sampler=WeightedRandomSampler([1.0] * 12 + [9.0] * 12, N)),
    "weighted, own generator": lambda: DataLoader(
        Jittered(N), 5, sampler=WeightedRandomSampler([1.0] * N, N, generator=torch.Generator().manual_seed(1))
    ),
    "sampler with a generator": lambda: DataLoader(Jittered(N), 5, sampler=Holds()),
    "batch sampler around it": lambda: DataLoader(Jittered(N), batch_sampler=BatchSampler(Holds(), 5, False)),
    "batch sampler of random": lambda: DataLoader(Jittered(N), batch_sampler=Grouped()),
    "batch sampler of numpy": lambda: DataLoader(Jittered(N), batch_sampler=NumpyBatches()),
}


def as_lists(batches: Any) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


def states(base: "DataLoader[Any]") -> list[Any]:
    """Every random state that a sampler may draw from."""
    holders = (base, base.sampler, base.batch_sampler, getattr(base.batch_sampler, "sampler", None))
    own = [holder.generator for holder in holders if getattr(holder, "generator", None) is not None]  # type: ignore[union-attr]
    python, numpy = random.getstate(), np.random.get_state()
    return [python, numpy[1].tolist(), numpy[2], torch.get_rng_state().tolist()] + [
        generator.get_state().tolist() for generator in own
    ]


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS.keys())
def test_random_orders_follow_seed_and_epoch_alone_and_no_state_moves(make: Any) -> None:
    base = make()
    before = states(base)
    first = as_lists(epoch_batches(base, 0, 0))
    assert states(base) == before
    list(base.batch_sampler)  # somebody else's draws
    torch.manual_seed(99)
    assert as_lists(epoch_batches(base, 0, 0)) == first, "another call gave another order"
    assert as_lists(epoch_batches(make(), 0, 0)) == first, "another loader gave another order"
    others = [as_lists(epoch_batches(base, seed, epoch)) for seed, epoch in ((0, 1), (0, 2), (1, 0), (1, 1))]
    assert len({str(order) for order in [first, *others]}) == 5, "seeds and epochs must differ"
    if "weighted" not in str(base.sampler).lower():
        assert sorted(i for batch in first for i in batch) == list(range(N))


def test_the_order_of_an_epoch_does_not_depend_on_other_threads() -> None:
    """Samplers draw from the process's generators: each thread has them for itself while its sampler is asked."""
    base = DataLoader(Jittered(500), batch_size=10, shuffle=True)
    expected = [as_lists(epoch_batches(base, 0, epoch)) for epoch in range(40)]
    found: dict[int, Any] = {}

    def ask(epochs: range) -> None:
        for epoch in epochs:
            found[epoch] = as_lists(epoch_batches(base, 0, epoch))

    others = [threading.Thread(target=ask, args=(range(first, 40, 4),)) for first in range(4)]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join()
    assert [found[epoch] for epoch in range(40)] == expected


def test_sequential_order_is_what_it_was() -> None:
    base = DataLoader(Jittered(N), batch_size=10)
    for epoch in range(2):
        assert as_lists(epoch_batches(base, 3, epoch)) == as_lists([np.arange(24)[i : i + 10] for i in (0, 10, 20)])
    assert as_lists(epoch_batches(DataLoader(Jittered(N), 10, drop_last=True), 0, 0))[-1] == list(range(10, 20))


def test_shuffling_is_uniform_over_seeds() -> None:
    base = DataLoader(range(6), batch_size=6, shuffle=True)  # type: ignore[arg-type]
    places = np.array([epoch_batches(base, seed, epoch)[0] for seed in range(30) for epoch in range(20)])
    for column in places.T:
        assert stats.chisquare(np.bincount(column, minlength=6)).pvalue > 0.001


def test_weights_are_kept() -> None:
    sampler = WeightedRandomSampler([1.0] * 12 + [9.0] * 12, 4000)
    ids = np.concatenate(epoch_batches(DataLoader(Jittered(N), 50, sampler=sampler), 0, 0))
    assert abs((ids >= 12).mean() - 0.9) < 0.02


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS.keys())
@pytest.mark.parametrize("method", ["baseline", "nm-augment"])
def test_a_mined_loader_trains_in_that_order(make: Any, method: str) -> None:
    base = make()
    loader = mine(base, network(), method=method, gamma=2, seed=4)
    for epoch in range(2):
        seen = [loader.last.addresses.ids.tolist() for _ in loader if loader.last is not None]
        assert seen == as_lists(epoch_batches(base, 4, epoch))


def test_nm_sample_takes_its_candidates_from_the_users_sampler() -> None:
    base = DataLoader(Uniform([0, 1] * 12), 6, sampler=WeightedRandomSampler([0.0] * 12 + [1.0] * 12, N))
    loader = mine(base, Monotone(), method="nm-sample", gamma=3, epochs=1)
    for _ in loader:
        assert loader.last is not None
        assert loader.last.addresses.ids.min() >= 12


def test_the_fingerprint_tells_orders_and_batches_apart() -> None:
    orders = [[[1, 2], [3]], [[1], [2, 3]], [[1, 3], [2]], [[1, 2, 3]], [[1, 2], [3], [4]]]
    arrays = [[np.array(batch) for batch in order] for order in orders]
    assert len({fingerprint(order) for order in arrays}) == len(orders)
    assert fingerprint(arrays[0]) == fingerprint([batch.copy() for batch in arrays[0]])


def test_the_generator_of_random_sampler_goes_on_where_it_stood() -> None:
    def make() -> tuple[torch.Generator, "DataLoader[Any]"]:
        generator = torch.Generator().manual_seed(6)
        return generator, DataLoader(Jittered(N), 5, sampler=RandomSampler(range(N), generator=generator))

    (_, untouched), (_, mined) = make(), make()
    for _ in mine(mined, network(), method="baseline"):
        pass
    assert list(mined.batch_sampler) == list(untouched.batch_sampler)  # type: ignore[arg-type]


class Curriculum(Sampler[int]):
    """Ten samples more in every epoch."""

    def __init__(self) -> None:
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        return iter(range(4 * self.epoch))

    def __len__(self) -> int:
        return 24


@pytest.mark.parametrize("oracle", ["torch:fp32", "int8", "auto"])
@pytest.mark.parametrize("look", [False, True])
def test_the_sampler_is_asked_once_an_epoch_whatever_the_oracle(oracle: str, look: bool) -> None:
    model = network()
    optimizer = sgd(model)
    base = DataLoader(Jittered(24), batch_size=4, sampler=Curriculum())
    loader = mine(base, model, optimizer, gamma=2, oracle=oracle, update_every=1)
    if look:
        next(iter(loader))
    sizes = [sum(len(draw.addresses) for draw in draws(loader, model, optimizer)) for _ in range(4)]
    assert sizes == [4, 8, 12, 16]


def test_ids_that_may_be_read_are_known_without_the_sampler() -> None:
    part = [5, 3, 11]
    in_part = DataLoader(Jittered(24), batch_size=2, sampler=torch.utils.data.SubsetRandomSampler(part))
    assert readable_ids(in_part).tolist() == [3, 5, 11]
    batches = torch.utils.data.BatchSampler(torch.utils.data.SubsetRandomSampler(part), 2, False)
    assert readable_ids(DataLoader(Jittered(24), batch_sampler=batches)).tolist() == [3, 5, 11]
    assert readable_ids(DataLoader(Jittered(24), batch_size=2, shuffle=True)).tolist() == list(range(24))


def test_ids_without_weight_are_not_read_and_indices_of_another_kind_are_none() -> None:
    weights = [1.0, 0.0] * 12
    weighted = WeightedRandomSampler(weights, 24)
    assert readable_ids(DataLoader(Jittered(24), batch_size=2, sampler=weighted)).tolist() == list(range(0, 24, 2))
    for indices in ({0: [1, 2], 1: [0]}, [[1, 2], [3]], [1, 24], ["a"], []):
        sampler = Holds()
        sampler.indices = indices  # type: ignore[attr-defined]
        assert readable_ids(DataLoader(Jittered(24), batch_size=2, sampler=sampler)).tolist() == list(range(24))


class Repeating:
    """A batch sampler that a loader with an end of its own goes on with from epoch to epoch."""

    def __init__(self, batch_sampler: Any) -> None:
        self.batch_sampler = batch_sampler

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from self.batch_sampler


class KeepsWorkers(DataLoader[Any]):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._length = len(self.batch_sampler)  # type: ignore[arg-type]
        object.__setattr__(self, "batch_sampler", Repeating(self.batch_sampler))

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return itertools.islice(super().__iter__(), self._length)


def test_a_sampler_that_only_its_loader_ends_ends_with_it() -> None:
    model = network()
    optimizer = sgd(model)
    with pytest.warns(RuntimeWarning, match="its own __iter__ is not called: got KeepsWorkers"):
        loader = mine(KeepsWorkers(Jittered(N), batch_size=4, shuffle=True), model, optimizer, gamma=2)
    for _ in range(2):
        seen = [draw.ids.tolist() for draw in draws(loader, model, optimizer)]
        assert sorted(itertools.chain(*seen)) == list(range(N))


class Rough(Grouped):
    """Says something about its length."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length


def test_a_batch_sampler_that_gives_far_more_than_it_says_is_told_of() -> None:
    loaders = [
        mine(DataLoader(Jittered(N), batch_sampler=Rough(n)), network(), gamma=2, update_every=2) for n in (1, 2)
    ]
    with pytest.warns(
        RuntimeWarning, match="has 1 batches and gives more than 2: the others are left out; have its __len"
    ):
        assert len(list(zip(loaders[0], range(3), strict=False))) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        next(iter(loaders[1]))


def test_an_epoch_without_an_end_is_refused() -> None:
    loader = mine(DataLoader(Jittered(N), batch_size=4, sampler=Endless()), network(), gamma=2)
    with pytest.raises(ValueError, match=r"an epoch must end: got more than 2400 ids of 24 samples .*islice"):
        next(iter(loader))
    long = mine(DataLoader(Jittered(N), batch_size=4, sampler=RandomSampler(range(N), True, 3000)), network(), gamma=2)
    assert len(long) == 750, "a length that is told may be any"
    next(iter(long))


def test_a_batch_sampler_without_a_length_has_that_of_its_epoch(tmp_path: Path) -> None:
    model = network()
    optimizer = sgd(model)
    loader = mine(DataLoader(Jittered(N), batch_sampler=Grouped()), model, optimizer, gamma=2, log_dir=tmp_path)
    with pytest.raises(TypeError, match="without a length"):
        len(loader)
    assert len(list(draws(loader, model, optimizer))) == len(loader) == 3
    loader.close()
