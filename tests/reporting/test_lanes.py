"""The timeline of the last steps: what is kept of it, and what its picture says."""

import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from infer2train.observe.timeline import AHEAD, TRAINER, Span
from infer2train.reporting import lanes
from infer2train.reporting.report import write_report
from infer2train.reporting.svg import SERIES

SVG = "{http://www.w3.org/2000/svg}"
NEXT = f"oracle 0{AHEAD}"


def spans(oracle: str = "oracle 0") -> list[Span]:
    """Two steps of 4 s, of which the trainer waits 1 s: 25 % of the time; the clock began long ago."""
    found = []
    for step in range(2):
        start = 1000.0 + 2 * step
        found += [
            Span(TRAINER, "scores", start, 0.5, {"draw": step}),
            Span(TRAINER, "train", start + 0.5, 1.5, {"draw": step}),
            Span(oracle, "forward", start + 0.1, 0.4, {"draw": step, "version": 0}),
        ]
    return found


def widths(svg: str, colour: str) -> list[float]:
    """The widths of all bars of a colour, in the picture's units."""
    found = []
    for path in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        if f"fill: {colour}" in path.get("style", "") and "clip-path" in path.attrib:
            xs = [float(x) for x in re.findall(r"[ML] ([-\d.]+)", path.get("d", ""))]
            found.append(max(xs) - min(xs))
    return found


def test_what_is_saved_is_loaded_with_times_from_the_first_span(tmp_path: Path) -> None:
    lanes.save_timeline(tmp_path, spans()[::-1])
    loaded = lanes.load_timeline(tmp_path)
    assert [span.started for span in loaded] == pytest.approx([0.0, 0.1, 0.5, 2.0, 2.1, 2.5])
    assert {(s.lane, s.name, s.seconds, s.details["draw"]) for s in loaded} == {
        (s.lane, s.name, s.seconds, s.details["draw"]) for s in spans()
    }
    assert isinstance(json.loads((tmp_path / "timeline.json").read_text()), list)
    lanes.save_timeline(tmp_path, [])
    assert lanes.load_timeline(tmp_path) == []


def test_a_folder_without_a_timeline_has_none_and_nonsense_is_refused(tmp_path: Path) -> None:
    assert lanes.load_timeline(tmp_path) == []
    (tmp_path / "timeline.json").write_text('[{"lane": "trainer"}]')
    with pytest.raises(ValueError, match=r"timeline\.json must hold a list of spans"):
        lanes.load_timeline(tmp_path)


def test_the_trainer_is_on_top_and_every_oracle_stands_with_its_next_version() -> None:
    found = [Span(lane, "views", 0.0, 1.0) for lane in (f"oracle 1{AHEAD}", "oracle 1", NEXT, TRAINER, "oracle 0")]
    assert lanes.lanes(found) == [TRAINER, "oracle 0", NEXT, "oracle 1", f"oracle 1{AHEAD}"]


def test_the_heading_says_how_much_is_waited() -> None:
    assert lanes.heading(spans()) == "The last 2 steps: the trainer waits 25.0 % of the time for scores"


def test_waiting_is_red_and_as_wide_as_it_was_long() -> None:
    svg = lanes.picture(spans())
    waiting = widths(svg, f"var(--series-0, {SERIES[0]})")
    training = widths(svg, "#5f6b7a")
    assert len(waiting) == len(training) == 2
    assert sum(waiting) / (sum(waiting) + sum(training)) == pytest.approx(0.25, rel=1e-3)
    assert {"trainer", "oracle 0", "seconds"} <= {text.text for text in ElementTree.fromstring(svg).iter(f"{SVG}text")}


def test_what_reaches_out_of_the_last_steps_is_cut_off() -> None:
    beside = [Span(NEXT, "prepare", 990.0, 11.0), Span(NEXT, "prepare", 1003.5, 11.0)]
    svg = lanes.picture([*spans(), *beside])
    seen, (training, _) = widths(svg, lanes.LOOKS[False, "prepare"][1]), widths(svg, "#5f6b7a")
    assert [width / training for width in seen] == pytest.approx([1.0 / 1.5, 0.5 / 1.5], rel=1e-3)


def test_a_lost_worker_is_marked() -> None:
    lost = Span("oracle 0", "lost", 1001.0, 0.0, {"why": "was killed"})
    assert lanes.picture([*spans(), lost]).count("<use") == lanes.picture(spans()).count("<use") + 1


def test_the_legend_names_what_is_seen_and_nothing_else() -> None:
    assert list(lanes.legend(spans())) == [lanes.WAITING, "training", "scoring"]
    assert len({colour for _, colour in lanes.LOOKS.values()}) == len(lanes.LOOKS), "no two may look alike"


@pytest.mark.parametrize(("oracle", "words"), [("oracle", "in the trainer’s own process"), ("oracle 0", "had nothing")])
def test_the_report_shows_it_with_words_for_where_the_oracle_is(
    run_folder: Path, tmp_path: Path, oracle: str, words: str
) -> None:
    folder = shutil.copytree(run_folder, tmp_path / "run")
    assert "Trainer and oracle" not in write_report(folder).read_text()
    lanes.save_timeline(folder, spans(oracle))
    page = write_report(folder).read_text()
    assert "The last 2 steps: the trainer waits 25.0 % of the time for scores" in page
    assert words in page


def test_a_run_without_an_oracle_has_nothing_to_show(run_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run_folder, tmp_path / "run")
    lanes.save_timeline(folder, [span for span in spans() if span.lane == TRAINER])
    assert "Trainer and oracle" not in write_report(folder).read_text()
