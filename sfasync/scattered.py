"""Reading several short ranges of a disk: together, where its source can do that."""

from __future__ import annotations

from collections.abc import Sequence

from .interfaces import ScatteredSource, Source


async def read_parts(source: Source, parts: Sequence[tuple[int, memoryview]]) -> None:
    """Fill the buffer of each pair with the bytes from its offset; errors as of `Source.read_into`."""
    if isinstance(source, ScatteredSource):
        await source.read_scattered(parts)
    else:
        for offset, buffer in parts:
            await source.read_into(offset, buffer)
