"""No more passes than the rate allows, whatever the amounts and whoever is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from sfasync.models import Extent
from sfasync.throttle import Throttle, ThrottledSource

from .support.memory import MemoryDisk


class Clock:
    """In the place of asyncio: a loop whose time passes only in `sleep`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def get_running_loop(self) -> Clock:
        return self

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("sfasync.throttle.asyncio", clock)
    return clock


async def test_an_amount_passes_at_once_and_is_owed_afterwards(clock: Clock) -> None:
    throttle = Throttle(100)
    await throttle.take(1000)
    assert clock.now == 1000
    await throttle.take(1)
    assert clock.now == 1010


async def test_many_amounts_take_the_time_they_are_worth(clock: Clock) -> None:
    throttle = Throttle(64)
    for _ in range(65):
        await throttle.take(16)
    assert clock.now == 1016


async def test_idle_time_is_not_saved_up(clock: Clock) -> None:
    throttle = Throttle(100)
    await throttle.take(100)
    clock.now += 3600
    await throttle.take(100)
    await throttle.take(100)
    assert clock.now == 1000 + 3600 + 1


async def test_a_cancelled_wait_has_paid_nothing_back() -> None:
    throttle = Throttle(1000)
    await throttle.take(20)
    waiter = asyncio.create_task(throttle.take(20))
    await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    loop = asyncio.get_running_loop()
    began = loop.time()
    await throttle.take(1)
    assert loop.time() - began > 0.02


async def test_a_throttled_source_is_the_source() -> None:
    disk = MemoryDisk(b"x" * 5000 + bytes(5000), grain=5000, block_size=8)
    source = ThrottledSource(disk, Throttle(1 << 40))
    assert (source.size, source.block_size) == (disk.size, disk.block_size)
    buffer = bytearray(10)
    await source.read_into(4995, memoryview(buffer))
    assert buffer == b"xxxxx" + bytes(5)
    assert await _listed(source.extents(1, 9000)) == await _listed(disk.extents(1, 9000))


async def _listed(extents: AsyncIterator[Extent]) -> list[Extent]:
    return [extent async for extent in extents]
