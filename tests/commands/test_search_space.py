"""What a search may vary: ranges and choices of options, and how their values are laid over these."""

from __future__ import annotations

from typing import Any

import pytest

from aalp.commands.search_space import Dimension, applied, parse_space
from aalp.errors import OptionError
from aalp.training.options import TrainingOptions


def test_spaces_are_ranges_and_choices() -> None:
    space = parse_space(
        {"training.lr": [0.1, 1, "log"], "attack.steps": [1, 9], "model": {"choices": ["small-cnn", "thin-resnet"]}}
    )
    assert space == {
        "training.lr": Dimension(0.1, 1, log=True),
        "attack.steps": Dimension(1, 9),
        "model": Dimension(choices=("small-cnn", "thin-resnet")),
    }
    assert space["model"].ends() == ("small-cnn", "thin-resnet")
    assert space["attack.steps"].ends() == (1, 9)


@pytest.mark.parametrize(
    "values", [[1], [1, 2, 3], [2, 1], ["a", "b"], {"choices": ["a"]}, {"choice": [1, 2]}, 3, [0, 1, "log"]]
)
def test_what_is_neither_is_refused(values: Any) -> None:
    with pytest.raises(OptionError, match=r"training\.lr"):
        parse_space({"training.lr": values})


def test_values_are_laid_over_options_by_dotted_name() -> None:
    from aalp.commands.config import MethodOptions
    from aalp.method.pgd import AttackOptions
    from aalp.models.catalog import ModelOptions

    options = {
        "model": "small-cnn",
        "objective": "aalp",
        "attack": AttackOptions(),
        "method": MethodOptions(),
        "training": TrainingOptions(lr=0.3),
        "model_options": ModelOptions(),
        "seed": 4,
    }
    changed = applied(options, {"training.epochs": 7, "method.weights.gamma": 2.5, "objective": "alp"})
    assert (changed["training"].epochs, changed["training"].lr) == (7, 0.3)
    assert changed["method"].weights.gamma == 2.5
    assert (changed["objective"], changed["model"], changed["seed"]) == ("alp", "small-cnn", 4)
    with pytest.raises(OptionError, match="space: training epochs is 0"):
        applied(options, {"training.epochs": 0})
