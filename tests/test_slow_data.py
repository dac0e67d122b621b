"""Slow data: workers of the oracle's own, an item loaded once for all of its views, and the γ that reading can feed."""

import time
import warnings
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from infer2train import mine
from infer2train.draws.mining import Mining
from infer2train.loader import feeding
from infer2train.loader.feeding import JUDGED, READ, UNJUDGED, Feed, FeedWatch, measured_feed
from infer2train.machine.cores import available_cores
from infer2train.observe.timeline import TRAINER, Span, Timeline
from infer2train.sources.pipeline import ViewWorkers
from mined_runs import Jittered, Plain, draws, jittered, network, sgd

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:the oracle gets new weights")

SAMPLES: dict[str, Any] = {"method": "nm-sample", "gamma": 4, "ramp_start": 0.0, "ramp_stop": 0.0}


class Slow(Jittered):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        time.sleep(0.01)
        return super().__getitem__(index)


class Counted(Jittered):
    reads = 0

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.reads += 1
        return super().__getitem__(index)


def feed(**settings: Any) -> Feed:
    given = {
        "batch_size": 32,
        "candidate_seconds": 0.01,
        "processes": 2,
        "num_oracles": 1,
        "loads_each_view": False,
        **settings,
    }
    return Feed(mining=Mining(gamma=10), **given)


class Slower(Jittered):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        time.sleep(0.05)
        return super().__getitem__(index)


def test_the_users_timeout_is_for_the_users_batches_alone() -> None:
    """Two samples take a tenth of it; the trial reads 24 of them, an oracle 32 at a time."""
    model = network()
    optimizer = sgd(model)
    base = DataLoader(Slower(8), batch_size=2, num_workers=1, timeout=1)
    loader = mine(base, model, optimizer, gamma=16, update_every=4)
    assert len(list(draws(loader, model, optimizer))) == 4
    loader.close()


def test_what_the_data_can_feed_is_noted_at_the_start_and_warned_of_after_the_first_steps() -> None:
    model = network()
    optimizer = sgd(model)
    loader = mine(DataLoader(Slow(96), batch_size=4), model, optimizer, **{**SAMPLES, "gamma": 8})
    (note,) = (note for note in loader.notes if "the data can feed gamma 8" in note)
    each = float(note.split("read in ")[1].split(" ms")[0])
    assert 10 <= each < 80, "of one, not of all that were read"
    said = r"cannot feed gamma 8: the 32 candidates .*(gamma|mine_every)=\d.*stored decoded"
    with pytest.warns(RuntimeWarning, match=said):
        list(islice(draws(loader, model, optimizer), UNJUDGED + JUDGED + 1))
    loader.close()


def test_who_looks_at_each_sample_once_has_no_gamma_to_feed() -> None:
    loader = mine(DataLoader(Slow(96), batch_size=4), network(), method="infobatch", epochs=3)
    assert not any("can feed" in note for note in loader.notes)
    loader.close()


def test_who_asks_for_no_more_than_can_be_read_is_not_warned() -> None:
    assert feed().draw_seconds == pytest.approx(1.6)
    assert feed().warning(1.61, 0.1) is None
    assert feed(candidate_seconds=0.0001).warning(0.001, 9.0) is None, "hardly matters"
    assert feed().warning(0.4, 0.0) is None, "draws come without any waiting: what was measured at the start was wrong"
    said = feed(loads_each_view=True).warning(0.4, 9.0)
    assert said is not None
    for part in ("in 1.6 s", "gamma=2;", "oracle_num_workers=8 for", "transform=, apart", "enough for gamma 2.5"):
        assert part in said
    assert "transform=" not in (feed().warning(0.4, 9.0) or "")


def test_the_first_draws_are_not_judged_and_one_warning_is_enough() -> None:
    timeline = Timeline()
    timeline.listen(FeedWatch(feed()).add)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(3 * (UNJUDGED + JUDGED)):
            timeline.add(Span(TRAINER, "scores", 0.0, 1.5))
            timeline.add(Span(TRAINER, "train", 0.0, 9.0 if number < UNJUDGED else 0.4))
    assert len(caught) == 1


