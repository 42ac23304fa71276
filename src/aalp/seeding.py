"""Seeds for every purpose, derived from one: all randomness in a run is a function of what it is for.

A run that is resumed at any step therefore needs no generator state to continue exactly.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """A 32-bit seed for a purpose, such as ("step", seed, 12).

    32 bits, because torch's CPU generator looks at no more: seeds that differ only above would give the same stream.
    """
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def seed_global_generators(seed: int) -> None:
    """Seed the generators that belong to nobody: Python's, NumPy's, and torch's on the CPU and on every GPU.

    Nothing of ours draws from them, but a user's own network may.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
