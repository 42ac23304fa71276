"""Figures of training and robustness, as plain plotly (data, layout) out of records."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aalp.report.blocks import Figure, Table
from aalp.report.collect import Group, Run, evaluations_of, runs_of
from aalp.report.style import LIGHT, axis, bars, label, layout, marker, names_axis, share_axis
from aalp.shown import in_percent

Interval = Callable[[int, int], tuple[float, float]]
"""(successes, count) -> low and high end of the 95 % interval of their share."""

Points = Mapping[float, float]
"""A curve: y by x."""


def percent(value: float | None) -> str:
    """A share for people."""
    return "-" if value is None else f"{in_percent(value)}\u00a0%"


def interval_text(low: float, high: float) -> str:
    """The two ends of a share for people."""
    return f"{in_percent(low)} to {percent(high)}"


def counted(count: int, what: str) -> str:
    """`1 image`, `2 images`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def line_figure(
    name: str,
    title: str,
    caption: str,
    groups: Sequence[Group],
    curve: Callable[[Run], Points],
    x: Mapping[str, Any],
    y: Mapping[str, Any],
    table: bool = False,
    **more: Any,
) -> Figure | None:
    """One line a group, over several seeds their mean with each seed faint behind it; None where no run has any point."""
    data: list[dict[str, Any]] = []
    rows: list[list[str]] = []
    for group in groups:
        curves = [points for run in group.runs if (points := curve(run))]
        if not curves:
            continue
        mean = mean_curve(curves)
        style = {"color": group.look.light, "dash": group.look.dash, "width": 2.5}
        common = {"type": "scatter", "legendgroup": str(group.number), "name": label(group.name)}
        if len(curves) > 1:
            thin = {**style, "width": 1}
            data += [
                {
                    **common,
                    **_xy(points),
                    "mode": "lines",
                    "line": thin,
                    "opacity": 0.4,
                    "showlegend": False,
                    "hoverinfo": "skip",
                }
                for points in curves
            ]
        mark = {"symbol": group.look.symbol, "size": 8, "color": group.look.light, "maxdisplayed": 9}
        data.append({**common, **_xy(mean), "mode": "lines+markers", "line": style, "marker": mark})
        rows += [[group.name, f"{at:g}", percent(value)] for at, value in mean.items()]
    if not data:
        return None
    numbers = Table(f"{title}, in numbers", ["model", str(x["title"]["text"]), "value"], rows) if table else None
    shown = {"showlegend": len(groups) > 1, **more}
    return Figure(name, title, caption, data, layout(dict(x), dict(y), **shown), numbers)


def mean_curve(curves: Sequence[Points]) -> dict[float, float]:
    """The mean at every x that all curves have."""
    shared = [x for x in curves[0] if all(x in other for other in curves[1:])]
    return {x: statistics.fmean(curve[x] for curve in curves) for x in shared}


def _xy(points: Points) -> dict[str, list[float]]:
    return {"x": list(points), "y": list(points.values())}


def column(name: str) -> Callable[[Run], Points]:
    """A column of metrics.csv over the epochs."""

    def points(run: Run) -> dict[float, float]:
        epochs, values = run.metrics.get("epoch", ()), run.metrics.get(name, ())
        pairs = zip(epochs, values, strict=False)
        return {epoch: value for epoch, value in pairs if epoch is not None and value is not None}

    return points


def epoch_axis(groups: Sequence[Group]) -> dict[str, Any]:
    """An axis of epochs; of few of them, plotly left alone has an epoch 1.5."""
    longest = max((len(run.metrics.get("epoch", ())) for run in runs_of(groups)), default=0)
    return axis("epoch", dtick=1) if longest <= 10 else axis("epoch")


def training(groups: Sequence[Group]) -> list[Figure]:
    """Loss and accuracies over the epochs."""
    steps = sorted({int((run.config.get("training") or {}).get("validation_steps", 0)) for run in runs_of(groups)})
    attack = f"PGD-{steps[0]}" if len(steps) == 1 and steps[0] else "PGD"
    wanted = (
        ("validation_clean", "Clean accuracy while training", "Images held out of the training split, not attacked."),
        (
            "validation_robust",
            "Robust accuracy while training",
            f"The same images under {attack}. Weaker than AutoAttack: an upper bound.",
        ),
        (
            "train_accuracy",
            "Accuracy on training images",
            "On the images as the objective trains on them, mostly adversarial ones.",
        ),
    )
    found = [
        logged(name, name.replace("_", "-"), title, caption, groups, share_axis("accuracy")) for name, title, caption in wanted
    ]
    caption = "The objective's own loss, averaged over each epoch. Objectives differ in their terms, so heights do not compare."
    found.append(logged("loss", "loss", "Training loss", caption, groups, axis("loss", rangemode="tozero")))
    return [figure for figure in found if figure]


def logged(metric: str, name: str, title: str, caption: str, groups: Sequence[Group], y: Mapping[str, Any]) -> Figure | None:
    """The figure of a column of metrics.csv over the epochs."""
    return line_figure(name, title, caption, groups, column(metric), epoch_axis(groups), y, hovermode="x unified")


