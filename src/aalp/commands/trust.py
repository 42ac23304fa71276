"""Whether code that a run directory names may be run: the directory may be somebody else's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aalp.commands.config import split_names
from aalp.errors import ModelError, RunError
from aalp.evaluation.foreign_attacks import runs_own_code
from aalp.models.catalog import is_own_code


def check_trust(run: Path, model: object, trusted: bool) -> None:
    """Refuse to run code that a run directory asks for: the directory may be somebody else's.

    Args:
        model: the model that its config.yaml names.
        trusted: whether the user said in this command that it may run, or named the model themselves.

    Raises:
        ModelError: it is `package.module:factory`, and nobody said that it may run.
    """
    if model is not None and not isinstance(model, str):
        raise RunError(f"'{run}' has {model!r} as its model in config.yaml: a name is needed")
    if model is not None and is_own_code(model) and not trusted:
        raise ModelError(
            f"the config.yaml of '{run}' asks to run the code '{model}': if you trust who made it, give --trust-model-code"
        )


def check_attack_trust(run: Path, attacks: str | list[Any], trusted: bool) -> None:
    """Refuse to run attack code that a run directory asks for, as `check_trust` does for models.

    Raises:
        ModelError: one is `package.module:function`, and nobody said that it may run.
    """
    own = [name for name in split_names(attacks) if runs_own_code(name)]
    if own and not trusted:
        raise ModelError(
            f"the config.yaml of '{run}' asks to run the code '{own[0]}': if you trust who made it, give --trust-model-code, "
            "or name the attacks yourself"
        )
