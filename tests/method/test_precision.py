"""Float32 inside, and what the user had set outside, by either of torch's two ways."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

CODE = """
import json
import os
import sys
import traceback
import torch
from torch.backends import cuda, cudnn
from aalp.method.precision import full_precision

def state():
    newer = [place.fp32_precision for place in (cuda.matmul, cudnn.conv, cudnn.rnn) if hasattr(place, "fp32_precision")]
    return newer + [told(lambda: cudnn.allow_tf32), told(torch.get_float32_matmul_precision)]
def told(setting):
    try:
        return setting()
    except RuntimeError:
        return "mixed"
def check():
    before = state()
    with full_precision():
        assert (cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (False, "highest"), state()
        assert not hasattr(cuda.matmul, "fp32_precision") or set(state()[:3]) == {"ieee"}, state()
        with full_precision():
            pass
        assert not hasattr(cuda.matmul, "fp32_precision") or set(state()[:3]) == {"ieee"}, state()
    assert state() == before, (before, state())
for name, setting in json.loads(sys.argv[1]).items():
    child = os.fork()  # a process each: torch remembers which of its ways was used
    if child == 0:
        try:
            exec(setting)
            check()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
SETTINGS = {
    "nothing": "",
    "the older way": "torch.set_float32_matmul_precision('high')",
    "all": "torch.backends.fp32_precision = 'tf32'",
    "products": "cuda.matmul.fp32_precision = 'tf32'",
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a process for each setting, which Windows cannot")
def test_inside_is_float32_and_outside_is_what_was_set() -> None:
    forks = "ignore:This process:DeprecationWarning"  # has threads, which Python 3.12 and later warn of
    command = [sys.executable, "-W", "error", "-W", forks, "-c", CODE, json.dumps(SETTINGS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"{name} 0" for name in SETTINGS], done.stderr
