from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from aalp.analysis.observations import (
    CLAIMS,
    Measured,
    figures_of,
    group_figures,
    left_out,
    observe,
    show,
    steps_of,
    summary,
)
from aalp.analysis.spread import spread

FIGURES = {claim.figure for claim in CLAIMS} | {claim.against[1] for claim in CLAIMS if claim.against} | {"clean"}


def run(
    objective: str, seed: int, group: str | None = None, setting: str = "same", step: float = 0.001, **figures: float | None
) -> Measured:
    values: Mapping[str, float | None] = {name: figures.get(name, 1.0) for name in FIGURES}
    options = {"training": {"epochs": figures.get("epochs", 1)}}
    return Measured(
        f"{objective}-{seed}",
        f"runs/{objective}-{seed}",
        objective,
        group or objective,
        seed,
        setting,
        options,
        values,
        dict.fromkeys(FIGURES, step),
    )


def found(runs: list[Measured], figure: str, objective: str) -> dict[str, Any]:
    matching = [one for one in observe(runs) if one["figures"]["figure"] == figure and one["claim"].find(objective) >= 0]
    assert len(matching) == 1
    return matching[0]


def test_the_spread_by_hand() -> None:
    # 1, 2, 6: mean 3, squares 4 + 1 + 9 over 2 = 7; t with 2 degrees of freedom at 97.5 % is 4.302653.
    half = 4.302653 * math.sqrt(7) / math.sqrt(3)
    expected = {"mean": 3.0, "deviation": math.sqrt(7), "low": 3 - half, "high": 3 + half}
    assert spread([1.0, 2.0, 6.0]) == {name: pytest.approx(value, rel=1e-6) for name, value in expected.items()}
    assert spread([5.0]) == {"mean": 5.0, "deviation": None, "low": None, "high": None}


@pytest.mark.parametrize(("step", "half"), [(0.0, 0.0), (1.0, 4.302653 / 3), (0.5, 4.302653 / 6)])
def test_equal_values_are_judged_as_if_one_were_a_step_off(step: float, half: float) -> None:
    """Three values, one of them a step off: deviation step / sqrt 3, half width t * step / 3."""
    found = spread([-1.0, -1.0 + 1e-13, -1.0], step)  # what subtraction leaves of equal gaps
    assert found["deviation"] == pytest.approx(0.0, abs=1e-9)
    assert (found["low"], found["high"]) == (pytest.approx(-1.0 - half, rel=1e-5), pytest.approx(-1.0 + half, rel=1e-5))
    assert spread([1.0, 2.0, 6.0], step) == spread([1.0, 2.0, 6.0])


@pytest.mark.parametrize(("step", "holds"), [(1.0, False), (0.01, True)])
def test_one_feature_fewer_with_every_seed_is_not_shown_where_features_are_counted_in_ones(step: float, holds: bool) -> None:
    runs = [run("at", seed, step=step, k95_clean=2.0 + seed) for seed in range(3)]
    runs += [run("standard", seed, step=step, k95_clean=3.0 + seed) for seed in range(3)]
    assert found(runs, "k95_clean", "standard")["holds"] is holds


@pytest.mark.parametrize(
    ("at", "standard", "holds", "opposite", "verdict"),
    [
        ([10.0, 11.0, 12.0], [20.0, 22.0, 21.0], True, False, "Holds: "),
        ([20.0, 22.0, 21.0], [10.0, 11.0, 12.0], False, True, "Does not hold, the opposite does: "),
        ([10.0, 30.0, 12.0], [20.0, 21.0, 22.0], False, False, "Not shown: "),
        ([10.0], [20.0], None, False, "One seed does not show that "),
        ([15.0, 15.0], [15.0, 15.0], False, False, "Not shown: "),
    ],
)
def test_a_claim_holds_only_if_the_interval_leaves_out_0_on_its_side(
    at: list[float], standard: list[float], holds: bool | None, opposite: bool, verdict: str
) -> None:
    runs = [run("at", seed, n90=value) for seed, value in enumerate(at)]
    runs += [run("standard", seed, n90=value) for seed, value in enumerate(standard)]
    claim = found(runs, "n90", "standard")
    assert (claim["number"], claim["holds"], claim["figures"]["opposite"]) == (1, holds, opposite)
    assert claim["sentence"].startswith(verdict)


