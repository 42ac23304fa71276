"""A comparison's figures: means, deviations and differences over seeds, as text and as Markdown."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from aalp.analysis.spread import all_equal, spread
from aalp.commands.evaluation_record import CHEAP_GATES_FAIL, CHEAP_VERDICTS
from aalp.commands.tables import markdown_table, text_table
from aalp.report.figures import counted
from aalp.shown import as_exact, eps_text, in_percent


def summary(cells: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Means, deviations and single values by objective, and each objective's difference from the others' AutoAttack.

    Rows of another threat than the reference's stand in the table and are compared with nothing.

    Args:
        cells: one for each objective and seed, at least one in all: `objective`, `seed`, `figures` by name, the number of
            `images`, the `threat`. Where some are missing, a mean is over the seeds that its row has, and a difference over
            those that both have.
        names: objectives, in the order of the table; those without any cell are left out. The reference is `aalp`, or the
            first where that is a variant of AALP or there is no `aalp`.
    """
    there = {cell["objective"] for cell in cells}
    names = [name for name in names if name in there]
    # Not every objective has every figure (only pairing has a conflict rate).
    columns = list(dict.fromkeys(column for cell in cells for column in cell["figures"]))
    by_seed = defaultdict(dict, {(cell["objective"], cell["seed"]): cell["figures"] for cell in cells})
    seeds = sorted({cell["seed"] for cell in cells})
    table = {
        name: {column: _spread([by_seed[name, seed].get(column) for seed in seeds]) for column in columns} for name in names
    }
    reference = "aalp" if "aalp" in names and not names[0].startswith("aalp") else names[0]
    step = 1 / min(cell["images"] for cell in cells)  # accuracies and n90 are means of whole numbers over the images
    threats = {cell["objective"]: cell.get("threat") for cell in cells}
    tests = {
        name: {
            column: _paired([(by_seed[reference, seed], by_seed[name, seed]) for seed in seeds], column, step)
            for column in columns
        }
        for name in names
        if name != reference and threats[name] == threats[reference]
    }
    compared = _compared(reference, tests, columns, {name: threats[name] for name in names})
    audits = {name: [cell.get("audit") for cell in cells if cell["objective"] == name] for name in names}
    content = {"columns": columns, "seeds": seeds, "table": table, "compared": compared, "audits": audits}
    return {**content, "cells": list(cells)}


Test = dict[str, Any] | None
"""What `_paired` gives."""


def _compared(
    reference: str, tests: Mapping[str, Mapping[str, Test]], columns: Sequence[str], threats: Mapping[str, Any]
) -> dict[str, Any]:
    """What the tests of each row against the reference, by figure, come to; rows of another threat stand apart."""
    judged = next(figure for figure in ("autoattack", "robust", "clean") if figure in columns)
    return {
        "reference": reference,
        "figure": judged,
        "differences": {name: found[judged] for name, found in tests.items() if found[judged] is not None},
        "apart": {name: threat for name, threat in threats.items() if threat != threats[reference]},
        "tests": sum(
            gap is not None and gap["interval"] is not None and column not in UNSHOWN
            for found in tests.values()
            for column, gap in found.items()
        ),
        "real": {name: [column for column, gap in found.items() if gap and gap["real"]] for name, found in tests.items()},
    }


def judged_anew(record: Mapping[str, Any]) -> dict[str, Any]:
    """A comparison's record with its statistics from its cells: one of an earlier version is judged by today's rules."""
    return {**record, **summary(record["cells"], list(record["table"]))}


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    if not known:
        return {"mean": None, "deviation": None, "values": list(values)}
    found = spread(known)
    return {"mean": found["mean"], "deviation": found["deviation"], "values": list(values)}


def _paired(pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]], column: str, step: float) -> Test:
    """The paired t test of one figure over seeds; None where a run has no such figure."""
    gaps = [one[column] - other[column] for one, other in pairs if column in one and column in other]
    return _difference(gaps, step) if gaps else None


