"""Packs: files of about 32 MiB that hold sealed blobs.

::

    head            as of every object (`objects`)
    pack header     class 4 | key id 16 | length of pack key 2 | pack key | length of session 2 | session
    blobs           one after the other
    trailer         a row for each blob, in their order: name 32 | kind 4 | raw length 4 | offset 4 | length 4
    footer          offset of trailer 8 | rows 4 | size of the file 8 | BLAKE3 of everything before 32

The key fields are empty until there is encryption. Data and metadata never share a pack. The trailer repeats what the
index says, so that an index can be made anew from the packs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

from ..errors import IntegrityError
from ..interfaces import Buffer, ObjectStore, ObjectWriter
from ..units import KiB, MiB
from .names import pack_key
from .objects import DIGEST_SIZE, ObjectKind, check_place, damaged, decode_head, encode_head, frame_digest
from .seal import KINDS, MAX_FILE, BlobKind, Sealed

TARGET_SIZE = 32 * MiB
TARGET_BLOBS = 8192
"""A writer closes a pack that has reached either: small blobs must not make long trailers."""

MAX_SIZE = 256 * MiB
MAX_BLOBS = 65536
"""What a reader accepts."""

_HEADER = struct.Struct("<I16sH")
_SESSION = struct.Struct("<H")
_ROW = struct.Struct("<32sIIII")
_FOOTER = struct.Struct("<QIQ")
_TAIL = _FOOTER.size + DIGEST_SIZE
_MAX_HEADER = 4 * KiB


class PackClass(IntEnum):
    """What a pack holds: blobs of disks, or what describes them."""

    DATA = 1
    META = 2


class Blob(NamedTuple):
    """A blob in a pack.

    Attributes:
        kind: A `BlobKind`.
        name: Its stored name, 32 bytes: its digest.
        raw: Bytes before sealing.
        offset: Where it begins in the pack.
        length: Bytes as sealed.
    """

    kind: int
    name: bytes
    raw: int
    offset: int
    length: int


class Pack(NamedTuple):
    """A pack that is closed and durable.

    Attributes:
        id: 16 random bytes.
        digest: BLAKE3 over all of it but this digest.
        size: Bytes of the file.
        class_: What it holds.
        blobs: Its blobs, in order.
    """

    id: bytes
    digest: bytes
    size: int
    class_: PackClass
    blobs: list[Blob]


class PackWriter:
    """A pack under construction. Any thread may append, but not two at once.

    Args:
        store: Where it goes.
        pack: Its id.
        repository: Id of the repository.
        class_: What it will hold.
        session: Name of the session that writes it.
    """

    def __init__(self, store: ObjectStore, pack: bytes, repository: bytes, class_: PackClass, session: str) -> None:
        self.id = pack
        self._class = class_
        self._hasher = frame_digest()
        self._blobs: list[Blob] = []
        key = pack_key(pack)
        writer = session.encode("ascii")
        self._writer: ObjectWriter = store.writer(key)
        try:
            self._write(encode_head(ObjectKind.PACK, key, repository))
            self._write(_HEADER.pack(class_, bytes(16), 0) + _SESSION.pack(len(writer)) + writer)
        except BaseException:
            self._writer.abort()
            raise

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._writer.position

    def append(self, kind: BlobKind, blobs: Sequence[Sealed]) -> bool:
        """Add blobs, all of them in one go.

        Returns:
            Whether the pack has reached the size at which it should be closed.

        Raises:
            StorageError: It could not be written; the pack is lost.
        """
        offset = self._writer.position
        self._write(blobs[0].data if len(blobs) == 1 else b"".join(blob.data for blob in blobs))
        for blob in blobs:
            self._blobs.append(Blob(kind, blob.name, blob.raw, offset, len(blob.data)))
            offset += len(blob.data)
        return self._writer.position >= TARGET_SIZE or len(self._blobs) >= TARGET_BLOBS

    def close(self) -> Pack:
        """Complete the pack and make it durable. No append may follow.

        Raises:
            StorageError: It could not be made durable; the pack is lost.
        """
        try:
            trailer = self._writer.position
            self._write(b"".join(_ROW.pack(b.name, b.kind, b.raw, b.offset, b.length) for b in self._blobs))
            size = self._writer.position + _TAIL
            self._write(_FOOTER.pack(trailer, len(self._blobs), size))
            digest = self._hasher.digest()
            self._writer.write(digest)
            self._writer.commit()
        finally:
            self._writer.abort()
        return Pack(self.id, digest, size, self._class, self._blobs)

    def abort(self) -> None:
        """Drop the pack."""
        self._writer.abort()

    def _write(self, data: Buffer) -> None:
        self._hasher.update(data)
        self._writer.write(data)


class PackReader:
    """Reads a whole pack once, from its first byte to its last, and checks all of it against its own digest.

    What it needs is bounded by the largest blob and the trailer.

    Args:
        store: Where it is.
        pack: Its id.
        repository: Id of the repository it must belong to.

    Attributes:
        size: Bytes of the file.
        class_: What it holds.
        session: Name of the session that wrote it.
        blobs: Its blobs as the trailer has them, one after the other without a gap.
        digest: The digest it was written with.

    Raises:
        ObjectMissingError: There is no such pack.
        IntegrityError: It is damaged where that shows before blobs are read.
        RepositoryVersionError: A newer version wrote it.
    """

    def __init__(self, store: ObjectStore, pack: bytes, repository: bytes) -> None:
        self._store = store
        self._key = pack_key(pack)
        self.size = store.size(self._key)
        if not _TAIL < self.size <= MAX_SIZE:
            raise self._damaged(f"has {self.size} bytes")
        self._header = self._read(0, min(_MAX_HEADER, self.size - _TAIL))
        head = decode_head(self._header, self._key)
        check_place(head, self._key, repository, ObjectKind.PACK)
        self.class_, self.session, start = self._parse_header(head.size)
        tail = self._read(self.size - _TAIL, _TAIL)
        trailer, count, size = _FOOTER.unpack_from(tail)
        self.digest = tail[_FOOTER.size :]
        if size != self.size or count > MAX_BLOBS or trailer + count * _ROW.size + _TAIL != size:
            raise self._damaged("has a footer that contradicts it")
        self._rows = self._read(trailer, count * _ROW.size)
        self._start, self._trailer = start, trailer
        self.blobs = self._parse_rows()

    def read_all(self) -> Iterator[tuple[Blob, memoryview]]:
        """Each blob with its sealed bytes, which are valid until the next one is asked for.

        Raises:
            IntegrityError: After the last blob: some byte of the pack is not what was written.
        """
        hasher = frame_digest().update(self._header[: self._start])
        memory = bytearray(max((blob.length for blob in self.blobs), default=0))
        for blob in self.blobs:
            sealed = memoryview(memory)[: blob.length]
            if self._store.read_into(self._key, blob.offset, sealed) != blob.length:
                raise self._damaged("became shorter while it was read")
            hasher.update(sealed)
            yield blob, sealed
        hasher.update(self._rows)
        hasher.update(self._read(self.size - _TAIL, _FOOTER.size))
        if hasher.digest() != self.digest:
            raise self._damaged("does not have the digest it was written with")

    def _parse_header(self, offset: int) -> tuple[PackClass, str, int]:
        """The class, the session, and where the header ends.

        Keys belong to versions that encrypt; their features are refused.
        """
        try:
            class_, key, key_length = _HEADER.unpack_from(self._header, offset)
            (session_length,) = _SESSION.unpack_from(self._header, offset + _HEADER.size)
            end = offset + _HEADER.size + _SESSION.size + session_length
            if any(key) or key_length or end > len(self._header):
                raise self._damaged("has a header that does not parse")
            session = self._header[end - session_length : end].decode("ascii")
            return PackClass(class_), session, end
        except (struct.error, ValueError):
            raise self._damaged("has a header that does not parse") from None

    def _parse_rows(self) -> list[Blob]:
        blobs = []
        position = self._start
        for name, kind, raw, offset, length in _ROW.iter_unpack(self._rows):
            if offset != position or not 0 < length <= raw <= MAX_FILE or kind not in KINDS:
                raise self._damaged("has a trailer that contradicts it")
            blobs.append(Blob(kind, name, raw, offset, length))
            position += length
        if position != self._trailer:
            raise self._damaged("has bytes that no blob accounts for")
        return blobs

    def _read(self, offset: int, length: int) -> bytes:
        data = bytearray(length)
        if self._store.read_into(self._key, offset, memoryview(data)) != length:
            raise self._damaged("became shorter while it was read")
        return bytes(data)

    def _damaged(self, what: str) -> IntegrityError:
        return damaged(self._key, what)
