"""What the report says first: the models, the threat, clean and robust accuracy with intervals, the audit's verdict."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aalp.report.collect import Group, Run, evaluations_of, runs_of
from aalp.report.figures import Interval, counted, interval_text, percent
from aalp.report.telling import no_better_than_one_answer
from aalp.shown import as_exact, eps_text, in_percent
from aalp.store.records import split_size

VERDICTS = {"pass": "passed", "fail": "failed", "inconclusive": "inconclusive", None: "not audited"}


@dataclass(frozen=True)
class Cell:
    """A figure and, small, what belongs to it."""

    main: str
    small: str = ""


@dataclass(frozen=True)
class Row:
    """A line of the headline table; `seed` is set where it is one of several of a group."""

    group: Group
    name: str
    about: str
    clean: Cell
    autoattack: Cell
    robust: Cell
    verdict: str | None
    verdict_text: str
    seed: bool = False


def rows(groups: Sequence[Group], interval: Interval) -> list[Row]:
    """A row a group, and under it one a seed where there are several; each says in what it differs from the others."""
    apart = differing(groups)
    found = []
    for group in groups:
        if len(group.runs) == 1:
            found.append(_single(group, group.runs[0], interval, apart))
            continue
        within = differing([group])
        found.append(_mean(group, [name for name in apart if name not in within]))
        found += [_single(group, run, interval, within, seed=True) for run in group.runs]
    return found


SUBJECTS = ("data", "number of images", "threat", "attacks")
"""What the evaluations of two models have to share for their figures to compare."""


def differing(groups: Sequence[Group]) -> list[str]:
    """In which of `SUBJECTS` the evaluations that speak for the runs differ."""
    records = evaluations_of(groups)
    subjects = [
        (
            _images(record["data"]),
            str(record["images"]),
            f"{record['threat']['norm'].lower()} {record['threat']['eps']:.6g}",
            attacks_of(record),
        )
        for record in records
    ]
    return [name for name, values in zip(SUBJECTS, zip(*subjects, strict=True), strict=False) if len(set(values)) > 1]


def _images(data: Mapping[str, Any]) -> str:
    """What tells the images of one evaluation from those of another; validation images are drawn by a seed."""
    return f"{data.get('digest') or data['name']} {data.get('split', 'test')} {data.get('validation_digest', '')}"


def _told(record: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """These subjects of an evaluation in words."""
    images = [images_of(record)] if "data" in names or "number of images" in names else []
    threat = [radius(record["threat"])] if "threat" in names else []
    return [*images, *threat, *([attacks_of(record)] if "attacks" in names else [])]


def attacks_of(record: Mapping[str, Any]) -> str:
    """What attacked in an evaluation."""
    return ", ".join(attack["name"] for attack in record["attacks"]) or "no attack"


def _single(group: Group, run: Run, interval: Interval, apart: Sequence[str], seed: bool = False) -> Row:
    record = run.evaluation
    figures = dict.fromkeys(("clean", "autoattack", "robust"), Cell("-", "not evaluated"))
    if record is not None:
        figures["autoattack"] = Cell("-", "did not run")
        figures["robust"] = Cell("-", "not attacked")
        for name, value in three_figures(record).items():
            low, high = interval(round(value * record["images"]), record["images"])
            figures[name] = Cell(percent(value), interval_text(low, high))
    verdict = run.audit["verdict"] if run.audit else None
    name = f"seed {run.seed}" if seed else group.name
    abouts = [] if seed else [f"{run.config.get('model', 'model')}, seed {run.seed}"]
    about = "; ".join([*abouts, *(_told(record, apart) if record else [])])
    cells = figures["clean"], figures["autoattack"], figures["robust"]
    return Row(group, name, about, *cells, verdict, VERDICTS.get(verdict, str(verdict)), seed)


def _mean(group: Group, apart: Sequence[str]) -> Row:
    records = [run.evaluation for run in group.runs if run.evaluation]
    alike = not {"data", "threat"} & set(differing([group]))
    found = [three_figures(record) for record in records] if alike else []
    figures: dict[str, Cell] = {}
    for name in ("clean", "autoattack", "robust"):
        values = [figure[name] for figure in found if name in figure]
        if len(values) > 1:
            mean = in_percent(statistics.fmean(values))
            figures[name] = Cell(f"{mean}\u00a0%", f"± {as_exact(statistics.stdev(values), mean)} over {len(values)} seeds")
        else:
            small = f"{len(values)} of {len(group.runs)} seeds" if alike else "not of one data and threat"
            figures[name] = Cell(percent(values[0]) if values else "-", small)
    verdicts = [run.audit["verdict"] if run.audit else None for run in group.runs]
    worst = next(verdict for verdict in ("fail", "inconclusive", None, "pass") if verdict in verdicts)
    text = f"{VERDICTS[worst]}: {verdicts.count(worst)} of {len(verdicts)}"
    abouts = [f"{group.runs[0].config.get('model', 'model')}, {len(group.runs)} seeds"]
    about = "; ".join([*abouts, *(_told(records[0], apart) if records else [])])
    return Row(group, group.name, about, figures["clean"], figures["autoattack"], figures["robust"], worst, text)


def three_figures(record: Mapping[str, Any]) -> dict[str, float]:
    """Clean, AutoAttack (where it ran) and (where anything was attacked) worst-case accuracy of an evaluation."""
    named = {attack["name"]: attack["accuracy"] for attack in record["attacks"]}
    return {
        "clean": record["clean"],
        **({"autoattack": named["autoattack"]} if "autoattack" in named else {}),
        **({"robust": record["robust"]} if record["attacks"] else {}),
    }


def radius(threat: Mapping[str, Any]) -> str:
    """A threat for people: the eps of colour images as the fraction of 255 that it mostly is."""
    norm = {"linf": "L∞", "l2": "L2"}.get(str(threat["norm"]).lower(), str(threat["norm"]))
    return f"{norm} ball of radius eps = {eps_text(float(threat['eps']))}"


def caption(groups: Sequence[Group]) -> str:
    """What the headline figures were measured on."""
    records = evaluations_of(groups)
    if not records:
        return "No model has been evaluated yet."
    first, apart = records[0], differing(groups)
    images = "the images that each row names" if {"data", "number of images"} & set(apart) else images_of(first)
    ranges = "Ranges are 95 % Wilson intervals over the images; they say nothing about other training seeds."
    if not any(record["attacks"] for record in records):
        return f"Accuracy on {images}; nothing was attacked, so there is no robust accuracy. {ranges}"
    threat = "the ball that each row names" if "threat" in apart else radius(first["threat"])
    attacks = "the attacks that each row names" if "attacks" in apart else attacks_of(first)
    seeds = ", ".join(sorted({str(record.get("seed", 0)) for record in records}))
    return (
        f"Accuracy on {images}, {threat}; robust: right clean and under every one of {attacks} (attack seed {seeds}). {ranges}"
    )


def images_of(record: Mapping[str, Any]) -> str:
    """How many images of which split and data a record is about."""
    data = record["data"]
    whole = split_size(data)
    what = f"{data.get('split', 'test')} image"
    if whole and whole != record["images"]:
        return f"{record['images']} of {counted(whole, what)} of {data['name']}"
    return f"all {counted(record['images'], what)} of {data['name']}"


def lead(groups: Sequence[Group]) -> list[str]:
    """The headline in sentences made from the numbers."""
    found = [run for run in runs_of(groups) if run.evaluation]
    if not found:
        return []
    if len(groups) > 1:
        return _comparison(groups)
    run = found[0]
    record: Mapping[str, Any] = run.evaluation or {}
    parameters = record["model"].get("parameters")
    size = f" with {parameters:,} parameters" if parameters else ""
    return [
        f"A {run.config.get('model', 'classifier')}{size}, trained with the objective {run.objective} on {run.data}. "
        f"Threat: {radius(record['threat'])}, images in [0, 1]."
    ]


def _comparison(groups: Sequence[Group]) -> list[str]:
    evaluated = [(run, run.evaluation) for run in runs_of(groups) if run.evaluation]
    apart, data = differing(groups), list(dict.fromkeys(run.data for run, _ in evaluated))
    of = f"of {data[0]}" if len(data) == 1 else f"trained on {listed(data)}"
    threat = "Each row names its own threat" if "threat" in apart else f"Threat: {radius(evaluated[0][1]['threat'])}"
    lines = [f"{len(groups)} models {of}. {threat}, images in [0, 1]."]
    means = {
        group.name: statistics.fmean(values)
        for group in groups
        if (values := [run.evaluation["robust"] for run in group.runs if run.evaluation and run.evaluation["attacks"]])
    }
    # What was not measured alike has no order.
    if means and not apart:
        best = max(means, key=lambda name: means[name])
        doubt = ", which fails gates of the audit" if any(map(fails_gates, _group(groups, best).runs)) else ""
        lines[0] += f" The highest robust accuracy measured is that of {best}, {percent(means[best])}{doubt}."
        lines += _overlaps(groups, best)
    if alone := [group.name for group in groups if len(group.runs) == 1]:
        which = "each" if len(alone) == len(groups) else f"of {listed(alone)}"
        lines.append(f"One training seed {which}: how much another seed would change is not measured (aalp compare does).")
    return lines


def _group(groups: Sequence[Group], name: str) -> Group:
    return next(group for group in groups if group.name == name)


def fails_gates(run: Run) -> bool:
    """Whether the audit that vouches for a run's figures failed, or without one a cheap gate of their evaluation."""
    if run.audit is not None:
        return bool(run.audit["verdict"] == "fail")
    return any(gate["passed"] is False for gate in (run.evaluation or {}).get("gates") or ())


