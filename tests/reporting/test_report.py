import re
import shutil
from html.parser import HTMLParser

import pytest
import yaml
from run_folders import START, step_rows, write_comparison, write_rows, write_run

from infer2train.reporting.report import write_report
from infer2train.reporting.summary import summarise
from infer2train.reporting.tables import difference

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """What a browser would see: tags, attributes, text; whether every element is closed."""

    def __init__(self, path):
        super().__init__()
        self.open, self.elements, self.words = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title", "script"):
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def comparison_page(comparison_folder, tmp_path_factory):
    return Page(write_report(shutil.copytree(comparison_folder, tmp_path_factory.mktemp("report") / "cifar")))


@pytest.fixture
def run_copy(run_folder, tmp_path):
    return shutil.copytree(run_folder, tmp_path / "first")


def judge(folder, validation_split):
    """Have all runs below a folder say that so many images were held back."""
    for path in folder.rglob("config.yaml"):
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "validation_split": validation_split}))


def test_errors_on_images_that_were_held_back_are_called_validation_errors(comparison_folder, run_copy, tmp_path):
    folder = shutil.copytree(comparison_folder, tmp_path / "cifar")
    for held_back, right, wrong in ((5000, "alidation error", "est error"), (0, "est error", "alidation error")):
        for page in (folder, run_copy):
            judge(page, held_back)
            written = write_report(page).read_text(encoding="utf-8")
            assert right in written
            assert wrong not in written.replace("lowest error", "")
    judge(folder / "baseline-seed0", 5000)
    assert "Error by seed, %" in write_report(folder).read_text(encoding="utf-8"), "of both, it is an error"


def test_the_page_asks_the_network_for_nothing(comparison_page):
    for _, attributes in comparison_page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    assert comparison_page.of("script") == [{}], "one, without a source"
    assert not comparison_page.of("link")
    (policy,) = [m["content"] for m in comparison_page.of("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'")
    assert re.search(r"script-src 'sha256-[^']+'$", policy), "no other script is run"


def test_a_comparison_says_its_verdicts_first(comparison_page, comparison_folder):
    text = comparison_page.text
    assert text.index("HELPS") < text.index("Results")
    for line in summarise(comparison_folder)[1:]:
        assert difference(line.difference).replace("-", "−") in text
        assert line.difference.verdict.value in text
    order = ("Results", "Error curves", "Training", "Chosen and rejected", "Configuration", "Run it again")
    positions = [text.index(f" {title} ") for title in order]
    assert positions == sorted(positions)
    assert len(comparison_page.of("svg")) >= 6


def test_a_run_shows_its_figures_and_gives_its_command(run_copy, monkeypatch):
    monkeypatch.chdir(run_copy.parent)
    text = Page(write_report(run_copy.relative_to(run_copy.parent))).text
    (line,) = summarise(run_copy)
    assert f"{100 * line.mean:.2f} %" in text
    assert "infer2train train --config first/config.yaml" in text
    assert "CIFAR-10 (JPEG)" in text
    assert "One run has no verdict" in text
    assert "AMD EPYC" in text
    assert "2.13.0+cpu" in text


def test_each_view_has_its_loss_and_one_in_a_row_is_named_as_chosen(run_copy):
    page = Page(write_report(run_copy))
    texts = [image["alt"] for image in page.of("img")]
    assert len(texts) == 60
    assert sum(text.endswith(", chosen") for text in texts) == 6
    assert all(re.match(r"view \d, score \d+\.\d\d", text) for text in texts)
    for start in range(0, 60, 10):
        assert texts[start].endswith("chosen")  # nm-augment: the highest loss, and the views stand in order of loss
    assert page.text.count(" chosen ") >= 6


def test_a_loop_of_the_users_own_has_a_report(tmp_path):
    import numpy as np

    rows = [{**row, "loss": None, "lr": None} for row in step_rows("nm-augment", np.random.default_rng(0), 2)]
    write_rows(tmp_path, [START, *rows])
    text = Page(write_report(tmp_path)).text
    assert "Mean lag" in text
    assert "Lag of the oracle" in text
    assert "Mean; where a point stands for several rows, the band is their range." in text
    assert "Error curves" not in text
    assert "Loss of the batches" not in text
    assert "Run that loop again" in text


@pytest.mark.parametrize("content", ["", '{"kind": "sta'])
def test_a_run_that_has_hardly_begun_has_a_report(tmp_path, content):
    (tmp_path / "metrics.jsonl").write_text(content)
    assert "nothing logged yet" in Page(write_report(tmp_path)).text


def test_accidents_are_told(tmp_path):
    folder = write_run(tmp_path / "run", "nm-augment", 0, epochs=6, done=4)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "event", "event": "resumed", "step": 700, "message": "from checkpoint 700"}\n')
        file.write('{"kind": "step", "step": 820, "nonfinite_scores": 3}\n{"kind": "epo')
    text = Page(write_report(folder)).text
    assert "not finished: 4 of 6 epochs" in text
    assert "step 700 resumed: from checkpoint 700" in text
    assert "3 scores were NaN or infinite" in text
    assert "1 unreadable lines" in text


