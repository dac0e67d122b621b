"""The pages as a browser shows them: nothing fetched, nothing cut, sorted and read by keyboard, contrast, paper."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_folders import write_comparison, write_run

from infer2train import inspect, mine
from infer2train.reporting.report import write_report
from mined_runs import draws, jittered, network, sgd

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra `test`)")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here (Debian: apt install chromium)"),
    pytest.mark.filterwarnings("ignore:the oracle gets new weights every:RuntimeWarning"),
]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
KINDS = ("run", "several", "inspected")
PATIENCE_MS = 120_000
"""A machine may have other work."""
DESKTOP, TELEPHONE, PAPER = 1280, 390, 688
"""CSS pixels; of A4 without its margins."""
CONTRAST = Path(__file__).with_name("contrast.js").read_text("utf-8")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE_MS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    run = write_run(folder / "run", "nm-augment", 0, epochs=9)
    planned = write_comparison(folder / "planned", ["baseline", "nm-augment", "nm-sample"], [0, 1, 2], epochs=5)
    longer = write_run(folder / "a-longer-run-with-a-long-name", "nm-augment", 0, epochs=7)
    unfinished = write_run(folder / "unfinished", "nm-augment-soft", 9, epochs=5, done=2)
    return {
        "run": write_report(run),
        "several": write_report(planned, longer, unfinished),
        "inspected": inspected(folder / "mined"),
    }


def inspected(folder: Path) -> Path:
    """What a loop of one's own picked."""
    model, base = network(), jittered()
    optimizer = sgd(model)
    loader = mine(base, model, optimizer, log_dir=folder, method="nm-augment", gamma=3, update_every=2)
    list(draws(loader, model, optimizer))
    loader.close()
    return inspect(folder, base, class_names=["ape", "bee", "cat"])


@pytest.fixture(scope="module")
def opened(browser: Any, files: dict[str, Path]) -> dict[str, tuple[Any, list[str]]]:
    """Each page, opened, with what went wrong and what it asked for."""
    found = {}
    for kind, file in files.items():
        page, told = browser.new_page(viewport={"width": DESKTOP, "height": 900}), []
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda message, told=told: told.append(f"console: {message.text}"))
        page.on("pageerror", lambda error, told=told: told.append(f"error: {error}"))
        page.on("request", lambda request, told=told: told.append(request.url))
        page.goto(file.as_uri())
        found[kind] = page, told
    return found


@pytest.fixture(params=KINDS)
def page(request: pytest.FixtureRequest, opened: dict[str, tuple[Any, list[str]]]) -> Iterator[Any]:
    page, _ = opened[request.param]
    page.set_viewport_size({"width": DESKTOP, "height": 900})
    yield page
    page.emulate_media(media="screen", color_scheme="light")


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_fetched_and_nothing_goes_wrong(
    kind: str, opened: dict[str, tuple[Any, list[str]]], files: dict[str, Path]
) -> None:
    page, told = opened[kind]
    assert [entry for entry in told if not entry.startswith("data:image/png")] == [files[kind].as_uri()]
    assert page.title().endswith("infer2train")


@pytest.mark.parametrize("width", [DESKTOP, TELEPHONE])
def test_every_figure_is_seen_and_the_page_is_no_wider_than_the_window(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = page.evaluate(
        """[...document.querySelectorAll("figure, [role=img], img")].filter((one) => !one.closest("[hidden]"))
        .map((one) => [one.getBoundingClientRect().width, one.getBoundingClientRect().height])"""
    )
    assert len(sizes) > 8
    assert min(min(size) for size in sizes) > 8


def test_a_screen_reader_is_told_everything(page: Any) -> None:
    levels = [
        int(level) for level in page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(h => h.tagName[1])")
    ]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip([0, *levels], levels, strict=False))
    for landmark in ("body > header", "body > main", "body > footer"):
        assert page.locator(landmark).count() == 1
    for nameless in (
        "img:not([alt]), img[alt='']",
        "svg:not([role=img]):not([aria-hidden])",
        "[role=img]:not([aria-label])",
        "th:not([scope])",
        "table:not(:has(> caption))",
        "section:not([aria-labelledby])",
        ":is(.scroll, pre, .within):not([tabindex][role=region][aria-label])",
    ):
        assert page.locator(nameless).count() == 0, nameless
    named = "one => document.getElementById(one.getAttribute('aria-labelledby')) !== null"
    assert page.evaluate(f"[...document.querySelectorAll('[aria-labelledby]')].every({named})")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_that_of_wcag_aa(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    page.set_viewport_size({"width": DESKTOP, "height": page.evaluate("document.documentElement.scrollHeight")})
    found = page.evaluate(CONTRAST)
    assert found["texts"] > 60
    assert found["low"] == []
    is_dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 19, 24)"
    assert is_dark == (scheme == "dark")


