"""Numbers as people read them."""

import pytest

from aalp.commands.evaluation_record import report
from aalp.shown import as_exact, eps_text, in_percent


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.5, "50.0"),
        (0.9994, "99.9"),
        (9_996 / 10_000, "99.96"),
        (49_999 / 50_000, "99.998"),
        (1 - 1e-6, ">99.999"),
        (1.0, "100.0"),
        (sum([0.1] * 10), "100.0"),
        (0.0, "0.0"),
        (1 / 1_281_167, "<0.001"),
        (1 / 10_000, "0.01"),
        (0.0006, "0.1"),
        (float("nan"), "nan"),
    ],
)
def test_a_share_reads_all_or_nothing_only_where_it_is(share: float, text: str) -> None:
    assert in_percent(share) == text


def test_a_deviation_has_the_decimals_of_its_mean() -> None:
    assert as_exact(0.00034, in_percent(0.9999)) == "0.03"
    assert as_exact(0.00034, in_percent(0.99)) == "0.0"


def test_a_table_does_not_round_four_images_of_ten_thousand_away() -> None:
    attack = {"name": "square", "accuracy": 0.0001, "seconds": 1.0, "parts": []}
    record = {"clean": 0.9996, "robust": 0.0001, "images": 10_000, "attacks": [attack], "broken_by": {"clean": 4}}
    record |= {"threat": {"norm": "Linf", "eps": 0.2}, "data": {"name": "digits", "split": "test"}, "weights": "w", "path": "p"}
    lines = report(record).splitlines()
    assert lines[4].split()[:4] == ["clean", "99.96%", "99.9%", "-"]
    assert lines[4].split()[4] == "99.98%"
    assert lines[5].split()[:5] == ["square", "0.01%", "0.002%", "-", "0.1%"]


@pytest.mark.parametrize(
    ("eps", "text"), [(8 / 255, "8/255"), (1 / 255, "1/255"), (0.2, "0.2"), (0.5, "0.5"), (0.030001, "0.030001"), (0.0, "0")]
)
def test_eps_reads_as_it_is_typed_and_published(eps: float, text: str) -> None:
    assert eps_text(eps) == text


def test_a_table_tells_eps_as_the_report_and_the_card_do() -> None:
    record = {"clean": 0.5, "robust": None, "images": 10, "attacks": [], "broken_by": {}, "weights": "w", "path": "p"}
    record |= {"threat": {"norm": "Linf", "eps": 8 / 255}, "data": {"name": "photos", "split": "test"}}
    assert report(record).startswith("10 test images of photos, Linf eps 8/255, weights w")
