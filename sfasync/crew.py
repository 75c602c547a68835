"""The threads of an engine that carry bytes for whichever disk has its turn.

Who moves one disk may be busy with it alone; several disks share, and get ahead at the same pace. More threads than the
machine can keep at work would only push each other out of its caches.

A free thread goes to the disk that the fewest are at work for, and of several to the one that has waited longest.
Servers have threads and memory for each connection: three threads at one disk and then at the next one would use all
connections of all disks, a thread for each of three disks uses one of each.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from .workers import Workers

_LATE: Final = 1.0
"""Seconds after which a thread that is not back counts no more: what it waits for may be a server that hangs."""


class Claim:
    """What one disk has had of a crew.

    Attributes:
        at_work: Threads that it has now, without those that are late.
        served: When it last got one; a number that grows.
        leaving: Whether it comes only to go: set by its owner, whose hands are not to wait for that.
    """

    def __init__(self) -> None:
        self.at_work = 0
        self.served = 0
        self.leaving = False


class Crew:
    """Threads for hire; belongs to one event loop.

    Attributes:
        count: How many work at once: two more than processors, so that none is idle while others wait, one for a disk
            and one for a server.
    """

    def __init__(self) -> None:
        self.count = len(os.sched_getaffinity(0)) + 2
        self._free = self.count  # how many more may work; none waits while there are some
        self._waiting: list[tuple[Claim, asyncio.Future[None]]] = []  # first come first
        self._served = 0
        self._idle: list[Workers] = []  # of one thread each; who worked last is next, with warm caches

    @asynccontextmanager
    async def hired(self, claim: Claim) -> AsyncIterator[Workers]:
        """One thread for the time of the block, when it is this disk's turn.

        A block that takes long holds up nobody else: another thread comes in the place of this one.
        """
        await self._turn(claim)
        over = False

        def end() -> None:
            nonlocal over
            if not over:
                over = True
                self._end(claim)

        late = asyncio.get_running_loop().call_later(_LATE, end)
        try:
            thread = self._idle.pop() if self._idle else Workers(1, "sfasync-carrier")
            try:
                yield thread
            finally:
                if over:
                    thread.close()
                else:
                    self._idle.append(thread)
        finally:
            late.cancel()
            end()

    def close(self) -> None:
        """Let the threads end; none may be hired."""
        for thread in self._idle:
            thread.close()
        self._idle.clear()

    async def _turn(self, claim: Claim) -> None:
        """Wait until this disk may have one thread more."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((claim, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting.remove((claim, turn))
            else:  # it had just got one
                self._end(claim)
            raise

    def _end(self, claim: Claim) -> None:
        """A disk has one thread less."""
        claim.at_work -= 1
        self._free += 1
        self._admit()

    def _admit(self) -> None:
        """Let those begin whose turn it is."""
        while self._free and (waiting := [one for one in self._waiting if not one[1].done()]):
            first = min(waiting, key=_precedence)  # of several that are equal the one that came first
            self._waiting.remove(first)
            claim, turn = first
            self._free -= 1
            self._served += 1
            claim.at_work += 1
            claim.served = self._served
            turn.set_result(None)


def _precedence(waiting: tuple[Claim, asyncio.Future[None]]) -> tuple[bool, int, int]:
    claim, _ = waiting
    return not claim.leaving, claim.at_work, claim.served
