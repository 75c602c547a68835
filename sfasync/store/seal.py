"""Sealing and unsealing of blobs: what lies between the bytes of a disk and the bytes in a pack.

A blob is compressed with zstd, or kept as it is when that saves less than 3 %. Its lengths tell which: a blob as long
sealed as raw is raw. What was compressed is decompressed again and compared before anybody relies on it
(restic #4523: a compressor that lost data).
"""

from __future__ import annotations

import sys
import threading
from enum import IntEnum

from ..errors import IntegrityError, SystemLimitError, system_limit
from ..interfaces import Buffer
from ..units import MiB

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


class BlobKind(IntEnum):
    """What a blob is."""

    CHUNK = 1
    PAGE = 2
    FILE = 3


KINDS = frozenset(BlobKind)
MAX_FILE = 16 * MiB
"""The largest blob of kind FILE; chunks and pages are smaller."""

_PARAMETERS: dict[int, int] = {
    zstd.CompressionParameter.compression_level: 1,
    zstd.CompressionParameter.window_log: 20,
    zstd.CompressionParameter.hash_log: 14,
    zstd.CompressionParameter.min_match: 6,
}
"""Level 1, with a window over the whole chunk and matches of 6 bytes instead of 7: 2 % smaller for 7 % more time. Level
3 saves 6 % for 54 % (docs/performance.md, "Compression").
"""
_SAVING = 32  # compression must save one part in this many
_DECOMPRESSION: dict[int, int] = {zstd.DecompressionParameter.window_log_max: MAX_FILE.bit_length() - 1}
_FRAME_HEADER = 18  # the longest there is (RFC 8878, 3.1.1.1)

_local = threading.local()


def seal(data: Buffer) -> Buffer:
    """The bytes to store for a blob: `data` itself, or its compressed form, which has been checked.

    About 2 ms for 1 MiB of ordinary data, all of it with the GIL released.

    Raises:
        IntegrityError: The compressor is broken: its output does not give the input back.
        SystemLimitError: It gets no memory.
    """
    view = memoryview(data)
    try:
        compressed = _compressor().compress(view, zstd.ZstdCompressor.FLUSH_FRAME)
    except zstd.ZstdError as error:
        raise _limit(error) or IntegrityError(f"zstd cannot compress: {error}") from error
    if len(compressed) > len(view) - max(1, len(view) // _SAVING):
        return data
    # bytes.startswith takes any buffer and is one memcmp; comparing a memoryview goes element by element
    if not _decompress(compressed, len(view)).startswith(view):
        raise IntegrityError("zstd gave back other bytes than it was given; the memory or the library is broken")
    return compressed


def unseal(sealed: Buffer, length: int) -> Buffer:
    """The blob, of exactly `length` bytes; its content is for the caller to check against its digest.

    Memory is bounded by `length`, whatever the sealed bytes claim.

    Raises:
        IntegrityError: The bytes do not unseal to that length.
        SystemLimitError: There is no memory to decompress in, which says nothing about the bytes.
    """
    return sealed if len(sealed) == length else _decompress(sealed, length)


def _decompress(sealed: Buffer, length: int) -> bytes:
    """What one zstd frame holds, if it is `length` bytes and the frame says so before it is believed."""
    try:
        claimed = zstd.get_frame_info(sealed[:_FRAME_HEADER]).decompressed_size
        if claimed != length:
            raise IntegrityError(f"a blob of {length} bytes says that it has {claimed}")
        decompressor = zstd.ZstdDecompressor(options=_DECOMPRESSION)
        data = decompressor.decompress(sealed, max_length=length)
    except zstd.ZstdError as error:
        raise _limit(error) or IntegrityError(f"a blob does not decompress: {error}") from error
    if len(data) != length or not decompressor.eof or decompressor.unused_data:
        raise IntegrityError(f"a blob of {length} bytes does not decompress to that length")
    return data


def _limit(error: zstd.ZstdError) -> SystemLimitError | None:
    """The error for a lack of memory, if that is what zstd means (zstd_errors.h: its only name is its text)."""
    return system_limit(MemoryError()) if "not enough memory" in str(error) else None


def _compressor() -> zstd.ZstdCompressor:
    """This thread's own compressor: making one for each blob costs more than compressing a small one."""
    compressor: zstd.ZstdCompressor | None = getattr(_local, "compressor", None)
    if compressor is None:
        compressor = _local.compressor = zstd.ZstdCompressor(options=_PARAMETERS)
    return compressor
