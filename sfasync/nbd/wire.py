"""How the messages of NBD look in bytes, and what every field of them may be.

Encoders take what this side has made and trust it; decoders take what a peer sent and raise `RemoteProtocolError` for
anything that does not fit. Nothing here knows in which order messages come.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from ..errors import RemoteProtocolError
from . import const

GREETING: Final = struct.Struct(">QQ")
HANDSHAKE_FLAGS: Final = struct.Struct(">H")
CLIENT_FLAGS: Final = struct.Struct(">I")
OPTION: Final = struct.Struct(">QII")  # IHAVEOPT, option, length
OPTION_REPLY: Final = struct.Struct(">QIII")  # magic, option, type, length
EXPORT_NAME_REPLY: Final = struct.Struct(">QH")  # size, transmission flags
REQUEST: Final = struct.Struct(">IHHQQI")  # magic, flags, type, cookie, offset, length
MAGIC: Final = struct.Struct(">I")
SIMPLE_REPLY: Final = struct.Struct(">IIQ")  # magic, error, cookie
STRUCTURED_REPLY: Final = struct.Struct(">IHHQI")  # magic, flags, type, cookie, length
OFFSET_DATA: Final = struct.Struct(">Q")  # offset
OFFSET_HOLE: Final = struct.Struct(">QI")  # offset, length
ERROR: Final = struct.Struct(">IH")  # error, length of message
ERROR_OFFSET: Final = struct.Struct(">Q")  # offset, behind the message
CONTEXT_ID: Final = struct.Struct(">I")
DESCRIPTOR: Final = struct.Struct(">II")  # length, status flags

EXPORT_NAME_PADDING: Final = 124
"""Zeros behind the answer to NBD_OPT_EXPORT_NAME, unless both sides have NO_ZEROES."""

MAX_ERROR_CHUNK: Final = ERROR.size + const.MAX_STRING + ERROR_OFFSET.size
"""Bytes of an error chunk of a reply that are believed."""

_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")
_INFO_EXPORT: Final = struct.Struct(">HQH")
_INFO_BLOCK_SIZE: Final = struct.Struct(">HIII")


# --- what is sent ----------------------------------------------------------------------------------------------------


def encode_option(option: int, data: bytes = b"") -> bytes:
    """An option of the handshake."""
    return OPTION.pack(const.IHAVEOPT, option, len(data)) + data


def encode_info(export: bytes, wanted: Sequence[int]) -> bytes:
    """The data of NBD_OPT_GO and NBD_OPT_INFO."""
    return _counted(export) + _U16.pack(len(wanted)) + b"".join(_U16.pack(info) for info in wanted)


def encode_contexts(export: bytes, queries: Sequence[bytes]) -> bytes:
    """The data of NBD_OPT_SET_META_CONTEXT and NBD_OPT_LIST_META_CONTEXT."""
    return _counted(export) + _U32.pack(len(queries)) + b"".join(map(_counted, queries))


def encode_disconnect() -> bytes:
    """The request that ends a connection; it has no answer."""
    return REQUEST.pack(const.REQUEST_MAGIC, 0, const.CMD_DISC, 0, 0, 0)


def _counted(text: bytes) -> bytes:
    return _U32.pack(len(text)) + text


# --- what comes: option replies --------------------------------------------------------------------------------------


class BlockSizes(NamedTuple):
    """Block size constraints of an export, in bytes, as the server told them (proto.md, "Block size constraints")."""

    minimum: int
    preferred: int
    maximum: int


def decode_text(data: bytes, what: str) -> str:
    """A string of the peer: UTF-8 of at most 4096 bytes (proto.md, "String values")."""
    if len(data) > const.MAX_STRING:
        raise RemoteProtocolError(f"{what} is {len(data)} bytes long; {const.MAX_STRING} is the limit")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise RemoteProtocolError(f"{what} is not UTF-8") from error


def decode_server(payload: bytes) -> tuple[str, str]:
    """NBD_REP_SERVER: name and description of an export."""
    if len(payload) < _U32.size:
        raise RemoteProtocolError("an entry of the export list is too short")
    (length,) = _U32.unpack_from(payload)
    end = _U32.size + length
    if end > len(payload):
        raise RemoteProtocolError("an export name in the list is longer than its entry")
    return decode_text(payload[_U32.size : end], "an export name"), decode_text(payload[end:], "an export description")


def decode_context(payload: bytes) -> tuple[int, str]:
    """NBD_REP_META_CONTEXT: id and name of a metadata context."""
    if len(payload) < CONTEXT_ID.size:
        raise RemoteProtocolError("a metadata context reply is too short")
    (context,) = CONTEXT_ID.unpack_from(payload)
    return context, decode_text(payload[CONTEXT_ID.size :], "a metadata context's name")


def decode_info_type(payload: bytes) -> int:
    """Which information an NBD_REP_INFO carries."""
    if len(payload) < _U16.size:
        raise RemoteProtocolError("an information reply is too short")
    return int(_U16.unpack_from(payload)[0])


def decode_info_export(payload: bytes) -> tuple[int, int]:
    """NBD_INFO_EXPORT: size in bytes and transmission flags."""
    if len(payload) != _INFO_EXPORT.size:
        raise RemoteProtocolError(f"NBD_INFO_EXPORT has {len(payload)} bytes; it needs {_INFO_EXPORT.size}")
    _, size, flags = _INFO_EXPORT.unpack(payload)
    return size, flags


def decode_info_block_size(payload: bytes) -> BlockSizes:
    """NBD_INFO_BLOCK_SIZE."""
    if len(payload) != _INFO_BLOCK_SIZE.size:
        raise RemoteProtocolError(f"NBD_INFO_BLOCK_SIZE has {len(payload)} bytes; it needs {_INFO_BLOCK_SIZE.size}")
    _, minimum, preferred, maximum = _INFO_BLOCK_SIZE.unpack(payload)
    return BlockSizes(minimum, preferred, maximum)


def decode_info_text(payload: bytes, what: str) -> str:
    """NBD_INFO_NAME and NBD_INFO_DESCRIPTION."""
    return decode_text(payload[_U16.size :], what)


# --- what comes: chunks of replies -----------------------------------------------------------------------------------


def decode_error(payload: memoryview, kind: int) -> tuple[int, str, int | None]:
    """An error chunk: error number, the server's text (undecodable bytes replaced), and the offset if it names one."""
    if len(payload) < ERROR.size:
        raise RemoteProtocolError(f"an error chunk of {len(payload)} bytes is too short")
    number, length = ERROR.unpack_from(payload)
    end = ERROR.size + length
    tail = ERROR_OFFSET.size if kind == const.REPLY_TYPE_ERROR_OFFSET else 0
    if end + tail > len(payload):
        raise RemoteProtocolError("an error message is longer than its chunk")
    if number == 0:
        raise RemoteProtocolError("an error chunk carries no error")
    text = bytes(payload[ERROR.size : end]).decode(errors="replace")
    offset = ERROR_OFFSET.unpack_from(payload, end)[0] if tail else None
    return number, text, offset


def described(payload: bytes | bytearray) -> int:
    """Bytes of the export that the block status descriptors in a payload are about."""
    return sum(length for length, _ in DESCRIPTOR.iter_unpack(memoryview(payload)[CONTEXT_ID.size :]))


def decode_descriptors(payload: bytes | bytearray, offset: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Block status descriptors as (offset, length, status flags), adjacent from `offset` on and clipped to `end`.

    A server may describe more than it was asked about; what lies behind `end` is dropped.

    Raises:
        RemoteProtocolError: A descriptor has no length; met while iterating.
    """
    for length, flags in DESCRIPTOR.iter_unpack(memoryview(payload)[CONTEXT_ID.size :]):
        if length == 0:
            raise RemoteProtocolError(f"a block status descriptor at {offset} has no length")
        if offset + length >= end:
            yield offset, end - offset, flags
            return
        yield offset, length, flags
        offset += length
