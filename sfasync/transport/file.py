"""Local disk images and block devices as sources and sinks.

Files are read through the page cache and written past it where the file system allows: a restore then neither pushes
the host's own data out of memory nor leaves gigabytes for its last fsync. All calls block, so they run in the engine's
workers, and each waits for its thread even when it is cancelled: memory and descriptors are free when it ends.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import mmap
import os
import stat
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from ..blocking import Near, Reader, Writer
from ..errors import (
    NoSpaceError,
    SfasyncError,
    SourceError,
    StorageError,
    TargetError,
    TargetRefusedError,
    UsageError,
    printable,
    system_limit,
)
from ..extents import align_up
from ..files import (
    PAGE,
    close_anyway,
    data_ranges,
    is_full,
    punch_hole,
    read_at,
    reopen_direct,
    sync_directory,
    write_at,
)
from ..interfaces import Buffer
from ..models import Extent
from ..sparse import is_zero
from ..units import KiB, MiB
from ..workers import Workers, settled

__all__ = ["FileSink", "FileSource", "NullSink"]

_EXTENTS_IN_ONE_CALL = 1024
_ZEROED_IN_ONE_CALL = 256 * MiB  # what a slow disk overwrites while a cancelled job waits

_GROWN_IN_ONE_STEP = 256 * MiB  # by a file whose size is not known before

_ZEROS = mmap.mmap(-1, MiB)  # at a page boundary, for direct writes; never written to

_SAMPLE = 64  # bytes at the beginning of a block that are looked at first
_LEAST_BLOCK = 16 * KiB  # smaller ones are not worth a call each

_FLOCK = struct.Struct("hhqqi4x")  # struct flock (fcntl(2))

# O_NONBLOCK: opening a pipe that nobody writes to would wait for ever; files and disks ignore it.
_FLAGS = os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK


class _File:
    """An open file or block device. Whoever closes it has no call on it under way."""

    def __init__(self, path: Path, fds: tuple[int, ...], size: int, workers: Workers) -> None:
        self._path = path
        self._fds = fds
        self._size = size
        self._workers = workers

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._path} {self._size} bytes{'' if self._fds else ' closed'}>"

    @property
    def size(self) -> int:
        return self._size

    async def aclose(self) -> None:
        """Close the file, without making it durable. Idempotent; cancelled or not, it gets closed."""
        fds, self._fds = self._fds, ()
        if fds:
            # Not to be dropped from the queue by a cancellation, as `run_to_end` would.
            await asyncio.wait({asyncio.wrap_future(self._workers.submit(_close, fds))})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self._size:
            raise UsageError(
                f"{length} bytes at {offset} do not lie within the {self._size} bytes of {_name(self._path)}",
                offset=offset,
                length=length,
                path=str(self._path),
            )

    @contextmanager
    def _errors(self, kind: Callable[..., SfasyncError], doing: str, offset: int, length: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise (NoSpaceError if is_full(error) else kind)(
                f"cannot {doing} {length} bytes at {offset} of {_name(self._path)}: {error.strerror}",
                offset=offset,
                length=length,
                path=str(self._path),
            ) from error


class FileSource(_File):
    """An image file or block device that is read. Holes of a file are extents of zeros.

    Made by `open`; a context manager.
    """

    @classmethod
    async def open(cls, path: Path, *, workers: Workers) -> Self:
        """Open a file or block device to read it.

        Args:
            path: The file.
            workers: Where blocking calls run.

        Raises:
            SourceError: It is not there, may not be read, or is neither a file nor a block device.
        """
        fds, size = await _opened(workers, _open_source, path)
        return cls(path, fds, size, workers)

    @property
    def block_size(self) -> int:
        return 1

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer.

        Raises:
            SourceError: The range cannot be read, or the file became shorter.
            UsageError: The range does not lie within the disk.
        """
        self._check_range(offset, len(buffer))
        await self._workers.run_to_end(self._read, offset, buffer)

    async def extents(self, offset: int = 0, length: int | None = None) -> AsyncIterator[Extent]:
        """What is a hole in the file, and what is not; of a block device all is data.

        Raises:
            SourceError: The file cannot be examined, or became shorter.
            UsageError: The range does not lie within the disk.
        """
        end = self._size if length is None else offset + length
        self._check_range(offset, end - offset)
        while offset < end:
            for extent in await self._workers.run_to_end(self._ranges, offset, end):
                yield extent
                offset = extent.end

    @asynccontextmanager
    async def readers(self, count: int) -> AsyncIterator[list[Reader]]:
        """`count` ends, each for one thread to read, for the time of the block."""
        reader = _SendableReader if await self._workers.run_to_end(_is_sendable, self._fds[0]) else _FileReader
        yield [reader(self) for _ in range(count)]

    def _read(self, offset: int, buffer: memoryview) -> None:
        with self._errors(SourceError, "read", offset, len(buffer)):
            count = read_at(self._fds[0], offset, buffer)
        if count < len(buffer):
            raise self._shorter()

    def _ranges(self, start: int, end: int) -> list[Extent]:
        with self._errors(SourceError, "examine", start, end - start):
            ranges = data_ranges(self._fds[0], start, end, limit=_EXTENTS_IN_ONE_CALL)
            status = os.fstat(self._fds[0])
        # What was cut off would otherwise pass for a hole.
        if stat.S_ISREG(status.st_mode) and status.st_size < self._size:
            raise self._shorter()
        return [Extent(offset, length, zero=not data, hole=not data) for offset, length, data in ranges]

    def _shorter(self) -> SourceError:
        return SourceError(f"{_name(self._path)} became shorter while it was read", path=str(self._path))


