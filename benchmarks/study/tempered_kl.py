"""Distances between KL of the probabilities and the squared distance of the logits, tried as AALP's pairing term.

    python benchmarks/study/tempered_kl.py compare --config benchmarks/study/digits-tempered.yaml --run runs/digits-tempered

and so for mnist-tempered.

kl-T   T^2 KL(softmax(z / T), softmax(z' / T)): KL at T = 1, and as T grows half the squared distance of the centred logits,
       mean_c (z_c - z'_c)^2 / 2 (distillation's temperature, arXiv 1503.02531, section 2.1).
both   the squared distance plus 6 KL.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any, Literal

from torch import Tensor

from aalp.cli import main
from aalp.method import aalp as method
from aalp.method import losses

Distance = Literal["squared", "one-sided", "kl", "kl-2", "kl-4", "kl-8", "both"]


def tempered_kl(logits: Tensor, other_logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL (N,) of the probabilities of the logits / T."""
    return temperature**2 * losses.kl_divergence(logits / temperature, other_logits / temperature)


def both(logits: Tensor, other_logits: Tensor) -> Tensor:
    """The squared distance plus 6 KL (N,)."""
    return losses.logit_pairing(logits, other_logits) + 6 * losses.kl_divergence(logits, other_logits)


def patch() -> None:
    """Put the distances into `aalp`."""
    patched: Any = method
    patched.Distance = Distance  # what the command line takes
    patched.DISTANCES |= {f"kl-{t}": partial(tempered_kl, temperature=t) for t in (2, 4, 8)} | {"both": both}


if __name__ == "__main__":
    patch()
    sys.exit(main(sys.argv[1:]))
