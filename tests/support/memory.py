"""Disks in memory: the shortest `Source` and `Sink` there can be, with switches to delay and to fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from sfasync.errors import SourceError, TargetError
from sfasync.interfaces import Buffer
from sfasync.models import Extent


class MemoryDisk:
    """Both a source and a sink over a bytearray; extents are computed in blocks of `grain` bytes.

    Attributes:
        content: The bytes.
        bad: Offsets at which a read or write fails.
        reads: Ranges (offset, length) read so far.
        flushes: How often `flush` was called.
        gate: Reads and writes wait until it is set.
    """

    def __init__(self, content: bytes | bytearray, *, grain: int = 4096, block_size: int = 1) -> None:
        self.content = bytearray(content)
        self.block_size = block_size
        self.bad: set[int] = set()
        self.reads: list[tuple[int, int]] = []
        self.flushes = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self._grain = grain

    @property
    def size(self) -> int:
        return len(self.content)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        await self.gate.wait()
        await asyncio.sleep(0)
        if any(offset <= bad < offset + len(buffer) for bad in self.bad):
            raise SourceError(f"cannot read {len(buffer)} bytes at {offset}", offset=offset, length=len(buffer))
        assert offset + len(buffer) <= self.size
        self.reads.append((offset, len(buffer)))
        buffer[:] = self.content[offset : offset + len(buffer)]

    async def extents(self, offset: int = 0, length: int | None = None) -> AsyncIterator[Extent]:
        end = self.size if length is None else offset + length
        while offset < end:
            stop = min(end, offset - offset % self._grain + self._grain)
            yield Extent(offset, stop - offset, zero=self.content.count(0, offset, stop) == stop - offset)
            offset = stop

    async def write(self, offset: int, data: Buffer) -> None:
        await self.gate.wait()
        await asyncio.sleep(0)
        if any(offset <= bad < offset + len(data) for bad in self.bad):
            raise TargetError(f"cannot write {len(data)} bytes at {offset}", offset=offset, length=len(data))
        assert offset + len(data) <= self.size
        self.content[offset : offset + len(data)] = data

    async def zero(self, offset: int, length: int) -> None:
        assert offset + length <= self.size
        self.content[offset : offset + length] = bytes(length)

    async def flush(self) -> bool:
        self.flushes += 1
        return True