def test_no_more_steps_wait_for_the_gpu_than_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    monkeypatch.setattr(feeding, "wait_for_gpu", lambda: waits.append(1))
    timeline = Timeline()
    timeline.listen(FeedWatch(feed()).add)
    for _ in range(100):  # of a ramp's beginning, where nothing is scored
        timeline.add(Span(TRAINER, "train", 0.0, 0.4))
    assert len(waits) == UNJUDGED + JUDGED
    for _ in range(UNJUDGED + JUDGED - 1):
        timeline.add(Span(TRAINER, "scores", 0.0, 1.5))
    with pytest.warns(RuntimeWarning, match="the data cannot feed"):
        timeline.add(Span(TRAINER, "scores", 0.0, 1.5))


def test_few_items_are_read_for_it() -> None:
    read: list[Any] = []
    for method, ids in (("nm-sample", READ), ("nm-augment", 1)):
        measured_feed(
            read.append,
            np.arange(24),
            Mining(method=method, gamma=10, ramp_start=0.0, ramp_stop=0.0),
            batch_size=4,
            num_workers=0,
            has_transform=False,
        )
        assert len(read[-1]) == READ
        assert len(set(read[-1].ids.tolist())) == ids
    assert (
        measured_feed(
            read.append, np.arange(24), Mining(method="baseline"), batch_size=4, num_workers=0, has_transform=False
        )
        is None
    )


@pytest.mark.parametrize(
    ("settings", "oracles", "processes"),
    [
        ({"pool": "ray", "ray_address": "10.0.0.1:6379", "oracle_workers": 12}, 12, 24),
        ({"pool": "process", "oracle_workers": 1, "oracle_cores": "0"}, 1, 1),
        ({"pool": "inline"}, 1, min(2, len(available_cores()))),
    ],
)
def test_oracles_elsewhere_read_on_cores_of_their_own(settings: dict[str, Any], oracles: int, processes: int) -> None:
    found = measured_feed(
        lambda at: None,
        np.arange(24),
        Mining(gamma=2, **settings),
        batch_size=4,
        num_workers=2,
        has_transform=False,
    )
    assert found is not None
    assert (found.num_oracles, found.processes) == (oracles, processes)


def test_an_item_is_loaded_once_for_all_of_its_views() -> None:
    model, data = network(), Plain()
    optimizer = sgd(model)
    loader = mine(DataLoader(data, batch_size=4), model, optimizer, gamma=5, transform=lambda x: x + torch.randn(1))
    before = data.reads
    assert len(list(draws(loader, model, optimizer))) == 6
    assert data.reads - before == 2 * len(data), "by the oracle, and by the trainer"
    loader.close()


def test_the_oracle_has_workers_of_its_own_and_picks_the_same() -> None:
    found = []
    for settings in ({}, {"oracle_num_workers": 1}):
        model, data = network(), Counted(24)
        optimizer = sgd(model)
        loader = mine(DataLoader(data, batch_size=4), model, optimizer, **SAMPLES, **settings)
        before = data.reads
        found.append([draw.addresses.ids.tolist() for draw in draws(loader, model, optimizer)])
        assert data.reads - before == 24 * (1 if settings else 5), "the picks alone are read here"
        loader.close()
    assert found[0] == found[1]


def test_workers_of_another_number_keep_what_goes_with_it() -> None:
    ours = ViewWorkers.of(jittered(num_workers=2, prefetch_factor=3, persistent_workers=True, timeout=5))
    assert ours.numbering(None) == ours
    four = ours.numbering(4)
    assert (four.num_workers, four.prefetch_factor, four.persistent_workers, four.timeout) == (4, 3, True, 5)
    assert ours.numbering(0) == ViewWorkers()