def accuracy(groups: Sequence[Group], interval: Interval) -> Figure | None:
    """Clean and robust accuracy of each model with their intervals: one row a run."""
    data: list[dict[str, Any]] = []
    rows: list[str] = []
    for group in groups:
        for run in group.runs:
            record = run.evaluation
            if record is None:
                continue
            row = group.name if len(group.runs) == 1 else f"{group.name} seed {run.seed}"
            rows.append(row)
            for what, filled in (("clean", False), ("robust", True)) if record["attacks"] else (("clean", False),):
                low, high = interval(round(record[what] * record["images"]), record["images"])
                data.append(
                    {
                        "type": "scatter",
                        "mode": "markers",
                        "x": [record[what]],
                        "y": [len(rows) - 1],
                        "name": f"{label(row)}, {what}",
                        "showlegend": False,
                        "cliponaxis": False,
                        "marker": marker(group.look, 11, filled),
                        "error_x": bars([record[what]], [(low, high)], group.look),
                        "hovertemplate": f"{what} {percent(record[what])} ({interval_text(low, high)})<extra></extra>",
                    }
                )
    if len(data) < 4:
        return None
    y = names_axis(rows, down=True)
    drawn = layout(share_axis("accuracy"), y, 110 + 24 * len(data), showlegend=False)
    caption = (
        "Filled: robust, the worst case over all attacks that ran. Open: clean. Bars: 95 % Wilson intervals over the images."
    )
    return Figure("accuracy", "Clean and robust accuracy", caption, data, drawn)


def eps_curve(groups: Sequence[Group]) -> Figure | None:
    """Accuracy against the radius of the ball, the trained radius marked."""

    def points(run: Run) -> dict[float, float]:
        return {row["eps"]: row["accuracy"] for row in (run.analysis or {}).get("eps_curve", ())}

    records = [run.analysis for run in runs_of(groups) if run.analysis]
    radii = sorted({record["threat"]["eps"] for record in records})
    if not radii:
        return None
    mark = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "line": {"color": LIGHT["muted"], "width": 1, "dash": "dot"}}
    # The curve ends at a ball that holds every image: far off, and a check more than a point to look at.
    shown = 2.05 * radii[-1]
    ends = [
        (group.name, at, value) for group in groups for at, value in list(mean_of(group, points).items())[-1:] if at > shown
    ]
    end = (
        f" Beyond the plot: {', '.join(f'{name} {percent(value)} at eps {at:.3g}' for name, at, value in ends)}."
        if ends
        else ""
    )
    attack = ", ".join(sorted({str(record.get("eps_curve_attack", record["attack"])) for record in records}))
    images = " and ".join(counted(count, "test image") for count in sorted({record["images"] for record in records}))
    caption = f"On {images}, attack {attack}. Dotted: the radius of the threat.{end} A large enough ball has to win."
    return line_figure(
        *("eps", "Robust accuracy against eps", caption, groups, points),
        axis("eps, in pixel units (images in [0, 1])", range=[-0.02 * shown, shown]),
        share_axis("accuracy"),
        table=True,
        height=380,
        shapes=[{**mark, "x0": eps, "x1": eps} for eps in radii],
    )


def mean_of(group: Group, curve: Callable[[Run], Points]) -> dict[float, float]:
    """The mean of a curve over the runs of a group that have it."""
    curves = [points for run in group.runs if (points := curve(run))]
    return mean_curve(curves) if curves else {}


def attacks(groups: Sequence[Group], interval: Interval) -> Figure | None:
    """Accuracy under each attack, with the single seeds' intervals."""
    data: list[dict[str, Any]] = []
    columns: dict[str, int] = {}
    for group in groups:
        found = [(run, attack_accuracies(run)) for run in group.runs if run.evaluation and run.evaluation["attacks"]]
        if not found:
            continue
        names = [name for name in found[0][1] if all(name in figures for _, figures in found)]
        means = [statistics.fmean(figures[name] for _, figures in found) for name in names]
        ends = [_ends(found, name, interval) for name in names]
        style = {"symbol": group.look.symbol, "size": 10, "color": group.look.light}
        common: dict[str, Any] = {
            "type": "scatter",
            "mode": "markers",
            "name": label(group.name),
            "offsetgroup": str(group.number),
        }
        common["cliponaxis"] = False  # markers at 0 and 100 % stay whole
        places = [columns.setdefault(name, len(columns)) for name in names]
        data.append({**common, "x": places, "y": means, "marker": style, "error_y": bars(means, ends, group.look, 4)})
    if not data:
        return None
    several = any(len(group.runs) > 1 for group in groups)
    bars_are = f"95 % Wilson intervals over the images{'; of several seeds the lowest and the highest' if several else ''}"
    caption = (
        f"Share of {_splits(groups)} images right clean and under the attack; bars: {bars_are}. "
        "Single-step and PGD figures above AutoAttack's are what a weaker attack misses."
    )
    drawn = layout(names_axis(list(columns)), share_axis("accuracy"), 380, scattermode="group", scattergap=0.35)
    return Figure("attacks", "Accuracy under each attack", caption, data, {**drawn, "showlegend": len(groups) > 1})


def _splits(groups: Sequence[Group]) -> str:
    """Of which splits the images of the evaluations are."""
    return " and ".join(sorted({str(record["data"].get("split", "test")) for record in evaluations_of(groups)}))


def attack_accuracies(run: Run) -> dict[str, float]:
    """Clean accuracy, that under each attack and the worst case of the run's first evaluation, in which something attacked."""
    record = run.evaluation or {}
    named = {attack["name"]: attack["accuracy"] for attack in record["attacks"]}
    return {"clean": record["clean"], **named, "worst case": record["robust"]}


def _ends(found: Sequence[tuple[Run, Mapping[str, float]]], name: str, interval: Interval) -> tuple[float, float]:
    values = [figures[name] for _, figures in found]
    if len(values) > 1:
        return min(values), max(values)
    images = (found[0][0].evaluation or {})["images"]
    return interval(round(values[0] * images), images)
