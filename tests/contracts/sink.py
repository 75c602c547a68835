"""What every `Sink` promises."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from sfasync.errors import SfasyncError
from sfasync.interfaces import Buffer, Sink


@dataclass(frozen=True)
class SinkCase:
    """A sink and a way to look at what it took.

    Attributes:
        sink: At least eight blocks long.
        content: Gives all bytes that a reader of the sink's disk would find.
    """

    sink: Sink
    content: Callable[[], Awaitable[bytes]]


class SinkContract:
    """Inherit, and bring a fixture `sink_case`."""

    async def test_is_a_sink(self, sink_case: SinkCase) -> None:
        assert isinstance(sink_case.sink, Sink)
        block = sink_case.sink.block_size
        assert block > 0
        assert block & (block - 1) == 0
        assert sink_case.sink.size >= 8 * block

    async def test_takes_every_byte(self, sink_case: SinkCase) -> None:
        wanted = noise(sink_case.sink.size)
        await sink_case.sink.write(0, wanted)
        await sink_case.sink.flush()
        assert await sink_case.content() == wanted

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    async def test_takes_any_buffer(self, sink_case: SinkCase, kind: Callable[[bytes], Buffer]) -> None:
        block = sink_case.sink.block_size
        piece = noise(2 * block)
        await sink_case.sink.write(block, kind(piece))
        await sink_case.sink.flush()
        assert (await sink_case.content())[block : 3 * block] == piece

    async def test_many_writes_at_once_in_any_order(self, sink_case: SinkCase) -> None:
        block, size = sink_case.sink.block_size, sink_case.sink.size
        piece = max(block, size // 61 // block * block)
        wanted = noise(size)
        offsets = list(range(0, size, piece))
        random.Random(1).shuffle(offsets)
        async with asyncio.TaskGroup() as group:
            for offset in offsets:
                group.create_task(sink_case.sink.write(offset, memoryview(wanted)[offset : offset + piece]))
        await sink_case.sink.flush()
        assert await sink_case.content() == wanted

    async def test_zeros_replace_data(self, sink_case: SinkCase) -> None:
        block, size = sink_case.sink.block_size, sink_case.sink.size
        wanted = bytearray(noise(size))
        await sink_case.sink.write(0, bytes(wanted))
        last = (size - 1) // block * block
        for offset, end in ((2 * block, 5 * block), (last, size)):
            await sink_case.sink.zero(offset, end - offset)
            wanted[offset:end] = bytes(end - offset)
        await sink_case.sink.flush()
        assert await sink_case.content() == wanted
        await sink_case.sink.zero(0, size)
        await sink_case.sink.flush()
        assert await sink_case.content() == bytes(size)

    async def test_data_replaces_zeros(self, sink_case: SinkCase) -> None:
        block, size = sink_case.sink.block_size, sink_case.sink.size
        await sink_case.sink.zero(0, size)
        piece = noise(block)
        await sink_case.sink.write(block, piece)
        await sink_case.sink.flush()
        assert await sink_case.content() == bytes(block) + piece + bytes(size - 2 * block)

    async def test_refuses_what_is_beyond(self, sink_case: SinkCase) -> None:
        block, size = sink_case.sink.block_size, sink_case.sink.size
        await sink_case.sink.zero(0, size)
        for offset, length in ((size, block), (size // block * block, 2 * block)):
            with pytest.raises(SfasyncError):
                await sink_case.sink.write(offset, b"x" * length)
            with pytest.raises(SfasyncError):
                await sink_case.sink.zero(offset, length)
        await sink_case.sink.flush()
        assert await sink_case.content() == bytes(size)

    async def test_a_cancelled_write_leaves_the_buffer_alone(self, sink_case: SinkCase) -> None:
        block, size = sink_case.sink.block_size, sink_case.sink.size
        length = min(size // block * block, 1 << 20)
        await sink_case.sink.zero(0, size)
        for turns in range(8):
            buffer = bytearray(b"a" * length)
            task = asyncio.create_task(sink_case.sink.write(0, buffer))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():  # it was faster
                assert task.exception() is None
            buffer[:] = b"b" * length
        await sink_case.sink.flush()
        assert set(await sink_case.content()) <= set(b"a\0")

    async def test_flush_says_whether_it_can(self, sink_case: SinkCase) -> None:
        assert await sink_case.sink.flush() in (True, False)
        assert await sink_case.sink.flush() in (True, False)


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)
