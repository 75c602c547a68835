"""What an NBD server says, in bytes, honest or not.

Written from the protocol's text and not with the codecs under test.
"""

from __future__ import annotations

import struct

FIXED = 1
NO_ZEROES = 2

ACK = 1
SERVER = 2
INFO = 3
META_CONTEXT = 4
ERR_UNSUP = 0x80000001
ERR_POLICY = 0x80000002
ERR_TLS_REQD = 0x80000005
ERR_UNKNOWN = 0x80000006

EXPORT_NAME = 1
LIST = 3
STARTTLS = 5
OPT_INFO = 6
GO = 7
STRUCTURED_REPLY = 8
LIST_META_CONTEXT = 9
SET_META_CONTEXT = 10

READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)

NONE = 0
OFFSET_DATA = 1
OFFSET_HOLE = 2
STATUS = 5
ERROR = 0x8001
ERROR_OFFSET = 0x8002
DONE = 1

ALL_FLAGS = 0x1 | 0x4 | 0x8 | 0x20 | 0x40 | 0x100 | 0x400
"""Flush, FUA, trim, write zeroes, multi-conn, cache."""


def greeting(flags: int = FIXED | NO_ZEROES) -> bytes:
    return b"NBDMAGICIHAVEOPT" + struct.pack(">H", flags)


def reply(option: int, kind: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """An option reply; `length` lies about the payload's."""
    said = len(payload) if length is None else length
    return struct.pack(">QIII", 0x3E889045565A9, option, kind, said) + payload


def info_export(size: int, flags: int = ALL_FLAGS, option: int = GO) -> bytes:
    return reply(option, INFO, struct.pack(">HQH", 0, size, flags))


def info_block_size(minimum: int, preferred: int, maximum: int, option: int = GO) -> bytes:
    return reply(option, INFO, struct.pack(">HIII", 3, minimum, preferred, maximum))


def info_text(kind: int, text: bytes, option: int = GO) -> bytes:
    return reply(option, INFO, struct.pack(">H", kind) + text)


def context(number: int, name: bytes, option: int = SET_META_CONTEXT) -> bytes:
    return reply(option, META_CONTEXT, struct.pack(">I", number) + name)


def listed(name: bytes, description: bytes = b"") -> bytes:
    return reply(LIST, SERVER, struct.pack(">I", len(name)) + name + description)


def opened(size: int = 1 << 20, flags: int = ALL_FLAGS, *, structured: bool = True, allocation: bool = True) -> bytes:
    """All that an honest server says until an export with `base:allocation` as context 7 is open."""
    said = greeting() + reply(STRUCTURED_REPLY, ACK if structured else ERR_UNSUP)
    if structured:
        said += (context(7, b"base:allocation") if allocation else b"") + reply(SET_META_CONTEXT, ACK)
    return said + info_export(size, flags) + reply(GO, ACK)


def simple(cookie: int, errno: int = 0, data: bytes = b"") -> bytes:
    return struct.pack(">IIQ", 0x67446698, errno, cookie) + data


def chunk(cookie: int, kind: int, payload: bytes = b"", *, done: bool = False, length: int | None = None) -> bytes:
    """A chunk of a structured reply; `length` lies about the payload's."""
    said = len(payload) if length is None else length
    return struct.pack(">IHHQI", 0x668E33EF, int(done), kind, cookie, said) + payload


def data(cookie: int, offset: int, content: bytes, *, done: bool = False) -> bytes:
    return chunk(cookie, OFFSET_DATA, struct.pack(">Q", offset) + content, done=done)


def hole(cookie: int, offset: int, length: int, *, done: bool = False) -> bytes:
    return chunk(cookie, OFFSET_HOLE, struct.pack(">QI", offset, length), done=done)


def error(cookie: int, errno: int, text: bytes = b"", *, offset: int | None = None, done: bool = True) -> bytes:
    payload = struct.pack(">IH", errno, len(text)) + text
    if offset is None:
        return chunk(cookie, ERROR, payload, done=done)
    return chunk(cookie, ERROR_OFFSET, payload + struct.pack(">Q", offset), done=done)


def status(cookie: int, extents: list[tuple[int, int]], *, number: int = 7, done: bool = True) -> bytes:
    """A block status of (length, flags)."""
    payload = struct.pack(">I", number) + b"".join(struct.pack(">II", length, flags) for length, flags in extents)
    return chunk(cookie, STATUS, payload, done=done)
