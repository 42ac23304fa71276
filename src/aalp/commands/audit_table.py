"""An audit's record as a table for the screen."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from aalp.commands.tables import text_table
from aalp.report.figures import counted
from aalp.shown import eps_text


def report(record: Mapping[str, Any]) -> str:
    """The record as a table for the screen, with meaning and remedy of what did not pass, the verdict last."""
    threat, words = record["threat"], {True: "pass", False: "FAIL", None: "?"}
    title = (
        f"{counted(record['images'], 'test image')} of {record['data']['name']}, {threat['norm']} eps "
        f"{eps_text(threat['eps'])}, weights {record['weights']}"
    )
    rows = [
        [
            gate["name"],
            "not run" if gate["passed"] is None and gate["optional"] else words[gate["passed"]],
            _number(gate["measured"], gate["unit"]),
            _number(gate["limit"], gate["unit"]),
            f"{gate['seconds']:.1f}",
        ]
        for gate in record["gates"]
    ]
    parts = [title, text_table(["gate", "result", "measured", "limit", "seconds"], rows)]
    for gate in record["gates"]:
        # What was not run has its reason in another gate's failure, and in the record.
        if gate["passed"] is True or gate["detail"].startswith("not run"):
            continue
        lines = [f"{words[gate['passed']]} {gate['name']}", f"seen: {gate['detail']}", f"passes if: {gate['rule']}"]
        if gate["passed"] is False:
            lines += [f"means: {gate['meaning']}", f"what to do: {gate['remedy']}"]
        parts.append("\n  ".join(textwrap.fill(line, 116, subsequent_indent="    ") for line in lines))
    return "\n\n".join([*parts, f"record: {record['path']}", record["line"]])


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    shown = f"{value:.1f}" if unit == "points" else f"{value:.2g}"
    return f"{shown} {unit}".strip()
