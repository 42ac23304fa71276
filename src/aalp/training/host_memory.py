"""Freed memory kept at hand: a training step on a CPU asks for the same large blocks again and again."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have the C library keep freed blocks for the next request, in this process; whether it could be told so.

    By default glibc gives large blocks back to the kernel, which hands them out again page by page, zeroed: some
    percent of a step's time (see docs/decisions/0007). Peak memory stays what it is; what was freed returns to the
    system when the process ends. Elsewhere than on glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    # Older versions refuse thresholds above 32 MiB.
    mapped = mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25)
    return bool(mapped and mallopt(M_TRIM_THRESHOLD, LARGEST))