def test_the_sentence_is_made_from_the_numbers() -> None:
    # Gaps -10, -11, -9: mean -10, deviation 1, half width 4.302653 / sqrt 3 = 2.484.
    runs = [run("at", seed, n90=value) for seed, value in enumerate([10.0, 11.0, 12.0])]
    runs += [run("standard", seed, n90=value) for seed, value in enumerate([20.0, 22.0, 21.0])]
    assert found(runs, "n90", "standard")["sentence"] == (
        "Holds: at needs fewer features than standard for 90 % of its positive contributions "
        "(11.0 against 21.0, difference -10.0 [-12.5, -7.5], 3 seeds)."
    )


@pytest.mark.parametrize(
    ("at", "standard", "sentence"),
    [
        ([8.4], [20.8], "(8.4 against 20.8, difference -12.4, 1 seed)."),
        ([20.8], [8.4], "(20.8 against 8.4, difference +12.4: here it is the other way round, 1 seed)."),
        ([8.4], [8.4], "(8.4 against 8.4, difference +0.0: no difference, 1 seed)."),
        ([10.0, 30.0], [11.0, 20.0], "[-65.4, +74.4]: here it is the other way round, 2 seeds)."),
        ([20.0, 22.0, 21.0], [10.0, 11.0, 12.0], "[+7.5, +12.5], 3 seeds)."),
    ],
)
def test_figures_that_point_away_from_the_claim_are_said_to(at: list[float], standard: list[float], sentence: str) -> None:
    runs = [run("at", seed, n90=value) for seed, value in enumerate(at)]
    runs += [run("standard", seed, n90=value) for seed, value in enumerate(standard)]
    assert found(runs, "n90", "standard")["sentence"].endswith(sentence)


def test_seeds_are_paired_and_a_seed_that_only_one_side_has_is_left_out() -> None:
    # Far apart from seed to seed, but always 1 fewer: pairing sees it, an unpaired comparison would not.
    runs = [run("at", seed, n90=base - 1) for seed, base in ((0, 10.0), (1, 50.0), (2, 90.0), (7, 1000.0))]
    runs += [run("standard", seed, n90=base) for seed, base in ((2, 90.1), (1, 50.0), (0, 10.0), (8, 0.0))]
    claim = found(runs, "n90", "standard")
    assert claim["figures"]["seeds"] == [0, 1, 2]
    assert claim["holds"] is True
    assert found([runs[3], runs[7]], "n90", "standard")["holds"] is None


def test_what_was_not_measured_is_not_judged() -> None:
    runs = [run(name, seed, k95_robust=None if name == "at" else 3.0) for name in ("at", "aalp") for seed in (0, 1)]
    claim = found(runs, "k95_robust", "at ")
    assert claim["holds"] is None
    assert claim["sentence"].startswith("Not judged: ")


@pytest.mark.parametrize(
    ("rates", "holds", "opposite"),
    [([0.2, 0.21, 0.19], True, False), ([0.0, 0.0, 0.0], False, False), ([0.0, 0.4], False, False)],
)
def test_a_conflict_rate_has_to_be_above_0(rates: list[float], holds: bool, opposite: bool) -> None:
    claim = found([run("alp", seed, conflict=rate) for seed, rate in enumerate(rates)], "conflict", "some samples")
    assert (claim["number"], claim["holds"], claim["figures"]["opposite"]) == (2, holds, opposite)


def test_the_interval_of_a_share_ends_where_shares_do() -> None:
    sentences = [
        found([run("alp", seed, conflict=rate) for seed in (0, 1)], "conflict", "alp")["sentence"] for rate in (0.0, 1.0)
    ]
    # The step is 0.001: half a step times t, 12.7, is 0.6 points.
    assert sentences[0].startswith("Not shown:")
    assert "(0.0 % [0.0 %, 0.6 %], 2 seeds)" in sentences[0]
    assert sentences[1].startswith("Holds:")
    assert "(100.0 % [99.4 %, 100.0 %], 2 seeds)" in sentences[1]


def test_misclassified_samples_are_measured_by_their_share_of_the_samples() -> None:
    runs = [run("alp", seed, misclassified_share=0.2 + seed / 100, misclassified_rate=0.1) for seed in range(3)]
    claim = found(runs, "misclassified_share", "more than their share")
    assert claim["holds"] is True
    assert "(21.0 % against 10.0 %, difference +11.0 %" in claim["sentence"]


