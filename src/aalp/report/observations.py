"""Figures of the paper's two observations (arXiv 2005.11904) out of analysis records and metrics."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from aalp.report.blocks import Figure, Table
from aalp.report.collect import Group, Run
from aalp.report.figures import column, epoch_axis, line_figure, logged, mean_of, percent
from aalp.report.style import axis, bars, count_axis, faint, label, layout, marker, names_axis, share_axis


def concentrations(run: Run, inputs: str, of_class: str) -> Mapping[str, Any]:
    """One entry of an analysis' contributions; empty where there is none."""
    found: Mapping[str, Any] = ((run.analysis or {}).get("contributions") or {}).get(inputs, {}).get(of_class, {})
    return found


def first(groups: Sequence[Group], about: str) -> list[Figure]:
    """Observation 1: a robust network decides with fewer, high-contribution features."""

    def curve(run: Run) -> dict[float, float]:
        found = concentrations(run, "adversarial", "predicted")
        return dict(zip(found.get("curve_features", ()), found.get("curve", ()), strict=False))

    def kept(run: Run) -> dict[float, float]:
        return {row["k"]: row["robust"] for row in (run.analysis or {}).get("top_k", ())}

    figures = [
        line_figure(
            "contributions",
            "Positive contributions, largest first",
            f"{about} Contributions to the predicted class under attack, mean over the images. The sooner a line is up, the "
            "fewer features decide.",
            groups,
            curve,
            count_axis("features"),
            share_axis("share of the positive contributions"),
        ),
        line_figure(
            "top-k",
            "Robust accuracy with the top features alone",
            f"{about} Only the k features that contribute most are kept. The images were attacked with all of them: no "
            "network of k features was attacked, and its robustness is not shown.",
            groups,
            kept,
            count_axis("features kept"),
            share_axis("accuracy under attack"),
        ),
        _n90(groups, about),
    ]
    return [figure for figure in figures if figure]


def _n90(groups: Sequence[Group], about: str) -> Figure | None:
    """Features that carry 90 % of the positive contributions, clean and under attack."""
    data: list[dict[str, Any]] = []
    rows: list[str] = []
    for group in groups:
        for inputs in ("clean", "adversarial"):
            values = [found["n90"] for run in group.runs if (found := concentrations(run, inputs, "predicted"))]
            if not values:
                continue
            if group.name not in rows:
                rows.append(group.name)
            mean = statistics.fmean(values)
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [mean],
                    "y": [rows.index(group.name)],
                    "name": f"{label(group.name)}, {inputs}",
                    "showlegend": False,
                    "marker": marker(group.look, 12, filled=inputs != "clean"),
                    "error_x": bars([mean], [(min(values), max(values))], group.look),
                }
            )
    if not data:
        return None
    caption = (
        f"{about} n90: the fewest features that carry 90 % of the positive contributions to the predicted class, mean over "
        "the images. Filled: under attack. Open: clean."
    )
    if any(len(group.runs) > 1 for group in groups):
        caption += " Of several seeds the mean; bars: the lowest and the highest."
    y = names_axis(rows, down=True)
    drawn = layout(axis("features (n90)", rangemode="tozero"), y, max(220, 110 + 40 * len(groups)), showlegend=False)
    return Figure("n90", "How many features decide", caption, data, drawn)


def first_table(groups: Sequence[Group], about: str) -> Table | None:
    """n90, effective number and Gini of every model, clean and under attack."""
    rows = []
    for group in groups:
        for inputs in ("clean", "adversarial"):
            for of_class in ("predicted", "true"):
                found = [entry for run in group.runs if (entry := concentrations(run, inputs, of_class))]
                if found:
                    means = [statistics.fmean(entry[key] for entry in found) for key in ("n90", "effective_number", "gini")]
                    rows.append([group.name, inputs, of_class, f"{means[0]:.1f}", f"{means[1]:.1f}", f"{means[2]:.3f}"])
    header = ["model", "images", "class", "n90", "effective number", "Gini"]
    return Table(f"Concentration of the positive contributions. {about}", header, rows, folded=len(rows) > 8) if rows else None


def second(groups: Sequence[Group]) -> list[Figure]:
    """Observation 2: on part of the samples the pairing loss works against the classification loss."""
    caption = "Share of training samples whose pairing gradient works against classifying {}, by epoch (cosine below 0)."
    shares = "Share of the pairing loss that samples misclassified clean carry, by epoch."
    # Conflicts may be as rare as 1 in 1,000: ticks of fewer digits would all be 0.1 %.
    y = axis("share", rangemode="tozero", tickformat=".4~%")
    figures = [
        logged(
            "conflict_rate", "conflict", "Conflict at adversarial logits", caption.format("the adversarial image"), groups, y
        ),
        logged(
            "conflict_rate_clean", "conflict-clean", "Conflict at clean logits", caption.format("the clean image"), groups, y
        ),
        logged("misclassified_share", "misclassified", "Pairing loss of misclassified samples", shares, groups, y),
        _weights(groups),
    ]
    return [figure for figure in figures if figure]


def _weights(groups: Sequence[Group]) -> Figure | None:
    """Sample weights over the epochs: median in a band from low to high."""
    data: list[dict[str, Any]] = []
    for group in groups:
        low, middle, high = (mean_of(group, column(f"weight_{name}")) for name in ("low", "median", "high"))
        if not (low and middle and high) or set(low.values()) == set(high.values()) == {1.0}:
            continue  # a model without sample weights has nothing to show
        common = {"type": "scatter", "mode": "lines", "legendgroup": str(group.number), "name": label(group.name)}
        edge = {"line": {"width": 0}, "showlegend": False, "hoverinfo": "skip"}
        data += [
            {**common, **edge, "x": list(low), "y": list(low.values())},
            {
                **common,
                **edge,
                "x": list(high),
                "y": list(high.values()),
                "fill": "tonexty",
                "fillcolor": faint(group.look.light),
            },
            {
                **common,
                "x": list(middle),
                "y": list(middle.values()),
                "line": {"color": group.look.light, "dash": group.look.dash, "width": 2.5},
                "showlegend": True,
            },
        ]
    if not data:
        return None
    caption = "Median weight of a sample's pairing term, and the band from weight_low to weight_high, by epoch."
    if any(len(group.runs) > 1 for group in groups):
        caption += " Of several seeds the means."
    drawn = layout(epoch_axis(groups), axis("weight of the pairing term", rangemode="tozero"), hovermode="x unified")
    return Figure("weights", "Adaptive sample weights", caption, data, drawn)


CONFLICT = {
    "rate": "conflict at adversarial logits",
    "rate_clean": "conflict at clean logits",
    "rate_weights": "conflict in the weights",
    "misclassified_rate": "misclassified clean",
    "misclassified_share": "their share of the pairing loss",
}
"""What analysis records measure of Observation 2, and how the table calls it."""


def second_table(groups: Sequence[Group], about: str) -> Table | None:
    """How often the two losses conflict, and what misclassified samples carry, on the analysed test images."""
    found = {
        group.name: [run.analysis["conflict"] for run in group.runs if run.analysis and run.analysis.get("conflict")]
        for group in groups
    }
    keys = [key for key in CONFLICT if any(key in entry for entries in found.values() for entry in entries)]
    rows = [
        [name, *(percent(_mean([entry.get(key) for entry in entries])) for key in keys)]
        for name, entries in found.items()
        if entries
    ]
    caption = f"Conflict of the pairing loss with the classification loss: shares of the images. {about}"
    return Table(caption, ["model", *(CONFLICT[key] for key in keys)], rows) if rows else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
