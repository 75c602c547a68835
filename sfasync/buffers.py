"""Memory for blocks: page-aligned, budgeted in bytes, with one owner at a time.

A `Slot` is writable and holds nothing yet. Only a successful fill turns it into a `Filled`, which can only be read;
memory that nobody filled therefore cannot travel. Both are given back to the pool once.

The budget of the pool is the only back-pressure of a pipeline: when it is spent, `acquire` waits.
"""

from __future__ import annotations

import asyncio
import mmap
from collections import deque
from contextlib import suppress

from .errors import system_limit
from .units import KiB, MiB

_PAGE = 4 * KiB
_ZEROS = memoryview(bytes(MiB))


def fill_with_zeros(view: memoryview) -> None:
    """Make memory zero; 16 µs for 1 MiB."""
    for start in range(0, len(view), len(_ZEROS)):
        with view[start : start + len(_ZEROS)] as part:
            part[:] = _ZEROS[: len(part)]


class Slot:
    """A writable piece of pool memory with one owner, who either fills it or gives it back."""

    __slots__ = ("_memory", "_pool", "_view")

    def __init__(self, pool: BufferPool, memory: mmap.mmap, length: int) -> None:
        self._pool: BufferPool | None = pool
        self._memory = memory
        self._view = memoryview(memory)[:length]

    @property
    def view(self) -> memoryview:
        """The memory to fill; its content is undefined."""
        return self._view

    def filled(self, length: int | None = None) -> Filled:
        """Declare that every byte, or the first `length` of them, has been written; others cannot be seen any more.

        The slot itself can no longer be used.
        """
        pool, self._pool = self._pool, None
        assert pool is not None, "slot used after it was filled or given back"
        return Filled(pool, self._memory, self._view, length)

    def release(self) -> None:
        """Give the memory back, unused; does nothing after `filled` or a first `release`."""
        pool, self._pool = self._pool, None
        if pool is not None:
            self._view.release()
            pool._give_back(self._memory)


class Filled:
    """A readable piece of pool memory whose every byte was written; given back with `release`."""

    __slots__ = ("_memory", "_pool", "_view")

    def __init__(self, pool: BufferPool, memory: mmap.mmap, writable: memoryview, length: int | None) -> None:
        self._pool: BufferPool | None = pool
        self._memory = memory
        with writable, writable[:length] as written:
            self._view = written.toreadonly()

    @property
    def view(self) -> memoryview:
        return self._view

    def release(self) -> None:
        """Give the memory back; does nothing the second time."""
        pool, self._pool = self._pool, None
        if pool is not None:
            self._view.release()
            pool._give_back(self._memory)


class BufferPool:
    """Hands out slots while the budget lasts, first come first served.

    Memory is kept for reuse by size and unmapped when another size needs the budget. Belongs to one event loop, the
    release of its slots included.

    Attributes:
        budget: Bytes that slots may take together.
        in_use: Bytes in slots that are out.
        peak: Highest value of `in_use` so far.
        idle: Bytes kept for reuse; with `in_use` never above the budget.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.in_use = 0
        self.peak = 0
        self._idle: dict[int, list[mmap.mmap]] = {}
        self.idle = 0
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()
        self._closed = False

    async def acquire(self, length: int) -> Slot:
        """A slot of `length` bytes (1 to the budget), page-aligned, when the budget has room for it.

        Cancelling leaves nothing behind.

        Raises:
            SystemLimitError: The system has no such memory.
        """
        size = -(-length // _PAGE) * _PAGE
        assert 0 < size <= self.budget, f"a slot of {length} bytes from a pool of {self.budget}"
        if self._waiting or self.in_use + size > self.budget:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append((turn, size))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self.in_use -= size
                else:
                    self._waiting.remove((turn, size))
                self._admit()
                raise
        else:
            self._take(size)
        try:
            return Slot(self, self._memory(size), length)
        except OSError as error:
            self.in_use -= size
            self._admit()
            raise system_limit(error) or error from error

    def close(self) -> None:
        """Unmap idle memory. Slots that are still out are unmapped when they come back."""
        self._closed = True
        self._idle.clear()
        self.idle = 0

    def _take(self, size: int) -> None:
        self.in_use += size
        self.peak = max(self.peak, self.in_use)

    def _memory(self, size: int) -> mmap.mmap:
        idle = self._idle.get(size)
        if idle:
            self.idle -= size
            return idle.pop()
        while self.idle and self.in_use + self.idle > self.budget:
            self._drop_one()
        return _map(size)

    def _drop_one(self) -> None:
        size, memories = next((size, memories) for size, memories in self._idle.items() if memories)
        memories.pop()  # unmapped with its last view; closing would fail where a peer's library still holds one
        self.idle -= size

    def _give_back(self, memory: mmap.mmap) -> None:
        size = len(memory)
        self.in_use -= size
        if not self._closed:
            self._idle.setdefault(size, []).append(memory)
            self.idle += size
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            turn, size = self._waiting[0]
            if turn.done():  # cancelled, and about to take itself off the queue
                break
            if self.in_use + size > self.budget:
                break
            self._waiting.popleft()
            self._take(size)
            turn.set_result(None)


def _map(size: int) -> mmap.mmap:
    """New memory of whole pages, of huge ones where there are any: faulting in small ones costs a copy a tenth more."""
    # Private: `mmap` would share it otherwise, and shared memory is kept in small pages.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them (madvise(2), EINVAL)
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
