"""The setting takes where there is glibc, is harmless elsewhere, and does what it is for: blocks come back unfaulted."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from aalp.training import host_memory

FAULTS = """
import resource, sys, torch
from aalp.training.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(3):
    kept = torch.zeros(20_000_000)
    del kept
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    kept = torch.zeros(20_000_000)
    del kept
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc, whose allocator it is about")
def test_large_blocks_are_not_fetched_from_the_kernel_again() -> None:
    faults = {}
    for way in ("keep", "default"):
        done = subprocess.run([sys.executable, "-c", FAULTS, way], capture_output=True, text=True, check=True)
        faults[way] = int(done.stdout)
    assert faults["keep"] < faults["default"] / 10


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert host_memory.keep_freed_memory() is False


def test_a_c_library_without_the_setting_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda name: object())
    assert host_memory.keep_freed_memory() is False
