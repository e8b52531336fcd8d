"""Freed memory stays with the process: repeating what was done faults in nothing new."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

CODE = """
import resource
import torch
from partitioner.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(4 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
before = faults()
keep_freed_memory()
torch.ones(4 << 20, dtype=torch.uint8)
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have rules of their own")
def test_memory_is_faulted_in_once() -> None:
    ended = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    _, after = map(int, ended.stdout.split())
    assert after < 200  # 20 times 1024 pages otherwise
