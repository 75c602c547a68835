"""A disk of a backup, read as a source: every byte is checked against its digest before it is handed out."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import islice

from ..blocking import Near, Reader
from ..buffers import fill_with_zeros
from ..errors import IntegrityError, UsageError
from ..models import DiskRecord, Extent
from ..workers import Workers
from .blobs import BlobReader
from .pages import TreeReader
from .seal import BlobKind
from .tree import ZERO, Geometry

_RECENT = 4  # chunks kept for reads of parts of them
_RUNS_AT_ONCE = 1024


class StoredDisk:
    """A `Source` on a disk of a backup. Any number of reads may be under way; there is nothing to close.

    Args:
        record: The disk, from a manifest that was checked.
        chunk_size: Of the repository.
        blobs: Reads its blobs.
        workers: Threads to read and unseal in.
    """

    def __init__(self, record: DiskRecord, chunk_size: int, blobs: BlobReader, workers: Workers) -> None:
        self._record = record
        self._geometry = Geometry(record.size, chunk_size)
        self._blobs = blobs
        self._workers = workers
        self._tree = open_tree(record, chunk_size, blobs)
        self._lock = threading.Lock()
        self._recent: OrderedDict[int, bytes] = OrderedDict()

    def __repr__(self) -> str:
        return f"<StoredDisk {self._record.id!r}, {self._record.size} bytes>"

    @property
    def size(self) -> int:
        return self._record.size

    @property
    def block_size(self) -> int:
        """1: any range can be read; ranges of whole chunks are read without a copy."""
        return 1

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """As of `Source`. Cancelling waits for the thread that fills the buffer.

        Raises:
            UsageError: The range is not within the disk.
            ObjectMissingError, IntegrityError: A chunk, or a page above it, is lost or damaged.
            StorageError: The repository cannot be read.
        """
        self._check(offset, len(buffer))
        await self._workers.run_to_end(self._read, offset, buffer)

    async def extents(self, offset: int = 0, length: int | None = None) -> AsyncIterator[Extent]:
        """As of `Source`; in units of chunks. Errors as of `read_into`."""
        end = self.size if length is None else min(self.size, offset + length)
        step = self._geometry.chunk_size
        runs = self._tree.runs(offset // step, -(-end // step))
        position = offset
        while position < end:
            for zero, count in await self._workers.run(_some, runs):
                stop = min(end, (position // step + count) * step)
                yield Extent(position, stop - position, zero=zero, hole=zero)
                position = stop

    @asynccontextmanager
    async def readers(self, count: int) -> AsyncIterator[list[Reader]]:
        """As of `BlockingSource`: who wants a chunk reads and checks it, without a worker."""
        yield [_DiskReader(self) for _ in range(count)]

    def _check(self, offset: int, length: int) -> None:
        if not 0 <= offset <= self.size - length:
            raise UsageError(f"{length} bytes from {offset} are not within disk {self._record.id!r}")

    # --- in a thread ------------------------------------------------------------------------------------------------

    def _read(self, offset: int, buffer: memoryview) -> None:
        step = self._geometry.chunk_size
        done = 0
        while done < len(buffer):
            index, within = divmod(offset + done, step)
            count = min(self._geometry.length(0, index) - within, len(buffer) - done)
            with buffer[done : done + count] as piece:
                self._read_piece(index, within, piece)
            done += count

    def _read_piece(self, index: int, within: int, piece: memoryview) -> None:
        """Part of a chunk, or all of it."""
        try:
            digest = self._tree.digest(0, index)
            if digest == ZERO:
                fill_with_zeros(piece)
            elif len(piece) == self._geometry.length(0, index):
                self._blobs.read_into(BlobKind.CHUNK, digest, piece)
            else:
                piece[:] = self._chunk(index, digest)[within : within + len(piece)]
        except IntegrityError as error:
            error.disk = self._record.id
            error.offset = index * self._geometry.chunk_size
            error.length = self._geometry.length(0, index)
            raise

    def _chunk(self, index: int, digest: bytes) -> bytes:
        with self._lock:
            chunk = self._recent.get(index)
            if chunk is not None:
                self._recent.move_to_end(index)
                return chunk
        chunk = self._blobs.read(BlobKind.CHUNK, digest, self._geometry.length(0, index))
        with self._lock:
            self._recent[index] = chunk
            if len(self._recent) > _RECENT:
                self._recent.popitem(last=False)
        return chunk


class _DiskReader(Near):
    """A disk in the hands of one thread; a chunk takes a millisecond, unless the disk of the repository hangs."""

    def __init__(self, disk: StoredDisk) -> None:
        self._disk = disk

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._disk._check(offset, len(buffer))
        self._disk._read(offset, buffer)


def open_tree(record: DiskRecord, chunk_size: int, blobs: BlobReader) -> TreeReader:
    """The page tree of a disk."""
    return TreeReader(
        Geometry(record.size, chunk_size),
        bytes.fromhex(record.root),
        lambda digest, length: blobs.read(BlobKind.PAGE, digest, length),
    )


def _some(runs: Iterator[tuple[bool, int]]) -> list[tuple[bool, int]]:
    """The next runs, neighbours that say the same joined."""
    some: list[tuple[bool, int]] = []
    for zero, count in islice(runs, _RUNS_AT_ONCE):
        if some and some[-1][0] == zero:
            some[-1] = zero, some[-1][1] + count
        else:
            some.append((zero, count))
    return some
