"""The frame around every object: what it is, whose it is, which name it has, and a digest over all of it.

::

    head     magic 8 | version 2 | kind 2 | read 4 | write 4 | repository 16 | length of name 2 | name
    object   head | length of payload 8 | payload | BLAKE3 of everything before 32

Integers are little-endian. `read` and `write` are bit sets of features that one must know to read the object, or to
write to a repository that has it. A pack begins with the same head (`packs`). The digest and the first ten bytes keep
their places in every version, so damage can be told from news.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from blake3 import blake3

from ..errors import IntegrityError, RepositoryVersionError, printable
from ..interfaces import Buffer

MAGIC = b"\x89SFA\r\n\x1a\n"  # as PNG's: a transfer that changes line ends or strips the eighth bit shows
VERSION = 1
AUDITS = 1
"""The feature of records that tell of audits: `audit` in the disks of a manifest, `suspect` in an annotation."""

READING = AUDITS
"""The features that this version knows for reading."""

WRITING = 0
"""Those that it knows for writing."""

DIGEST_SIZE = 32
_FRAME_CONTEXT = "sfasync 1 frame"

_HEAD = struct.Struct("<8sHHII16sH")
_LENGTH = struct.Struct("<Q")
_PREFIX = struct.Struct("<8sH")
MAX_NAME = 255


class ObjectKind(IntEnum):
    """What an object is."""

    CONFIG = 1
    PACK = 2
    INDEX = 3
    MANIFEST = 4
    VOID = 5
    SESSION = 6
    END = 7
    ANNOTATION = 8
    JOURNAL = 9
    CHECK = 10
    QUARANTINE = 11


class Head(NamedTuple):
    """The head of an object, checked.

    Attributes:
        kind: What it is.
        repository: Id of its repository, 16 bytes.
        key: The name it says it has.
        size: Bytes of the head.
    """

    kind: ObjectKind
    repository: bytes
    key: str
    size: int


class Frame(NamedTuple):
    """An object, checked.

    Attributes:
        head: What it says of itself.
        payload: What it carries, a part of the bytes that were read.
    """

    head: Head
    payload: memoryview


def frame_digest() -> blake3:
    """A hasher for the digest at the end of an object or a pack."""
    return blake3(derive_key_context=_FRAME_CONTEXT)


def encode_head(kind: ObjectKind, key: str, repository: bytes, read: int = 0) -> bytes:
    name = key.encode("ascii")
    return _HEAD.pack(MAGIC, VERSION, kind, read, 0, repository, len(name)) + name


def encode(kind: ObjectKind, key: str, repository: bytes, payload: Buffer, read: int = 0) -> bytes:
    """A whole object, to be stored under `key`; `read` are the features that one must know to read it."""
    framed = b"".join((encode_head(kind, key, repository, read), _LENGTH.pack(len(payload)), payload))
    return framed + frame_digest().update(framed).digest()


def decode_head(data: Buffer, key: str) -> Head:
    """The head at the beginning of `data`.

    Raises:
        IntegrityError: It is none, or breaks off.
        RepositoryVersionError: It needs a version or a feature that this one does not know.
    """
    if len(data) < _PREFIX.size or bytes(data[:8]) != MAGIC:
        raise damaged(key, "does not begin as an object of sfasync")
    version = _PREFIX.unpack_from(data)[1]
    if version != VERSION:
        raise _unknown(key, f"is of format version {version}")
    if len(data) < _HEAD.size:
        raise damaged(key, "breaks off in its head")
    _, _, kind, read, _, repository, length = _HEAD.unpack_from(data)
    if read & ~READING:
        raise _unknown(key, f"needs features {read & ~READING:#x}")
    size = _HEAD.size + length
    if length > MAX_NAME or len(data) < size:
        raise damaged(key, "breaks off in its name")
    try:
        return Head(ObjectKind(kind), repository, bytes(data[_HEAD.size : size]).decode("ascii"), size)
    except UnicodeDecodeError:
        raise damaged(key, "has a name that is none") from None
    except ValueError:
        raise _unknown(key, f"is of the unknown kind {kind}") from None


def check_writable(data: Buffer, key: str) -> None:
    """See that this version may write to a repository that has this object, whose head was decoded.

    Raises:
        RepositoryVersionError: It may not.
    """
    write = _HEAD.unpack_from(data)[4]
    if write & ~WRITING:
        raise _unknown(key, f"may only be written by versions with features {write & ~WRITING:#x}")


def check_place(head: Head, key: str, repository: bytes | None, *kinds: ObjectKind) -> None:
    """See that an object is where it belongs.

    Raises:
        IntegrityError: It is another object, of another kind, or of another repository.
    """
    if head.key != key:
        raise damaged(key, f"says that it is {printable(head.key)}")
    if repository is not None and head.repository != repository:
        raise damaged(key, "belongs to another repository")
    if head.kind not in kinds:
        raise damaged(key, f"is of kind {head.kind.name.lower()}")


def decode(data: bytes, key: str, repository: bytes | None, *kinds: ObjectKind) -> Frame:
    """Take an object apart.

    Args:
        data: All its bytes.
        key: The name it was found under.
        repository: Id of the repository it must belong to; None for the configuration, which tells it.
        kinds: What it may be.

    Raises:
        IntegrityError: A byte is not what was written, or the object is not the one asked for.
        RepositoryVersionError: A newer version wrote it.
    """
    if len(data) < _PREFIX.size + DIGEST_SIZE or bytes(data[:8]) != MAGIC:
        raise damaged(key, "does not begin as an object of sfasync")
    body = memoryview(data)[:-DIGEST_SIZE]
    if frame_digest().update(body).digest() != data[-DIGEST_SIZE:]:
        raise damaged(key, "does not have the digest it was written with")
    head = decode_head(body, key)
    check_place(head, key, repository, *kinds)
    start = head.size + _LENGTH.size
    if len(body) < start or len(body) - start != _LENGTH.unpack_from(body, head.size)[0]:
        raise damaged(key, "has a wrong length")
    return Frame(head, body[start:])


def damaged(key: str, what: str) -> IntegrityError:
    """The error for an object or pack that is not what was written: ``<key> is damaged: it <what>``."""
    return IntegrityError(f"{printable(key)} is damaged: it {what}", path=key)


def _unknown(key: str, what: str) -> RepositoryVersionError:
    return RepositoryVersionError(f"{printable(key)} {what}, which this version of sfasync does not know", path=key)
