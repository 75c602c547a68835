"""Shares of things that several disks use at once and that bear only so many: a host, a datastore."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager


class Room:
    """Room in something that bears only so much at once.

    Who came first gets room first: a large wish is not overtaken until nothing is left for it.
    """

    def __init__(self) -> None:
        self._taken = 0
        self._waiting: deque[tuple[int, int, asyncio.Future[None]]] = deque()  # amount, most, how they are told

    @property
    def is_idle(self) -> bool:
        """Whether nobody has any of it, or waits for some."""
        return not self._taken and not self._waiting

    @asynccontextmanager
    async def taken(self, amount: int, most: int) -> AsyncIterator[None]:
        """Room for the time of the block.

        Args:
            amount: How much, at least 1; more than there is ever room for counts as all of it.
            most: How much may be taken in all, this included; at least 1.
        """
        amount = min(amount, most)
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        wish = (amount, most, told)
        self._waiting.append(wish)
        self._hand_out()
        try:
            await told
            yield
        finally:
            if not told.cancelled():
                self._taken -= amount
            elif wish in self._waiting:
                self._waiting.remove(wish)
            self._hand_out()

    def _hand_out(self) -> None:
        """Give room to those who wait, in their order, as long as there is enough for the first of them."""
        while self._waiting:
            amount, most, told = self._waiting[0]
            if not told.cancelled():
                if self._taken + amount > most:
                    break
                self._taken += amount
                told.set_result(None)
            self._waiting.popleft()


class Shares:
    """Hands out shares of things known by their names. Who came first is served first, for each thing."""

    def __init__(self) -> None:
        self._things: dict[str, Room] = {}

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
        room = self._things.setdefault(name, Room())
        try:
            async with room.taken(1, most):
                yield
        finally:
            if room.is_idle:
                self._things.pop(name, None)
