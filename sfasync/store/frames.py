"""zstd frames put together by hand (RFC 8878): data that lies between zeros, without a search through the zeros.

::

    frame of the data     magic | header |                   block | ... | last block
    frame of all          magic | header | zeros | ... | block | ... | block | zeros | ... | last block, empty

Zeros are blocks that say one byte and how often it comes. What the blocks of the data refer to lies within the data, so
it does not matter to them what comes before.
"""

from __future__ import annotations

from ..interfaces import Buffer
from ..units import KiB

_MAGIC = b"\x28\xb5\x2f\xfd"
_DESCRIPTOR = 0b1010_0000  # content size in 4 bytes; all of the content is one segment, the window
_SIZE_LENGTHS = (0, 2, 4, 8)  # bytes of the content size, by the two highest bits of the descriptor
_SINGLE_SEGMENT = 0b10_0000
_BLOCK_HEADER = 3
_LAST, _REPEATED = 0b001, 0b010
_MOST = 128 * KiB  # content of a block
_END = bytes([_LAST, 0, 0])  # a last block without content


def between_zeros(frame: Buffer, length: int, before: int, after: int) -> bytes:
    """A frame of `before` zeros, what `frame` holds, and `after` zeros.

    Args:
        frame: One frame, without dictionary and checksum, as our compressor writes it.
        length: Bytes that it holds, at least one.
        before, after: Zeros, in bytes.
    """
    header = _MAGIC + bytes([_DESCRIPTOR]) + (before + length + after).to_bytes(4, "little")
    body = bytearray(frame[_header_length(frame) :])
    end = b""
    if after:
        last = _last_block(body)
        body[last] &= ~_LAST
        end = _END
    return b"".join((header, _zeros(before), body, _zeros(after), end))


def _zeros(count: int) -> bytes:
    """Blocks of so many zeros, none of them the last."""
    full, rest = divmod(count, _MOST)
    return _repeated_zero(_MOST) * full + (_repeated_zero(rest) if rest else b"")


def _repeated_zero(count: int) -> bytes:
    return (count << 3 | _REPEATED).to_bytes(_BLOCK_HEADER, "little") + b"\0"


def _header_length(frame: Buffer) -> int:
    descriptor = frame[len(_MAGIC)]
    size = _SIZE_LENGTHS[descriptor >> 6]
    # One segment: no byte for the window, and a content size of one byte where it would have none.
    return len(_MAGIC) + 1 + (max(size, 1) if descriptor & _SINGLE_SEGMENT else 1 + size)


def _last_block(body: Buffer) -> int:
    """Where the last of the blocks begins."""
    position = 0
    while True:
        block = int.from_bytes(body[position : position + _BLOCK_HEADER], "little")
        if block & _LAST:
            return position
        position += _BLOCK_HEADER + (1 if block & 0b110 == _REPEATED else block >> 3)