def _difference(gaps: Sequence[float], step: float) -> dict[str, Any]:
    """Mean of the per-seed gaps with its 95 % t interval; a difference is called one only if that leaves out 0."""
    found = spread(gaps, step)
    low, high = found["low"], found["high"]
    if low is None or high is None:
        return {"mean": found["mean"], "seeds": 1, "interval": None, "real": False}
    told = {"mean": found["mean"], "seeds": len(gaps), "interval": [low, high], "real": low > 0 or high < 0}
    return told | ({"every_seed_alike": True} if all_equal(gaps) else {})


PLAIN = frozenset({"n90", "n90_adversarial"})
UNSHOWN = frozenset({"train_seconds"})
"""In the record only: wall times of cells compare nothing unless the machine did nothing else."""


def table_rows(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The table of a comparison record as text: its header, and a row of each objective with stars at what really differs."""
    columns = [column for column in record["columns"] if column not in UNSHOWN]
    real = record["compared"]["real"]
    rows = [
        [name, *(_show(column, figures.get(column)) + " *" * (column in real.get(name, ())) for column in columns)]
        for name, figures in record["table"].items()
    ]
    for row in rows:
        row.append(_verdicts(record["audits"][row[0]]))
    return ["objective", *columns, "audit"], rows


def _verdicts(verdicts: Sequence[str | None]) -> str:
    """`3 pass`, or `2 pass, 1 fail`: how many runs came out how; `2 runs: cheap gates pass` where those are all that ran."""
    counts = Counter(verdict for verdict in verdicts if verdict is not None)
    told = [
        f"{counted(count, 'run')}: {verdict}" if verdict in CHEAP_VERDICTS else f"{count} {verdict}"
        for verdict, count in counts.items()
    ]
    return ", ".join(told) or "-"


def _show(column: str, figure: Mapping[str, Any] | None) -> str:
    if figure is None or figure["mean"] is None:
        return "-"
    mean, deviation = figure["mean"], figure["deviation"]
    if column in PLAIN:
        return f"{mean:.1f}" + ("" if deviation is None else f" +- {deviation:.1f}")
    text = in_percent(mean)
    return text + ("" if deviation is None else f" +- {as_exact(deviation, text)}")


def sentences(record: Mapping[str, Any]) -> list[str]:
    """What a comparison record says of differences: one sentence for each other objective."""
    compared = record["compared"]
    lines = []
    for name, gap in compared["differences"].items():
        verdict = "a real difference" if gap["real"] else "no real difference shown"
        what = f"{compared['reference']} minus {name}, {compared['figure']}"
        lines.append(f"{what}: {gap['mean'] * 100:+.1f} points {_over(gap)}: {verdict}")
    return lines


def _over(gap: Mapping[str, Any]) -> str:
    """Over how many seeds a difference was taken, and its interval."""
    if gap["interval"] is None:
        return "with one seed"
    alike = bool(gap.get("every_seed_alike"))
    low, high = (f"{end * 100:+.1f}" for end in gap["interval"])
    seeds = f"with each of {gap['seeds']} seeds" if alike else f"over {gap['seeds']} seeds"
    return f"{seeds}, 95 % interval [{low}, {high}]" + " as if one of them had one image more or less" * alike


def cautions(record: Mapping[str, Any]) -> list[str]:
    """What a reader of a comparison record has to know before believing its differences."""
    return [*rows_apart(record), *_distrusted(record), *_untrained(record)]


def _distrusted(record: Mapping[str, Any]) -> list[str]:
    """One sentence for each row with runs that an audit, or the cheap gates of an evaluation, did not let pass."""
    lines = []
    for name, verdicts in record["audits"].items():
        failed = [verdict for verdict in verdicts if verdict in ("fail", CHEAP_GATES_FAIL)]
        if failed:
            lines.append(
                f"{name} fails gates of the audit with {_of_its_runs(len(failed), len(verdicts))}: "
                "what it withstands may be masked gradients, and no difference from it is one of robustness"
            )
    return lines


def _untrained(record: Mapping[str, Any]) -> list[str]:
    """One sentence for each row with runs that are no better than one answer for all images."""
    lines = []
    for name in record["table"]:
        alike = [bool(cell.get("one_answer")) for cell in record["cells"] if cell["objective"] == name]
        if any(alike):
            lines.append(
                f"{name} is no better than one answer for all images, which no attack can change, with "
                f"{_of_its_runs(sum(alike), len(alike))}: no difference from it is one of robustness"
            )
    return lines


def _of_its_runs(found: int, runs: int) -> str:
    return "its run" if runs == 1 else f"{found} of its {runs} runs"


def unfinished(record: Mapping[str, Any]) -> list[str]:
    """One sentence where runs of a comparison are missing: none where all are there."""
    left = record.get("left", ())  # records from before there was one are of all their runs
    if not left:
        return []
    missing = f"{len(left)} of {len(left) + len(record['cells'])} runs are missing ({', '.join(left)})"
    return [f"So far {missing}: a mean is over the seeds that its row has, a difference over those that both have"]


def rows_apart(record: Mapping[str, Any]) -> list[str]:
    """One sentence for each row under another threat than the reference's."""
    compared = record["compared"]
    return [
        f"{name} is trained for and attacked at {threat['norm']} eps {eps_text(threat['eps'])}, another threat than "
        f"{compared['reference']}'s: no difference between the two is told"
        for name, threat in compared["apart"].items()
    ]


def _values(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    figure = record["compared"]["figure"]
    rows = [
        [name, *("-" if value is None else in_percent(value) for value in row[figure]["values"])]
        for name, row in record["table"].items()
    ]
    return [f"{figure} by seed", *map(str, record["seeds"])], rows


def _legend(record: Mapping[str, Any]) -> str:
    compared = record["compared"]
    by_chance = f"; of {compared['tests']} tests about {compared['tests'] / 20:.0f} would give one by chance" * (
        compared["tests"] >= 20
    )
    return (
        f"* another figure than {compared['reference']}'s at 95 % (paired t test over seeds, each column by itself{by_chance})"
    )


def _title(record: Mapping[str, Any]) -> str:
    """What the table is of."""
    cell, seeds = record["cells"][0], ", ".join(map(str, record["seeds"]))
    threat = cell.get("threat")  # records from before there was one have none
    ball = f", {threat['norm']} eps {eps_text(threat['eps'])}" if threat else ""
    over = f"mean +- standard deviation over seeds {seeds}" if len(record["seeds"]) > 1 else f"seed {seeds} alone"
    bounds = " Without AutoAttack, robust is an upper bound." * (record["compared"]["figure"] == "robust")
    images = counted(cell["images"], f"{record['split']} image")
    so_far = "".join(f" {line}." for line in unfinished(record))
    return f"Accuracy in percent on {images}{ball}: {over}; n90 in features.{bounds}{so_far}"


def text(record: Mapping[str, Any]) -> str:
    """A comparison's record for the screen: what it is of, the table, the values by seed, the differences."""
    starred = any(record["compared"]["real"].values())
    table = text_table(*table_rows(record)) + f"\n{_legend(record)}" * starred
    parts = [_title(record), table, text_table(*_values(record)), "\n".join([*sentences(record), *cautions(record)])]
    return "\n\n".join(part for part in parts if part)


def markdown(record: Mapping[str, Any]) -> str:
    """A comparison's record as Markdown: the table, the values by seed, the differences, the command."""
    legend = f" {_legend(record)}." * (len(record["seeds"]) > 1)
    parts = [_title(record) + legend, markdown_table(*table_rows(record)), markdown_table(*_values(record))]
    parts.append("\n".join(f"- {line}" for line in (*sentences(record), *cautions(record))))
    return "\n\n".join([*parts, f"`{record['command']}`"]) + "\n"
