"""Small image files whose every pixel a test knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)  # height 8, width 6


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path
