"""Sealing and unsealing of blobs: what lies between the bytes of a disk and the bytes in a pack.

A blob is compressed with zstd, or kept as it is when that saves less than 3 %. Its lengths tell which: a blob as long
sealed as raw is raw. What was compressed is decompressed again and compared before anybody relies on it
(restic #4523: a compressor that lost data).
"""

from __future__ import annotations

import threading
from enum import IntEnum
from typing import NamedTuple

from ..errors import IntegrityError, system_limit
from ..interfaces import Buffer
from ..units import MiB
from .compression import Codec, CompressionError, Parameter, codec
from .frames import between_zeros


class BlobKind(IntEnum):
    """What a blob is."""

    CHUNK = 1
    PAGE = 2
    FILE = 3


KINDS = frozenset(BlobKind)
MAX_FILE = 16 * MiB
"""The largest blob of kind FILE; chunks and pages are smaller."""

_PARAMETERS: dict[int, int] = {
    Parameter.compression_level: 1,
    Parameter.window_log: 18,
}
"""Level 1, with a window that is small enough for the library to search without branches (below 19). Level 3 saves 7 %
for two thirds more of the time (docs/performance.md, "Compression").
"""
_SAVING = 32  # compression must save one part in this many

_local = threading.local()


class Sealed(NamedTuple):
    """A blob that is ready for a pack.

    Attributes:
        name: Its digest.
        raw: Bytes before sealing.
        data: The sealed bytes.
    """

    name: bytes
    raw: int
    data: Buffer


def seal(data: Buffer, *, before: int = 0, after: int = 0) -> Buffer:
    """The bytes to store for a blob: its own, or its compressed form, which has been checked; that is valid until this
    thread seals again.

    About 2 ms for 1 MiB of ordinary data, all of it with the GIL released.

    Args:
        data: The blob, or what of it lies between zeros.
        before, after: So many zeros are before and behind the data; they are not searched.

    Raises:
        IntegrityError: The compressor is broken: its output does not give the input back.
        SystemLimitError: It gets no memory.
    """
    try:
        zstd = _codec()
        length = before + len(data) + after
        compressed = zstd.compress(data)
        if before or after:
            compressed = between_zeros(compressed, len(data), before, after)
        if len(compressed) > length - max(1, length // _SAVING):
            return b"".join((bytes(before), data, bytes(after))) if before or after else data
        is_good = zstd.gives_back(compressed, data, before=before, after=after)
    except CompressionError as error:
        raise IntegrityError(f"zstd cannot compress: {error}") from error
    except MemoryError as error:
        raise system_limit(error) or error from error
    if not is_good:
        raise IntegrityError("zstd gave back other bytes than it was given; the memory or the library is broken")
    return compressed


def unseal(sealed: Buffer, buffer: memoryview) -> None:
    """Fill the buffer with a blob that is as long; its content is for the caller to check against its digest.

    Memory is bounded by the buffer, whatever the sealed bytes claim.

    Raises:
        IntegrityError: The bytes do not unseal to that length; the buffer's content is undefined.
        SystemLimitError: There is no memory to decompress in, which says nothing about the bytes.
    """
    if len(sealed) == len(buffer):
        buffer[:] = sealed
        return
    try:
        _codec().decompress(sealed, buffer)
    except CompressionError as error:
        raise IntegrityError(f"a blob of {len(buffer)} bytes does not decompress: {error}") from error
    except MemoryError as error:
        raise system_limit(error) or error from error


def _codec() -> Codec:
    """This thread's own codec: making one for each blob costs more than compressing a small one."""
    own: Codec | None = getattr(_local, "codec", None)
    if own is None:
        own = _local.codec = codec(_PARAMETERS)
    return own
