"""One disk of a backup under construction: each chunk is one call in one thread, and so are several sparse ones.

It is the thread of a worker, or the one that has read the chunk (`ChunkWriter.writers`).

Of a sparse chunk only the leaves with data are digested, and only the data is compressed. Data in several places is
laid out for that in memory of the thread, which stays in its cache: it is copied there, and made zero again. Several
sparse chunks ask the index together, get into a pack together, and are one step in the tree, with the zeros between.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import NamedTuple

from ..blocking import Near, Writer
from ..errors import CbtError, StateError, UsageError
from ..interfaces import Buffer, SparseChunk
from ..models import DiskStatistics, Extent
from ..workers import Workers
from .intake import NOTHING_STORED, Intake, Stored
from .journal import DiskNotes
from .pages import PageBuilder, TreeReader
from .resume import Remains
from .seal import BlobKind, Sealed, seal
from .tree import ZERO, ZEROS, Geometry, content_digest, disk_digest, is_zero, sparse_digest

_ZEROS_NOTED = 256

_PAGES_AT_ONCE = 128

_ZEROS = memoryview(ZEROS)

_local = threading.local()


class _Finished(NamedTuple):
    """A chunk that the repository has, or a range of zeros.

    Attributes:
        offset, length: Where it is on the disk, in bytes.
        digest: Of the chunk.
        is_new: Whether the repository did not have it.
        notes: Where it is noted; None for nowhere.
    """

    offset: int
    length: int
    digest: bytes
    is_new: bool
    notes: DiskNotes | None

    @property
    def end(self) -> int:
        return self.offset + self.length


class _Sealer(Near):
    """A `Writer`: one thread's end of a disk.

    Args:
        write: Stores whole chunks.
    """

    def __init__(self, write: Callable[[int, Buffer], None]) -> None:
        self.write = write


class ChunkWriter:
    """A `DiskWriter` of a session. Any number of writes may be under way, each range written, zeroed, kept or
    audited once.

    Args:
        disk_id: The disk's id, for messages.
        geometry: Of the disk.
        parent: The tree that `keep` takes chunks from; None where nothing can be kept.
        intake: Where blobs go.
        workers: Threads to seal in.
        notes: Where finished chunks are noted; None for nowhere.
        remains: What `adopt` takes chunks from; None where nothing can be taken over.
        doubtful: Whether a range, by offset and length, is not what the disk has, so that it must not be noted.
    """

    def __init__(
        self,
        disk_id: str,
        geometry: Geometry,
        *,
        parent: TreeReader | None,
        intake: Intake,
        workers: Workers,
        notes: DiskNotes | None = None,
        remains: Remains | None = None,
        doubtful: Callable[[int, int], bool] | None = None,
    ) -> None:
        self._id = disk_id
        self._geometry = geometry
        self._parent = parent
        self._intake = intake
        self._workers = workers
        self._notes = notes
        self._remains = remains
        self._doubtful = doubtful
        self._lock = threading.Lock()  # of the builder, of the pages it has completed and of what is counted
        self._zeros: deque[tuple[int, int, bool]] = deque()  # not told to the builder: ranges, and whether audited
        self._bytes_stored = 0
        self._seal_seconds = 0.0
        self._store_seconds = 0.0
        self.result: tuple[str, str] | None = None
        self._begin()

    def _begin(self) -> None:
        self._pages: list[tuple[bytes, bytes]] = []  # complete and not stored, with their digests
        self._builder = PageBuilder(self._geometry, lambda page, digest: self._pages.append((page, digest)))
        self._bytes_zero = self._bytes_kept = self._bytes_new = self._bytes_duplicate = 0

    def __repr__(self) -> str:
        return f"<ChunkWriter {self._id!r}, {self._geometry.size} bytes>"

    @property
    def size(self) -> int:
        return self._geometry.size

    @property
    def chunk_size(self) -> int:
        return self._geometry.chunk_size

    @property
    def block_size(self) -> int:
        return self._geometry.chunk_size

    @property
    def statistics(self) -> DiskStatistics:
        """What the writing took so far; the seconds are those of threads: ``seal``, and ``store`` for packs."""
        with self._lock:
            return DiskStatistics(
                bytes_skipped=self._bytes_kept,
                bytes_zero=self._bytes_zero,
                bytes_new=self._bytes_new,
                bytes_duplicate=self._bytes_duplicate,
                bytes_stored=self._bytes_stored,
                seconds={"seal": self._seal_seconds, "store": self._store_seconds},
            )

    async def write(self, offset: int, data: Buffer) -> None:
        """Store whole chunks. Cancelling waits for the thread that reads the buffer; they may be stored then, or not.

        Raises:
            UsageError: The range does not consist of whole chunks.
            StateError: Part of it was written before.
            StorageError: It could not be stored; the session has failed.
        """
        with memoryview(data) as view:
            self._check_range(offset, view.nbytes)
            await self._workers.run_to_end(self._write, offset, view, self._notes_of(offset, view.nbytes))

    @asynccontextmanager
    async def writers(self, count: int) -> AsyncIterator[list[Writer]]:
        """As of `BlockingSink`, for whole chunks: who has read them stores them, without a worker."""
        yield [_Sealer(self._write_now) for _ in range(count)]

    async def write_sparse(self, chunks: Sequence[SparseChunk]) -> None:
        """As of `ChunkSink`; at most 128. Cancelling and errors as of `write`."""
        for chunk in chunks:
            self._check_range(chunk.offset, chunk.length)
        notes = [self._notes_of(chunk.offset, chunk.length) if chunk.parts else None for chunk in chunks]
        await self._workers.run_to_end(self._write_sparse, chunks, notes)

    async def zero(self, offset: int, length: int) -> None:
        """Make whole chunks zero, any number of them; nothing is stored for them.

        Mostly it is noted only, and done by the thread that gets the next chunk, without a hop of its own.

        Raises:
            UsageError: As of `write`; what else may fail there fails here or in a later call.
        """
        await self._note_zeros(offset, length, audited=False)

    async def audit_zero(self, offset: int, length: int) -> None:
        """As of `ChunkSink`; otherwise as `zero`.

        Raises:
            CbtError: The parent has data there; from here or a later call.
            StateError: There is no parent.
            IntegrityError: A page of the parent is lost.
        """
        self._require_parent()
        await self._note_zeros(offset, length, audited=True)

    async def _note_zeros(self, offset: int, length: int, *, audited: bool) -> None:
        self._check_range(offset, length)
        if length:
            self._zeros.append((offset, length, audited))
        if len(self._zeros) >= _ZEROS_NOTED:
            await self._workers.run_to_end(self._put_zeros)

    async def keep(self, offset: int, length: int) -> None:
        """Take whole chunks over from the parent.

        Raises:
            UsageError: The range does not consist of whole chunks.
            StateError: There is no parent, a chunk has another length there, or part of the range was written before.
            IntegrityError: A page of the parent is lost.
        """
        self._check_range(offset, length)
        parent = self._require_parent()
        if length:
            await self._workers.run_to_end(self._keep, offset, length, parent)

    async def audit(self, offset: int, data: Buffer) -> None:
        """As of `ChunkSink`. What could not be read tells nothing, and is written.

        Raises:
            CbtError: The parent has other chunks there.
            StateError: There is no parent.
            UsageError, IntegrityError: As of `keep`.
        """
        parent = self._require_parent()
        with memoryview(data) as view:
            self._check_range(offset, view.nbytes)
            if self._doubtful is not None and self._doubtful(offset, view.nbytes):
                await self.write(offset, view)
            else:
                await self._workers.run_to_end(self._audit, offset, view, parent)

    async def adopt(self, offset: int, length: int) -> list[Extent]:
        """As of `DiskWriter`; errors as of `write`."""
        self._check_range(offset, length)
        if self._remains is None:
            return []
        return await self._workers.run_to_end(self._adopt, offset, length, self._remains)

    def restart(self) -> None:
        """As of `DiskWriter`. What was stored is stored, and found again."""
        self._parent = None
        self._zeros.clear()
        self._begin()

    async def flush(self) -> bool:
        """Nothing is durable before the session commits: False."""
        return False

    async def finish(self) -> tuple[str, str]:
        await self._workers.run_to_end(self._put_zeros)
        root = self._builder.root()
        self.result = root.hex(), disk_digest(self._geometry.size, root).hex()
        return self.result

    # --- in a thread ------------------------------------------------------------------------------------------------

    def _write_now(self, offset: int, data: Buffer) -> None:
        """As `write`, in the thread of the caller."""
        with memoryview(data) as view:
            self._check_range(offset, view.nbytes)
            self._write(offset, view, self._notes_of(offset, view.nbytes))

    def _write(self, offset: int, view: memoryview, notes: DiskNotes | None) -> None:
        """Digest, deduplicate, compress, check, store: all that a chunk needs."""
        step = self._geometry.chunk_size
        for start in range(0, view.nbytes, step):
            with view[start : start + step] as chunk:
                began = time.perf_counter()
                digest = _digest(chunk)
                stored = NOTHING_STORED if digest == ZERO else self._intake.add(BlobKind.CHUNK, digest, chunk)
                finished = _Finished(offset + start, chunk.nbytes, digest, is_new=bool(stored.new), notes=notes)
                self._take_in(began, [finished], stored)

    def _write_sparse(self, chunks: Sequence[SparseChunk], notes: Sequence[DiskNotes | None]) -> None:
        """The same for several chunks, which ask the index together and get into a pack together."""
        began = time.perf_counter()
        digests = [_digest_of(chunk) for chunk in chunks]
        blobs = [(digest, chunk.length) for chunk, digest in zip(chunks, digests, strict=True)]
        finished: list[_Finished] = []
        sealed: list[Sealed] = []
        with self._intake.claim(BlobKind.CHUNK, [blob for blob in blobs if blob[0] != ZERO]) as new:
            for chunk, blob, noted in zip(chunks, blobs, notes, strict=True):
                is_new = blob in new
                if is_new:
                    new.remove(blob)
                    sealed.append(_sealed(chunk, blob[0]))
                finished.append(_Finished(chunk.offset, chunk.length, blob[0], is_new, noted))
            stored = self._intake.put(BlobKind.CHUNK, sealed)
        self._take_in(began, finished, stored)

    def _take_in(self, began: float, finished: Sequence[_Finished], stored: Stored) -> None:
        """Let the tree have chunks that are stored, and zeros that are noted; they took the time since `began`."""
        seal_seconds = time.perf_counter() - began - stored.seconds
        with self._building() as builder:
            self._tell_zeros(builder)
            if len(finished) == 1:
                builder.put(finished[0].offset // self.chunk_size, finished[0].digest)
            else:
                self._put_runs(builder, finished)
            for one in finished:
                self._count_chunk(one.length, one.digest, is_new=one.is_new)
            self._bytes_stored += stored.length
            self._seal_seconds += seal_seconds
            self._store_seconds += stored.seconds
        for one in finished:
            if one.notes is not None:
                one.notes.add(one.offset // self.chunk_size, one.digest)

    def _put_runs(self, builder: PageBuilder, finished: Sequence[_Finished]) -> None:
        """Let the tree have several chunks, those next to each other in one step."""
        for run in _adjacent(finished):
            first, end = run[0].offset // self.chunk_size, -(-run[-1].end // self.chunk_size)
            digests = [(one.offset // self.chunk_size, one.digest) for one in run if one.digest != ZERO]
            builder.put_sparse(first, end - first, digests)

    @contextmanager
    def _building(self) -> Iterator[PageBuilder]:
        """The builder and the counts, for this thread alone; the pages that are complete after it are stored."""
        with self._lock:
            yield self._builder
        while pages := self._completed_pages():
            self._store_pages(pages)

    def _put_zeros(self) -> None:
        with self._building() as builder:
            self._tell_zeros(builder)

    def _tell_zeros(self, builder: PageBuilder) -> None:
        while self._zeros:
            offset, length, audited = self._zeros.popleft()
            first, count = offset // self.chunk_size, -(-length // self.chunk_size)
            if audited:
                self._audit_zeros(first, count, self._require_parent())
            builder.put_zeros(first, count)
            self._bytes_zero += length

    def _audit_zeros(self, first: int, count: int, parent: TreeReader) -> None:
        index = first
        for zero, run in parent.runs(first, first + count):
            if not zero:
                raise self._untold(index, "reads as zeros now")
            index += run

    def _audit(self, offset: int, view: memoryview, parent: TreeReader) -> None:
        """Digest what was read, and compare; nothing is stored."""
        step = self._geometry.chunk_size
        for start in range(0, view.nbytes, step):
            index = (offset + start) // step
            with view[start : start + step] as chunk:
                digest = _digest(chunk)
                if digest != parent.digest(0, index):
                    raise self._untold(index, "has other bytes now")
                with self._building() as builder:
                    builder.put(index, digest)
                    self._count_chunk(chunk.nbytes, digest, is_new=False)

    def _untold(self, index: int, what: str) -> CbtError:
        offset, length = index * self.chunk_size, self._geometry.length(0, index)
        return CbtError(
            f"disk {self._id!r}: the platform called {length} bytes from {offset} unchanged, and an audit found that "
            f"this {what}; use mode auto or full",
            reason="audit-failed",
            disk=self._id,
            offset=offset,
            length=length,
        )

    def _keep(self, offset: int, length: int, parent: TreeReader) -> None:
        with self._building() as builder:
            builder.put_kept(offset // self.chunk_size, -(-length // self.chunk_size), parent)
            self._bytes_kept += length

    def _adopt(self, offset: int, length: int, remains: Remains) -> list[Extent]:
        """Take over each chunk that is finished, if the repository has it still."""
        adopted: list[Extent] = []
        first = offset // self.chunk_size
        for index, digest in remains.digests(first, first + -(-length // self.chunk_size)):
            size = self._geometry.length(0, index)
            if digest != ZERO and not self._intake.rely_on(BlobKind.CHUNK, digest, size):
                continue
            with self._building() as builder:
                builder.put(index, digest)
                self._count_chunk(size, digest, is_new=False)
            start = index * self.chunk_size
            if adopted and adopted[-1].end == start:
                start, size = adopted[-1].offset, adopted.pop().length + size
            adopted.append(Extent(start, size))
        return adopted

    def _completed_pages(self) -> list[tuple[bytes, bytes]]:
        """Some of them, which the caller stores."""
        with self._lock:
            pages = self._pages[:_PAGES_AT_ONCE]
            del self._pages[:_PAGES_AT_ONCE]
        return pages

    def _store_pages(self, pages: Sequence[tuple[bytes, bytes]]) -> None:
        sealed: list[Sealed] = []
        with self._intake.claim(BlobKind.PAGE, [(digest, len(page)) for page, digest in pages]) as new:
            for page, digest in pages:
                if (digest, len(page)) in new:
                    new.remove((digest, len(page)))
                    sealed.append(Sealed(digest, len(page), bytes(seal(page))))
            stored = self._intake.put(BlobKind.PAGE, sealed)
        with self._lock:
            self._bytes_stored += stored.length

    def _count_chunk(self, length: int, digest: bytes, *, is_new: bool) -> None:
        if digest == ZERO:
            self._bytes_zero += length
        elif is_new:
            self._bytes_new += length
        else:
            self._bytes_duplicate += length

    def _notes_of(self, offset: int, length: int) -> DiskNotes | None:
        """Where it is noted that a range is finished."""
        doubted = self._doubtful is not None and self._doubtful(offset, length)
        return None if doubted else self._notes

    def _require_parent(self) -> TreeReader:
        if self._parent is None:
            raise StateError(f"disk {self._id!r} has no parent to keep anything from")
        return self._parent

    def _check_range(self, offset: int, length: int) -> None:
        end = offset + length
        step = self.chunk_size
        if not 0 <= offset <= end <= self.size or offset % step or (end % step and end != self.size):
            raise UsageError(
                f"bytes {offset} to {end} of disk {self._id!r} are not whole chunks of {step} bytes",
                disk=self._id,
                offset=offset,
                length=length,
            )


def _digest(chunk: memoryview) -> bytes:
    return ZERO if is_zero(chunk) else content_digest(chunk)


def _adjacent(finished: Sequence[_Finished]) -> Iterator[list[_Finished]]:
    """Runs without a gap."""
    run: list[_Finished] = []
    for one in finished:
        if run and run[-1].end != one.offset:
            yield run
            run = []
        run.append(one)
    if run:
        yield run


def _digest_of(chunk: SparseChunk) -> bytes:
    return sparse_digest(chunk.length, ((offset - chunk.offset, data) for offset, data in chunk.parts))


def _sealed(chunk: SparseChunk, digest: bytes) -> Sealed:
    with _laid_out(chunk) as (data, before, after):
        return Sealed(digest, chunk.length, bytes(seal(data, before=before, after=after)))


class _Inner(NamedTuple):
    """What of a chunk is not known to be zeros.

    Attributes:
        data: From the first byte that may not be zero to the last.
        before, after: So many zeros are before and behind it.
    """

    data: memoryview
    before: int
    after: int


@contextmanager
def _laid_out(chunk: SparseChunk) -> Iterator[_Inner]:
    """The data of a chunk that has some, for the time of the block: where it is, if that is one place, or in memory of
    this thread that is zeros between its parts.
    """
    (start, data), (last, part) = chunk.parts[0], chunk.parts[-1]
    end = last + len(part)
    before, after = start - chunk.offset, chunk.offset + chunk.length - end
    if len(data) == end - start:
        yield _Inner(data, before, after)
        return
    memory = getattr(_local, "memory", None)
    if memory is None or len(memory) < end - start:
        memory = _local.memory = bytearray(end - start)
    with memoryview(memory) as area, area[: end - start] as view:
        try:
            for offset, part in chunk.parts:
                view[offset - start : offset - start + len(part)] = part
            yield _Inner(view, before, after)
        finally:
            for offset, part in chunk.parts:
                view[offset - start : offset - start + len(part)] = _ZEROS[: len(part)]
