"""What an audit comes to: the gates' results, and one verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aalp.evaluation.findings import GateResult
from aalp.evaluation.robustness import wilson_interval
from aalp.shown import in_percent

Verdict = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True)
class Audit:
    """What the audit found.

    Attributes:
        gates: every gate's result, in order.
        images: how many were looked at.
        clean: share of them that is right clean.
        robust: share that stands under every attack of the audit; None if none ran.
        majority: share of the most frequent class: what a constant answer gets.
        seconds: wall time, with that of the attempts before this one.
    """

    gates: list[GateResult]
    images: int
    clean: float
    robust: float | None
    majority: float
    seconds: float

    @property
    def verdict(self) -> Verdict:
        """`fail` if a gate failed, `inconclusive` if one that is not optional could not be decided, else `pass`."""
        if any(result.passed is False for result in self.gates):
            return "fail"
        if any(result.passed is None and not result.gate.optional for result in self.gates):
            return "inconclusive"
        return "pass"

    @property
    def is_robust(self) -> bool | None:
        """Whether it beats a constant answer under attack, beyond sampling error; None if no attack ran."""
        if self.robust is None:
            return None
        return wilson_interval(round(self.robust * self.images), self.images)[0] > self.majority

    @property
    def line(self) -> str:
        """The verdict in words."""
        failed = [result.gate.name for result in self.gates if result.passed is False]
        open_gates = [result.gate.name for result in self.gates if result.passed is None and not result.gate.optional]
        text = {
            "fail": f"FAIL: {', '.join(failed)}: figures of gradient attacks overstate this model's robustness",
            "inconclusive": f"INCONCLUSIVE: undecided: {', '.join(open_gates)}",
            "pass": "PASS: no sign of masked gradients",
        }[self.verdict]
        if self.robust is None:
            return f"{text}; clean {in_percent(self.clean)}%"
        figures = f"clean {in_percent(self.clean)}%, worst case of the audit's attacks {in_percent(self.robust)}%"
        if not self.is_robust:
            figures += f": not robust (a constant answer gets {in_percent(self.majority)}%)"
        return f"{text}; {figures}"
