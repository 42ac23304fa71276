"""What tells images and labels from others, wherever they lie."""

from __future__ import annotations

import hashlib

from aalp.data.split import ResidentSplit, Split
from aalp.data.stored import StoredSplit


def digest_of(*splits: Split) -> str:
    """SHA-256 over shapes, labels and pixels (resident) or paths, sizes and labels (on disk) of these splits, in order."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr((len(split), split.image_shape)).encode())
        digest.update(split.labels.numpy().tobytes())
        if isinstance(split, ResidentSplit):
            digest.update(split.pixels.contiguous().numpy().tobytes())
        elif isinstance(split, StoredSplit):
            digest.update(split.fingerprint())
            if split.decoding.resizing == "crop":  # the same files, other images; what is stretched keeps its digest
                digest.update(b"crop")
    return digest.hexdigest()
