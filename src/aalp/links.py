"""Links in folders that somebody else may have made."""

from __future__ import annotations

import os
from pathlib import Path


def leads_outside(path: Path, root: Path) -> bool:
    """Whether a path is a link to something that does not lie in the folder `root`, or one of links in a circle."""
    if not path.is_symlink():
        return False
    # Unlike Path.resolve before Python 3.13, this raises nothing in a circle: it ends at a link.
    target = os.path.realpath(path)
    return os.path.islink(target) or not Path(target).is_relative_to(os.path.realpath(root))
