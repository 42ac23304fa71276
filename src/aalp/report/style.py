"""Colours, and how every figure looks. The page and its figures take their colours from here alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LIGHT = {
    "page": "#ffffff",
    "surface": "#f4f6f8",
    "text": "#1b2027",
    "muted": "#566170",
    "rule": "#d7dce3",
    "accent": "#0a58a8",
    "heat": "#0f4c8a",
    "pass": "#115c2e",
    "pass-surface": "#e2f3e8",
    "fail": "#9c1228",
    "fail-surface": "#fce8ea",
    "unsure": "#6e4600",
    "unsure-surface": "#fdf0d5",
}
"""Colours of the page by their part in it; text parts reach WCAG AA (4.5:1) on what they stand on."""

DARK = {
    "page": "#14171c",
    "surface": "#1d2229",
    "text": "#e7eaee",
    "muted": "#a4aebb",
    "rule": "#38404b",
    "accent": "#7db8f5",
    "heat": "#2b72bd",
    "pass": "#83d8a0",
    "pass-surface": "#14301f",
    "fail": "#ff9fa9",
    "fail-surface": "#3a1a20",
    "unsure": "#f2c778",
    "unsure-surface": "#352a12",
}


@dataclass(frozen=True)
class Series:
    """How one model looks in every figure: by colour, and for eyes that mix colours up, by dash and marker."""

    light: str
    dark: str
    dash: str
    symbol: str


# After Okabe and Ito (2008), darkened and lightened until each stands out 3:1 from its page (WCAG 1.4.11).
SERIES = (
    Series("#0072b2", "#5ab4ee", "solid", "circle"),
    Series("#d55e00", "#ff9350", "dash", "square"),
    Series("#007a5a", "#3fcf9f", "dot", "diamond"),
    Series("#b0447f", "#f295c6", "dashdot", "triangle-up"),
    Series("#8a6a00", "#e3c044", "longdash", "cross"),
    Series("#5b4bb0", "#b3a6ff", "longdashdot", "x"),
    Series("#5d6875", "#b4bdc9", "2px,5px", "triangle-down"),
    Series("#8f2d2d", "#ff8f86", "8px,3px", "star"),
)

FONT = (
    "-apple-system, BlinkMacSystemFont, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', 'Liberation Sans', Arial, sans-serif"
)


def series(position: int) -> Series:
    """The look of the model at this position; colours come again from the ninth on, in the next dash."""
    if position < len(SERIES):
        return SERIES[position]
    other = SERIES[(position + position // len(SERIES)) % len(SERIES)]
    look = SERIES[position % len(SERIES)]
    return Series(look.light, look.dark, other.dash, other.symbol)


def dark_of() -> dict[str, str]:
    """The dark colour of each light one, by which the page repaints its figures."""
    pairs = {LIGHT[part]: DARK[part] for part in LIGHT}
    pairs |= {look.light: look.dark for look in SERIES}
    return pairs | {faint(look.light): faint(look.dark) for look in SERIES}


def faint(colour: str) -> str:
    """A colour for the area behind lines."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"


def marker(look: Series, size: int, filled: bool = True) -> dict[str, Any]:
    """A model's marker, with an edge that an open one is seen by."""
    symbol = look.symbol if filled else f"{look.symbol}-open"
    return {"symbol": symbol, "size": size, "color": look.light, "line": {"width": 2, "color": look.light}}


def bars(values: Sequence[float], ends: Sequence[tuple[float, float]], look: Series, width: int = 5) -> dict[str, Any]:
    """Error bars of a model's values, from the lower to the higher end of each."""
    up = [high - value for value, (_, high) in zip(values, ends, strict=True)]
    down = [value - low for value, (low, _) in zip(values, ends, strict=True)]
    more = {"thickness": 1.5, "width": width, "color": look.light}
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, **more}


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with a title and a quiet grid."""
    plain: dict[str, Any] = {
        "title": {"text": title, "standoff": 10, "font": {"size": 13}},
        "gridcolor": LIGHT["rule"],
        "linecolor": LIGHT["rule"],
        "tickcolor": LIGHT["rule"],
        "zeroline": False,
        "automargin": True,
    }
    return plain | more


def share_axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis from 0 to 100 %."""
    return axis(title, **{"range": [-0.02, 1.03], "tickformat": ".0%", "tick0": 0, "dtick": 0.2, **more})


def names_axis(names: Sequence[object], down: bool = False) -> dict[str, Any]:
    """An axis of names, which stand at 0, 1, 2, ...: two may have one label, but never one position.

    Args:
        down: the first one on top.
    """
    ends = [-0.6, len(names) - 0.4]
    ticks = {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": [label(name) for name in names]}
    # By default plotly leaves out a name that reaches beyond the figure.
    return axis("", range=ends[::-1] if down else ends, ticklabeloverflow="allow", **ticks)


def count_axis(title: str) -> dict[str, Any]:
    """A logarithmic axis of counts."""
    ticks = [digit * 10**power for power in range(6) for digit in (1, 2, 5)]
    return axis(title, type="log", tickmode="array", tickvals=ticks, ticktext=[f"{tick:,}" for tick in ticks])


def layout(x: dict[str, Any], y: dict[str, Any], height: int = 340, **more: Any) -> dict[str, Any]:
    """The layout that all figures share: the legend on top, no title (the page and the paper have their own)."""
    plain: dict[str, Any] = {
        "xaxis": x,
        "yaxis": y,
        "height": height,
        "margin": {"l": 56, "r": 14, "t": 12, "b": 44},
        "font": {"family": FONT, "size": 13, "color": LIGHT["text"]},
        "paper_bgcolor": LIGHT["page"],
        "plot_bgcolor": LIGHT["page"],
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 13}},
        "hoverlabel": {
            "bgcolor": LIGHT["surface"],
            "bordercolor": LIGHT["rule"],
            "font": {"family": FONT, "color": LIGHT["text"]},
        },
        "hovermode": "closest",
    }
    return plain | more


def label(text: object, longest: int = 28) -> str:
    """Any text as a figure's label: plotly reads labels as a little HTML, so nothing in them may look like it.

    A long one loses its middle: names that begin alike differ at their ends.
    """
    plain = " ".join(str(text).split())
    if len(plain) > longest:
        plain = plain[: longest // 2] + "…" + plain[longest // 2 + 1 - longest :]
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
