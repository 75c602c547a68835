"""The digests of a disk without storing it: to compare what is somewhere else with a backup."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from ..blocking import Near, Writer
from ..interfaces import Buffer
from ..workers import Workers
from .pages import PageBuilder
from .tree import Geometry, content_digest, disk_digest


class DigestSink:
    """A `Sink` that keeps only digests. Writes are whole chunks; zeros take no time, whatever their length.

    Args:
        size: Bytes of the disk.
        chunk_size: Bytes of a chunk; the tree digest does not depend on it.
        workers: Threads to digest in.
    """

    def __init__(self, size: int, chunk_size: int, workers: Workers) -> None:
        self._geometry = Geometry(size, chunk_size)
        self._workers = workers
        self._builder = PageBuilder(self._geometry, lambda page, digest: None)

    @property
    def size(self) -> int:
        return self._geometry.size

    @property
    def block_size(self) -> int:
        return self._geometry.chunk_size

    async def write(self, offset: int, data: Buffer) -> None:
        """Digest whole chunks; cancelling waits for the thread that reads the buffer.

        Raises:
            StateError: Part of the range was written before.
        """
        step = self._geometry.chunk_size
        assert offset % step == 0, offset
        with memoryview(data) as view:
            digests = await self._workers.run_to_end(_digests, view, step)
        self._put(offset, digests)

    @asynccontextmanager
    async def writers(self, count: int) -> AsyncIterator[list[Writer]]:
        """As of `BlockingSink`, for whole chunks: who has read them digests them, without a worker."""
        yield [_Digester(self._geometry.chunk_size, self._put) for _ in range(count)]

    async def zero(self, offset: int, length: int) -> None:
        step = self._geometry.chunk_size
        assert offset % step == 0, offset
        if length:
            self._builder.put_zeros(offset // step, -(-length // step))

    async def flush(self) -> bool:
        return False

    def finish(self) -> tuple[str, str]:
        """Root and tree digest in hex.

        Raises:
            StateError: The disk was not written completely.
        """
        root = self._builder.root()
        return root.hex(), disk_digest(self._geometry.size, root).hex()

    def _put(self, offset: int, digests: Sequence[bytes]) -> None:
        for number, digest in enumerate(digests, offset // self._geometry.chunk_size):
            self._builder.put(number, digest)


class _Digester(Near):
    """A `Writer`: one thread's end of a disk.

    Args:
        step: Bytes of a chunk.
        put: Takes the digests of chunks that lie at an offset; not for threads.
    """

    def __init__(self, step: int, put: Callable[[int, Sequence[bytes]], None]) -> None:
        self._step = step
        self._put = put
        self._found: list[tuple[int, Sequence[bytes]]] = []

    def write(self, offset: int, data: Buffer) -> None:
        assert offset % self._step == 0, offset
        with memoryview(data) as view:
            self._found.append((offset, _digests(view, self._step)))

    def settle(self) -> None:
        found, self._found = self._found, []
        for offset, digests in found:
            self._put(offset, digests)


def _digests(view: memoryview, step: int) -> list[bytes]:
    digests = []
    for start in range(0, len(view), step):
        with view[start : start + step] as chunk:
            digests.append(content_digest(chunk))
    return digests
