"""The report as its readers meet it: opened from disk in a real browser."""

from __future__ import annotations

import itertools
import shutil
import time
from pathlib import Path

import pytest
from report_helpers import CLASSES, EVIL, make_run, write_observations

from aalp.cli import main

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'aalp[test]'")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium binary was found: apt-get install chromium")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A comparison of three models, one with two seeds, one neither audited nor analysed."""
    folder = tmp_path_factory.mktemp("report")
    runs = [
        make_run(folder / "aalp-seed0", "aalp", 0, 0.6),
        make_run(folder / "aalp-seed1", "aalp", 1, 0.65),
        make_run(folder / "at", "at", 0, 0.55, audit="fail"),
        make_run(folder / "standard", "standard", 0, 0.0, audit=None, analysis=False),
    ]
    write_observations(folder, runs)
    assert main(["report", *map(str, runs), "--out", str(folder / "report.html"), "--title", EVIL]) == 0
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS.split())
        yield browser
        browser.close()


class Seen:
    """A page with everything that it said and asked for."""

    def __init__(self, browser, report: Path, width=1280, scheme="light", media=None):
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True)
        self.said, self.asked = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(report.as_uri())
        self.until("document.querySelectorAll('[data-figure]:not([data-drawn])').length === 0")

    def until(self, expression: str) -> None:
        """Wait for it from outside: the page's policy lets nobody evaluate text inside."""
        deadline = time.monotonic() + 60
        while not self.page.evaluate(expression):
            assert time.monotonic() < deadline, expression
            self.page.wait_for_timeout(50)


@pytest.fixture
def see(browser, report):
    opened = []

    def open_page(**options):
        opened.append(Seen(browser, report, **options))
        return opened[-1]

    yield open_page
    for seen in opened:
        seen.page.close()


@pytest.fixture(scope="module")
def desktop(browser, report):
    """A page for tests that only look."""
    seen = Seen(browser, report)
    yield seen
    seen.page.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_every_figure_draws_quietly_and_nothing_leaves_the_file(see, report, width, scheme):
    seen = see(width=width, scheme=scheme)
    seen.page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    figures = seen.page.locator("[data-figure]")
    assert figures.count() >= 12
    for figure in figures.all():
        name = figure.get_attribute("data-figure")
        box = figure.locator(".main-svg").first.bounding_box()
        assert box is not None, name
        assert box["width"] > 250, name
        assert box["x"] + box["width"] <= width, name
        marks = figure.locator(".scatterlayer path, .heatmaplayer image, .heatmaplayer path").count()
        assert marks > 0, name
    assert seen.said == []
    outside = [url for url in seen.asked if url != report.as_uri() and not url.startswith(("data:", "blob:"))]
    assert outside == []
    # Nothing but tables and code, which scroll in themselves, is wider than the screen.
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_class_name_that_is_a_script_stays_text_everywhere(desktop):
    seen = desktop
    assert seen.page.title() == EVIL
    assert seen.page.locator("h1").inner_text() == EVIL
    ticks = seen.page.locator("#figure-classes .ytick text").all_text_contents()
    assert sorted(ticks) == sorted(CLASSES)
    assert EVIL in seen.page.locator(".picture-foot").nth(1).inner_text()
    assert seen.page.locator("main b").count() == 0
    assert seen.said == []


def test_figures_follow_the_colours_of_the_screen_and_of_paper(see):
    seen = see(scheme="dark")
    background = "document.querySelector('#figure-eps .main-svg').style.background"
    body = "getComputedStyle(document.body).backgroundColor"
    dark = seen.page.evaluate(body)
    assert seen.page.evaluate(background) == dark
    seen.page.emulate_media(color_scheme="light")
    seen.until(f"{background} === 'rgb(255, 255, 255)'")
    assert seen.page.evaluate(body) == "rgb(255, 255, 255)" != dark
    seen.page.emulate_media(color_scheme="dark", media="print")
    assert seen.page.evaluate(body) == "rgb(255, 255, 255)"
    assert seen.page.locator("nav.contents").is_hidden()
    assert seen.page.pdf(format="A4").startswith(b"%PDF")
    assert seen.said == []


def test_the_keyboard_reaches_the_content_tables_details_and_buttons(see):
    seen = see()
    seen.page.keyboard.press("Tab")
    assert seen.page.evaluate("document.activeElement.textContent") == "Skip to the report"
    assert seen.page.evaluate("document.activeElement.getBoundingClientRect().top") >= 0
    seen.page.keyboard.press("Enter")
    assert seen.page.evaluate("document.activeElement.id") == "content"
    seen.page.locator("#audit details summary").first.focus()
    seen.page.keyboard.press("Enter")
    assert seen.page.locator("#audit details").first.get_attribute("open") is not None
    ring = "getComputedStyle(document.activeElement).outlineStyle"
    assert seen.page.evaluate(ring) == "solid"
    unreachable = "[...document.querySelectorAll('.scroll, button[data-save], summary')].filter((e) => e.tabIndex < 0).length"
    assert seen.page.evaluate(unreachable) == 0


def test_a_figure_is_saved_by_its_buttons(see, tmp_path):
    seen = see(scheme="dark")
    for kind, start in (("svg", b"<svg"), ("png", b"\x89PNG")):
        with seen.page.expect_download() as download:
            seen.page.locator(f"[data-save={kind}][data-of=eps]").press("Enter")
        assert download.value.suggested_filename == f"aalp-eps.{kind}"
        download.value.save_as(tmp_path / kind)
        content = (tmp_path / kind).read_bytes()
        assert content.startswith(start)
        # Paper is white, whatever the screen is.
        assert kind == "png" or b"rgb(255, 255, 255)" in content
    assert seen.said == []


def test_headings_are_in_order_and_every_image_table_and_control_has_a_name(desktop):
    page = desktop.page
    levels = page.eval_on_selector_all("h1, h2, h3, h4", "all => all.map((h) => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert page.eval_on_selector_all("img", "all => all.filter((e) => !e.alt).length") == 0
    assert page.eval_on_selector_all("table", "all => all.filter((e) => !e.caption?.textContent.trim()).length") == 0
    ids = page.eval_on_selector_all("main [id]", "all => all.map((e) => e.id)")
    assert len(ids) == len(set(ids))
    missing = "all => all.filter((e) => !document.getElementById(e.getAttribute('aria-labelledby'))).length"
    assert page.eval_on_selector_all("[aria-labelledby]", missing) == 0
    assert page.eval_on_selector_all("nav a", "all => all.filter((e) => !document.querySelector(e.hash)).length") == 0


def test_missing_parts_name_the_command_that_makes_them(desktop, report):
    text = desktop.page.locator("main").inner_text()
    for verb in ("audit", "analyze"):
        assert f"aalp {verb} {report.parent / 'standard'}" in text


def test_figures_are_written_as_svg_and_png(report, tmp_path, capsys):
    pytest.importorskip("kaleido", reason="needs kaleido: pip install 'aalp[figures]'")
    words = ["report", str(report.parent / "at"), "--out", str(tmp_path / "one.html"), "--figures", str(tmp_path / "figures")]
    assert main(words) == 0, capsys.readouterr().err
    written = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    assert {"eps.svg", "eps.png", "attacks.svg", "contributions.png"} <= written.keys()
    assert all(written[name].startswith(b"<svg" if name.endswith(".svg") else b"\x89PNG") for name in written)
    assert b"accuracy" in written["eps.svg"]
    # Again: what is there is not overwritten.
    assert main([*words[:2], "--out", str(tmp_path / "two.html"), *words[4:]]) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert not (tmp_path / "two.html").exists()
