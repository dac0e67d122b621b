"""Fidelity against a slow reference, and the monitor on real engines."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor, nn

from conformance.engine import converted, trained
from conformance.networks import NUM_CLASSES, images
from infer2train.batches import map_tensors
from infer2train.draws.scores import loss
from infer2train.oracle.engine import Engine
from infer2train.oracle.fidelity import LEAST_GAIN, PATIENCE, PROBE_SAMPLES, Fidelity, FidelityMonitor, fidelity
from infer2train.oracle.samples import PROBE_VIEWS, GivenSamples
from infer2train.oracle.simulated_engine import SimulatedEngine
from infer2train.oracle.snapshot import snapshot
from infer2train.oracle.torch_engine import TorchEngine

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = PROBE_SAMPLES * PROBE_VIEWS
CPU = torch.device("cpu")


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Scores of an oracle and fresh ones of the same views, with many ties."""
    samples, views = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    one = st.lists(st.integers(0, 4), min_size=samples * views, max_size=samples * views)
    oracle, fresh = (torch.tensor(draw(one), dtype=torch.float32).view(samples, views) for _ in range(2))
    return oracle, fresh


def reference(oracle: Tensor, fresh: Tensor) -> Fidelity:
    """One sample after the other, as the definitions say it."""
    gained = possible = same = correlation = 0.0
    for ours, true in zip(oracle.tolist(), fresh.tolist(), strict=True):
        mean, pick = sum(true) / len(true), ours.index(max(ours))
        gained, possible = gained + true[pick] - mean, possible + max(true) - mean
        same += pick == true.index(max(true))
        constant = (len(set(ours)) == 1) + (len(set(true)) == 1)
        correlation += float(spearmanr(ours, true).statistic) if constant == 0 else float(constant == 2)
    level = float(fresh.abs().mean())
    count = len(fresh)
    return Fidelity(
        captured_gain=gained / possible if possible > 0 else 1.0,
        same_view=same / count,
        rank_correlation=correlation / count,
        spread=possible / count / level if level > 0 else 0.0,
    )


def near(a: Fidelity, b: Fidelity) -> bool:
    return np.allclose(list(vars(a).values()), list(vars(b).values()), atol=1e-5)


@given(pairs())
def test_fidelity_is_what_the_reference_says_ties_and_all(pair: tuple[Tensor, Tensor]) -> None:
    assert near(fidelity(*pair), reference(*pair))


@given(pairs())
def test_an_oracle_in_the_right_order_captures_all_and_none_captures_more(pair: tuple[Tensor, Tensor]) -> None:
    oracle, fresh = pair
    for exact in (fresh, 2 * fresh - 7, (fresh + 3) ** 3):
        found = fidelity(exact, fresh)
        assert (found.captured_gain, found.same_view) == (1, 1)
        assert found.rank_correlation == pytest.approx(1)
    assert fidelity(oracle, fresh).captured_gain <= 1 + 1e-6


@given(pairs())
def test_picking_at_random_captures_nothing_on_average(pair: tuple[Tensor, Tensor]) -> None:
    _, fresh = pair
    views = fresh.shape[1]
    gains = [fidelity(torch.eye(views)[view].expand_as(fresh), fresh).captured_gain for view in range(views)]
    possible = float((fresh.amax(1) - fresh.mean(1)).sum())
    assert sum(gains) / views == pytest.approx(0 if possible > 0 else 1, abs=1e-5)


@pytest.mark.parametrize(
    ("oracle", "fresh", "gain"),
    [
        ([[0, 9, 0]], [[1.0, 2.0, 3.0]], 0),
        ([[0, 0, 9]], [[1.0, 2.0, 3.0]], 1),
        ([[9, 0, 0]], [[1.0, 2.0, 3.0]], -1),
        ([[9, 0, 0], [0, 0, 9]], [[1.0, 2.0, 3.0], [10.0, 20.0, 60.0]], 29 / 31),
        ([[5, 5, 5]], [[3.0, 2.0, 1.0]], 1),
        ([[0, 1, 0]], [[4.0, 4.0, 4.0]], 1),
    ],
)
def test_gain_is_weighed_by_what_there_is_to_gain(oracle: Any, fresh: Any, gain: float) -> None:
    found = fidelity(torch.tensor(oracle, dtype=torch.float32), torch.tensor(fresh))
    assert found.captured_gain == pytest.approx(gain)


