"""Shares of things that several disks use at once and that bear only so many: a host, a datastore."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager


class _Thing:
    """One of them.

    Attributes:
        out: Shares that are taken.
        waiting: Who wants one, in order of arrival: at most how many may be out then, and how they are told.
    """

    def __init__(self) -> None:
        self.out = 0
        self.waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def hand_out(self) -> None:
        """Give shares to those who wait, in their order, as long as the first of them can have one."""
        while self.waiting and self.out < self.waiting[0][0]:
            told = self.waiting.popleft()[1]
            if not told.cancelled():
                self.out += 1
                told.set_result(None)


class Shares:
    """Hands out shares of things known by their names. Who came first is served first, for each thing."""

    def __init__(self) -> None:
        self._things: dict[str, _Thing] = {}

    def __repr__(self) -> str:
        return f"<Shares of {len(self._things)} things>"

    @asynccontextmanager
    async def taken(self, most: Mapping[str, int]) -> AsyncIterator[None]:
        """One share of each thing for the time of the block.

        They are waited for one after the other, by name: two who want the same things never wait for each other.

        Args:
            most: By name, how many shares may be out at once, this one included; less than 1 counts as 1.
        """
        async with AsyncExitStack() as stack:
            for name in sorted(most):
                await stack.enter_async_context(self._one(name, max(1, most[name])))
            yield

    @asynccontextmanager
    async def _one(self, name: str, most: int) -> AsyncIterator[None]:
        thing = self._things.setdefault(name, _Thing())
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        wish = (most, told)
        thing.waiting.append(wish)
        thing.hand_out()
        try:
            await told
            yield
        finally:
            if not told.cancelled():
                thing.out -= 1
            elif wish in thing.waiting:
                thing.waiting.remove(wish)
            thing.hand_out()
            if not thing.out and not thing.waiting:
                self._things.pop(name, None)
