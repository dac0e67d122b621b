import re
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

from infer2train.reporting import bars, plots
from infer2train.reporting.curves import ErrorCurves, across_seeds
from infer2train.reporting.statistics import paired_difference
from infer2train.reporting.svg import INK, SERIES

EMPTY = across_seeds([])
SVG = "{http://www.w3.org/2000/svg}"


def falling(level, seeds=3):
    return across_seeds([{e: level + 0.5 * np.exp(-e / 5) + 0.01 * s for e in range(30)} for s in range(seeds)])


def errors(names=("baseline", "nm-augment"), **kwargs):
    looks = plots.styles(names, "baseline")
    curves = {name: ErrorCurves(falling(0.07), falling(0.1), EMPTY) for name in names}
    return plots.error_curves(curves, looks, **kwargs)


def lines_of(svg, colour):
    """The styles of the lines drawn in a colour that are longer than a tick or a legend."""
    root = ElementTree.fromstring(svg)
    paths = [path for path in root.iter(f"{SVG}path") if path.get("d", "").count("L") > 5]
    return [
        path.get("style") for path in paths if f"stroke: var(--series-{SERIES.index(colour)}" in path.get("style", "")
    ]


def test_the_baseline_is_red_and_the_first_treatment_blue_in_any_order():
    looks = plots.styles(["nm-augment", "baseline", "nm-sample"], "baseline")
    assert [looks[name].colour for name in ("baseline", "nm-augment", "nm-sample")] == list(SERIES[:3])
    assert len({look.marker for look in looks.values()}) == 3


def test_many_methods_never_look_alike():
    looks = plots.styles([str(number) for number in range(20)], "0")
    assert len({(look.colour, look.marker) for look in looks.values()}) == 20


def test_training_is_dotted_and_validation_solid():
    for colour in SERIES[:2]:
        dashed = ["dasharray" in style for style in lines_of(errors(), colour)]
        assert sorted(dashed) == [False, True]


def test_the_panel_of_final_epochs_shows_them_alone():
    labels = [float(text) for text in re.findall(r">(\d+)</text>", errors(first_epoch=25))]
    assert min(labels) >= 25
    assert all("dasharray" not in style for style in lines_of(errors(first_epoch=20), SERIES[0]))


def test_the_same_numbers_give_the_same_bytes_whatever_the_users_settings():
    import matplotlib

    first = errors()
    with matplotlib.rc_context({"lines.linewidth": 9.0, "svg.fonttype": "path", "xtick.major.size": 9.0}):
        assert errors() == first
        assert matplotlib.rcParams["lines.linewidth"] == 9.0
    assert "<dc:date>" not in first


def test_pyplot_is_not_involved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it raises; others may have, before
    assert errors().startswith("<svg")


def test_a_figure_follows_the_theme_and_rules_nothing_outside():
    svg = errors()
    assert f"var(--ink, {INK})" in svg or "var(--muted" in svg
    assert not re.search(r"(?<!, )#[0-9a-f]{6}\b", re.sub(r"#[mp][0-9a-f]{10}", "", svg))
    assert "<style" not in svg


def test_ids_of_two_figures_differ_and_every_reference_is_met():
    figures = [errors(), errors(first_epoch=20)]
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in figures]
    assert not ids[0] & ids[1]
    for svg, known in zip(figures, ids, strict=True):
        assert set(re.findall(r"(?:href=\"|url\()#([^\")]+)", svg)) == known


@pytest.mark.parametrize("name", ["<b>&amp;</b>", "$\\frac{1$", "γ = 10 & more"])
def test_names_are_text_and_nothing_else(name):
    looks = plots.styles(["baseline", name], "baseline")
    figures = [
        bars.time_budget({name: {"total": 10.0, "training": 9.0}}),
        bars.difference_intervals({name: paired_difference([0.1, 0.2], [0.2, 0.25])}, looks),
    ]
    for svg in figures:
        assert name in [text.text for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_the_bar_adds_up_to_the_total():
    parts = bars.budget({"total": 100.0, "training": 60.0, "scoring": 30.0, "views": 5.0})
    assert list(parts) == ["training", "views", "scoring", "other"]
    assert sum(parts.values()) == pytest.approx(100.0)
    assert "other" not in bars.budget({"total": 90.0, "training": 60.0, "scoring": 30.0})
    svg = bars.time_budget({"a": {"total": 100.0, "training": 60.0, "scoring": 38.0}})
    assert ">60 %<" in svg
    assert ">38 %<" in svg


def test_intervals_stand_on_their_side_of_zero():
    looks = plots.styles(["baseline", "good"], "baseline")
    found = {"good": paired_difference([0.05, 0.051], [0.07, 0.0712])}
    paths = list(ElementTree.fromstring(bars.difference_intervals(found, looks)).iter(f"{SVG}path"))

    def positions(part):
        path = next(path for path in paths if part in path.get("style", "") and "clip-path" in path.attrib)
        return [float(x) for x in re.findall(r"[ML] ([-\d.]+)", path.get("d"))]

    low, high = positions("var(--series-1")
    assert low < high < positions("stroke-width: 0.9")[0]