def test_the_spread_is_relative_to_the_level_of_the_scores() -> None:
    fresh = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    assert fidelity(fresh, fresh).spread == pytest.approx(0.5)
    assert fidelity(fresh, 10 * fresh).spread == pytest.approx(0.5)
    assert fidelity(fresh, fresh + 98).spread == pytest.approx(0.01)
    assert fidelity(fresh, torch.zeros(2, 3)) == Fidelity(1.0, 0.0, 0.0, 0.0)


# The monitor


def samples() -> GivenSamples:
    return GivenSamples(images(ROWS), torch.arange(ROWS) // PROBE_VIEWS % NUM_CLASSES)


def engine_of(spec: str) -> Engine:
    engine = converted(spec, "vgg")
    engine.refresh(engine.calibrated(snapshot(trained("vgg"), 0)))
    return engine


def live() -> Tensor:
    """What the trained model itself says of the probe."""
    inputs, targets = samples().probe(ROWS)
    with torch.no_grad():
        return loss(trained("vgg").eval()(inputs), targets)


@pytest.mark.parametrize("spec", ["simulated:b8", "openvino:int8", "onnxruntime:int8"])
def test_an_engine_is_compared_with_the_model(spec: str) -> None:
    engine = engine_of(spec)
    monitor = FidelityMonitor(samples(), loss, CPU)
    assert monitor.totals() == {}
    inputs, targets = samples().probe(ROWS)
    oracle, fresh = (s.view(PROBE_SAMPLES, PROBE_VIEWS) for s in (loss(engine.outputs(inputs), targets), live()))
    found = monitor.measure(engine, live())
    assert near(found, reference(oracle, fresh))
    assert found != fidelity(fresh, fresh), "it rounds"
    again = monitor.measure(engine, live())
    assert again == found
    assert monitor.totals() == {
        "captured_gain_sum": 2 * found.captured_gain,
        "same_view_sum": 2 * found.same_view,
        "rank_correlation_sum": 2 * found.rank_correlation,
        "fidelity_count": 2,
    }


def test_an_engine_that_is_old_is_not_called_faithful() -> None:
    """Its own float32 reference is as old as itself, and would agree."""
    engine = TorchEngine(trained("vgg"))
    engine.refresh(snapshot(trained("vgg"), 0))
    monitor = FidelityMonitor(samples(), loss, CPU)
    assert monitor.measure(engine, live()).captured_gain == pytest.approx(1)
    assert monitor.measure(engine, -live()).captured_gain < 0


class InPlace(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(1))


def test_a_model_that_writes_to_its_inputs_leaves_the_probe_as_it_is() -> None:
    model = InPlace(4, 3)
    engine = TorchEngine(model)
    engine.refresh(snapshot(model, 0))
    probe = torch.randn(ROWS, 4)
    monitor = FidelityMonitor(GivenSamples(probe, torch.arange(ROWS) % 3), loss, CPU)
    before = monitor.inputs.clone()
    monitor.measure(engine, torch.randn(ROWS))
    assert torch.equal(monitor.inputs, before)


def test_the_monitor_never_moves_what_the_engine_is() -> None:
    engine = engine_of("simulated:b8")
    outputs, version, totals = engine.outputs(images()).clone(), engine.version, engine.totals()
    torch_state = torch.get_rng_state()
    FidelityMonitor(samples(), loss, CPU).measure(engine, live())
    assert torch.equal(outputs, engine.outputs(images()))
    assert (engine.version, engine.totals()) == (version, totals)
    assert torch.equal(torch.get_rng_state(), torch_state)


class Contrary(SimulatedEngine):
    """Says the opposite, as long as `is_contrary`."""

    is_contrary = True

    def outputs(self, inputs: Any) -> Any:
        return map_tensors(lambda tensor: -tensor if self.is_contrary else tensor, super().outputs(inputs))


def contrary() -> Any:
    engine: Any = engine_of("simulated:b8")
    engine.__class__ = Contrary
    return engine


def said(monitor: FidelityMonitor, engine: Any, times: int) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            monitor.measure(engine, monitor.scores(engine.reference(monitor.inputs)))
    assert all(warning.category is RuntimeWarning for warning in caught)
    return [str(warning.message) for warning in caught]


def test_low_gain_at_several_refreshes_in_a_row_is_said_once() -> None:
    engine, monitor = contrary(), FidelityMonitor(samples(), loss, CPU)
    assert said(monitor, engine, PATIENCE - 1) == []
    engine.is_contrary = False
    assert said(monitor, engine, 1) == [], "one good refresh, and the count begins anew"
    engine.is_contrary = True
    assert said(monitor, engine, PATIENCE - 1) == []
    (message,) = said(monitor, engine, 1)
    assert message.startswith(
        f"simulated:b8 captured less than {LEAST_GAIN:.0%} of what mining could gain at 5 refreshes"
    )
    assert "take an oracle of higher precision, such as torch:fp32" in message
    assert said(monitor, engine, 2 * PATIENCE) == []


def test_views_that_hardly_differ_are_said_once() -> None:
    alike = images(2)[:1] + 1e-6 * torch.arange(ROWS)[:, None, None, None]
    engine = engine_of("simulated:b8")
    monitor = FidelityMonitor(GivenSamples(alike, torch.zeros(ROWS).long()), loss, CPU)
    assert said(monitor, engine, PATIENCE - 1) == []
    (message,) = said(monitor, engine, 1)
    assert message.startswith("the views of a sample hardly differ for the model: its highest score is 0.00% above")
    assert "stronger random transform, or use method='nm-sample'" in message
    assert said(monitor, engine, 2 * PATIENCE) == []


def test_views_that_are_all_the_same_are_said_at_once() -> None:
    """Where nothing is drawn, no refresh is waited for."""
    same = images(ROWS // PROBE_VIEWS).repeat_interleave(PROBE_VIEWS, dim=0)
    with pytest.warns(RuntimeWarning, match=r"are all the same: 8 of each of 8 .* random transform, in the data set"):
        monitor = FidelityMonitor(GivenSamples(same, torch.zeros(ROWS).long()), loss, CPU)
    assert said(monitor, engine_of("simulated:b8"), 2 * PATIENCE) == [], "and not again"
    same[-1] += 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FidelityMonitor(GivenSamples(same, torch.zeros(ROWS).long()), loss, CPU)


def test_a_sound_oracle_on_views_that_differ_is_no_reason_to_speak() -> None:
    assert said(FidelityMonitor(samples(), loss, CPU), engine_of("simulated:b8"), 2 * PATIENCE) == []


def test_who_picks_among_samples_needs_no_views_that_differ() -> None:
    one = GivenSamples(images(2)[:1].expand(ROWS, -1, -1, -1), torch.zeros(ROWS).long())
    assert said(FidelityMonitor(one, loss, CPU, mines_views=False), engine_of("simulated:b8"), 2 * PATIENCE) == []


def test_scores_that_are_no_numbers_say_nothing() -> None:
    fresh = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    half = torch.tensor([[1.0, 3.0, 2.0], [9.0, 0.0, 1.0]])
    for ruined in (torch.nan, torch.inf):
        live = torch.cat([fresh, torch.tensor([[1.0, ruined, 2.0]])])
        said = torch.cat([half, torch.tensor([[1.0, 2.0, 3.0]])])
        assert fidelity(said, live) == fidelity(half, fresh)
    assert math.isnan(fidelity(half, fresh * torch.nan).captured_gain)
