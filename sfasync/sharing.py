"""Readers that more threads share than there are: each takes a free one for as long as it reads.

Who seals what it has read needs its connection a fifth of the time. With a thread more than connections nobody has to
open another one, and a processor is not idle when one thread waits for the disk, another one for the server::

    thread 1   read seal~~~~~~~~~ write read seal~~~~~~
    thread 2        read seal~~~~~~~~~ write read seal~
    thread 3   seal~~~~~ read seal~~~~~~~~~ write
    connections
         1     --1-      --3-               --1-
         2          --2-               --2-
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from .blocking import Reader
from .errors import SourceError


class _Free:
    """The readers that nobody has. Who worked last is next: what serves it is in caches, here and at the server."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.changed = threading.Condition()
        self.readers = list(readers)


class SharedReader:
    """A `Reader`: one thread's share of several.

    Args:
        free: Those that nobody has.
    """

    def __init__(self, free: _Free) -> None:
        self.waited = 0.0
        self._free = free
        self._reader: Reader | None = None  # which it has
        self._stopped = False

    def read_into(self, offset: int, buffer: memoryview) -> None:
        began = time.perf_counter()
        reader = self._take()
        self.waited += time.perf_counter() - began  # others wait for the server, then
        waited = reader.waited
        try:
            reader.read_into(offset, buffer)
        finally:
            self.waited += reader.waited - waited
            self._give_back(reader)

    def stop(self) -> None:
        with self._free.changed:
            self._stopped = True
            reader = self._reader
            self._free.changed.notify_all()
        if reader is not None:
            reader.stop()

    def _take(self) -> Reader:
        with self._free.changed:
            self._free.changed.wait_for(lambda: self._free.readers or self._stopped)
            if self._stopped:
                raise SourceError("nothing more is to be read")
            self._reader = self._free.readers.pop()
            return self._reader

    def _give_back(self, reader: Reader) -> None:
        with self._free.changed:
            self._reader = None
            self._free.readers.append(reader)
            self._free.changed.notify()


def shared(readers: Sequence[Reader], count: int) -> list[SharedReader]:
    """So many readers, of which as many read at a time as there are behind them."""
    free = _Free(readers)
    return [SharedReader(free) for _ in range(count)]