def test_a_comparison_on_its_way_names_what_is_missing(tmp_path):
    folder = write_comparison(tmp_path / "half", ["baseline", "nm-augment"], [0, 1], epochs=5)
    shutil.rmtree(folder / "nm-augment-seed1")
    text = Page(write_report(folder)).text
    assert "3 of 4 runs finished" in text
    assert "nm-augment seed 1" in text
    assert "needs ≥ 2 seeds" in text


def test_a_comparison_that_has_not_begun_has_a_report(tmp_path):
    (tmp_path / "comparison.json").write_text(
        '{"methods": ["baseline", "nm-augment"], "seeds": [0], "baseline": "baseline"}'
    )
    text = Page(write_report(tmp_path)).text
    assert "0 of 2 runs finished" in text
    assert "No seed finished yet by both this method and baseline" in text


def test_half_a_run_is_not_shown_as_cheaper(tmp_path):
    folder = write_comparison(tmp_path / "half", ["baseline", "nm-augment"], [0], epochs=4)
    shutil.rmtree(folder / "nm-augment-seed0")
    write_run(folder / "nm-augment-seed0", "nm-augment", 0, epochs=4, done=2)
    page = Page(write_report(folder))
    assert "What it costs" in page.text
    assert "scoring" not in page.text.split("What it costs")[0].split("weights.")[1]  # no such part in the bar's legend


def test_settings_that_differ_stand_apart(comparison_page):
    text = comparison_page.text
    by_method, shared = text.split("By method")[1].split("In all runs")
    assert "score" in by_method
    assert "update_every" in shared.split("Machine and versions")[0]
    assert "update_every" not in by_method


def test_what_users_write_is_text(run_copy):
    evil = '<img src="https://example.org/x"><script>alert(1)</script>'
    config = yaml.safe_load((run_copy / "config.yaml").read_text())
    (run_copy / "config.yaml").write_text(yaml.safe_dump({**config, "method": evil, "data_note": evil, "model": evil}))
    page = Page(write_report(run_copy))
    assert page.of("script") == [{}], "only the page's own"
    assert all(image["src"].startswith("data:") for image in page.of("img"))
    assert evil in page.text


def test_the_same_folder_gives_the_same_bytes(tmp_path):
    folder = write_run(tmp_path / "run", "baseline", 0, epochs=3)
    assert write_report(folder).read_bytes() == write_report(folder).read_bytes()
    assert not list(folder.glob(".*.partial"))


def test_paths_with_spaces_can_be_pasted(tmp_path):
    folder = write_run(tmp_path / "my run", "baseline", 0, epochs=3)
    assert "my run/config.yaml'" in Page(write_report(folder)).text


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="needs a folder with"):
        write_report(tmp_path)


def test_the_final_epochs_have_no_panel_where_one_method_is_alone_in_them(tmp_path):
    folder = write_comparison(tmp_path / "lengths", ["baseline", "nm-augment"], [0, 1], epochs=12)
    assert "(b) Test error in the last epochs" in Page(write_report(folder)).text
    for seed in (0, 1):
        shutil.rmtree(folder / f"nm-augment-seed{seed}")
        write_run(folder / f"nm-augment-seed{seed}", "nm-augment", seed, epochs=4)
    text = Page(write_report(folder)).text
    assert "in the last epochs" not in text
    assert "(b) Test error over the wall-clock" in text
    shutil.rmtree(folder / "nm-augment-seed0")
    shutil.rmtree(folder / "nm-augment-seed1")
    assert "(b) Test error in the last epochs" in Page(write_report(folder)).text, "alone on the whole page"
