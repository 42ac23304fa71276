from __future__ import annotations

import signal

import pytest

from aalp import errors
from aalp.errors import AalpError, InterruptedRunError, unknown_name


@pytest.mark.parametrize(
    ("kind", "exit_code", "is_value_error"),
    [
        (errors.AalpError, 2, False),
        (errors.OptionError, 2, True),
        (errors.DataError, 2, True),
        (errors.ModelError, 2, True),
        (errors.RunError, 2, False),
        (errors.DivergedError, 1, False),
    ],
)
def test_every_kind_is_an_aalp_error_with_its_exit_code(kind: type[AalpError], exit_code: int, is_value_error: bool) -> None:
    error = kind("what is wrong")
    assert isinstance(error, AalpError)
    assert isinstance(error, ValueError) == is_value_error
    assert error.exit_code == exit_code
    assert str(error) == "what is wrong"


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_how_to_continue_it(number: int, exit_code: int) -> None:
    error = InterruptedRunError(number, "aalp train --resume runs/mine")
    assert error.exit_code == exit_code
    assert "aalp train --resume runs/mine" in str(error)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("aalpp", "unknown objective 'aalpp': did you mean 'aalp'? known are aalp, at, trades"),
        ("trade", "unknown objective 'trade': did you mean 'trades'? known are aalp, at, trades"),
        ("xyz", "unknown objective 'xyz': known are aalp, at, trades"),
        ("", "unknown objective '': known are aalp, at, trades"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_known_one_and_all_of_them(name: str, message: str) -> None:
    assert unknown_name("objective", name, ["trades", "at", "aalp"]) == message
