"""Files made durable: what the repository and local disk images share.

A failed fsync is fatal for the file it was called on: the kernel may have dropped the dirty pages, so a second fsync
that succeeds proves nothing (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020). Nothing
here tries again.
"""

from __future__ import annotations

import errno
import mmap
import os
from contextlib import suppress
from pathlib import Path

from .errors import NoSpaceError, StorageError, SystemLimitError, TargetRefusedError, printable, system_limit
from .interfaces import Buffer
from .units import KiB, MiB

PAGE = 4 * KiB
"""Memory, offset and length of a direct write are multiples of it; no disk asks for more."""

_GATHERED = 2 * MiB  # of a new file, for one direct write (docs/performance.md)

_SPARES = 4
_spares: list[mmap.mmap] = []
"""Memory of files that were closed, for those that come: what is new costs 3 ms, as each page is faulted in."""

_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: OSError) -> bool:
    """Whether an operation failed because file system or quota is full."""
    return error.errno in _FULL


def storage_error(
    error: OSError, doing: str, path: str, *, file_system: int | None = None, needed: int = 0
) -> StorageError:
    """The error for an operation on a file that failed: ``cannot <doing> <path>: <reason>``.

    Args:
        error: How it failed.
        doing: What was tried.
        path: The file.
        file_system: A descriptor on its file system, if there is one: when that is full, the message tells what is
            missing.
        needed: Bytes that were still to be written.
    """
    limit = system_limit(error)
    kind = NoSpaceError if is_full(error) else SystemLimitError if limit else StorageError
    reason = str(limit) if limit else printable(error.strerror or str(error) or type(error).__name__)
    if error.errno == errno.ENOSPC and file_system is not None:
        reason += _what_is_missing(file_system, needed)
    return kind(f"cannot {doing} {printable(path)}: {reason}", path=path)


def _what_is_missing(file_system: int, needed: int) -> str:
    """What a full file system lacks; empty where it does not tell."""
    try:
        found = os.fstatvfs(file_system)
    except OSError:
        return ""
    if found.f_files > 0 and found.f_favail == 0:  # one without a table of inodes says 0 of 0
        return "; it has no free inodes: remove files, or make it anew with more"
    # What is not written in bytes, a name or an inode, takes a block at least.
    missing = max(needed, found.f_frsize) - found.f_bavail * found.f_frsize
    return f"; at least {missing} bytes are missing" if missing > 0 else ""