def column(page: Any, caption: str, number: int) -> list[str]:
    rows = page.locator("table", has=page.locator("caption", has_text=caption)).locator("tbody tr")
    return rows.evaluate_all(f"rows => rows.map(row => row.cells[{number}].textContent.trim())")


def test_tables_sort_by_numbers_and_by_words(opened: dict[str, tuple[Any, list[str]]]) -> None:
    page, _ = opened["several"]
    table = page.locator("table", has=page.locator("caption", has_text="Each run"))
    steps = table.locator("th", has=page.get_by_role("button", name="Steps"))
    assert steps.get_attribute("aria-sort") == "none"
    before = [int(re.sub(r"\D", "", text)) for text in column(page, "Each run", 3)]
    for direction in ("ascending", "descending"):
        steps.get_by_role("button").click()
        assert steps.get_attribute("aria-sort") == direction
        now = [int(re.sub(r"\D", "", text)) for text in column(page, "Each run", 3)]
        assert now == sorted(before, reverse=direction == "descending")
    assert max(before) > 999 > min(before), "a group of three digits is no other number"
    state = table.get_by_role("button", name="State")
    state.focus()
    page.keyboard.press("Enter")
    assert column(page, "Each run", 6)[-1] == "not finished: 2 of 5 epochs"
    assert steps.get_attribute("aria-sort") == "none"
    page.keyboard.press("Space")
    assert column(page, "Each run", 6)[0] == "not finished: 2 of 5 epochs"
    results = page.locator("table", has=page.locator("caption", has_text="by their finished runs"))
    for direction in (1, -1):
        results.get_by_role("button", name="Difference").click()
        shown = column(page, "by their finished runs", 3)
        known = [float(text.partition(" ")[0].replace("−", "-")) for text in shown if text != "–"]
        assert known == sorted(known, reverse=direction < 0)
        assert shown[len(known) :] == ["–"] * (len(shown) - len(known)), "what is not known comes last"


def test_the_keyboard_reaches_headings_and_shows_where_it_is(page: Any) -> None:
    page.evaluate("document.activeElement.blur()")
    page.mouse.click(1, 1)
    focused = """() => { const it = document.activeElement, style = getComputedStyle(it);
      return [it.className, it.closest("th") !== null, style.outlineStyle, parseFloat(style.outlineWidth)] }"""
    seen = []
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.append(page.evaluate(focused))
        if seen[-1][1] or page.locator("th button").count() == 0:
            break
    assert seen[0][0] == "skip"
    assert seen[-1][1] or page.locator("th button").count() == 0
    assert all((style, width >= 2) == ("solid", True) for _, _, style, width in seen)


def test_without_scripts_it_is_as_readable(browser: Any, files: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(files["several"].as_uri())
    assert page.locator("th button").count() == 0
    assert page.locator("th", has_text="Wall-clock").first.is_visible()
    context.close()


def test_it_prints_on_a4(page: Any) -> None:
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": PAPER, "height": 900})
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    cut = page.evaluate(
        f"""[...document.querySelectorAll("table, figure, pre, svg, dl")].filter((one) => !one.closest("[hidden]"))
        .filter((one) => one.getBoundingClientRect().right > {PAPER} + 1).map((one) => one.outerHTML.slice(0, 200))"""
    )
    assert cut == []
    folded = page.locator("details > div")
    assert all(
        height > 20 for height in folded.evaluate_all("all => all.map(one => one.getBoundingClientRect().height)")
    )
    pdf = page.pdf(prefer_css_page_size=True, print_background=True)
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 2
    assert {
        (round(float(w)), round(float(h))) for w, h in re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", pdf)
    } == {(595, 842)}
