"""The page: one HTML file with its style, script, figures and plotly.js inside."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import metadata, resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from aalp.report import headline, style
from aalp.report.blocks import Figure, Section
from aalp.report.collect import Group
from aalp.report.figures import Interval

DIGITS = 5
"""Significant digits of the numbers in figures: more than a screen shows, and a third of the bytes."""


def figures_of(parts: Iterable[Section]) -> list[Figure]:
    """The figures in the sections, in order."""
    return [block for part in parts for block in part.blocks if isinstance(block, Figure)]


@cache  # compiled once: that takes longer than to fill it
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("aalp", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2")


def render(
    groups: Sequence[Group],
    parts: Sequence[Section],
    interval: Interval,
    title: str,
    comparison: Sequence[str] = (),
) -> str:
    """The report as HTML that needs nothing outside itself.

    Args:
        groups: the models, at least one.
        parts: the sections, from `aalp.report.sections`.
        interval: (successes, count) -> 95 % interval.
        title: of the page.
        comparison: sentences on real differences, from a comparison of several seeds.
    """
    from plotly.offline import get_plotlyjs  # 5 MB of text, read only when a page is made

    drawn = {
        figure.name: {"data": figure.data, "layout": figure.layout, "file": f"aalp-{figure.name}"}
        for figure in figures_of(parts)
    }
    return _template().render(
        title=title,
        lead=headline.lead(groups),
        cautions=headline.cautions(groups),
        comparison=comparison,
        rows=headline.rows(groups, interval),
        caption=headline.caption(groups),
        groups=groups,
        sections=parts,
        colours={"light": _variables(style.LIGHT, groups, "light"), "dark": _variables(style.DARK, groups, "dark")},
        font=Markup(style.FONT),  # ours, and quotes in it have to stay quotes
        style=_asset("page.css"),
        script=_asset("page.js"),
        plotly=Markup(get_plotlyjs()),
        figures=script_json({"figures": drawn, "dark": style.dark_of()}),
        version=metadata.version("aalp"),
        created=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        symbols=SYMBOLS,
        dashes=DASHES,
    )


# Marker and dash of a model beside its name, as they are in the figures.
SYMBOLS = {
    "circle": "M22 4a4 4 0 1 0 .01 0z",
    "square": "M18 4h8v8h-8z",
    "diamond": "M22 3l5 5-5 5-5-5z",
    "triangle-up": "M22 3l5 9h-10z",
    "cross": "M20.5 3h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z",
    "x": "M19 3l3 3 3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3-3-3z",
    "triangle-down": "M22 13l5-9h-10z",
    "star": "M22 2.5l1.5 4h4l-3.2 2.6 1.2 4.1-3.5-2.5-3.5 2.5 1.2-4.1-3.2-2.6h4z",
}
DASHES = {"solid": "", "dash": "9 9", "dot": "3 3", "dashdot": "9 3 3 3", "longdash": "14 6", "longdashdot": "14 3 3 3"}


def script_json(value: Any) -> Markup:
    """JSON that may stand inside a script element: no `<` in it can end that element."""
    text = json.dumps(_rounded(value), allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value


def _variables(theme: Mapping[str, str], groups: Sequence[Group], which: str) -> dict[str, str]:
    looks = {f"series-{group.number + 1}": dataclasses.asdict(group.look)[which] for group in groups}
    return {**theme, **looks}


def _asset(name: str) -> Markup:
    return Markup((resources.files("aalp") / "report" / name).read_text(encoding="utf-8"))
