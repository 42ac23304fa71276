"""What is seen while something runs: nothing but whole, plain lines where it goes into a file or a pipe."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from typing import Any

import pytest

from aalp.commands import console
from aalp.commands.console import Display

SHOW = """
import sys
from aalp.commands.console import Display
display = Display()
with display.bar():
    for step in range(1, 4):
        display.training_step(step, 3, 0.5)
    display.epoch({"epoch": 1, "loss": 0.5, "train_accuracy": 1, "validation_clean": 1, "validation_robust": 1,
                   "images_per_second": 10, "seconds": 1}, 2)
    display.attack("pgd-20", 0, 5)
    display.attack("pgd-20", 5, 5)
sys.exit(0 if display.live == (sys.argv[1] == "live") else 9)
"""


@pytest.mark.parametrize("variables", [{}, {"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}, {"NO_COLOR": "1"}])
def test_a_pipe_gets_plain_lines_alone(variables: dict[str, str]) -> None:
    process = subprocess.run(
        [sys.executable, "-c", SHOW, "plain"], capture_output=True, text=True, env={**os.environ, **variables}
    )
    assert process.returncode == 0
    lines = process.stderr.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch   1/2  loss 0.500")
    assert lines[1].startswith("pgd-20: 5 images in ")
    assert all(line.isprintable() for line in lines)
    assert "\r" not in process.stderr


def on_a_terminal(kind: str, variables: dict[str, str]) -> str:
    """What the display writes to a terminal."""
    leader, follower = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in ("TERM", "NO_COLOR")}
    process = subprocess.run([sys.executable, "-c", SHOW, kind], stderr=follower, env={**kept, **variables})
    os.close(follower)
    seen = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # the end of a terminal on Linux
            break
        if not part:
            break
        seen += part
    os.close(leader)
    assert process.returncode == 0
    return seen.decode()


def colours(text: str) -> list[str]:
    """The codes that set a colour; bold and dim are below 30."""
    codes = [code for found in re.findall(r"\x1b\[([\d;]*)m", text) for code in found.split(";")]
    return [code for code in codes if code.isdigit() and int(code) >= 30]


def test_a_terminal_gets_a_bar_and_no_colour_takes_its_colours() -> None:
    assert colours(on_a_terminal("live", {"TERM": "xterm-256color"}))
    plain = on_a_terminal("live", {"TERM": "xterm-256color", "NO_COLOR": "1"})
    assert "\x1b[" in plain
    assert colours(plain) == []


def test_a_dumb_terminal_gets_plain_lines() -> None:
    assert "\x1b" not in on_a_terminal("plain", {"TERM": "dumb"})


def test_a_long_attack_says_now_and_then_that_it_is_alive(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(console.time, "perf_counter", lambda: now)
    display: Any = Display()
    for done in range(10):
        now = done * 25.0
        display.attack("square", done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["square: 3/100 images", "square: 6/100 images", "square: 9/100 images"]
