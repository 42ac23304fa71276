"""TRADES' adversary in AALP with KL: what is maximised is what the pairing minimises, not the cross-entropy.

    python benchmarks/study/kl_adversary.py compare --config benchmarks/study/mnist-adversary.yaml --run runs/mnist-adversary

`aalp` with one more value of `method.distance`, kl-inner: KL(p, p') in the loss and in the attack of training.
"""

from __future__ import annotations

import sys
from typing import Any, Literal

from aalp.cli import main
from aalp.method import aalp as method
from aalp.method import losses, pgd

Distance = Literal["squared", "one-sided", "kl", "kl-inner"]


def patch() -> None:
    """Put the distance into `aalp`."""
    patched: Any = method

    def inner(self: method.AALP) -> pgd.InnerLoss:
        return pgd.AgainstClean(losses.kl_divergence) if str(self.distance) == "kl-inner" else losses.cross_entropy

    patched.Distance = Distance  # what the command line takes
    patched.DISTANCES |= {"kl-inner": losses.kl_divergence}
    patched.AALP.inner = property(inner)


if __name__ == "__main__":
    patch()
    sys.exit(main(sys.argv[1:]))
