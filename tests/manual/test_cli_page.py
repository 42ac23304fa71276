"""docs/cli.md is generated from the verbs' source: `python tests/manual/test_cli_page.py`."""

from __future__ import annotations

from pathlib import Path

from aalp.cli import PATHS, VERBS
from aalp.manual.page import page

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"


def test_the_page_is_what_the_source_says() -> None:
    assert PAGE.read_text() == page(VERBS, PATHS), "generate it anew: python tests/manual/test_cli_page.py"


if __name__ == "__main__":
    PAGE.write_text(page(VERBS, PATHS))
