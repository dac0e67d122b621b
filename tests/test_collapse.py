"""Mining that has collapsed is said within the first epoch; mining that has not is left in peace."""

import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from infer2train import MinedLoader, mine
from infer2train.draws.collapse import FEWEST_PICKS, FIRST_DRAWS, WINDOW, ClassShare, CollapseWatch, largest_class
from mined_runs import draws


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1).filter(lambda rows: any(p for _, p in rows)))
def test_the_largest_class_is_what_counting_says(rows: list[tuple[int, bool]]) -> None:
    picks = [label for label, is_picked in rows if is_picked]
    found = largest_class(torch.tensor([label for label, _ in rows]), torch.tensor([p for _, p in rows]))
    most = max(picks.count(label) for label in picks)
    assert found.of_picks == pytest.approx(most / len(picks))
    shares = {sum(label == kind for label, _ in rows) / len(rows) for kind in picks if picks.count(kind) == most}
    assert any(found.of_candidates == pytest.approx(share) for share in shares)


def test_the_excess_goes_from_what_is_there_to_all() -> None:
    assert share_of(0.1, 0.1).excess == 0
    assert share_of(1.0, 0.1).excess == 1
    assert share_of(0.75, 0.5).excess == 0.5
    assert share_of(1.0, 1.0).excess == 0, "there is one class only"


def share_of(picks: float, candidates: float, number: int = 100) -> ClassShare:
    return ClassShare(picked=round(number * picks), picks=number, there=round(100 * candidates), candidates=100)


def said(watch: CollapseWatch, shares: list[float], picks: int = 100, losses: Any = ()) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for share in shares:
            watch.see_classes(share_of(share, 0.1, picks))
        for loss in losses:
            scores = torch.tensor([loss, 1.5 * loss, float("nan")])
            watch.see_scores(scores, torch.tensor([False, True, True]), epoch=0)
    return [str(warning.message) for warning in caught]


def test_one_class_at_a_time_is_said_once_after_a_window() -> None:
    watch = CollapseWatch("pass something", is_loss=True)
    assert said(watch, [0.95] * (WINDOW - 1)) == []
    (message,) = said(watch, [0.95] * 3 * WINDOW)
    assert "most of what is picked was of one class at a time (now 95% of the picks, 10% of the candidates)" in message
    assert message.endswith("; pass something")


def test_few_picks_and_short_spells_say_nothing() -> None:
    watch = CollapseWatch("", is_loss=True)
    assert said(watch, [1.0] * 3 * WINDOW, picks=FEWEST_PICKS - 1) == []
    assert said(watch, ([1.0] * (WINDOW // 3) + [0.2] * WINDOW) * 4) == []


def test_a_loss_that_has_doubled_is_said_once_and_only_of_losses() -> None:
    falling = np.linspace(2.3, 0.9, 3 * WINDOW).tolist()
    watch = CollapseWatch("pass something", is_loss=True)
    assert said(watch, [], losses=falling + [1.5] * WINDOW) == []
    (message,) = said(watch, [], losses=[4.0] * 3 * WINDOW)
    assert re.search(r"a random sample of the data, has gone up from 1\.\d+ to [23]\.\d+: training on what is", message)
    assert said(CollapseWatch("", is_loss=False), [], losses=[1.0] * WINDOW + [9.0] * WINDOW) == []


def test_a_model_that_tells_nothing_apart_is_said_after_its_first_epoch() -> None:
    watch = CollapseWatch("pass something", is_loss=True)
    flat, picked = torch.full((8,), 2.3), torch.arange(8) < 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3 * FIRST_DRAWS):
            watch.see_scores(flat, picked, epoch=0)
    with pytest.warns(
        RuntimeWarning, match=r"after 301 draws the hardest candidates have a loss of 2.3 where the mean"
    ):
        watch.see_scores(flat, picked, epoch=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.see_scores(flat, picked, epoch=1)


def trained(**settings: Any) -> tuple[MinedLoader, list[str]]:
    """One epoch of nm-sample at a high learning rate, on ten noisy classes; what was warned of."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4000) % 10
    centres = torch.randn(10, 32, generator=generator)
    x = centres[labels] + 1.5 * torch.randn(4000, 32, generator=generator)
    labels[torch.rand(4000, generator=generator) < 0.1] = 3
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    base = DataLoader(TensorDataset(x, labels), batch_size=32, shuffle=True)
    loader = mine(base, model, optimizer, method="nm-sample", gamma=10, update_every=20, **settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in draws(loader, model, optimizer):
            pass
    return loader, [text for w in caught if "mining has collapsed" in (text := str(w.message))]


def test_hard_top_k_without_quotas_and_ramp_under_a_stale_oracle_is_said_within_the_first_epoch() -> None:
    loader, messages = trained(balance="none", ramp_stop=0.0)
    assert any("of one class at a time" in message for message in messages), messages
    assert all("pass balance='stratified', or ramp_stop=1.0 with epochs=" in message for message in messages)
    assert loader.metrics()["largest_class_share"] > 0.45


def test_the_methods_own_quotas_and_ramp_give_no_reason_to_speak() -> None:
    loader, messages = trained(epochs=5)
    assert messages == []
    loader, messages = trained(epochs=5, ramp_stop=0.0, balance="stratified")
    assert not any("of one class" in message for message in messages)
    measured = loader.metrics()
    assert measured["largest_class_share"] < 0.2
    assert measured["its_candidates_share"] == pytest.approx(0.1, abs=0.1)
