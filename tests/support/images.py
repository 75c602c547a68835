"""Disk images for tests: seeded, sparse, quick to make and to compare."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path

MiB = 1 << 20


def sparse_image(path: Path, size: int, *, data: Sequence[tuple[int, int]] = (), seed: int = 1) -> Path:
    """A raw image of `size` bytes with random data in the given ranges (offset, length) and holes elsewhere."""
    rng = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(size)
        for offset, length in data:
            file.seek(offset)
            file.write(rng.randbytes(min(length, size - offset)))
    return path


def qcow2_of(raw: Path, path: Path) -> Path:
    """The same disk as a sparse qcow2 image."""
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, path], check=True)
    return path


def allocated(path: Path) -> int:
    """Bytes that a file takes on its file system."""
    return path.stat().st_blocks * 512


def same_content(left: Path, right: Path) -> bool:
    """Whether two files are equal to the byte; holes are skipped where both have them."""
    if left.stat().st_size != right.stat().st_size:
        return False
    with left.open("rb") as a, right.open("rb") as b:
        position, size = 0, left.stat().st_size
        while position < size:
            position = min(_next_data(a.fileno(), position, size), _next_data(b.fileno(), position, size))
            a.seek(position)
            b.seek(position)
            first, second = a.read(MiB), b.read(MiB)
            if first != second:
                return False
            position += len(first) or 1
    return True


def _next_data(descriptor: int, position: int, size: int) -> int:
    try:
        return os.lseek(descriptor, position, os.SEEK_DATA)
    except OSError:  # ENXIO: a hole up to the end
        return size
