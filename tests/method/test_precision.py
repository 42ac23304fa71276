"""Float32 inside, and what the user had set outside, by either of torch's two ways."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import sys
import torch
from torch.backends import cuda, cudnn
from aalp.method.precision import full_precision

exec(sys.argv[1])
def state():
    newer = [place.fp32_precision for place in (cuda.matmul, cudnn.conv, cudnn.rnn) if hasattr(place, "fp32_precision")]
    return newer + [told(lambda: cudnn.allow_tf32), told(torch.get_float32_matmul_precision)]
def told(setting):
    try:
        return setting()
    except RuntimeError:
        return "mixed"
before = state()
with full_precision():
    assert (cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (False, "highest"), state()
    assert not hasattr(cuda.matmul, "fp32_precision") or set(state()[:3]) == {"ieee"}, state()
    with full_precision():
        pass
    assert not hasattr(cuda.matmul, "fp32_precision") or set(state()[:3]) == {"ieee"}, state()
assert state() == before, (before, state())
"""
SETTINGS = {
    "nothing": "",
    "the older way": "torch.set_float32_matmul_precision('high')",
    "all": "torch.backends.fp32_precision = 'tf32'",
    "products": "cuda.matmul.fp32_precision = 'tf32'",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_inside_is_float32_and_outside_is_what_was_set(setting: str) -> None:
    # A process each: torch remembers which of its ways was used.
    done = subprocess.run([sys.executable, "-W", "error", "-c", CODE, SETTINGS[setting]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
