"""Float32 that is float32 where it counts, and whether bfloat16 is fast here where it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.backends import cuda, cudnn, mkldnn

Value = TypeVar("Value")


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether this device multiplies bfloat16 in hardware: emulation is many times slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and native is not None and bool(native())


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 on GPUs and no autocast from outside, inside the block.

    torch has two ways to say so, and refuses to tell of the older one where the newer was used (`fp32_precision`, torch 2.9).
    """
    of_libraries = (getattr(library, kind, None) for library in (cudnn, mkldnn) for kind in ("conv", "rnn", "matmul"))
    places: list[Any] = [place for place in (cuda.matmul, *of_libraries) if hasattr(place, "fp32_precision")]
    newer = [(place, place.fp32_precision) for place in places]
    convolutions, products = _told(lambda: cudnn.allow_tf32), _told(torch.get_float32_matmul_precision)
    cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    for place, _ in newer:
        place.fp32_precision = "ieee"
    try:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        if convolutions is not None:
            cudnn.allow_tf32 = convolutions
        if products is not None:
            torch.set_float32_matmul_precision(products)
        for place, before in newer:
            place.fp32_precision = before


def _told(setting: Callable[[], Value]) -> Value | None:
    """An older setting; None where torch does not tell it, as a newer one was used."""
    try:
        return setting()
    except RuntimeError:
        return None
