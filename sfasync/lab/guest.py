"""Writes as a guest would do them."""

from __future__ import annotations

import random

from ..transport.export import Export
from ..units import KiB, MiB

_PIECE = MiB
_SHORTEST, _LONGEST = 512, 128 * KiB


async def fill(disk: Export, offset: int, length: int, pattern: int) -> None:
    """Write one byte over and over; zeros are written like any other."""
    piece = bytes([pattern]) * min(_PIECE, length)
    for start in range(offset, offset + length, _PIECE):
        await disk.write(start, piece[: offset + length - start])
    await disk.flush()


async def scatter(disk: Export, count: int, seed: int) -> int:
    """Write random data to random places, not aligned to anything; the same seed writes the same.

    Returns:
        Bytes written.
    """
    source = random.Random(seed)  # noqa: S311 - the same bytes every time
    written = 0
    for _ in range(count):
        length = source.randint(min(_SHORTEST, disk.size), min(_LONGEST, disk.size))
        await disk.write(source.randint(0, disk.size - length), source.randbytes(length))
        written += length
    await disk.flush()
    return written
