"""What tells images and labels from others, wherever they lie."""

from __future__ import annotations

import hashlib

import torch

from aalp.data.split import ResidentSplit, Split
from aalp.data.stored import StoredSplit

CHUNK = 256
"""Images on disk that are decoded at a time."""


def digest_of(*splits: Split, decoded: bool = False) -> str:
    """SHA-256 over shapes, labels and pixels (resident) or paths, sizes and labels (on disk) of these splits, in order.

    Args:
        decoded: of images on disk take the pixels as well, which decodes each once: the digest that they have in memory.
    """
    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr((len(split), split.image_shape)).encode())
        digest.update(split.labels.numpy().tobytes())
        if isinstance(split, ResidentSplit):
            digest.update(split.pixels.contiguous().numpy().tobytes())
        elif decoded:
            for rows in torch.split(torch.arange(len(split)), CHUNK):
                digest.update(split.read(rows).numpy().tobytes())
        elif isinstance(split, StoredSplit):
            digest.update(split.fingerprint())
            if split.decoding.resizing == "crop":  # the same files, other images; what is stretched keeps its digest
                digest.update(b"crop")
    return digest.hexdigest()
