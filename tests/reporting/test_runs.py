import json

import pytest

from infer2train.reporting.curves import elapsed
from infer2train.reporting.runs import read, read_run


def write(folder, rows, tail=""):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)


def test_lines_cut_by_a_kill_are_left_out_and_counted(tmp_path):
    whole = json.dumps({"kind": "step", "step": 20, "loss": 1.0})
    (tmp_path / "metrics.jsonl").write_text(f'{{"kind": "step", "st\n{whole}\n{{"kind": "epo')
    run = read_run(tmp_path)
    assert [row["step"] for row in run.steps] == [20]
    assert run.unreadable == 2


def test_what_a_resumed_run_logs_again_replaces_what_it_logged_before(tmp_path):
    seconds = {"total": 10.0, "scoring": 3.0, "views": 1.0, "training": 6.0}
    first = [{"kind": "epoch", "epoch": epoch, "test_error": 0.5, "seconds": seconds} for epoch in (0, 1)]
    write(tmp_path, [*first, {"kind": "epoch", "epoch": 1, "test_error": 0.25, "seconds": seconds}])
    run = read_run(tmp_path)
    assert (len(run.epochs), run.test_error, run.seconds["total"], run.scoring_share) == (2, 0.25, 20.0, 0.4)


def test_what_a_run_needed_first_counts_once_however_often_it_was_started(tmp_path):
    epochs = [{"kind": "epoch", "epoch": e, "test_error": 0.5, "seconds": {"total": 10.0}} for e in (0, 1)]
    write(tmp_path, [{"kind": "start", "before_seconds": 7.5}, epochs[0], {"kind": "start", "before_seconds": 7.5}])
    run = read_run(tmp_path)
    assert run.seconds == {"irreducible models": 7.5, "total": 17.5}
    write(tmp_path, [{"kind": "start", "before_seconds": 7.5}, *epochs])
    assert elapsed(read_run(tmp_path)) == {0: 17.5, 1: 27.5}
    write(tmp_path, [{"kind": "start"}, *epochs])
    assert (read_run(tmp_path).seconds, elapsed(read_run(tmp_path))) == ({"total": 20.0}, {0: 10.0, 1: 20.0})


def test_a_run_is_finished_when_it_says_so(tmp_path):
    (tmp_path / "config.yaml").write_text("method: nm-augment\nepochs: 3\nseed: 5\n")
    epochs = [{"kind": "epoch", "epoch": epoch, "test_error": 0.5} for epoch in range(3)]
    write(tmp_path, epochs)
    assert not read_run(tmp_path).finished, "it was killed before its last checkpoint"
    write(tmp_path, [*epochs, {"kind": "event", "event": "finished", "step": 6}])
    run = read_run(tmp_path)
    assert (run.finished, run.method, run.seed) == (True, "nm-augment", 5)


def test_a_loop_of_the_users_own(tmp_path):
    shares = {1: 0.2, 2: 0.4}
    rows = [
        {"kind": "step", "step": step, "loss": None, "scoring_share": share, "new field": []}
        for step, share in shares.items()
    ]
    write(tmp_path, [{"kind": "start"}, *rows, {"kind": "something new"}])
    run = read_run(tmp_path)
    assert (run.method, run.test_error, run.seconds, run.finished) == (tmp_path.name, None, {}, False)
    assert run.scoring_share == pytest.approx(0.3)


def test_values_that_are_not_numbers_count_as_missing(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "epoch", "epoch": 0, "test_error": NaN}\n')
    assert read_run(tmp_path).test_error is None


def test_folders_without_a_run_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"needs a folder with metrics\.jsonl or comparison\.json"):
        read(tmp_path)


@pytest.mark.parametrize("damaged", ["", '{"methods": ["base', "{}", "[]", '{"methods": [], "seeds": [0]}'])
def test_a_damaged_comparison_is_named_with_its_remedy(tmp_path, damaged):
    (tmp_path / "comparison.json").write_text(damaged)
    with pytest.raises(ValueError, match=rf"{tmp_path}/comparison\.json must hold .* writes it again"):
        read(tmp_path)