def test_only_runs_of_one_setting_are_compared_and_other_options_that_differ_are_said() -> None:
    runs = [run("at", seed, setting="digits", n90=1.0) for seed in (0, 1)]
    runs += [run("standard", seed, setting="mnist", n90=5.0 + seed) for seed in (0, 1)]
    assert observe(runs) == []
    assert (
        left_out(runs)[0] == "Observation 1: nothing is said on at and standard, for want of runs on the same data and threat."
    )
    longer = [run("standard", seed, setting="digits", n90=5.0 + seed / 10, epochs=9.0) for seed in (0, 1)]
    assert "the runs also differ in training" in found(runs[:2] + longer, "n90", "standard")["sentence"]


def test_an_option_that_only_one_side_knows_differs() -> None:
    runs = [run(name, seed, n90=value + seed) for name, value in (("at", 5.0), ("standard", 9.0)) for seed in (0, 1)]
    for one in runs[2:]:
        one.options["checkpoint"] = {"every": 5}  # type: ignore[index]
    assert "the runs also differ in checkpoint" in found(runs, "n90", "standard")["sentence"]


def test_every_variant_of_an_objective_is_judged_by_itself() -> None:
    runs = [run("aalp", seed, group, n90=value + seed) for seed in (0, 1) for group, value in (("kl", 5.0), ("plain", 50.0))]
    runs += [run("at", seed, n90=20.0 + seed) for seed in (0, 1)]
    judged = {one["claim"].split()[0]: one["holds"] for one in observe(runs) if one["figures"]["figure"] == "n90"}
    assert judged == {"kl": True, "plain": False}


def test_the_summary_counts_what_holds() -> None:
    runs = [run("at", seed, n90=1.0, effective_number=9.0) for seed in (0, 1)]
    runs += [run("standard", seed, n90=5.0, effective_number=5.0) for seed in (0, 1)]
    assert summary(observe(runs)) == [
        "Observation 1: 1 of 3 statements hold on these runs, for 1 the opposite holds, 1 are not shown."
    ]
    assert "not judged" in summary(observe([runs[0], runs[2]]))[0]


def test_group_figures_keep_every_value() -> None:
    table = group_figures([run("at", 3, n90=4.0), run("at", 5, n90=None), run("at", 8, n90=6.0)])
    assert table["at"]["n90"]["values"] == {"3": 4.0, "5": None, "8": 6.0}
    assert table["at"]["n90"]["mean"] == 5.0
    assert table["at"]["clean"]["mean"] == 1.0


def test_every_claim_is_about_a_figure_that_an_analysis_gives() -> None:
    side = {"predicted": {"n90": 1.0, "effective_number": 1.0, "gini": 0.5}}
    analysis = {
        "contributions": {"clean": side, "adversarial": side},
        "top_k": [{"k": 1, "clean": 0.9, "robust": 0.5}],
        "fewest_features": {"clean": 1, "robust": None},
        "conflict": {
            "rate": 0.0,
            "rate_clean": 0.1,
            "rate_weights": 0.2,
            "misclassified_rate": 0.3,
            "misclassified_share": 0.4,
        },
        "training": [{"conflict_rate": 0.1}, {"conflict_rate": 0.3}],
    }
    figures = figures_of(analysis)
    assert figures.keys() >= FIGURES
    assert (figures["conflict"], figures["conflict_weights"], figures["k95_robust"]) == (0.0, 0.2, None)
    assert figures["training_conflict"] == pytest.approx(0.2)
    assert figures["training_misclassified_share"] is None


def test_steps_are_an_image_s_share_or_the_way_to_the_next_number_of_features() -> None:
    side = {"predicted": {"n90": 1.0, "effective_number": 1.0, "gini": 0.5}}
    conflict = dict.fromkeys(("rate", "rate_clean", "rate_weights", "misclassified_rate", "misclassified_share"), 0.1)
    analysis = {
        "images": 500,
        "contributions": {"clean": side, "adversarial": side},
        "top_k": [{"k": k, "clean": 0.9, "robust": 0.5} for k in (1, 2, 10, 14, 20)],
        "fewest_features": {"clean": 14, "robust": None},
        "conflict": {**conflict, "weights_images": 200},
        "training": [],
    }
    steps = steps_of(analysis)
    assert steps.keys() == figures_of(analysis).keys()
    assert (steps["clean"], steps["conflict_weights"], steps["n90"]) == (0.002, 0.005, 0.002)
    assert (steps["k95_clean"], steps["k95_robust"]) == (4, 1)


def test_figures_are_shown_in_their_unit() -> None:
    assert show("conflict_clean", 0.125) == "12.5 %"
    assert show("n90", 12.34) == "12.3"
    assert show("n90", -1.0, "+") == "-1.0"
    assert show("gini", None) == "-"
    assert show("gini", 0.7204) == "0.720"  # as the report has it
