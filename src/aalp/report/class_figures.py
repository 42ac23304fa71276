"""Figures of robustness class by class."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from aalp.report.blocks import Figure, Table
from aalp.report.collect import Group
from aalp.report.figures import counted, percent
from aalp.report.style import LIGHT, axis, label, layout, marker, names_axis, share_axis

SHOWN_CLASSES = 30
READABLE_CLASSES = 100


def per_class(groups: Sequence[Group], about: str) -> Figure | None:
    """Robust accuracy class by class; beside it the clean one where there is one model only."""
    data: list[dict[str, Any]] = []
    rows: list[list[str]] = []
    tables = [(group, classes) for group in groups if (classes := _class_means(group))]
    if not tables:
        return None
    first = tables[0][1]
    # With very many classes, the ones that stand least are what to look at.
    weakest = (
        sorted(first, key=lambda name: first[name]["robust"])[:SHOWN_CLASSES] if len(first) > SHOWN_CLASSES else list(first)
    )
    for group, classes in tables:
        for what in ("clean", "robust") if len(tables) == 1 else ("robust",):
            name = f"{group.name}, {what}" if len(tables) == 1 else group.name
            shown = [key for key in weakest if key in classes]
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "cliponaxis": False,
                    "name": label(name, 40),
                    "x": [classes[key][what] for key in shown],
                    "y": [weakest.index(key) for key in shown],
                    "marker": marker(group.look, 10, filled=what != "clean"),
                    # Beside each other: of models that are level in a class the last one would hide the others.
                    "orientation": "h",
                    "offsetgroup": str(group.number),
                }
            )
        rows += [
            [group.name, key, f"{classes[key]['images']:g}", percent(classes[key]["clean"]), percent(classes[key]["robust"])]
            for key in shown
        ]
    only = f" The {SHOWN_CLASSES} of {len(first)} classes that stand least." if len(first) > SHOWN_CLASSES else ""
    drawn = layout(
        share_axis("robust accuracy" if len(tables) > 1 else "accuracy"),
        names_axis(weakest, down=True),
        120 + 26 * len(weakest),
        scattermode="group",
        scattergap=0.4,
    )
    table = Table("Accuracy by class, in numbers", ["model", "class", "images", "clean", "robust"], rows)
    return Figure("classes", "Accuracy by class", about + only, data, drawn, table)


def _class_means(group: Group) -> dict[str, dict[str, float]]:
    found = [run.analysis["per_class"] for run in group.runs if run.analysis and run.analysis.get("per_class")]
    means: dict[str, dict[str, float]] = {}
    for rows in zip(*found, strict=False):
        known = {key: [row[key] for row in rows if row[key] is not None] for key in ("images", "clean", "robust")}
        if all(known.values()):
            means[str(rows[0]["name"])] = {key: statistics.fmean(values) for key, values in known.items()}
    return means


def confusion(group: Group) -> Figure | None:
    """What each class is taken for under attack, summed over a group's seeds."""
    found = [run.analysis for run in group.runs if run.analysis and run.analysis.get("confusion")]
    if not found:
        return None
    size = len(found[0]["classes"])
    if size > READABLE_CLASSES:
        return None
    counts = [[sum(record["confusion"][i][j] for record in found) for j in range(size)] for i in range(size)]
    shares = [[value / max(1, sum(row)) for value in row] for row in counts]
    # Numbers on the axes, names in the corner: two classes may have one label, but never one position.
    names = [label(name, 14) for name in found[0]["classes"]]
    ticks = {"tickmode": "array", "tickvals": list(range(size)), "ticktext": names} if size <= SHOWN_CLASSES else {}
    data = {
        "type": "heatmap",
        "z": shares,
        "text": counts,
        "zmin": 0,
        "zmax": 1,
        "colorscale": [[0, LIGHT["page"]], [1, LIGHT["heat"]]],
        "showscale": False,
        "xgap": 1,
        "ygap": 1,
        "hovertemplate": "true %{y}, taken for %{x}: %{text} images (%{z:.0%})<extra></extra>",
    }
    if size <= 12:
        data |= {"texttemplate": "%{text}", "textfont": {"size": 11}}
    y = axis("true class", autorange="reversed", showgrid=False, **ticks)
    x = axis("predicted under attack", showgrid=False, tickangle=-40 if max(map(len, names)) > 3 else 0, **ticks)
    title = f"Confusion under attack: {group.name}"
    about = f"{counted(found[0]['images'], 'test image')} under {found[0]['attack']}"
    caption = f"{about}{', each seed' if len(found) > 1 else ''}; numbers count images, shades are shares of the true class."
    return Figure(f"confusion-{group.number + 1}", title, caption, [data], layout(x, y, 430))
