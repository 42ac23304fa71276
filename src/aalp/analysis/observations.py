"""Whether the paper's two observations (arXiv 2005.11904) hold on some runs, in numbers and in words made from them.

A statement holds only if the 95 % t interval over seeds, paired by seed, leaves out 0 on the side that it says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aalp.analysis.conflict import training_means
from aalp.analysis.spread import spread
from aalp.shown import as_exact, in_percent


@dataclass(frozen=True)
class Measured:
    """One run, and what was measured on it.

    Attributes:
        group: the name that runs which differ in their seed alone share.
        setting: what has to be the same for two runs to be compared: data, images, attack, threat.
        options: the other options that should be the same for a fair comparison, by name.
        figures: what `figures_of` gave; None where something could not be measured.
        steps: what `steps_of` gave.
    """

    name: str
    path: str
    objective: str
    group: str
    seed: int
    setting: str
    options: Mapping[str, Any]
    figures: Mapping[str, float | None]
    steps: Mapping[str, float] = field(default_factory=dict)


def figures_of(analysis: Mapping[str, Any]) -> dict[str, float | None]:
    """The single numbers of an analysis record that runs are compared by."""
    clean, adversarial = (analysis["contributions"][side]["predicted"] for side in ("clean", "adversarial"))
    full, fewest, conflict = analysis["top_k"][-1], analysis["fewest_features"], analysis["conflict"]
    training = training_means(analysis["training"])
    return {
        "clean": full["clean"],
        "robust": full["robust"],
        "n90": clean["n90"],
        "n90_adversarial": adversarial["n90"],
        "effective_number": clean["effective_number"],
        "gini": clean["gini"],
        "k95_clean": fewest["clean"],
        "k95_robust": fewest["robust"],
        "conflict": conflict["rate"],
        "conflict_clean": conflict["rate_clean"],
        "conflict_weights": conflict["rate_weights"],
        "misclassified_rate": conflict["misclassified_rate"],
        "misclassified_share": conflict["misclassified_share"],
        "training_conflict": training["conflict_rate"],
        "training_conflict_clean": training["conflict_rate_clean"],
        "training_misclassified_rate": training["misclassified_rate"],
        "training_misclassified_share": training["misclassified_share"],
    }


def steps_of(analysis: Mapping[str, Any]) -> dict[str, float]:
    """The smallest amount by which a figure can differ between two runs: one image's share, or one number of features."""
    figures = figures_of(analysis)
    steps = dict.fromkeys(figures, 1 / analysis["images"])
    steps["conflict_weights"] = 1 / max(1, analysis["conflict"].get("weights_images", analysis["images"]))
    counts = [row["k"] for row in analysis["top_k"]]
    for name in ("k95_clean", "k95_robust"):
        value = figures[name]
        steps[name] = min((abs(count - value) for count in counts if count != value), default=1) if value is not None else 1
    return steps


SHARES = frozenset({"clean", "robust"})
"""Figures in [0, 1] besides the conflict and misclassified ones."""


def is_share(figure: str) -> bool:
    """Whether a figure is a share, to be shown in percent."""
    return figure in SHARES or "conflict" in figure or "misclassified" in figure


@dataclass(frozen=True)
class Claim:
    """`objective`'s `figure` is lower (or higher) than that of `against`, or higher than 0 where that is None.

    Attributes:
        text: what is claimed; {a} and {b} stand for the two groups.
        against: (objective, figure).
    """

    number: int
    text: str
    objective: str
    figure: str
    against: tuple[str, str] | None = None
    lower: bool = True


FEATURES = {
    "n90": "{a} needs fewer features than {b} for 90 % of its positive contributions",
    "effective_number": "{a} has a smaller effective number of contributing features than {b}",
    "k95_clean": "{a} needs fewer features than {b} for 95 % of its clean accuracy",
    "k95_robust": "{a} needs fewer features than {b} for 95 % of its PGD-20 accuracy",
}
PLACES = {
    "conflict": "at the adversarial logits, on test images",
    "training_conflict": "at the adversarial logits, in training",
    "conflict_clean": "at the clean logits, on test images",
    "training_conflict_clean": "at the clean logits, in training",
    "conflict_weights": "in the network's weights, on test images",
}
CARRIERS = {"misclassified": "on test images", "training_misclassified": "in training"}

