"""Records of damage: which stored bytes were found bad, so that nobody relies on them. The bytes themselves stay.

A copy of a blob that is in quarantine serves no deduplication, is read only where there is no other, and what it should
be is stored again by the next backup that reads it from a disk. Who finds the bytes good again removes the record.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
from msgspec.structs import replace

from ..errors import IntegrityError, printable
from ..interfaces import ObjectStore
from .codec import MAX_OBJECT, MAX_RECORD, decode_record, encode_record
from .damage import DAMAGE
from .names import quarantine_key
from .objects import ObjectKind, decode, encode
from .seal import KINDS, MAX_FILE

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MOST_BLOBS = 256  # of one object in one record: 32 KiB of JSON
_ROOM = 1024  # of a record, for what is not in its list


class BadBlob(msgspec.Struct, frozen=True, kw_only=True):
    """A blob in a pack that is not what its name says.

    Attributes:
        kind: A `BlobKind`.
        name: Its name, 64 hex digits.
        raw: Bytes before sealing.
    """

    kind: int
    name: str
    raw: int


class BadObject(msgspec.Struct, frozen=True, kw_only=True):
    """An object of which something is bad.

    Attributes:
        blobs: Which blobs of a pack; none where only what is around its blobs is bad; None where nothing of the object
            can be relied on.
        key: Its name.
        reason: What was found, in one line.
    """

    blobs: tuple[BadBlob, ...] | None
    key: str
    reason: str


class QuarantineRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What one run found.

    Attributes:
        created: Seconds since the epoch.
        objects: What is bad.
    """

    created: float
    objects: tuple[BadObject, ...]


def read_quarantine(store: ObjectStore, repository: bytes, record: bytes) -> QuarantineRecord:
    """A record of damage.

    Raises:
        ObjectMissingError: There is none of this id.
        IntegrityError: It is damaged.
        RepositoryVersionError: A newer version wrote it.
    """
    key = quarantine_key(record)
    frame = decode(store.get(key, limit=MAX_OBJECT), key, repository, ObjectKind.QUARANTINE)
    decoded = decode_record(frame.payload, QuarantineRecord, key)
    for bad in decoded.objects:
        for blob in bad.blobs or ():
            if _DIGEST.fullmatch(blob.name) is None or blob.kind not in KINDS or not 0 < blob.raw <= MAX_FILE:
                raise IntegrityError(f"{key} is damaged: it names a blob that cannot be", path=key)
    return decoded


def put_quarantine(store: ObjectStore, repository: bytes, objects: Iterable[BadObject]) -> None:
    """Record damage durably, in as many records as it takes; nothing for nothing.

    Raises:
        StorageError: It could not be written.
    """
    for some in _portions(objects):
        key = quarantine_key(secrets.token_bytes(16))
        record = encode_record(QuarantineRecord(created=time.time(), objects=tuple(some)))
        store.put(key, encode(ObjectKind.QUARANTINE, key, repository, record))


def lift_quarantine(
    store: ObjectStore, repository: bytes, records: Iterable[bytes], is_good: Callable[[str], bool]
) -> None:
    """Let those objects out of quarantine that turned out to be good, say because a file system is back. A record that
    cannot be read stays as it is.

    Args:
        store, repository: Where the records are.
        records: Ids of those that were there before anybody looked at the objects: a later one may know better.
        is_good: Whether all of an object, named by its key, is good.

    Raises:
        StorageError: A record could not be written or removed.
    """
    for record in records:
        try:
            objects = read_quarantine(store, repository, record).objects
        except DAMAGE:
            continue
        bad = [one for one in objects if not is_good(one.key)]
        if len(bad) < len(objects):
            put_quarantine(store, repository, bad)
            store.delete(quarantine_key(record))


def _portions(objects: Iterable[BadObject]) -> Iterator[Sequence[BadObject]]:
    """The objects, in lists that each make a record of 64 KiB at most."""
    portion: list[BadObject] = []
    size = _ROOM
    for bad in _pieces(objects):
        length = len(encode_record(bad)) + 1
        if portion and size + length > MAX_RECORD:
            yield portion
            portion, size = [], _ROOM
        portion.append(bad)
        size += length
    if portion:
        yield portion


def _pieces(objects: Iterable[BadObject]) -> Iterator[BadObject]:
    """The objects, those with many bad blobs in several pieces."""
    for bad in objects:
        short = replace(bad, reason=printable(bad.reason))
        if not bad.blobs:
            yield short
        for start in range(0, len(bad.blobs or ()), _MOST_BLOBS):
            yield replace(short, blobs=(bad.blobs or ())[start : start + _MOST_BLOBS])
