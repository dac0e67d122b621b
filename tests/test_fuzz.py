"""Any combination of what users have, against the contract of `mine()` and a slow reference, draw by draw.

The contract is what the docstrings of `mine()` and `Draw` and docs/ say; nothing here follows from how it is kept.
"""

import os
import random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st

from fuzzed.cases import CHEAP, Case, cases
from fuzzed.data import FORMS, Samples
from fuzzed.loaders import CHANGING, SAMPLERS
from fuzzed.loop import check
from infer2train import mine

pytestmark = [
    pytest.mark.usefixtures("unchecked_types"),  # every other test checks them; here they take two thirds of the time
    pytest.mark.filterwarnings(
        "ignore:the oracle gets new weights every:RuntimeWarning", "ignore:batches change their size:RuntimeWarning"
    ),
]

SLOWLY = [HealthCheck.too_slow, HealthCheck.data_too_large]
"""An example trains a network, and a few convert one."""
SEED = int(os.environ.get("INFER2TRAIN_FUZZ_SEED", random.SystemRandom().getrandbits(32)))
"""Of the long run, whose combinations are others each time."""


@pytest.mark.timeout(900)
@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=SLOWLY)
@given(case=cases())
def test_what_is_trained_on_is_what_was_scored_and_picked(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@seed(SEED)
@settings(max_examples=10_000, deadline=None, derandomize=False, database=None, suppress_health_check=SLOWLY)
@given(case=cases())
def test_ten_thousand_combinations(case: Case) -> None:
    note(f"INFER2TRAIN_FUZZ_SEED={SEED}")
    check(case)


SCORED = st.sampled_from(["nm-augment", "nm-augment-soft", "nm-sample", "self-distill"])
STACKED = st.sampled_from([name for name, form in FORMS.items() if not form.words and form.targets == "class"])


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=SLOWLY)
@given(method=SCORED, form=STACKED, collate=st.sampled_from(list(CHANGING)), sampler=st.sampled_from(list(SAMPLERS)))
def test_a_collate_function_that_changes_samples_is_refused(method: str, form: str, collate: str, sampler: str) -> None:
    case = Case(method=method, form=form, collate=collate, sampler=sampler, ramp="default")
    with pytest.raises(ValueError, match="collate_fn"):
        mine(case.dataloader(), case.model(), **case.settings())


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=SLOWLY)
@given(
    case=cases(engines=[CHEAP], workers=[0]).filter(lambda case: case.is_scored and case.form in ("pair", "strings")),
    collate=st.sampled_from(["mixing", "drawing", "centred"]),
)
def test_with_score_collate_the_unmixed_samples_are_scored(case: Case, collate: str) -> None:
    check(Case(**{**vars(case), "collate": collate, "scored_by_hand": True}))


class Broken(Samples):
    """Some samples cannot be read; a sampler over the others leaves them out."""

    def __getitem__(self, index: int) -> Any:
        if not 2 <= index < len(self) - 1:
            raise OSError(f"sample {index} is broken")
        return super().__getitem__(index)


@pytest.mark.parametrize("method", ["nm-augment", "baseline"])
def test_what_the_sampler_leaves_out_is_never_read(method: str) -> None:
    case = Case(sampler="subset", method=method)
    dataloader = case.loader_over(Broken(case.form, case.randomness, case.n, True), {})
    for _ in mine(dataloader, case.model(), method=method, gamma=2):
        pass


def test_the_mean_of_chosen_scores_is_of_finite_ones() -> None:
    case = Case(gamma=1, score="now and then", epochs=1, update_every=100)
    loader = mine(case.dataloader(), case.model(), **case.settings())
    drawn = [loader.last.scores for _ in loader if loader.last is not None and loader.last.scores is not None]
    loader.close()
    scores = torch.cat(drawn)
    assert not scores.isfinite().all()
    assert loader.metrics()["score_chosen"] == pytest.approx(float(scores[scores.isfinite()].mean()), abs=1e-5)