CLAIMS: tuple[Claim, ...] = (
    *(
        Claim(1, text, objective, figure, (other, figure))
        for objective, other in (("at", "standard"), ("aalp", "alp"), ("aalp", "at"))
        for figure, text in FEATURES.items()
        # Little of ordinary training's accuracy is left under attack: its 95 % would be noise.
        if not (other == "standard" and figure == "k95_robust")
    ),
    *(
        Claim(2, f"under {{a}} the two losses of some samples conflict {place}", "alp", figure, lower=False)
        for figure, place in PLACES.items()
    ),
    *(
        Claim(
            2,
            f"under {{a}} misclassified samples carry more than their share of the pairing loss {place}",
            "alp",
            f"{kind}_share",
            ("alp", f"{kind}_rate"),
            lower=False,
        )
        for kind, place in CARRIERS.items()
    ),
    *(
        Claim(
            2, f"under {{a}} the two losses of fewer samples conflict than under {{b}} {place}", "aalp", figure, ("alp", figure)
        )
        for figure, place in PLACES.items()
    ),
    *(
        Claim(
            2,
            f"under {{a}} misclassified samples carry less of the pairing loss than under {{b}} {place}",
            "aalp",
            f"{kind}_share",
            ("alp", f"{kind}_share"),
        )
        for kind, place in CARRIERS.items()
    ),
)


def group_figures(runs: Sequence[Measured]) -> dict[str, dict[str, Any]]:
    """Each group's figures over its seeds: mean, deviation, interval of the mean, and the values by seed."""
    table: dict[str, dict[str, Any]] = {}
    for name, group in _groups(runs).items():
        table[name] = {}
        for figure in group[0].figures:
            values = {run.seed: run.figures[figure] for run in group}
            known = [value for value in values.values() if value is not None]
            empty = {"mean": None, "deviation": None, "low": None, "high": None}
            table[name][figure] = {**(spread(known) if known else empty), "values": {str(k): v for k, v in values.items()}}
    return table


def observe(runs: Sequence[Measured]) -> list[dict[str, Any]]:
    """Every claim, judged on each pair of groups of its objectives that were measured in the same setting.

    Returns:
        `number`, `claim`, `holds` (True, False, or None where one seed or nothing is known), `sentence` and `figures`
        for each.
    """
    groups = list(_groups(runs).values())
    found = []
    for claim in CLAIMS:
        for group in (g for g in groups if g[0].objective == claim.objective):
            if claim.against is None or claim.against[0] == claim.objective:
                found.append(_judge(claim, group, group))
                continue
            others = (g for g in groups if g[0].objective == claim.against[0] and g[0].setting == group[0].setting)
            found += [_judge(claim, group, other) for other in others]
    return found


def left_out(runs: Sequence[Measured]) -> list[str]:
    """What no statement is made on, for want of runs."""
    groups = list(_groups(runs).values())
    lines = []
    for claim in CLAIMS:
        other = claim.against[0] if claim.against else claim.objective
        settings = [{g[0].setting for g in groups if g[0].objective == name} for name in (claim.objective, other)]
        if not settings[0] & settings[1]:
            wanted = f"{claim.objective} and {other}" if other != claim.objective else claim.objective
            lines.append(
                f"Observation {claim.number}: nothing is said on {wanted}, for want of runs on the same data and threat."
            )
    return list(dict.fromkeys(lines))


