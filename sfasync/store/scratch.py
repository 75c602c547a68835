"""Memory that a thread uses again for each blob, instead of asking for it anew."""

from __future__ import annotations

import mmap
import threading

from ..units import MiB

_LEAST = MiB


class Scratch(threading.local):
    """Memory of each thread that takes it. It grows to the largest blob, and goes with the thread."""

    def __init__(self) -> None:
        self._memory = memoryview(b"")

    def take(self, length: int) -> memoryview:
        """Writable memory of `length` bytes with undefined content, this thread's until it takes some again.

        Raises:
            MemoryError: There is no such memory.
        """
        if len(self._memory) < length:
            size = max(_LEAST, 1 << (length - 1).bit_length())
            try:
                self._memory = memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
            except OSError as error:
                raise MemoryError(str(error)) from error
        return self._memory[:length]
