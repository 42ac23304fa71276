"""The statistics of a comparison, by numbers worked by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from aalp.commands.comparison import cautions, judged_anew, markdown, sentences, summary, text


def cells(figures: dict[str, list[float | None]], images: int = 1000) -> list[dict[str, Any]]:
    return [
        {"objective": name, "seed": seed, "images": images, "figures": {"clean": 1.0, "autoattack": value}}
        for name, values in figures.items()
        for seed, value in enumerate(values)
    ]


def test_the_statistics_of_three_seeds_by_hand() -> None:
    content = summary(cells({"at": [0.60, 0.62, 0.64], "aalp": [0.65, 0.70, 0.66]}), ["at", "aalp"])
    row = content["table"]["at"]["autoattack"]
    assert row["values"] == [0.60, 0.62, 0.64]
    assert row["mean"] == pytest.approx(0.62)
    assert row["deviation"] == pytest.approx(0.02)  # sqrt((0.02^2 + 0 + 0.02^2) / 2)
    compared = content["compared"]
    assert (compared["reference"], compared["figure"]) == ("aalp", "autoattack")
    gap = compared["differences"]["at"]
    # Per seed 0.05, 0.08, 0.02: mean 0.05, deviation 0.03, t(0.975, 2) = 4.3027, half width 4.3027 * 0.03 / sqrt 3.
    half = 4.30265 * 0.03 / math.sqrt(3)
    assert gap["mean"] == pytest.approx(0.05)
    assert gap["interval"] == pytest.approx([0.05 - half, 0.05 + half], rel=1e-5)
    assert gap["real"] is False  # 0.0745 > 0.05: the interval holds 0


@pytest.mark.parametrize(
    ("names", "reference"),
    [
        (["at", "aalp"], "aalp"),
        (["aalp-kl", "at", "aalp"], "aalp-kl"),
        (["at", "aalp-kl"], "at"),
        (["aalp", "aalp-kl"], "aalp"),
    ],
)
def test_the_others_are_compared_with_aalp_or_the_variant_of_it_that_stands_first(names: list[str], reference: str) -> None:
    assert summary(cells({name: [0.6] for name in names}), names)["compared"]["reference"] == reference


@pytest.mark.parametrize(
    ("values", "real"),
    [
        ([0.701, 0.700, 0.702], True),
        ([0.60, 0.62, 0.64], False),
        ([0.50, 0.51, 0.52], True),
        ([0.40, 0.80, 0.70], False),
    ],
)
def test_a_difference_is_called_one_only_if_its_interval_leaves_out_0(values: list[float], real: bool) -> None:
    content = summary(cells({"aalp": [0.60, 0.61, 0.62], "at": values}), ["aalp", "at"])
    gap = content["compared"]["differences"]["at"]
    assert gap["real"] is real
    assert real == (not gap["interval"][0] <= 0 <= gap["interval"][1])


def test_one_seed_has_neither_deviation_nor_interval() -> None:
    content = summary(cells({"at": [0.6], "trades": [0.7]}), ["at", "trades"])
    assert content["table"]["at"]["autoattack"] == {"mean": 0.6, "deviation": None, "values": [0.6]}
    assert content["compared"]["reference"] == "at"
    gap = content["compared"]["differences"]["trades"]
    assert gap["mean"] == pytest.approx(-0.1)
    assert (gap["interval"], gap["real"]) == (None, False)


@pytest.mark.parametrize(
    ("at", "half", "real"),
    [
        # Two seeds: t(0.975, 1) * (1 image / sqrt 2) / sqrt 2 = 12.706 / 2 images of 300.
        ([0.66, 0.68], 12.7062 / 2 / 300, False),
        ([0.60, 0.62], 12.7062 / 2 / 300, True),
        # Three: 4.3027 * (1 image / sqrt 3) / sqrt 3.
        ([0.66, 0.68, 0.72], 4.30265 / 3 / 300, True),
    ],
)
def test_the_same_gap_with_every_seed_is_no_proof_that_nothing_is_chance(at: list[float], half: float, real: bool) -> None:
    """Without a deviation the t interval has no width, whatever the gap; it is that of one image off with one seed."""
    content = summary(cells({"aalp": [0.68, 0.70, 0.74][: len(at)], "at": at}, images=300), ["aalp", "at"])
    gap = content["compared"]["differences"]["at"]
    assert gap["interval"] == pytest.approx([gap["mean"] - half, gap["mean"] + half], rel=1e-4)
    assert gap["real"] is real
    assert ("autoattack" in content["compared"]["real"]["at"]) is real
    (line,) = sentences(content)
    assert f"points with each of {len(at)} seeds, 95 % interval [" in line
    assert line.endswith(
        f"as if one of them had one image more or less: {'a real difference' if real else 'no real difference shown'}"
    )


def test_a_record_of_an_earlier_version_is_judged_by_the_rules_of_today() -> None:
    found = cells({"aalp": [0.68, 0.70], "at": [0.67, 0.69]}, images=300)
    earlier = {"mean": 0.01, "interval": [0.01, 0.01], "real": True}
    compared = {"differences": {"at": earlier}, "real": {"at": ["autoattack"]}}
    record = {"cells": found, "split": "test", "table": {"at": {}, "aalp": {}}, "compared": compared}
    anew = judged_anew(record)
    assert anew["split"] == "test"
    assert list(anew["table"]) == ["at", "aalp"]  # its rows as they stood, whatever the order of its cells
    assert anew["compared"] == summary(found, ["aalp", "at"])["compared"]
    assert not anew["compared"]["differences"]["at"]["real"]


def test_a_sentence_says_over_how_many_seeds_and_what_its_interval_is() -> None:
    three = summary(cells({"at": [0.60, 0.62, 0.64], "aalp": [0.75, 0.78, 0.76]}), ["at", "aalp"])
    assert sentences(three) == [
        "aalp minus at, autoattack: +14.3 points over 3 seeds, 95 % interval [+9.2, +19.5]: a real difference"
    ]
    one = summary(cells({"at": [0.60], "aalp": [0.75]}), ["at", "aalp"])
    assert sentences(one) == ["aalp minus at, autoattack: +15.0 points with one seed: no real difference shown"]


def test_a_row_that_gives_one_answer_is_told_and_no_other() -> None:
    found = cells({"mart": [0.11, 0.12, 0.92], "aalp": [0.93, 0.94, 0.95]})
    for cell in found:
        cell["one_answer"] = cell["figures"]["autoattack"] < 0.2
    told = "with 2 of its 3 runs: no difference from it is one of robustness"
    assert cautions(summary(found, ["mart", "aalp"])) == [
        f"mart is no better than one answer for all images, which no attack can change, {told}"
    ]
    assert cautions(summary(found[2:], ["mart", "aalp"])) == []


def test_many_tests_are_said_to_give_stars_by_chance() -> None:
    """15 rows beside the reference with two figures each, the seconds not counted: 30 tests, 1.5 of them by chance."""
    found = cells({f"row{number}": [0.6 + number / 100, 0.61] for number in range(16)})
    for cell in found:
        cell["figures"]["train_seconds"] = 1.0
    record = {**summary(found, list(dict.fromkeys(cell["objective"] for cell in found))), "split": "test", "command": "c"}
    assert "each column by itself; of 30 tests about 2 would give one by chance)" in markdown(record)
    few = {**summary(found[:4], ["row0", "row1"]), "split": "test", "command": "c"}
    assert "each column by itself)" in markdown(few)


def test_a_table_says_of_which_images_threat_and_seeds_it_is() -> None:
    found = cells({"at": [0.60, 0.62], "aalp": [0.75, 0.78]}, images=300)
    for cell in found:
        cell |= {"threat": {"norm": "Linf", "eps": 0.2}}
    record = {**summary(found, ["at", "aalp"]), "split": "validation", "command": "aalp compare"}
    title = "Accuracy in percent on 300 validation images, Linf eps 0.2: mean +- standard deviation over seeds 0, 1; "
    title += "n90 in features."
    assert text(record).splitlines()[0] == title
    assert markdown(record).startswith(f"{title} * another figure than aalp's at 95 %")
    for cell in found:
        cell["figures"]["robust"] = cell["figures"].pop("autoattack")
    alone = {**summary([found[0], found[2]], ["at", "aalp"]), "split": "validation", "command": "aalp compare"}
    bound = "seed 0 alone; n90 in features. Without AutoAttack, robust is an upper bound."
    for page in (text(alone), markdown(alone)):
        assert page.splitlines()[0].endswith(bound)
        assert "standard deviation" not in page


def test_every_figure_has_a_paired_test_of_its_own() -> None:
    """n90: gaps -10, -11, -12, so -11 +- 4.3027 * 1 / sqrt 3 = [-13.5, -8.5]; autoattack: 0.05, 0.08, 0.02 holds 0."""
    both = cells({"at": [0.60, 0.62, 0.64], "aalp": [0.65, 0.70, 0.66]})
    for cell, features in zip(both, [30, 30, 30, 20, 19, 18], strict=True):
        cell["figures"]["n90"] = features
    content = summary(both, ["at", "aalp"])
    assert content["compared"]["real"] == {"at": ["n90"]}
    record = {**content, "split": "test", "command": "aalp compare"}
    table = text(record)
    assert "30.0 +- 0.0 *" in table
    assert "62.0 +- 2.0 " in table
    assert "62.0 +- 2.0 *" not in table
    assert "* another figure than aalp's at 95 %" in table


@pytest.mark.parametrize("order", [["standard", "aalp"], ["aalp", "standard"]])
def test_objectives_without_a_figure_are_left_out_of_it_only(order: list[str]) -> None:
    """`standard` has no conflict rate, wherever it stands: a dash there, and nothing else changes."""
    figures: dict[str, list[float | None]] = {"standard": [0.0, 0.1], "aalp": [0.7, 0.8]}
    both = cells({name: figures[name] for name in order})
    for cell in both:
        if cell["objective"] == "aalp":
            cell["figures"]["conflict_rate"] = 0.25
    content = summary(both, order)
    assert "conflict_rate" in content["columns"]
    assert content["table"]["aalp"]["conflict_rate"]["mean"] == 0.25
    assert content["table"]["standard"].get("conflict_rate", {"mean": None})["mean"] is None
    assert content["table"]["standard"]["autoattack"]["mean"] == pytest.approx(0.05)


def test_objectives_that_nothing_attacked_are_compared_by_their_clean_accuracy() -> None:
    clean = [
        {"objective": name, "seed": seed, "images": 1000, "figures": {"clean": 0.9}}
        for name in ("at", "aalp")
        for seed in (0, 1)
    ]
    content = summary(clean, ["at", "aalp"])
    assert content["compared"]["figure"] == "clean"
    assert "worst case" not in text({**content, "seeds": [0, 1], "split": "test"})


def test_values_stand_under_their_own_seed_in_whatever_order_the_seeds_were_given() -> None:
    found = [
        {"objective": name, "seed": seed, "images": 1000, "figures": {"clean": seed / 10 + shift}}
        for seed in (2, 0, 1)
        for name, shift in (("at", 0.0), ("aalp", 0.5))
    ]
    content = summary(found, ["at", "aalp"])
    assert content["seeds"] == [0, 1, 2]
    assert content["table"]["aalp"]["clean"]["values"] == [0.5, 0.6, 0.7]
    rows = [line.split() for line in text({**content, "split": "test"}).split("\n\n")[2].splitlines()]
    assert rows[0] == ["clean", "by", "seed", "0", "1", "2"]
    assert rows[2:] == [["at", "0.0", "10.0", "20.0"], ["aalp", "50.0", "60.0", "70.0"]]


def test_a_comparison_so_far_is_of_the_runs_that_are_there_and_says_which_are_not() -> None:
    found = cells({"aalp": [0.60, 0.64, 0.68], "at": [0.50, 0.52]})
    content = {**summary(found, ["aalp", "at", "mart"]), "split": "test", "left": ["mart-seed0", "at-seed2"]}
    assert list(content["table"]) == ["aalp", "at"]  # of mart there is nothing to tell
    assert content["table"]["aalp"]["autoattack"]["mean"] == pytest.approx(0.64)
    assert content["table"]["at"]["autoattack"] == {
        "mean": pytest.approx(0.51),
        "deviation": pytest.approx(math.sqrt(0.0002)),
        "values": [0.50, 0.52, None],
    }
    gap = content["compared"]["differences"]["at"]
    assert (gap["mean"], gap["seeds"]) == (pytest.approx(0.11), 2)  # 0.10 and 0.12: of the seeds that both have
    told = text(content)
    assert "So far 2 of 7 runs are missing (mart-seed0, at-seed2): " in told
    assert told.split("\n\n")[2].splitlines()[-1].split() == ["at", "50.0", "52.0", "-"]


def test_rows_without_a_seed_in_common_are_compared_by_nothing() -> None:
    found = [cell for cell in cells({"aalp": [0.6, 0.6], "at": [0.5, 0.5]}) if (cell["objective"] == "at") == cell["seed"]]
    content = {**summary(found, ["aalp", "at"]), "split": "test", "left": ["aalp-seed1", "at-seed0"]}
    assert content["compared"]["differences"] == {}
    assert content["table"]["at"]["autoattack"]["values"] == [None, 0.5]
    assert "minus" not in text(content)


def test_rows_whose_audits_fail_are_called_so_beside_their_differences() -> None:
    found = cells({"aalp": [0.60, 0.61], "alp": [0.80, 0.81], "at": [0.50, 0.51]})
    verdicts = {"aalp": ["pass", "fail"], "alp": ["cheap gates fail"] * 2, "at": ["pass", "inconclusive"]}
    for cell in found:
        cell["audit"] = verdicts[cell["objective"]][cell["seed"]]
    content = {**summary(found, ["aalp", "alp", "at"]), "split": "test", "command": "aalp compare"}
    means = "what it withstands may be masked gradients, and no difference from it is one of robustness"
    assert cautions(content) == [
        f"aalp fails gates of the audit with 1 of its 2 runs: {means}",
        f"alp fails gates of the audit with 2 of its 2 runs: {means}",
    ]
    assert all(line in text(content) and line in markdown(content) for line in cautions(content))


def test_rows_under_another_threat_are_compared_with_nothing_and_it_is_said() -> None:
    found = cells({"aalp": [0.60, 0.61], "at": [0.50, 0.51], "half": [0.80, 0.81]})
    for cell in found:
        eps = 0.1 if cell["objective"] == "half" else 0.2
        cell |= {"threat": {"norm": "Linf", "eps": eps}, "images": 10}
    content = {**summary(found, ["aalp", "at", "half"]), "split": "test", "command": "aalp compare"}
    assert list(content["compared"]["differences"]) == ["at"]
    assert "half" not in content["compared"]["real"]
    assert len(sentences(content)) == 1
    assert cautions(content) == [
        "half is trained for and attacked at Linf eps 0.1, another threat than aalp's: no difference between the two is told"
    ]
    for page in (text(content), markdown(content)):
        assert cautions(content)[0] in page
        assert "aalp minus half" not in page