class FileSink(_File):
    """An image file or block device that is written, sparsely; after `flush` it is durable, its name included.

    Made by `open`; a context manager.
    """

    def __init__(self, path: Path, fds: tuple[int, ...], size: int, workers: Workers) -> None:
        super().__init__(path, fds, size, workers)
        self._direct = fds[1] if len(fds) > 1 else None
        self._room = size  # how long the file is
        self._lost: str | None = None  # why `flush` failed

    @classmethod
    async def open(cls, path: Path, *, size: int, workers: Workers, overwrite: bool) -> Self:
        """Create an image file, or open a block device, to write it.

        Args:
            path: The file; a new one can be read and written by its owner alone.
            size: Bytes to be written; a file gets this length, a block device keeps what it has beyond.
            workers: Where blocking calls run.
            overwrite: Empty a file that exists; without it, it is refused.

        Raises:
            TargetRefusedError: It exists, is in use, is too small, or is neither a file nor a block device; nothing was
                changed.
            NoSpaceError, TargetError: It cannot be created or opened.
        """
        fds, size = await _opened(workers, _open_target, path, size, overwrite)
        return cls(path, fds, size, workers)

    @property
    def block_size(self) -> int:
        """A page, so that none is written in part directly and in part through the page cache."""
        return PAGE

    async def grow(self, size: int) -> None:
        """Let the disk have `size` bytes: a file becomes that long or longer, a block device must have them.

        Raises:
            NoSpaceError, TargetError: It cannot be made that long.
        """
        if size > self._room:
            # In steps: changing the length waits for all direct writes under way.
            room = align_up(size, _GROWN_IN_ONE_STEP)
            self._room = await self._workers.run_to_end(_extend, self._fds[0], self._path, size, room)
        self._size = size

    async def end(self, size: int) -> None:
        """Give a file its length; a block device keeps what it has beyond.

        Raises:
            NoSpaceError, TargetError: It cannot be made that long.
        """
        self._room = await self._workers.run_to_end(_extend, self._fds[0], self._path, size, size)
        self._size = size

    async def write(self, offset: int, data: Buffer) -> None:
        """Write all bytes; past the page cache from memory at a page boundary.

        Raises:
            NoSpaceError, TargetError: They could not be written.
            UsageError: The range does not lie within the disk, or not on block boundaries.
        """
        self._check(offset, len(data))
        await self._workers.run_to_end(self._write, offset, data)

    async def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros: holes stay, other space is given back, or overwritten where it cannot be.

        Cancelling leaves a part of the range as it was.

        Raises:
            NoSpaceError, TargetError: It could not be done.
            UsageError: The range does not lie within the disk, or not on block boundaries.
        """
        self._check(offset, length)
        position, end = offset, offset + length
        while position < end:
            position = await self._workers.run_to_end(self._zero_some, position, end)

    async def flush(self) -> bool:
        """Make the file and its name durable.

        Raises:
            NoSpaceError, TargetError: They are not. Trying again does not help: the file has to be written anew.
        """
        await self._workers.run_to_end(self._flush)
        return True

    @asynccontextmanager
    async def writers(self, count: int) -> AsyncIterator[list[Writer]]:
        """`count` ends, each for one thread to write, for the time of the block."""
        yield [_FileWriter(self) for _ in range(count)]

    def _check(self, offset: int, length: int) -> None:
        self._check_range(offset, length)
        if offset % PAGE or (length % PAGE and offset + length != self._size):
            raise UsageError(f"{length} bytes at {offset} of {_name(self._path)} are not on boundaries of {PAGE} bytes")

    def _write(self, offset: int, data: Buffer) -> None:
        with self._errors(TargetError, "write", offset, len(data)):
            write_at(self._fds[0], offset, data, direct=self._direct)

    def _zero_some(self, start: int, end: int) -> int:
        """Make a first part of the range zero; returns where that part ends."""
        with self._errors(TargetError, "zero", start, end - start):
            for offset, length, data in data_ranges(self._fds[0], start, end, limit=1):
                if not data:
                    continue
                length = min(length, _ZEROED_IN_ONE_CALL)
                if not punch_hole(self._fds[0], offset, length):
                    self._write_zeros(offset, offset + length)
                return offset + length
        return end

    def _write_zeros(self, start: int, end: int) -> None:
        with memoryview(_ZEROS) as zeros:
            for offset in range(start, end, len(zeros)):
                write_at(self._fds[0], offset, zeros[: end - offset], direct=self._direct)

    def _flush(self) -> None:
        if self._lost is not None:
            raise TargetError(self._lost, path=str(self._path))
        try:
            os.fsync(self._fds[0])
            sync_directory(self._path.parent)
        except OSError as error:
            failure = _target_error(error, f"make {_name(self._path)} durable", self._path)
            self._lost = str(failure)
            raise failure from error


class _FileReader(Near):
    """A file in the hands of one thread, as near as can be: a few large calls at once are what a disk can do, too."""

    def __init__(self, file: FileSource) -> None:
        self._file = file

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._file._check_range(offset, len(buffer))
        self._file._read(offset, buffer)


class _SendableReader(_FileReader):
    """Its file can go from the page cache to a socket."""

    def __init__(self, file: FileSource) -> None:
        super().__init__(file)
        self._sample = memoryview(bytearray(_SAMPLE))

    def fileno(self) -> int:
        return self._file._fds[0]

    def is_sendable(self, offset: int, buffer: memoryview, block: int) -> bool:
        """Look at the first bytes of each block, and at the whole of those that begin with zeros."""
        if 0 < block < _LEAST_BLOCK:
            return False
        self._file._check_range(offset, len(buffer))
        step = block or _LEAST_BLOCK
        end = offset + len(buffer)
        return all(
            self._is_data(start, buffer[: min(step - start % step, end - start)], look=block > 0)
            for start in (offset, *range(align_up(offset + 1, step), end, step))
        )

    def _is_data(self, start: int, block: memoryview, *, look: bool) -> bool:
        """Whether a block is in the page cache; and not zeros, where we are to look."""
        fd, sample = self.fileno(), self._sample[: len(block)]
        try:
            if os.preadv(fd, [sample], start, os.RWF_NOWAIT) < len(sample):
                return False
            return not look or any(sample) or (read_at(fd, start, block) == len(block) and not is_zero(block))
        except OSError:  # it is not there, or one may not ask; reading it tells what is wrong, if anything is
            return False


class _FileWriter(Near):
    """As `_FileReader`."""

    def __init__(self, file: FileSink) -> None:
        self._file = file

    def write(self, offset: int, data: Buffer) -> None:
        self._file._check(offset, len(data))
        self._file._write(offset, data)


class _NullWriter(Near):
    def write(self, offset: int, data: Buffer) -> None:
        """Nothing to do."""


class NullSink:
    """``null:`` takes everything and keeps nothing; for measuring a source."""

    def __init__(self, size: int) -> None:
        self._size = size

    @property
    def size(self) -> int:
        return self._size

    @property
    def block_size(self) -> int:
        return 1

    async def grow(self, size: int) -> None:
        """Let the disk have `size` bytes."""
        self._size = size

    async def end(self, size: int) -> None:
        """Nothing to do."""

    async def write(self, offset: int, data: Buffer) -> None:
        """Nothing to do."""

    async def zero(self, offset: int, length: int) -> None:
        """Nothing to do."""

    async def flush(self) -> bool:
        """True: there is nothing that could be lost."""
        return True

    @asynccontextmanager
    async def writers(self, count: int) -> AsyncIterator[list[Writer]]:
        """`count` ends, each for one thread."""
        yield [_NullWriter() for _ in range(count)]


async def _opened(
    workers: Workers, function: Callable[..., tuple[tuple[int, ...], int]], *args: object
) -> tuple[tuple[int, ...], int]:
    """The descriptors and the size that `function` returns; closed again if the caller is cancelled meanwhile."""
    future = workers.submit(function, *args)
    try:
        return await settled(future)
    except asyncio.CancelledError:
        if not future.cancelled() and future.exception() is None:
            _close(future.result()[0])
        raise


def _is_sendable(fd: int) -> bool:
    """Whether the file system gives pages of a file away."""
    with suppress(OSError):
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            return os.splice(fd, writing, 1, offset_src=0) == 1
        finally:
            os.close(reading)
            os.close(writing)
    return False


def _open_source(path: Path) -> tuple[tuple[int, ...], int]:
    try:
        fd = os.open(path, os.O_RDONLY | _FLAGS)
    except OSError as error:
        what = f"cannot open {_name(path)}: {error.strerror}"
        raise system_limit(error) or SourceError(what, path=str(path)) from error
    with _closed_on_error(fd):
        if not _is_disk(fd):
            raise SourceError(f"{_name(path)} is neither a file nor a block device", path=str(path))
        with suppress(OSError):
            # Tells our own sinks not to empty a file that is being read; whoever writes it already may go on.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return (fd,), os.lseek(fd, 0, os.SEEK_END)


def _open_target(path: Path, size: int, overwrite: bool) -> tuple[tuple[int, ...], int]:
    fd = _create_target(path, overwrite)
    with _closed_on_error(fd):
        if not _is_disk(fd):
            raise TargetRefusedError(f"{_name(path)} is neither a file nor a block device", path=str(path))
        _lock(fd, path)
        try:
            _resize(fd, path, size)
        except OSError as error:
            raise _target_error(error, f"make {_name(path)} {size} bytes long", path) from error
    direct = reopen_direct(fd)
    return ((fd,) if direct is None else (fd, direct)), size


def _create_target(path: Path, overwrite: bool) -> int:
    """A descriptor of a new file or, with `overwrite`, of one that exists; its content is untouched."""
    try:
        if overwrite:
            with suppress(FileNotFoundError):
                # O_EXCL: a block device that is mounted, or in use by the kernel otherwise, is refused (open(2)).
                return os.open(path, os.O_RDWR | os.O_EXCL | _FLAGS)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
    except OSError as error:
        refused = {
            errno.EEXIST: "exists",
            errno.EISDIR: "is a directory",
            errno.EBUSY: "is in use",
            errno.ENXIO: "is neither a file nor a block device",
        }
        if error.errno in refused:
            raise TargetRefusedError(f"{_name(path)} {refused[error.errno]}", path=str(path)) from error
        raise _target_error(error, f"open {_name(path)} to write it", path) from error


def _lock(fd: int, path: Path) -> None:
    """Take the file for ourselves, so that no copy empties its own source or another one's target.

    A virtual machine, qemu-nbd and qemu-img say by locks of another kind that they use an image (qemu,
    block/file-posix.c, raw_check_lock_bytes): so the source of a copy over NBD is found to be its target.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise TargetRefusedError(f"{_name(path)} is in use by another job", path=str(path)) from error
    except OSError:
        pass  # a file system without locks
    with suppress(OSError):
        found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        if _FLOCK.unpack(found)[0] != fcntl.F_UNLCK:
            raise TargetRefusedError(f"{_name(path)} is in use, by a virtual machine or qemu-nbd", path=str(path))


