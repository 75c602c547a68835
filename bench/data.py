"""Pieces of a disk for the benchmarks of single parts."""

from __future__ import annotations

import random

MIB = 1 << 20


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that cannot be compressed."""
    return random.Random(seed).randbytes(size)


def prose(size: int, seed: int = 0) -> bytes:
    """Text of random words; compresses to about a third."""
    source = random.Random(seed)
    words = [source.randbytes(source.randint(2, 6)).hex() for _ in range(5000)]
    return " ".join(source.choices(words, k=size // 6)).encode()[:size].ljust(size)


def mixed(size: int, seed: int = 0) -> bytes:
    """Half of each."""
    return noise(size // 2, seed) + prose(size - size // 2, seed)