def summary(observations: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line an observation: how many of its statements hold on these runs."""
    lines = []
    for number in sorted({found["number"] for found in observations}):
        own = [found for found in observations if found["number"] == number]
        judged = [found for found in own if found["holds"] is not None]
        if not judged:
            lines.append(f"Observation {number}: not judged on these runs; that takes two seeds or more of each objective.")
            continue
        holding = sum(found["holds"] for found in judged)
        opposite = sum(found["figures"]["opposite"] for found in judged)
        lines.append(
            f"Observation {number}: {holding} of {len(judged)} statements hold on these runs, for {opposite} the opposite "
            f"holds, {len(judged) - holding - opposite} are not shown."
        )
    return lines


def show(figure: str, value: float | None, sign: str = "") -> str:
    """A figure for a reader: percent, a number of features, or the Gini coefficient as the report has it."""
    if value is None:
        return "-"
    if is_share(figure):
        return f"{value * 100:{sign}.1f} %" if sign else f"{in_percent(value)} %"
    return f"{value:{sign}.{3 if figure == 'gini' else 1}f}"


def show_spread(figure: str, mean: float | None, deviation: float | None) -> str:
    """A mean and its deviation over seeds for a reader."""
    shown = show(figure, mean)
    if deviation is None:
        return shown
    if not is_share(figure):
        return f"{shown} +- {show(figure, deviation)}"
    number = shown.removesuffix(" %")
    return f"{number} +- {as_exact(deviation, number)} %"


def _groups(runs: Sequence[Measured]) -> dict[str, list[Measured]]:
    groups: dict[str, list[Measured]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    return groups


def _judge(claim: Claim, group: Sequence[Measured], other: Sequence[Measured]) -> dict[str, Any]:
    firsts = {run.seed: run.figures[claim.figure] for run in group}
    seconds = {run.seed: run.figures[claim.against[1]] if claim.against else 0.0 for run in other}
    pairs = {
        seed: (first, second)
        for seed, first in firsts.items()
        if first is not None and (second := seconds.get(seed)) is not None
    }
    text = claim.text.format(a=group[0].group, b=other[0].group)
    figures: dict[str, Any] = {"figure": claim.figure, "seeds": list(pairs), "opposite": False}
    if not pairs:
        reason = "the seeds differ, or it was not logged or could not be measured"
        return _found(claim, text, None, f"Not judged: {text} ({reason}).", figures)
    step = max(run.steps.get(claim.figure, 0.0) for run in (*group, *other))
    gap = spread([first - second for first, second in pairs.values()], step)
    figures |= {"first": spread([first for first, _ in pairs.values()]), "difference": gap}
    if claim.against:
        figures["second"] = spread([second for _, second in pairs.values()])
    one, two = group[0].options, other[0].options
    figures["options_that_differ"] = sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))
    holds: bool | None = None
    if gap["low"] is not None and gap["high"] is not None:
        holds = gap["high"] < 0 if claim.lower else gap["low"] > 0
        figures["opposite"] = gap["low"] > 0 if claim.lower else gap["high"] < 0
    return _found(claim, text, holds, _sentence(claim, text, holds, figures), figures)


def _found(claim: Claim, text: str, holds: bool | None, sentence: str, figures: dict[str, Any]) -> dict[str, Any]:
    return {"number": claim.number, "claim": text, "holds": holds, "sentence": sentence, "figures": figures}


def _sentence(claim: Claim, text: str, holds: bool | None, figures: Mapping[str, Any]) -> str:
    gap, count = figures["difference"], len(figures["seeds"])
    if holds is None:
        verdict = "One seed does not show that"
    elif figures["opposite"]:
        verdict = "Does not hold, the opposite does:"
    else:
        verdict = "Holds:" if holds else "Not shown:"
    shown = show(claim.figure, figures["first"]["mean"])
    if claim.against:
        shown += f" against {show(claim.figure, figures['second']['mean'])}, difference {show(claim.figure, gap['mean'], '+')}"
    if gap["low"] is not None and claim.against:
        shown += f" [{show(claim.figure, gap['low'], '+')}, {show(claim.figure, gap['high'], '+')}]"
    elif gap["low"] is not None:
        # A t interval does not know that there is no share below 0 or above 1.
        shown += f" [{show(claim.figure, max(0.0, gap['low']))}, {show(claim.figure, min(1.0, gap['high']))}]"
    if claim.against and not holds and not figures["opposite"] and (gap["mean"] >= 0 if claim.lower else gap["mean"] <= 0):
        # The claim is told in its own words, which these figures may contradict.
        shown += ": no difference" if gap["mean"] == 0 else ": here it is the other way round"
    seeds = "seed" if count == 1 else "seeds"
    differing = figures["options_that_differ"]
    also = f"; the runs also differ in {', '.join(differing)}" if differing else ""
    return f"{verdict} {text} ({shown}, {count} {seeds}{also})."
