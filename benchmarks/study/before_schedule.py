"""`aalp` as it was before AALP had a schedule, to run again what is recorded of it: `aalp` is what `aalp-no-schedule` is now.

python benchmarks/study/before_schedule.py compare --config benchmarks/study/digits-method.yaml --run runs/digits-method
"""

from __future__ import annotations

import sys
from functools import partial

from aalp.cli import main
from aalp.method.objectives import OBJECTIVES


def patch() -> None:
    """Give AALP and its ablations ALP's pairing weight and clean share throughout."""
    constant, numbers = OBJECTIVES["aalp-no-schedule"]
    OBJECTIVES["aalp"] = constant, numbers
    OBJECTIVES["aalp-no-dropout"] = partial(constant, dropout=None), numbers - {"dropout"}
    OBJECTIVES["aalp-no-weights"] = partial(constant, weights=None), numbers - {"weights"}


if __name__ == "__main__":
    patch()
    sys.exit(main(sys.argv[1:]))
