"""Freed memory is kept, where the C library can be told so."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, resource, sys
from sfasync.cli.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
for _ in range(200):
    blocks = [libc.malloc(ctypes.c_size_t(1 << 20)) for _ in range(2)]
    for block in blocks:
        ctypes.memset(block, 1, 1 << 20)
    for block in blocks:
        libc.free(ctypes.c_void_p(block))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def faults(how: str) -> int:
    """Page faults of a process that takes two blocks of 1 MiB and gives them back, 200 times."""
    ended = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True, timeout=60)
    return int(ended.stdout)


def test_memory_is_not_faulted_in_again_and_again() -> None:
    pages = 400 * (1 << 20) // resource.getpagesize()
    if faults("leave") < pages // 2:
        pytest.skip("this C library keeps freed memory by itself")
    assert faults("keep") < pages // 10
