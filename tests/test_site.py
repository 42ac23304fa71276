"""The documentation as a site: built with warnings as errors, complete, and without a byte from another host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    process = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert (process.returncode, process.stdout + process.stderr) == (0, "")
    return folder


class Loaded(HTMLParser):
    """The addresses that a page loads by itself, which links to click on are not."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video", "embed") or (
            tag == "link" and values.get("rel") != "canonical"
        ):
            self.found += [value for name in ("src", "href", "srcset") if (value := values.get(name))]


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text())
        assert loaded.found
        assert [address for address in loaded.found if re.match(r"(https?:)?//", address)] == [], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )['\"]?(https?:)?//", sheet.read_text()), sheet


def test_every_page_of_the_docs_is_there(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs")).with_suffix(".html").is_file()
    for made in ("CONTRIBUTING.html", "CHANGELOG.html", "decisions/index.html", "notebooks/own-data.html"):
        assert (site / made).is_file()


def test_the_library_page_has_every_public_name(site: Path) -> None:
    import aalp

    text = (site / "api.html").read_text()
    assert [name for name in aalp.__all__ if not re.search(rf'id="aalp\.[\w.]*\.{name}"', text)] == []
