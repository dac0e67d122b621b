"""The trace of a run: JSON that Perfetto opens at any moment, with every span in its place."""

import json
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from infer2train.observe.timeline import AHEAD, TRAINER, Span
from infer2train.observe.trace import Trace
from run_processes import command_line

OVERLAPPING = [
    *("train", "--method", "nm-augment", "--oracle", "simulated:b8", "--gamma", "100", "--limit", "80"),
    *("--batch-size", "4", "--epochs", "1", "--update-every", "4", "--delay-steps", "4", "--lr", "0.01"),
    *("--train-error-samples", "0", "--threads", "1", "--pool", "process", "--trace", "trace.json"),
]
"""A draw costs the oracle far more than the trainer, and for 4 steps a new version may wait: draws queue meanwhile."""


def spans_of(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["ph"] == "X"]


def end(event: dict[str, Any]) -> float:
    return float(event["ts"] + event["dur"])


def test_every_process_has_its_lanes_as_threads(tmp_path: Path) -> None:
    lanes = [TRAINER, "oracle 0", f"oracle 0{AHEAD}", "oracle 1", "oracle"]
    with Trace(tmp_path / "trace.json") as trace:
        for lane in lanes:
            trace.add(Span(lane, "views", 1.0, 0.5, {"draw": 3}))
    events = json.loads((tmp_path / "trace.json").read_text())
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert list(processes.values()) == [TRAINER, "oracle 0", "oracle 1"]
    placed = [(processes[e["pid"]], threads[e["pid"], e["tid"]]) for e in spans_of(events)]
    hosts = [TRAINER, "oracle 0", "oracle 0", "oracle 1", TRAINER]
    assert placed == list(zip(hosts, lanes, strict=True)), "an inline oracle is a lane of the trainer's process"
    assert all((e["dur"], e["args"]) == (500_000.0, {"draw": 3}) for e in spans_of(events))


def test_at_any_moment_only_the_closing_bracket_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    trace = Trace(path)
    for step in range(3):
        trace.add(Span(TRAINER, "train", float(step), 0.5, {"step": step}))
        events = json.loads(path.read_text() + "]")
        assert [event["args"]["step"] for event in spans_of(events)] == list(range(step + 1))
    trace.close()
    trace.close()
    assert spans_of(json.loads(path.read_text()))[2]["ts"] - spans_of(json.loads(path.read_text()))[0]["ts"] == 2e6


def test_a_lost_worker_is_an_instant(tmp_path: Path) -> None:
    with Trace(tmp_path / "trace.json") as trace:
        trace.add(Span("oracle 0", "lost", 1.0, 0.0, {"why": "was killed"}))
    (event,) = [e for e in json.loads((tmp_path / "trace.json").read_text()) if e["ph"] == "i"]
    assert (event["name"], event["args"]) == ("lost", {"why": "was killed"})


def test_a_trace_of_nothing_is_a_trace(tmp_path: Path) -> None:
    Trace(tmp_path / "trace.json").close()
    assert json.loads((tmp_path / "trace.json").read_text()) == []


def test_a_full_trace_says_so_once_and_stays_whole(tmp_path: Path) -> None:
    with Trace(tmp_path / "trace.json", most_events=3) as trace, warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(3):
            trace.add(Span(TRAINER, "train", float(step), 0.5))
        with pytest.raises(RuntimeWarning, match="is full after 3 events"):
            trace.add(Span(TRAINER, "train", 3.0, 0.5))
        trace.add(Span(TRAINER, "train", 4.0, 0.5))
    assert len(spans_of(json.loads((tmp_path / "trace.json").read_text()))) == 3


@pytest.mark.parametrize("num_spans", [0, 3])
def test_a_trace_that_cannot_be_written_says_so_once_and_ends_nothing(num_spans: int) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with Trace(Path("/dev/full")) as trace:
            for step in range(num_spans):
                trace.add(Span(TRAINER, "train", float(step), 0.5))
        trace.close()
    (warning,) = told
    assert "got 'No space left on device' for /dev/full; the run goes on without" in str(warning.message)


def test_new_weights_are_prepared_while_draws_of_the_version_before_are_scored(tmp_path: Path) -> None:
    status, output = command_line(tmp_path, *OVERLAPPING, "--name", "run")
    assert status == 0, output
    events = spans_of(json.loads((tmp_path / "trace.json").read_text()))
    lanes: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for event in sorted(events, key=lambda event: event["ts"]):
        lanes.setdefault((event["pid"], event["tid"]), []).append(event)
    assert len(lanes) == 3
    for lane in lanes.values():
        assert all(end(one) <= other["ts"] + 1 for one, other in pairwise(lane)), "one at a time"
    trainer, oracle, beside = ([e for e in events if e["cat"] == c] for c in (TRAINER, "oracle 0", f"oracle 0{AHEAD}"))
    assert [e["args"]["draw"] for e in trainer if e["name"] == "train"] == list(range(20))
    scored = [e for e in oracle if e["name"] in ("views", "forward")]
    for draw in range(20):
        (got,) = [end(e) for e in trainer if e["name"] == "scores" and e["args"]["draw"] == draw]
        assert max(end(e) for e in scored if e["args"]["draw"] == draw) <= got, "scored before it was picked"
    prepared = {e["args"]["version"]: e for e in beside}
    assert list(prepared) == [0, 4, 8, 12]
    has_overlapped = False
    for version in (4, 8, 12):
        new = prepared[version]
        meanwhile = {e["args"]["version"] for e in scored if e["ts"] < end(new) and new["ts"] < end(e)}
        assert meanwhile <= {version - 4}
        has_overlapped |= bool(meanwhile)
        assert end(new) <= min(e["ts"] for e in scored if e["args"]["version"] == version)
    assert has_overlapped, "on a busy machine not each time"
