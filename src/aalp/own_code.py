"""The user's own code by name: `package.module:function`."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from aalp.errors import AalpError


def imported(name: str, what: str, form: str, refused: type[AalpError]) -> Any:
    """What a name means, found in the user's folder, too.

    Args:
        name: such as `my_package.attacks:strong`.
        what: the thing that it names, for the error.
        form: how such a name is written.
        refused: the error to raise.

    Raises:
        AalpError: of the kind `refused`; it cannot be imported.
    """
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        # An installed command does not look in the user's folder by itself; last, so that nothing is shadowed.
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the user's module runs here, and may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise refused(f"{what} '{name}': {reason}; name it as {form}, importable from here") from error
