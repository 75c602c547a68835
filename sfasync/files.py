"""Files made durable: what the repository and local disk images share.

A failed fsync is fatal for the file it was called on: the kernel may have dropped the dirty pages, so a second fsync that
succeeds proves nothing (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020). Nothing here
tries again.
"""

from __future__ import annotations

import errno
import os

from .errors import NoSpaceError, StorageError, printable
from .interfaces import Buffer

_FULL = (errno.ENOSPC, errno.EDQUOT)


def storage_error(error: OSError, doing: str, path: str) -> StorageError:
    """The error for an operation on a file that failed: ``cannot <doing> <path>: <reason>``."""
    kind = NoSpaceError if error.errno in _FULL else StorageError
    reason = error.strerror or str(error) or type(error).__name__
    return kind(f"cannot {doing} {printable(path)}: {printable(reason)}", path=path)


def write_all(fd: int, data: Buffer) -> None:
    """Write every byte at the descriptor's position; the kernel may take them in several portions.

    Raises:
        OSError: As of write(2).
    """
    view = memoryview(data).cast("B")
    written = 0
    while written < len(view):
        written += os.write(fd, view[written:])


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