def _overlaps(groups: Sequence[Group], best: str) -> list[str]:
    """Which other models the best one does not stand clear of: by the seeds' figures, of one seed by its interval."""
    ends: dict[str, tuple[float, float]] = {}
    single = set()
    for group in groups:
        records = [run.evaluation for run in group.runs if run.evaluation]
        values = [record["robust"] for record in records]
        if len(records) == 1:  # a point that nothing could overlap
            single.add(group.name)
            values = records[0]["intervals"]["robust"]
        if values:
            ends[group.name] = min(values), max(values)
    level = [name for name, (_, high) in ends.items() if name != best and high >= ends[best][0]]
    if not level:
        return []
    those = "that" if len(level) == 1 else "those"
    if len({name in single for name in (best, *level)}) > 1:
        return [
            f"It does not stand clear of {listed(level)}, by the seeds' figures and one seed's interval: whether it is higher "
            "by more than chance, aalp compare with several seeds of each tells."
        ]
    if best in single:
        return [f"Its interval overlaps {those} of {listed(level)}: by these intervals they are not shown to differ."]
    return [f"Its seeds overlap {those} of {listed(level)}: whether a mean is higher by more than chance, aalp compare tells."]


def listed(names: Sequence[str]) -> str:
    """Names in a sentence."""
    return "".join(names) if len(names) < 2 else f"{', '.join(names[:-1])} and {names[-1]}"