def remove_abandoned(path: Path, age: float) -> bool:
    """Remove a file that nobody writes and that has not changed for `age` seconds; whether it was one.

    Whoever makes a file here, or has qemu make it, locks it all the time but for moments at the beginning and the end.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | _FLAGS)
    except OSError:
        return False
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or time.time() - found.st_mtime < age:
            return False
        _lock(fd, path)
        os.unlink(path)
    except (OSError, TargetRefusedError):
        return False
    finally:
        os.close(fd)
    return True


def _resize(fd: int, path: Path, size: int) -> None:
    """Make a file a single hole of the given size; check that a block device has it."""
    if stat.S_ISREG(os.fstat(fd).st_mode):
        os.ftruncate(fd, 0)
        os.ftruncate(fd, size)
        return
    found = os.lseek(fd, 0, os.SEEK_END)
    if found < size:
        raise TargetRefusedError(f"{_name(path)} has {found} bytes, {size} are needed", path=str(path))


def _extend(fd: int, path: Path, size: int, room: int) -> int:
    """Make a file `room` bytes long; check that a block device has `size` bytes. Returns how many there are."""
    if stat.S_ISREG(os.fstat(fd).st_mode):
        try:
            os.ftruncate(fd, room)
        except OSError as error:
            raise _target_error(error, f"make {_name(path)} {room} bytes long", path) from error
        return room
    found = os.lseek(fd, 0, os.SEEK_END)
    if found < size:
        raise NoSpaceError(f"{_name(path)} is full: it has {found} bytes, and more are to come", path=str(path))
    return found


def _is_disk(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


def _close(fds: tuple[int, ...]) -> None:
    for fd in fds:
        close_anyway(fd)


@contextmanager
def _closed_on_error(fd: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        os.close(fd)
        raise


def _target_error(error: OSError, doing: str, path: Path) -> StorageError:
    """The error for a target of which something failed: ``cannot <doing>: <reason>``."""
    kind = NoSpaceError if is_full(error) else TargetError
    return kind(f"cannot {doing}: {error.strerror}", path=str(path))


def _name(path: Path) -> str:
    return printable(str(path))
