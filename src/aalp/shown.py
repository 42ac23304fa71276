"""Numbers as people read them, alike in every table, page and line."""

from __future__ import annotations


def in_percent(share: float) -> str:
    """A share in [0, 1] as the number before a percent sign: 100.0 and 0.0 are only what is exactly that.

    One decimal, and up to three where fewer would round to one of the ends: 9,996 of 10,000 are 99.96, not 100.0.
    """
    for digits in (1, 2, 3):
        text = f"{100 * share:.{digits}f}"
        if float(text) not in (0.0, 100.0):
            return text
    end = round(share)
    # A mean over shares that are all 1 may miss it by rounding.
    return f"{100 * end:.1f}" if abs(share - end) < 1e-7 else (">99.999" if end else "<0.001")


def as_exact(share: float, as_text: str) -> str:
    """A deviation of shares in percent, with as many decimals as the text of their mean has."""
    return f"{100 * share:.{len(as_text.partition('.')[2])}f}"


def eps_text(eps: float) -> str:
    """eps as it is typed and published: 8/255 where it is one of the first 32 steps of 255, else the number."""
    steps = round(eps * 255)
    return f"{steps}/255" if 0 < steps <= 32 and abs(eps * 255 - steps) < 1e-6 else f"{eps:g}"
