"""What a copy reads, writes and leaves alone, by its options."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sfasync import Engine, UsageError
from sfasync.units import KiB, MiB

from .support.memory import MemoryDisk

SIZE = 6 * MiB + 512


def content() -> bytes:
    return bytes(range(256)) * (2 * MiB // 256) + bytes(3 * MiB) + b"e" * (SIZE - 5 * MiB)


class CountingDisk(MemoryDisk):
    """Knows how many calls were under way at once, and which ranges were made zero."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.busy = self.most = 0
        self.zeroed: list[tuple[int, int]] = []

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        self.busy += 1
        self.most = max(self.most, self.busy)
        await super().read_into(offset, buffer)
        await asyncio.sleep(0)
        self.busy -= 1

    async def zero(self, offset: int, length: int) -> None:
        self.zeroed.append((offset, length))
        await super().zero(offset, length)


async def copied(source: CountingDisk, target: CountingDisk, **options: Any) -> tuple[int, int, bool]:
    """Bytes read, bytes made zero, and whether the target is durable."""
    async with Engine() as engine:
        result = await engine.copy(source, target, **options)
    assert result.size == source.size
    return result.bytes_read, result.bytes_zero, result.durable


@pytest.fixture
async def source() -> CountingDisk:
    return CountingDisk(content())


@pytest.fixture
async def target() -> CountingDisk:
    return CountingDisk(b"\xff" * (SIZE + 100))


async def test_zeros_are_made_without_reading_and_the_tail_stays(source: CountingDisk, target: CountingDisk) -> None:
    assert await copied(source, target) == (SIZE - 3 * MiB, 3 * MiB, True)
    assert target.content == content() + b"\xff" * 100
    assert target.zeroed == [(2 * MiB, 3 * MiB)]
    assert target.flushes == 1


async def test_without_extents_everything_is_read(source: CountingDisk, target: CountingDisk) -> None:
    assert await copied(source, target, extents=False) == (SIZE, 0, True)
    assert target.content[:SIZE] == content()


async def test_zeros_that_are_there_are_not_written(source: CountingDisk) -> None:
    target = CountingDisk(bytes(SIZE))
    assert await copied(source, target, destination_is_zero=True) == (SIZE - 3 * MiB, 3 * MiB, True)
    assert target.content == content()
    assert target.zeroed == []


async def test_without_flush_nothing_is_promised(source: CountingDisk, target: CountingDisk) -> None:
    assert (await copied(source, target, flush=False))[2] is False
    assert target.flushes == 0


@pytest.mark.parametrize(
    ("options", "most"), [({"synchronous": True}, 1), ({"connections": 1, "requests": 3}, 3), ({"requests": 16}, 64)]
)
async def test_so_many_requests_are_in_flight(
    source: CountingDisk, target: CountingDisk, options: dict[str, Any], most: int
) -> None:
    await copied(source, target, request_size=64 * KiB, **options)
    assert source.most == min(most, len(source.reads))


async def test_the_result_tells_what_was_chosen_and_who_was_waited_for(target: CountingDisk) -> None:
    class Slow(CountingDisk):
        async def read_into(self, offset: int, buffer: memoryview) -> None:
            await super().read_into(offset, buffer)
            for _ in range(100):
                await asyncio.sleep(0)

    async with Engine() as engine:
        pinned = await engine.copy(Slow(content()), target, requests=2, connections=1, request_size=64 * KiB)
        found = await engine.copy(Slow(content()), target, extents=False)
    assert (pinned.requests, pinned.request_size, pinned.limited_by) == (2, 64 * KiB, "source")
    assert 4 <= found.requests <= 64
    assert found.request_size in (MiB, 2 * MiB, 4 * MiB)


async def test_requests_have_the_size_asked_for(source: CountingDisk, target: CountingDisk) -> None:
    await copied(source, target, request_size=512 * KiB)
    assert {length for _, length in source.reads} == {512 * KiB, 512}


@pytest.mark.parametrize(
    "options",
    [
        {"connections": 0},
        {"connections": 17},
        {"requests": 0},
        {"requests": 257},
        {"request_size": 2048},
        {"request_size": 64 * MiB},
        {"request_size": 100_000},
        {"sparse": 256},
        {"sparse": 2 * MiB},
        {"sparse": 5000},
    ],
)
async def test_options_out_of_range_are_refused_at_once(
    source: CountingDisk, target: CountingDisk, options: dict[str, int]
) -> None:
    async with Engine() as engine:
        with pytest.raises(UsageError, match=next(iter(options)).replace("_", " ")):
            engine.start_copy(source, target, **options)  # type: ignore[arg-type]  # one dictionary for all cases
    assert source.reads == []


async def test_nothing_to_copy() -> None:
    assert await copied(CountingDisk(b""), CountingDisk(b""), extents=False) == (0, 0, True)
