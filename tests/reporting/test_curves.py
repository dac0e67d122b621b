import dataclasses

import numpy as np
import pytest

from infer2train.reporting.curves import across_seeds, errors_of, step_curves, thinned
from infer2train.reporting.runs import read, read_run


def test_mean_and_band_over_the_seeds_that_have_a_value():
    curve = across_seeds([{0: 1.0, 2: 5.0}, {0: 3.0}])
    assert curve.x.tolist() == [0, 2]
    assert curve.mean.tolist() == [2.0, 5.0]
    assert (curve.high - curve.mean).tolist() == pytest.approx([np.std([1.0, 3.0], ddof=1), 0.0])
    assert (curve.mean - curve.low).tolist() == pytest.approx([np.std([1.0, 3.0], ddof=1), 0.0])


def test_thinning_keeps_the_mean_the_extremes_and_the_end():
    values = {step: float(step % 100) for step in range(1, 1001)}
    curve = thinned(across_seeds([values]), 150)
    assert curve.x.tolist() == [150, 300, 450, 600, 750, 900, 1000]
    assert (curve.low.min(), curve.high.max()) == (0.0, 99.0)
    assert np.average(curve.mean, weights=np.diff([0, *curve.x])) == pytest.approx(np.mean(list(values.values())))


def test_only_curves_too_long_for_a_page_are_thinned_and_then_all_alike(run_folder):
    run = read_run(run_folder)
    assert len(step_curves({"a": [run]}, "loss", points=10)["a"]) == len(run.steps)
    longer = dataclasses.replace(run, steps=tuple({"step": step, "loss": 1.0} for step in range(1000)))
    curves = step_curves({"a": [run], "b": [longer], "c": []}, "loss", points=100)
    assert {method: len(curve) for method, curve in curves.items()} == {"a": len(run.steps) // 10, "b": 100}


def test_error_curves_come_from_the_epochs(comparison_folder):
    runs = read(comparison_folder).of("nm-augment")
    curves = errors_of(runs)
    assert curves.validation.mean[-1] == pytest.approx(np.mean([run.test_error for run in runs]))
    assert np.all(curves.mined.mean > curves.random.mean)
    assert len(curves.validation.since(10)) == len(curves.validation) - 10