class FileWriter:
    """Writes a new file from its beginning, past the page cache where the file system takes it.

    What comes is gathered in memory at a page boundary; only the end of the file goes through the page cache. Through
    the cache 1 GiB took 1.6 s with its fsync on a machine where it takes 0.6 s past it, and a tenth of a backup's CPU.
    Small files cost what they cost before. Not for several threads at once.

    Args:
        fd: An empty file, open for writing; stays the caller's.

    Attributes:
        position: Bytes that were given to it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._direct: int | None = None
        self._area: mmap.mmap | None = _taken()
        self._memory = memoryview(self._area)
        self._gathered = 0
        self._written = 0
        self.position = 0

    def write(self, data: Buffer) -> None:
        """Take the bytes that come next; not touched after the return.

        Raises:
            OSError: As of pwrite(2), for these bytes or for earlier ones.
        """
        view = memoryview(data).cast("B")
        self.position += len(view)
        while len(view):
            part = view[: _GATHERED - self._gathered]
            self._memory[self._gathered : self._gathered + len(part)] = part
            self._gathered += len(part)
            view = view[len(part) :]
            if self._gathered == _GATHERED:
                self._direct = reopen_direct(self._fd) if self._written == 0 else self._direct
                self.flush()

    def flush(self) -> None:
        """Hand everything to the file system; nothing is durable yet. Nothing can be written after it.

        Raises:
            OSError: As of pwrite(2).
        """
        write_at(self._fd, self._written, self._memory[: self._gathered], direct=self._direct)
        self._written += self._gathered
        self._gathered = 0

    def missing(self) -> int:
        """Bytes that were given to it and that the file does not have; 0 if its file system does not tell."""
        try:
            return self.position - os.fstat(self._fd).st_size
        except OSError:
            return 0

    def close(self) -> None:
        """Give back what it holds, and write nothing; idempotent."""
        direct, self._direct = self._direct, None
        if direct is not None:
            close_anyway(direct)
        self._memory.release()  # from here on nobody writes with it
        area, self._area = self._area, None
        if area is not None and len(_spares) < _SPARES:
            _spares.append(area)


def _taken() -> mmap.mmap:
    """Memory at a page boundary, with undefined content."""
    try:
        return _spares.pop()
    except IndexError:
        return mmap.mmap(-1, _GATHERED, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def close_anyway(fd: int) -> None:
    """Close a file of which nothing more is wanted.

    What a network file system reports here is of no use: durable is what fsync(2) said, and nothing else.
    """
    with suppress(OSError):
        os.close(fd)


def read_at(fd: int, offset: int, buffer: memoryview) -> int:
    """Fill the buffer from `offset`; returns the bytes read, fewer than its length only at the end of the file.

    Raises:
        OSError: As of preadv(2).
    """
    done = 0
    while done < len(buffer):
        count = os.preadv(fd, [buffer[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def write_at(fd: int, offset: int, data: Buffer, *, direct: int | None = None) -> None:
    """Write every byte from `offset`.

    Args:
        fd: Takes what `direct` does not.
        offset: First byte in the file.
        data: Memory at a page boundary lets `direct` be used.
        direct: The same file opened with O_DIRECT, for whole pages; None if it cannot be.

    Raises:
        OSError: As of pwrite(2).
    """
    view = memoryview(data).cast("B")
    done = 0
    if direct is not None and offset % PAGE == 0:
        done = _write_pages(direct, offset, view[: len(view) - len(view) % PAGE])
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)


def _write_pages(direct: int, offset: int, view: memoryview) -> int:
    """Bytes written past the page cache: all of them, or fewer where the file system does not take memory or place."""
    done = 0
    while done < len(view):
        try:
            done += os.pwrite(direct, view[done:], offset + done)
        except OSError as error:
            if error.errno != errno.EINVAL:  # alignment (open(2), "O_DIRECT")
                raise
            break
    return done


def reopen_direct(fd: int) -> int | None:
    """The file of a writable descriptor, opened once more with O_DIRECT; None where its file system has no such thing.

    Through /proc, so that it is the same file whatever has happened to its name.
    """
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return None


def data_ranges(fd: int, start: int, end: int, *, limit: int) -> list[tuple[int, int, bool]]:
    """Adjacent ranges (offset, length, whether it holds data) from `start` on, at most `limit` and one of them.

    A file system that cannot tell calls everything data (lseek(2), "Seeking file data and holes"), and so does a block
    device, with EINVAL.

    Raises:
        OSError: As of lseek(2).
    """
    ranges: list[tuple[int, int, bool]] = []
    position = start
    while position < end and len(ranges) < limit:
        data = min(_seek(fd, position, os.SEEK_DATA, otherwise=position, at_end=end), end)
        if data > position:
            ranges.append((position, data - position, False))
        # At least one byte further: what a changing file answers must not stop us.
        position = max(_seek(fd, data, os.SEEK_HOLE, otherwise=end, at_end=end), data + 1) if data < end else end
        position = min(position, end)
        if position > data:
            ranges.append((data, position - data, True))
    return ranges


def _seek(fd: int, position: int, whence: int, *, otherwise: int, at_end: int) -> int:
    try:
        return os.lseek(fd, position, whence)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return otherwise
        if error.errno == errno.ENXIO:  # nothing of that kind from here to the end of the file
            return at_end
        raise


def punch_hole(fd: int, offset: int, length: int) -> bool:
    """Make a range of a file or block device read as zeros by giving its space back; False where that is not offered.

    Raises:
        OSError: As of fallocate(2).
    """
    import ctypes  # only those who overwrite with zeros pay for it

    libc = ctypes.CDLL(None, use_errno=True)
    mode = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE (linux/falloc.h)
    while libc.fallocate64(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
        code = ctypes.get_errno()
        if code in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable.

    Raises:
        OSError: As of fsync(2).
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_names(fd)
    finally:
        os.close(fd)


def sync_names(fd: int) -> None:
    """As `sync_directory`, of a directory that is open."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system without durable directories (fsync(2))
            raise


def publish(hidden: Path, path: Path, replace: bool) -> None:
    """Give a finished file its name, durably.

    Args:
        hidden: The file, in the same directory, its content durable.
        path: The name.
        replace: Take the name from a file that has it.

    Raises:
        TargetRefusedError: The name is taken and `replace` was not given; both files are unchanged.
        StorageError: It could not be done.
    """
    try:
        if replace:
            os.replace(hidden, path)
        else:
            _name_exclusively(hidden, path)
        sync_directory(path.parent)
    except FileExistsError as error:
        raise TargetRefusedError(f"{printable(str(path))} exists", path=str(path)) from error
    except OSError as error:
        raise storage_error(error, "create", str(path)) from error


def _name_exclusively(hidden: Path, path: Path) -> None:
    try:
        os.link(hidden, path)
    except OSError as error:
        # A file system without hard links (vfat, some network ones) has no better way than to look first.
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from error
        os.rename(hidden, path)
    else:
        os.unlink(hidden)


def create_file(path: Path) -> None:
    """Create an empty file that its owner alone can read and write.

    Raises:
        StorageError: It is there already, or cannot be created.
    """
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise storage_error(error, "create", str(path)) from error


def make_directory(path: Path) -> None:
    """Create a directory, for its owner alone, and those above it that are missing; each is durable in its parent.

    Raises:
        OSError: As of mkdir(2), but not if the directory is there.
    """
    for directory in reversed([part for part in (path, *path.parents) if not part.exists()]):
        directory.mkdir(0o700, exist_ok=True)
        sync_directory(directory.parent)
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
