"""A guest that writes to its disk all the time, in pieces of any size at any place, and knows what should be there."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sfasync.extents import align_up
from sfasync.models import ExportAddress
from sfasync.tasks import cancelled
from sfasync.transport.export import Export, open_export
from sfasync.units import KiB

LANES = 4
CLUSTER = 64 * KiB


class Guest:
    """Writes, zeroes and discards.

    Attributes:
        content: What the disk has, once the guest is paused.
        operations: How many there were.
    """

    def __init__(self, export: Export, seed: int) -> None:
        self.content = bytearray(export.size)
        self.operations = 0
        self._export = export
        self._random = random.Random(seed)
        self._running = asyncio.Event()
        self._running.set()
        self._idle = [asyncio.Event() for _ in range(LANES)]

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Nothing is written in the block, and everything before it has been."""
        self._running.clear()
        for lane in self._idle:
            await lane.wait()
        try:
            yield
        finally:
            self._running.set()

    async def work(self, count: int) -> None:
        """Return when so many more operations are done."""
        end = self.operations + count
        while self.operations < end:
            await asyncio.sleep(0.001)

    async def lane(self, number: int) -> None:
        """Write to one part of the disk until cancelled. Nothing overlaps, so the order of lanes does not matter."""
        share = self._export.size // LANES
        while True:
            self._idle[number].set()
            await self._running.wait()
            self._idle[number].clear()
            await self._operation(number * share, share)
            self.operations += 1

    async def _operation(self, start: int, share: int) -> None:
        draw = self._random
        length = draw.randrange(1, draw.choice((512, 8 * KiB, 200 * KiB)))
        offset = start + draw.randrange(share - length)
        kind = draw.random()
        if kind < 0.7:
            data = draw.randbytes(16) * (length // 16 + 1)
            await self._export.write(offset, memoryview(data)[:length])
            self.content[offset : offset + length] = data[:length]
        elif kind < 0.9:
            await self._export.zero(offset, length, punch=kind < 0.8)
            self.content[offset : offset + length] = bytes(length)
        else:
            offset = align_up(start, CLUSTER) + draw.randrange(share // CLUSTER - 1) * CLUSTER
            await self._export.trim(offset, CLUSTER)  # there may be anything after that, so we look
            self.content[offset : offset + CLUSTER] = await self._export.read(offset, CLUSTER)


@asynccontextmanager
async def guest_at_work(address: ExportAddress, seed: int) -> AsyncIterator[Guest]:
    """A guest that works on an empty disk for the time of the block."""
    async with await open_export(address) as export:
        guest = Guest(export, seed)
        lanes = [asyncio.ensure_future(guest.lane(number)) for number in range(LANES)]
        try:
            yield guest
            for lane in lanes:
                if lane.done():
                    lane.result()
        finally:
            for lane in lanes:
                await cancelled(lane)
