"""Spans on lanes: their totals, and what is kept of an epoch's last steps."""

import pytest

from infer2train.observe.timeline import AHEAD, TRAINER, Span, Timeline, last_steps


def test_oracles_are_added_up_without_what_is_prepared_beside() -> None:
    timeline = Timeline()
    for lane in (TRAINER, "oracle 0", "oracle 1", f"oracle 0{AHEAD}"):
        timeline.add(Span(lane, "views", 0.0, 1.5))
    assert timeline.oracle_seconds() == {"views": 3.0}
    assert timeline.seconds(TRAINER) == {"views": 1.5}
    assert timeline.lanes() == [TRAINER, "oracle 0", "oracle 1", f"oracle 0{AHEAD}"]


def test_watched_items_pass_through_and_both_sides_are_noted() -> None:
    timeline = Timeline()
    heard: list[str] = []
    timeline.listen(lambda span: heard.append(span.name))
    assert list(timeline.watch([1, 2], "oracle 0", "views", "forward", draw=3)) == [1, 2]
    assert heard == ["views", "forward"] * 2
    assert all(span.details == {"draw": 3} for span in timeline.recent)


def steps(first: int, count: int) -> list[Span]:
    """Steps of ten seconds: waiting, views, training, and publishing after every second one."""
    spans = []
    for step in range(first, first + count):
        for name, offset in (("scores", 0), ("views", 2), ("train", 3), *([("publish", 9)] if step % 2 else [])):
            spans.append(Span(TRAINER, name, 10.0 * step + offset, 1.0, {"draw": step}))
    return spans


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_last_steps_begin_with_the_wait_for_the_first_of_them(count: int) -> None:
    found = last_steps(steps(0, 6), count)
    assert [span.started for span in found if span.name == "scores"] == [10.0 * (6 - count + i) for i in range(count)]
    assert (found[0].name, found[-1].name) == ("scores", "publish")


def test_oracles_are_seen_where_they_reach_into_the_last_steps() -> None:
    before = Span("oracle 0", "forward", 0.0, 39.0)
    reaching = Span("oracle 0", "forward", 35.0, 6.0)
    beside = Span(f"oracle 0{AHEAD}", "prepare", 45.0, 60.0)
    after = Span("oracle 1", "forward", 61.0, 1.0)
    found = last_steps([before, reaching, *steps(0, 6), beside, after], 2)
    assert [span for span in found if span.lane != TRAINER] == [reaching, beside]


def test_without_a_step_there_is_nothing_to_see() -> None:
    assert last_steps([], 20) == []
    assert last_steps([Span(TRAINER, "publish", 0.0, 1.0), Span("oracle", "refresh", 0.0, 1.0)], 20) == []
    assert len(last_steps(steps(0, 1), 20)) == 3
