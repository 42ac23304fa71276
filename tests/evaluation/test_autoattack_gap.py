"""How much further AutoAttack gets than PGD, beside a reference, by hand."""

from __future__ import annotations

import pytest

from aalp.evaluation.autoattack_gap import DropUnderAutoAttack, autoattack_gap_gate


def gap(own: tuple[float, float], reference: tuple[float, float], images: int = 500) -> tuple[bool | None, float | None]:
    finding = autoattack_gap_gate(DropUnderAutoAttack(*own, images), DropUnderAutoAttack(*reference, images))
    return finding.passed, finding.measured


def test_the_gap_to_autoattack_by_hand() -> None:
    # 4 points against 3: 1.33 times.
    assert gap((0.54, 0.50), (0.53, 0.50)) == (True, pytest.approx(4 / 3))
    # ALP on Fashion-MNIST: 61.4 under PGD, 24.3 under AutoAttack, where AT has 62.0 and 46.0: 37.1 against twice 16.
    passed, measured = gap((0.614, 0.243), (0.620, 0.460), 10_000)
    assert (passed, measured) == (False, pytest.approx(37.1 / 16))
    # The same on 60 images: 22 of them, whose interval begins at 25.6 %, below 32 %.
    assert gap((0.614, 0.243), (0.620, 0.460), 60)[0] is None
    # A reference that loses nothing allows twice one point.
    assert gap((0.52, 0.50), (0.50, 0.50))[0] is True
    assert gap((0.60, 0.50), (0.50, 0.50)) == (False, pytest.approx(10))
