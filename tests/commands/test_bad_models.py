"""Models that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from bad_input import COMPARE, ON_TINY, Case, refused, text_file

BAD_MODELS: dict[str, Case] = {
    "a model that returns probabilities": (
        None,
        ON_TINY + "--model bad_factories:probabilities",
        ("not what the network's last Linear", "no softmax"),
    ),
    "a model that returns probabilities to compare": (
        None,
        COMPARE + "--objectives at --model bad_factories:probabilities",
        ("not what the network's last Linear", "no softmax"),
    ),
    "a model of other classes": (
        None,
        ON_TINY + "--model bad_factories:eleven",
        ("'bad_factories:eleven' has 11 classes", "build it for 3"),
    ),
    "a model without a Linear": (None, ON_TINY + "--model bad_factories:headless", ("torch.nn.Linear", "rewritten")),
    "a model for other images": (None, ON_TINY + "--model bad_factories:wrong_size", ("does not take images of", "1x8x8")),
    "a factory that raises": (
        None,
        ON_TINY + "--model bad_factories:raises",
        ("'bad_factories:raises' does not build", "no such luck"),
    ),
    "a factory that returns text": (
        None,
        ON_TINY + "--model bad_factories:text",
        ("'bad_factories:text' gave a str", "torch.nn.Module"),
    ),
    "a factory that is missing": (
        None,
        ON_TINY + "--model bad_factories:nothing",
        ("nothing", "package.module:factory"),
    ),
    "a module that is missing": (None, ON_TINY + "--model no_module:net", ("no_module", "package.module:factory")),
    "a module that is not Python": (
        text_file("bad_factories.py", "def net("),
        ON_TINY + "--model bad_factories:net",
        ("bad_factories:net",),
    ),
}


@pytest.mark.parametrize("case", BAD_MODELS.values(), ids=BAD_MODELS.keys())
def test_bad_models_get_one_line_and_change_nothing(case: Case, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused(case, folder, capfd)
