"""What the jobs of one engine share: memory, threads, a limit on disks, a limit on bytes per second."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

from .buffers import BufferPool
from .crew import Crew
from .endpoints import Endpoints
from .interfaces import Source
from .models import Limits, Retry, Timeouts, TlsPolicy
from .shares import Shares
from .throttle import Throttle, ThrottledSource
from .workers import Workers

_FILE_THREADS = 8


class Resources:
    """Made once for an engine, within its event loop.

    Attributes:
        limits, retry: As given to the engine.
        pool: Memory for blocks: three quarters of the limit. The rest is for what sealing and unsealing hold.
        workers: Threads for files and digests.
        endpoints: Opens disks.
        slots: Taken by each disk while it is moved, after its shares.
        throttle: What every read passes; None without a limit.
        crew: Threads that carry.
    """

    def __init__(self, limits: Limits, timeouts: Timeouts, retry: Retry, tls: TlsPolicy | None = None) -> None:
        self.limits = limits
        self.retry = retry
        self.pool = BufferPool(limits.memory * 3 // 4)
        self.workers = Workers(_FILE_THREADS, "sfasync-engine")
        self.endpoints = Endpoints(limits, timeouts, self.workers, retry, tls)
        self.slots = asyncio.Semaphore(limits.disks)
        self._shares = Shares()
        self.crew = Crew()
        self.throttle = Throttle(limits.rate) if limits.rate else None

    def share(self, most: Mapping[str, int]) -> AbstractAsyncContextManager[None]:
        """A share of each thing, by name, of which at most so many may be out at once, for the time of a block."""
        return self._shares.taken(most)

    def throttled(self, source: Source) -> Source:
        """The source, read no faster than the limit allows to all jobs together."""
        return ThrottledSource(source, self.throttle) if self.throttle else source

    def close(self) -> None:
        """Give everything back; no job may be left."""
        self.workers.close()
        self.crew.close()
        self.pool.close()
