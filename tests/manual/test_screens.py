from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from aalp import errors
from aalp.cli import PATHS, VERBS, main
from aalp.commands.audit import EXIT_CODES as AUDIT_CODES
from aalp.errors import AalpError, InterruptedRunError
from aalp.manual.options import read_verb
from aalp.manual.screens import EXIT_CODES, OFTEN, all_options, flag
from aalp.stopping import STOPPING


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.mark.parametrize("columns", ["80", "100", "200"])
@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_fits_a_screen(
    verb: str, columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    lines = said(capsys, verb, "--help").splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= int(columns)
    assert lines[0].startswith(f"usage: aalp {verb} ")
    # Nothing is only in the code: an option is named, or the group that it is in.
    text = " ".join(lines)
    for option in all_options(read_verb(verb), PATHS.get(verb)):
        named = flag(option) in text or (option.required and str(PATHS.get(verb)) in text)
        assert named or f"{option.group} " in text.partition("by group:")[2] or option.name == "print_config", option.name


def test_the_help_of_train_shows_what_is_turned_most(capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "train", "-h")
    assert len(out.splitlines()) >= 24
    assert all(f"--{name} " in out for name in OFTEN)
    assert "aalp-no-dropout" in out
    assert "--training.awp " not in out


@pytest.mark.parametrize("verb", VERBS)
def test_help_all_tells_every_option_with_its_whole_text(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    flat = " ".join(said(capsys, verb, "--help-all").split())
    for option in all_options(read_verb(verb), PATHS.get(verb)):
        assert " ".join(option.text.split()) in flat, option.name
        assert option.default is None or f"[default: {option.default}]" in flat, option.name


@pytest.mark.parametrize(
    ("words", "there", "missing"),
    [
        (["--help", "attack"], "--attack.random_start FLOAT", "--training"),
        (["--help", "method.dropout"], "--method.dropout.ramp", "--method.beta"),
        (["--help", "--quiet"], "usage: aalp train", "--method.beta"),
        (["--help", "lr"], "Peak learning rate", "--training.ema"),
        (["--help", "training.batch-size"], "an incomplete last batch", "--training.ema"),
        (["--run", "x", "-h"], "usage: aalp train", "--method.beta"),
    ],
)
def test_help_of_a_group_or_an_option(words: list[str], there: str, missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "train", *words)
    assert there in out
    assert missing not in out


def test_help_of_what_there_is_not_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help", "trianing"]) == 2
    assert "did you mean 'training'?" in capsys.readouterr().err


def kinds(kind: type[AalpError] = AalpError) -> Iterator[type[AalpError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from kinds(below)


def test_every_exit_code_is_documented_and_no_other() -> None:
    codes = {kind.exit_code for kind in kinds() if kind.__module__ == errors.__name__} | set(AUDIT_CODES.values()) | {0}
    codes |= {InterruptedRunError(getattr(signal, name), "again").exit_code for name in STOPPING}
    assert codes == set(EXIT_CODES)