def cautions(groups: Sequence[Group]) -> list[str]:
    """What a reader has to know before comparing or believing the figures."""
    evaluated = [(run, run.evaluation) for run in runs_of(groups) if run.evaluation]
    records = [record for _, record in evaluated]
    lines = []
    if apart := differing(groups):
        lines.append(f"The evaluations differ in {listed(apart)}: their figures do not compare.")
    for run in (run for run in runs_of(groups) if run.metrics and run.unfinished):
        lines.append(f"The training of {run.path.name} has not come to its end: {run.unfinished}.")
    for run, record in evaluated:
        if not run.of_trained_data(record):
            lines.append(f"The figures of {run.path.name} are of {record['data']['name']}; it was trained on {run.data}.")
    if any(record["data"].get("split", "test") != "test" for record in records):
        lines.append("Not all figures are of test images: choices made on other images make their figures too high.")
    if distrusted := [run.path.name for run, _ in evaluated if fails_gates(run)]:
        lines.append(
            f"Gates of the audit fail for {listed(distrusted)}: what stands under attack there may be masked gradients, "
            "not robustness."
        )
    if constant := [run.path.name for run, record in evaluated if no_better_than_one_answer(record)]:
        lines.append(f"No better than one answer for all images, which no attack can change: {listed(constant)}.")
    attacked = [record for record in records if record["attacks"]]
    weak = [record for record in attacked if not any(attack["name"] == "autoattack" for attack in record["attacks"])]
    for found, what in (
        ([record for record in records if not record["attacks"]], "are without any attack: they say nothing of robustness"),
        (weak, "are without AutoAttack: robust accuracies without it are upper bounds"),
    ):
        if found:
            whose = "All" if len(found) == len(records) else f"{len(found)} of {len(records)}"
            lines.append(f"{whose} evaluations {what}.")
    return lines
