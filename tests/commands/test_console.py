"""What is seen while something runs: nothing but whole, plain lines where it goes into a file or a pipe."""

from __future__ import annotations

import os
import pty
import re
import shlex
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import IO, Any

import pytest

from aalp.cli import main
from aalp.commands import console
from aalp.commands.console import Display


def show(kind: str) -> None:
    display = Display()
    assert display.live == (kind == "live")
    with display.bar():
        for step in range(1, 4):
            display.training_step(step, 3, 0.5)
        row = {"epoch": 1, "loss": 0.5, "train_accuracy": 1, "validation_clean": 1, "validation_robust": 1}
        display.epoch({**row, "images_per_second": 10, "seconds": 1}, 2)
        display.attack("pgd-20", 0, 5)
        display.attack("pgd-20", 5, 5)


def written(kind: str, ends: tuple[int, int], variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What the display writes into the second end where stderr is that, with these variables and no others of its kind."""
    reading, writing = ends
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with os.fdopen(writing, "w") as stream, redirect_stderr(stream):
        show(kind)
    seen = b""
    while True:
        try:
            part = os.read(reading, 65536)
        except OSError:  # the end of a terminal on Linux
            break
        if not part:
            break
        seen += part
    os.close(reading)
    return seen.decode()


@pytest.mark.parametrize("variables", [{}, {"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}, {"NO_COLOR": "1"}])
def test_a_pipe_gets_plain_lines_alone(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = written("plain", os.pipe(), variables, monkeypatch)
    lines = text.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch   1/2  loss 0.500")
    assert lines[1].startswith("pgd-20: 5 images in ")
    assert all(line.isprintable() for line in lines)
    assert "\r" not in text


def colours(text: str) -> list[str]:
    """The codes that set a colour; bold and dim are below 30."""
    codes = [code for found in re.findall(r"\x1b\[([\d;]*)m", text) for code in found.split(";")]
    return [code for code in codes if code.isdigit() and int(code) >= 30]


def test_a_terminal_gets_a_bar_and_no_colour_takes_its_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    assert colours(written("live", pty.openpty(), {"TERM": "xterm-256color"}, monkeypatch))
    plain = written("live", pty.openpty(), {"TERM": "xterm-256color", "NO_COLOR": "1"}, monkeypatch)
    assert "\x1b[" in plain
    assert colours(plain) == []


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in written("plain", pty.openpty(), {"TERM": "dumb"}, monkeypatch)


def test_reading_photographs_for_long_says_now_and_then_that_it_is_alive(
    tmp_path: Path, write_images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        write_images(tmp_path / "photos" / name, 10)
    words = ["train", "--data", f"folder:{tmp_path}/photos", "--training.batch_size", "9999", "--run", str(tmp_path / "run")]
    assert main(words) == 2  # it ends before the training, when all is read
    assert "reading" not in capfd.readouterr().err  # what takes no time has no line
    monkeypatch.setattr(console, "PLAIN_LINE_SECONDS", 0.0)
    assert main(words) == 2
    assert "reading train images: 1/16\n" in capfd.readouterr().err


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


@pytest.mark.parametrize("before", [0, 20], ids=["from the start", "resumed"])
def test_the_time_left_of_a_training_counts_validation(
    before: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(console.time, "perf_counter", lambda: now)
    display, row = Display(), {"loss": 0.5, "train_accuracy": 1, "validation_clean": 1, "validation_robust": 1}
    with display.bar():
        for epoch in range(1 + before // 10, 4 + before // 10):
            for step in range(10 * epoch - 9, 10 * epoch + 1):
                now += 1
                display.training_step(step, 60, 0.5)
            now += 10  # validation
            # Time spent training: as much in each epoch, and nothing of another process's pace.
            display.epoch({**row, "epoch": epoch, "images_per_second": 10, "seconds": 10 * epoch}, 6)
    left = re.findall(r"(\d+):(\d\d) left", capsys.readouterr().err)
    seconds = [60 * int(minutes) + int(rest) for minutes, rest in left]
    truth = [20 * (6 - epoch) for epoch in range(1 + before // 10, 4 + before // 10)]
    assert seconds == pytest.approx(truth, rel=0.06)


def test_the_command_of_a_record_can_be_typed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["search", "--space", '{"training.lr": [0.1, 0.2]}', "--run", "runs/my search"]
    monkeypatch.setattr("sys.argv", ["/somewhere/aalp", *words])
    assert shlex.split(console.command_line()) == ["aalp", *words]


def test_the_work_goes_on_where_nobody_reads_its_progress(unread: IO[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As under `2>&1 | head`: rich ended the process, with exit code 1, and the training with it."""
    monkeypatch.setattr("sys.stderr", unread)
    display = Display()
    for tell in (display.say, display.warn, display.say):
        tell("a line")
