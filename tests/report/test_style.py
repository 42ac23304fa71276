"""Colours that everybody can tell apart and read."""

from __future__ import annotations

import itertools

import pytest

from aalp.report.style import DARK, LIGHT, SERIES, dark_of, label, series


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_contrast_formula_against_known_values():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # the known grey that just fails


TEXT_ON = [(text, on) for text in ("text", "muted", "accent") for on in ("page", "surface")]
TEXT_ON += [(kind, f"{kind}-surface") for kind in ("pass", "fail", "unsure")]


@pytest.mark.parametrize(("text", "on"), TEXT_ON)
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_reaches_wcag_aa(theme, text, on):
    assert contrast(theme[text], theme[on]) >= 4.5


@pytest.mark.parametrize("look", SERIES, ids=lambda look: look.light)
def test_lines_and_markers_stand_out_from_their_page(look):
    assert contrast(look.light, LIGHT["page"]) >= 3
    assert contrast(look.dark, DARK["page"]) >= 3


def test_every_light_colour_has_its_own_dark_one():
    colours = [*LIGHT.values(), *(look.light for look in SERIES)]
    assert len(colours) == len(set(colours))
    assert dark_of().keys() >= set(colours)


# What eyes without red, green or blue cones see of linear sRGB (Machado, Oliveira and Fernandes 2009, severity 1).
BLINDNESS = {
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
}


@pytest.mark.parametrize("kind", BLINDNESS)
def test_the_first_four_models_differ_for_colour_blind_eyes(kind):
    def seen(colour):
        parts = [(int(colour[at : at + 2], 16) / 255) ** 2.2 for at in (1, 3, 5)]
        return [max(0.0, sum(a * b for a, b in zip(row, parts, strict=True))) ** (1 / 2.2) for row in BLINDNESS[kind]]

    for one, other in itertools.combinations(SERIES[:4], 2):
        distance = sum((a - b) ** 2 for a, b in zip(seen(one.light), seen(other.light), strict=True)) ** 0.5
        assert distance > 0.1, (one, other)


def test_models_differ_without_any_colour():
    assert len({look.dash for look in SERIES}) == len({look.symbol for look in SERIES}) == len(SERIES)
    looks = [series(position) for position in range(24)]
    assert len({(look.light, look.dash, look.symbol) for look in looks}) == len(looks)


def test_labels_are_no_html_and_not_endless():
    assert label("<b>a</b> & b") == "&lt;b&gt;a&lt;/b&gt; &amp; b"
    assert label("x" * 28) == "x" * 28
    assert label("a" * 50 + "z" * 50) == "a" * 14 + "…" + "z" * 13
    assert label("two\nlines") == "two lines"
