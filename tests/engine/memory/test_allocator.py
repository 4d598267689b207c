"""Freed memory is used again without a page fault, in a process of its own: the setting is for good."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from sftctl.engine.memory import allocator

FAULTS = """
import resource
import torch
from sftctl.engine.memory.allocator import keep_freed_memory

def faults_of_a_step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 * 2**20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = min(faults_of_a_step() for _ in range(4))
assert keep_freed_memory()
print(usual, min(faults_of_a_step() for _ in range(16)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_memory_that_was_freed_costs_no_page_fault_again() -> None:
    """64 MiB a step, 16,384 pages of 4 KiB: all of them again in each step, as it comes."""
    ran = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    usual, kept = map(int, ran.stdout.split())
    if usual < 10_000:
        pytest.skip("this machine gives huge pages without being asked: there is nothing to spare")
    assert kept < 100


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    assert not allocator.keep_freed_memory()
