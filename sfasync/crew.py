"""The threads of an engine that carry bytes, a stretch at a time, for whichever disk has its turn.

Who moves one disk may be busy with it alone; several disks share, and as each comes again after all others, they get
ahead at the same pace. More threads than the machine can keep at work would only push each other out of its caches.
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


class Crew:
    """Threads for hire; belongs to one event loop.

    Attributes:
        count: How many work at once: one more than processors, so that none is idle while another one waits.
    """

    def __init__(self) -> None:
        self.count = len(os.sched_getaffinity(0)) + 1
        self._turns = asyncio.Semaphore(self.count)
        self._idle: list[Workers] = []  # of one thread each; who worked last is next, with warm caches

    @asynccontextmanager
    async def hired(self) -> AsyncIterator[Workers]:
        """One thread for the time of the block, first come first served.

        A block that takes long holds up nobody else: another thread comes in the place of this one.
        """
        await self._turns.acquire()
        thread = self._idle.pop() if self._idle else Workers(1, "sfasync-carrier")
        replaced = False

        def replace() -> None:
            nonlocal replaced
            replaced = True
            self._turns.release()

        late = asyncio.get_running_loop().call_later(_LATE, replace)
        try:
            yield thread
        finally:
            late.cancel()
            if replaced:
                thread.close()
            else:
                self._idle.append(thread)
                self._turns.release()

    def close(self) -> None:
        """Let the threads end; none may be hired."""
        for thread in self._idle:
            thread.close()
        self._idle.clear()
