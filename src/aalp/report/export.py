"""Each figure as SVG and PNG, for papers: drawn by kaleido in the machine's own Chrome or Chromium."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from aalp.errors import OptionError, RunError
from aalp.report.blocks import Figure
from aalp.store.files import write_atomically

WIDTH = 720
SCALES = {"svg": 1, "png": 3}


def check_export(folder: Path) -> None:
    """Refuse what cannot work, before anything is drawn.

    Raises:
        OptionError: the extra `figures` is not installed, or there is no browser to draw with.
        RunError: the folder holds something already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"'{folder}' is not an empty folder: choose another --figures, nothing is overwritten")
    try:
        import kaleido  # an extra: most people look at the page
    except ImportError as error:
        raise OptionError("--figures draws with kaleido, which is not installed: pip install 'aalp[figures]'") from error
    try:
        kaleido.Kaleido()
    except RuntimeError as error:  # ChromeNotFoundError, whose home differs between versions
        raise OptionError("--figures draws in a Chrome or Chromium, and none was found: install one") from error


def export(figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Write each figure as NAME.svg and NAME.png, in light colours.

    Raises:
        RunError: the browser did not draw a figure, or a file cannot be written.
    """
    wanted = [(figure, suffix) for figure in figures for suffix in SCALES]
    try:
        # In a thread of its own, so that it works inside a notebook's event loop too.
        with ThreadPoolExecutor(1) as thread:
            images = thread.submit(lambda: asyncio.run(_draw(wanted))).result()
    except Exception as error:  # kaleido, choreographer and the browser each have their own kinds
        reason = " ".join(str(error).split())[:300]
        raise RunError(f"the figures could not be drawn: {type(error).__name__}: {reason}; try another Chrome") from error
    paths = []
    for (figure, suffix), image in zip(wanted, images, strict=True):
        paths.append(folder / f"{figure.name}.{suffix}")
        write_atomically(paths[-1], image)
    return paths


async def _draw(wanted: Sequence[tuple[Figure, str]]) -> list[bytes]:
    import kaleido

    # By itself kaleido would load MathJax from a server, for formulas, which our figures do not have.
    async with kaleido.Kaleido(mathjax=False) as browser:
        images = []
        for figure, suffix in wanted:
            size: dict[str, Any] = {
                "format": suffix,
                "width": WIDTH,
                "height": figure.layout["height"],
                "scale": SCALES[suffix],
            }
            spec = {"data": list(figure.data), "layout": dict(figure.layout)}
            images.append(await browser.calc_fig(spec, opts=size))
        return images
