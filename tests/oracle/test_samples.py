"""Calibration samples and the probe: what is read, and of what they are a function."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import default_collate

from conformance.networks import images, pixels, tokens
from conformance.pool import Sentences
from conformance.views import same
from infer2train.batches import map_tensors, split_batch
from infer2train.draws.addresses import Addresses, Purpose, seeds
from infer2train.oracle.samples import PROBE_VIEWS, GivenSamples, SourceSamples
from infer2train.sources.replay import Replay
from infer2train.sources.source import Source
from infer2train.sources.views.crops import PadCropFlip
from infer2train.sources.views.image_views import ImageViews

NUM_IMAGES = 20
IDS = np.array([11, 3, 4, 17, 3])


class Watched(Source):
    """What was read of another source."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.read: list[Addresses] = []

    def __len__(self) -> int:
        return len(self._source)

    def batch(self, addresses: Addresses) -> Any:
        self.read.append(addresses)
        return self._source.batch(addresses)


def views() -> Watched:
    photos = pixels(NUM_IMAGES, size=8).permute(0, 2, 3, 1).contiguous()
    return Watched(ImageViews(photos, torch.arange(NUM_IMAGES), PadCropFlip(2)))


def samples(source: Source, ids: Any = IDS, seed: int = 0) -> SourceSamples:
    return SourceSamples(source, lambda: ids, seed, split_batch)


VERSIONS = st.integers(0, 2**31)
ROWS = st.integers(1, 40)


@given(VERSIONS, ROWS, ROWS, VERSIONS)
def test_calibration_is_a_function_of_the_version_and_more_rows_begin_with_fewer(
    version: int, rows: int, more: int, before: int
) -> None:
    one, other = samples(views()), samples(views())
    few = one.calibration(version, rows)
    other.probe(8)
    other.calibration(before, 5)
    many = other.calibration(version, rows + more)
    assert len(few) == rows
    assert torch.equal(few, many[:rows])


@given(VERSIONS, VERSIONS.filter(bool))
def test_versions_and_seeds_see_other_views(version: int, step: int) -> None:
    first = samples(views()).calibration(version, 8)
    assert not torch.equal(first, samples(views()).calibration(version + step, 8))
    assert not torch.equal(first, samples(views(), seed=step).calibration(version, 8))


@given(VERSIONS, ROWS)
def test_only_the_ids_that_are_given_are_read(version: int, rows: int) -> None:
    source = views()
    of_source = samples(source)
    of_source.calibration(version, rows)
    of_source.probe(rows)
    assert {int(sample) for read in source.read for sample in read.ids} <= set(IDS.tolist())


def test_every_id_is_read_as_often_as_any_other_whatever_their_order() -> None:
    source = views()
    calibration = samples(source).calibration(0, 400)
    counts = np.unique(source.read[0].ids, return_counts=True)[1]
    assert len(counts) == 4
    assert counts.min() > 60
    assert torch.equal(calibration, samples(views(), np.array([17, 11, 4, 3])).calibration(0, 400))


def test_ids_are_asked_for_once_and_not_before_they_are_needed() -> None:
    asked = []

    def ids() -> Any:
        asked.append(True)
        return IDS

    of_source = SourceSamples(views(), ids, 0, split_batch)
    assert asked == []
    of_source.calibration(0, 2)
    of_source.probe(8)
    of_source.calibration(1, 2)
    assert asked == [True]


def test_the_probe_never_changes_and_is_grouped_by_sample() -> None:
    source = views()
    of_source = samples(source)
    inputs, targets = of_source.probe(4 * PROBE_VIEWS)
    ids, view_seeds = source.read[0].ids, source.read[0].seeds
    assert torch.equal(targets, torch.from_numpy(ids))
    assert (ids.reshape(4, PROBE_VIEWS) == ids[::PROBE_VIEWS, None]).all()
    assert len(set(ids.tolist())) > 1
    assert len(set(view_seeds.tolist())) == 4 * PROBE_VIEWS
    assert not torch.equal(inputs[0], inputs[1]), "other views of one sample"
    of_source.calibration(7, 16)
    for again in (of_source.probe(4 * PROBE_VIEWS), samples(views()).probe(4 * PROBE_VIEWS)):
        assert same(again, (inputs, targets))
    assert torch.equal(of_source.probe(11)[0], inputs[:11])


def test_no_candidate_of_a_draw_is_among_them() -> None:
    source = views()
    of_source = samples(source)
    for version in range(4):
        of_source.calibration(version, 16)
    of_source.probe(16)
    slots = np.arange(64)
    candidates = {int(seed) for draw in range(4) for seed in seeds(0, Purpose.VIEW, draw=draw, slot=slots)}
    read = [int(seed) for addresses in source.read for seed in addresses.seeds]
    assert len(set(read)) == len(read), "nor is anything calibrated twice on"
    assert candidates.isdisjoint(read)


@pytest.mark.parametrize("kind", ["images", "sentences"])
def test_no_global_random_state_moves(kind: str) -> None:
    of_source = samples(views() if kind == "images" else Replay(Sentences(), default_collate))
    torch.rand(1), np.random.random(1), random.random()
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    of_source.calibration(3, 9)
    of_source.probe(9)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]


def test_global_random_state_moves_nothing() -> None:
    wanted = None
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        of_source = samples(Replay(Sentences(), default_collate))
        found = of_source.calibration(3, 9), of_source.probe(9)
        wanted = wanted or found
        assert same(found, wanted)


def test_given_inputs_are_repeated_and_the_same_for_every_version() -> None:
    inputs, targets = tokens(5), torch.arange(5)
    given_samples = GivenSamples(inputs, targets)
    index = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    repeated = map_tensors(lambda tensor: tensor[index], inputs)
    assert same(given_samples.calibration(0, 7), repeated)
    assert same(given_samples.calibration(9, 7), repeated)
    assert same(given_samples.probe(7), (repeated, index))
    assert torch.equal(GivenSamples(images(4)).probe(2)[0], images(4)[:2])
    assert GivenSamples(images(4)).probe(2)[1] is None
