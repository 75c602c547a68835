"""Reading no faster than allowed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from .interfaces import Source
from .models import Extent
from .scattered import read_parts


class Throttle:
    """Lets bytes pass at a steady rate; belongs to one event loop.

    A debt bucket: an amount passes at once when nothing is owed, however large, and the time it is worth is owed
    afterwards. No burst is saved up while nobody reads, so a fresh or idle throttle exceeds its rate by one amount at
    most.
    """

    def __init__(self, bytes_per_second: int) -> None:
        self._rate = bytes_per_second
        self._free_at = 0.0  # when everything let through so far is paid for

    async def take(self, amount: int) -> None:
        """Wait until `amount` bytes may pass. A cancelled wait has paid nothing back: the rate stays an upper bound."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        turn = max(self._free_at, now)
        self._free_at = turn + amount / self._rate
        if turn > now:
            await asyncio.sleep(turn - now)


class ThrottledSource:
    """A source whose reads pass a throttle."""

    def __init__(self, source: Source, throttle: Throttle) -> None:
        self._source = source
        self._throttle = throttle

    @property
    def size(self) -> int:
        return self._source.size

    @property
    def block_size(self) -> int:
        return self._source.block_size

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        await self._throttle.take(len(buffer))
        await self._source.read_into(offset, buffer)

    async def read_scattered(self, parts: Sequence[tuple[int, memoryview]]) -> None:
        await self._throttle.take(sum(len(buffer) for _, buffer in parts))
        await read_parts(self._source, parts)

    def extents(self, offset: int = 0, length: int | None = None) -> AsyncIterator[Extent]:
        return self._source.extents(offset, length)
