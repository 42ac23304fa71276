"""Screenshots of a report as PNG pages, for the docs: desktop, dark, phone and print.

python benchmarks/report_screenshots.py runs/report-001.html docs/report
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
)
VIEWS = {"desktop": (1280, "light"), "dark": (1280, "dark"), "phone": (390, "light")}
PAGE_HEIGHT = {1280: 1600, 390: 1400}
LARGEST = 500_000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("report", type=Path, help="HTML file that `aalp report` made")
    parser.add_argument("folder", type=Path, help="where the PNG go")
    parser.add_argument("--pages", type=int, default=4, help="how many pages of each view, from the top")
    parser.add_argument("--pdf", type=Path, help="write the printed report here too")
    arguments = parser.parse_args()
    browser_path = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser_path is None:
        sys.exit("no Chromium or Chrome found: install one")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS.split())
        for name, (width, scheme) in VIEWS.items():
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
            open_report(page, arguments.report)
            for number, png in enumerate(pages_of(page, width, arguments.pages), 1):
                target = arguments.folder / f"{name}-{number}.png"
                target.write_bytes(png)
                print(f"{target}  {len(png) / 1000:.0f} kB")
            if arguments.pdf and name == "desktop":
                page.pdf(path=arguments.pdf, format="A4", prefer_css_page_size=True)
            page.close()
        browser.close()


def open_report(page: Page, path: Path) -> None:
    """Open the file and wait for every figure."""
    page.goto(path.resolve().as_uri())
    while page.locator("[data-figure]:not([data-drawn])").count():
        page.wait_for_timeout(50)


def pages_of(page: Page, width: int, most: int) -> list[bytes]:
    """The report cut into pages of one height, each a PNG of at most LARGEST bytes."""
    # What sticks to the screen would be in the middle of a screenshot of everything.
    page.add_style_tag(content=".contents { position: static !important; height: auto !important }")
    whole = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    height = PAGE_HEIGHT[width]
    tops = range(0, whole.height - height // 10, height)  # a sliver is no page
    return [small_png(whole.crop((0, top, width, min(top + height, whole.height)))) for top in list(tops)[:most]]


def small_png(image: Image.Image) -> bytes:
    """PNG bytes; a palette is enough for a page of text and lines."""
    for colours in (None, 256, 128, 64):
        buffer = io.BytesIO()
        (image if colours is None else image.quantize(colours)).save(buffer, "PNG", optimize=True)
        if buffer.tell() <= LARGEST:
            break
    return buffer.getvalue()


if __name__ == "__main__":
    main()
