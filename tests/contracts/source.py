"""What every `Source` promises."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import pytest

from sfasync.errors import SfasyncError
from sfasync.interfaces import Source
from sfasync.models import Extent
from sfasync.scattered import read_parts


@dataclass(frozen=True)
class SourceCase:
    """A source and the bytes that it must give.

    Attributes:
        source: At least eight blocks long.
        content: All its bytes.
    """

    source: Source
    content: bytes


class SourceContract:
    """Inherit, and bring a fixture `source_case`."""

    async def test_is_a_source(self, source_case: SourceCase) -> None:
        assert isinstance(source_case.source, Source)
        assert source_case.source.size == len(source_case.content)
        block = source_case.source.block_size
        assert block > 0
        assert block & (block - 1) == 0
        assert source_case.source.size >= 8 * block

    async def test_reads_everything(self, source_case: SourceCase) -> None:
        assert await read(source_case, 0, len(source_case.content)) == source_case.content

    async def test_reads_any_block_and_the_last_piece(self, source_case: SourceCase) -> None:
        block, size = source_case.source.block_size, source_case.source.size
        last = (size - 1) // block * block
        for offset, end in ((0, block), (3 * block, 5 * block), (last, size), (last - block, size)):
            assert await read(source_case, offset, end - offset) == source_case.content[offset:end]

    async def test_many_reads_at_once_in_any_order(self, source_case: SourceCase) -> None:
        block, size = source_case.source.block_size, source_case.source.size
        piece = max(block, size // 61 // block * block)
        offsets = list(range(0, size, piece))
        random.Random(1).shuffle(offsets)
        buffers = [bytearray(min(piece, size - offset)) for offset in offsets]
        async with asyncio.TaskGroup() as group:
            for offset, buffer in zip(offsets, buffers, strict=True):
                group.create_task(source_case.source.read_into(offset, memoryview(buffer)))
        for offset, buffer in zip(offsets, buffers, strict=True):
            assert buffer == source_case.content[offset : offset + len(buffer)]

    async def test_reads_parts_together(self, source_case: SourceCase) -> None:
        block = source_case.source.block_size
        size = len(source_case.content)
        offsets = range(0, size - size % block - block, max(block, size // 40 // block * block))
        buffer = memoryview(bytearray(b"?" * block * len(offsets)))
        parts = [(offset, buffer[n * block : (n + 1) * block]) for n, offset in enumerate(offsets)]
        await read_parts(source_case.source, parts)
        for offset, part in parts:
            assert part == source_case.content[offset : offset + block]

    async def test_refuses_what_is_not_there(self, source_case: SourceCase) -> None:
        block, size = source_case.source.block_size, source_case.source.size
        for offset, length in ((size, block), (size // block * block, 2 * block)):
            with pytest.raises(SfasyncError):
                await source_case.source.read_into(offset, memoryview(bytearray(length)))
        assert await read(source_case, 0, block) == source_case.content[:block]

    async def test_extents_cover_the_disk_and_zeros_are_zeros(self, source_case: SourceCase) -> None:
        self.check(source_case, await extents(source_case), 0, source_case.source.size)

    async def test_extents_of_a_part(self, source_case: SourceCase) -> None:
        block, size = source_case.source.block_size, source_case.source.size
        for offset, length in ((0, block), (block, 5 * block), ((size - 1) // block * block, None)):
            end = size if length is None else offset + length
            self.check(source_case, await extents(source_case, offset, length), offset, end)
        assert await extents(source_case, block, 0) == []

    def check(self, case: SourceCase, found: list[Extent], start: int, end: int) -> None:
        position = start
        for extent in found:
            assert extent.offset == position
            assert extent.length > 0
            if extent.zero:
                assert not any(case.content[extent.offset : extent.end])
            position = extent.end
        assert position == end

    async def test_a_cancelled_read_leaves_the_buffer_alone(self, source_case: SourceCase) -> None:
        block = source_case.source.block_size
        length = min(source_case.source.size // block * block, 1 << 20)
        for turns in range(8):
            buffer = bytearray(length)
            task = asyncio.create_task(source_case.source.read_into(0, memoryview(buffer)))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():  # it was faster
                assert task.exception() is None
            buffer[:] = b"?" * length
            assert await read(source_case, 0, block) == source_case.content[:block]
            assert buffer == b"?" * length

    async def test_a_walk_through_extents_may_end_early(self, source_case: SourceCase) -> None:
        walk = source_case.source.extents()
        assert isinstance(walk, AsyncGenerator)
        async with aclosing(walk):
            async for extent in walk:
                assert extent.offset == 0
                break
        assert await read(source_case, 0, source_case.source.block_size)


async def read(case: SourceCase, offset: int, length: int) -> bytes:
    buffer = bytearray(b"?" * length)
    await case.source.read_into(offset, memoryview(buffer))
    return bytes(buffer)


async def extents(case: SourceCase, offset: int = 0, length: int | None = None) -> list[Extent]:
    return [extent async for extent in case.source.extents(offset, length)]
