"""The setting takes where there is glibc, is harmless elsewhere, and does what it is for: blocks come back unfaulted."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from aalp.training import host_memory

FAULTS = """
import resource, torch
from aalp.training.host_memory import keep_freed_memory
assert keep_freed_memory()
for _ in range(8):  # until the heap has grown to what is asked for
    kept = torch.empty(20_000_000).fill_(1.0)
    del kept
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    kept = torch.empty(20_000_000).fill_(1.0)
    del kept
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc, whose allocator it is about")
def test_large_blocks_are_not_fetched_from_the_kernel_again() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    fetched_every_time = 20 * 80_000_000 // 4096  # pages
    assert int(done.stdout) < fetched_every_time / 10


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert host_memory.keep_freed_memory() is False


def test_a_c_library_without_the_setting_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda name: object())
    assert host_memory.keep_freed_memory() is False
