"""The audit's gate that attacks nothing: how far evaluations fall from PGD to AutoAttack, beside a reference's."""

from __future__ import annotations

from dataclasses import dataclass

from aalp.evaluation.findings import Finding, undecided
from aalp.evaluation.gates import AUTOATTACK_GAP
from aalp.evaluation.robustness import wilson_interval


@dataclass(frozen=True)
class DropUnderAutoAttack:
    """What an evaluation says of pgd-20 and AutoAttack: accuracies (shares) on so many images."""

    pgd: float
    autoattack: float
    images: int


def autoattack_gap_gate(own: DropUnderAutoAttack | None, reference: DropUnderAutoAttack | None) -> Finding:
    """Whether AutoAttack takes more from pgd-20's figure than twice what it takes from the reference's."""
    if own is None or reference is None:
        return undecided("not run: it needs a reference and evaluations with pgd-20 and autoattack of both")
    drops = own.pgd - own.autoattack, reference.pgd - reference.autoattack
    # A reference that loses nothing would allow nothing: a point is within what any two attacks differ by.
    allowed = max(drops[1], 0.01)
    low = wilson_interval(max(0, round(drops[0] * own.images)), own.images)[0]
    passed: bool | None = None
    if drops[0] <= AUTOATTACK_GAP.limit * allowed + 1e-9:
        passed = True
    elif low > AUTOATTACK_GAP.limit * allowed:
        passed = False
    detail = f"pgd-20 to AutoAttack: {100 * drops[0]:.1f} points, reference {100 * drops[1]:.1f} points"
    return Finding(drops[0] / allowed, passed, detail)
