"""How small records are written, as JSON: manifests, annotations, sessions, voids, the configuration.

There is one way to write a record: keys sorted, no spaces, no field left out, seconds as whole milliseconds, so that
no library's way of spelling fractions matters. What reads back to other bytes was not written by us and is refused:
unknown and repeated fields, other spellings of numbers and everything else that a lenient parser would let pass never
come in. A new field is a new feature bit in the frame: a record that does not need it is written as before.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from ..errors import IntegrityError, UsageError, printable
from ..interfaces import Buffer
from ..models import Manifest
from ..units import KiB
from .names import LAST_SEQ
from .objects import AUDITS
from .seal import MAX_FILE
from .tree import CHUNK_SIZES

MAX_RECORD = 64 * KiB
MAX_OBJECT = MAX_RECORD + 4 * KiB
"""A record, and the object around it, in bytes."""

MAX_DISK = 2**63 - 1
FORMAT = 1

_T = TypeVar("_T")

_ID = re.compile(r"[0-9a-f]{32}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MODES = ("full", "incremental")
_PLAIN = frozenset((str, int, bool, type(None)))


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for a whole repository.

    Attributes:
        format: Version of the format.
        id: 32 hex digits, random.
        chunk_size: Bytes of a chunk.
        created: Seconds since the epoch.
    """

    format: int
    id: str
    chunk_size: int
    created: float


class SessionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A session, for people and for those who will look for what must not be removed.

    Attributes:
        host, pid: Where it runs.
        created: Seconds since the epoch.
        parent: Key of the manifest it builds on.
        roots: Roots (hex) of the disks of that backup: everything below is in use.
        resumes: Numbers of the VM's sessions whose journals it goes on from: what they note is in use as well.
    """

    host: str
    pid: int
    created: float
    parent: str | None
    roots: tuple[str, ...]
    resumes: tuple[int, ...]


class VoidRecord(msgspec.Struct, frozen=True, kw_only=True):
    """In the place of a manifest: there is no such backup, and never will be.

    Attributes:
        reason: ``fenced`` by another session, ``aborted`` by its own, or ``lost``: what was there was found gone.
        created: Seconds since the epoch.
    """

    reason: str
    created: float


class AnnotationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A change to what is said of a backup, after it was made.

    Attributes:
        backup: Id of the backup.
        created: Seconds since the epoch.
        remove, add: Tags, taken away before others are added.
        note: The new note, empty for none; None to leave it as it is.
        forgotten: Why the backup is to be no more; None if it stays.
        suspect: Ids of disks that have become suspect.
    """

    backup: str
    created: float
    remove: tuple[str, ...] = ()
    add: tuple[str, ...] = ()
    note: str | None = None
    forgotten: str | None = None
    suspect: tuple[str, ...] = ()


def features(record: object) -> int:
    """What one must know to read a record: a bit set of the frame's features."""
    if isinstance(record, Manifest):
        audited = any(disk.audit is not None for disk in record.disks)
    else:
        audited = isinstance(record, AnnotationRecord) and bool(record.suspect)
    return AUDITS if audited else 0


def encode_record(record: object) -> bytes:
    """The payload for a record.

    Raises:
        UsageError: It is larger than 64 KiB, or has something that cannot be written.
    """
    try:
        values = _without_news(record, msgspec.to_builtins(record))
        payload = msgspec.json.encode(_whole(values), order="sorted")
    except (msgspec.MsgspecError, UnicodeError, TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"the {type(record).__name__} cannot be written: {printable(str(error))}") from error
    if len(payload) > MAX_RECORD:
        raise UsageError(_too_large(record, len(payload)))
    return payload


def _without_news(record: object, values: dict[str, Any]) -> dict[str, Any]:
    """The fields of a record that are written: not what annotations say, nor what a feature added that is not used."""
    news = not features(record) & AUDITS
    if isinstance(record, Manifest):
        del values["note"], values["suspect"]
        for disk in values["disks"] if news else ():
            del disk["audit"]
    elif isinstance(record, AnnotationRecord) and news:
        del values["suspect"]
    return values


def _too_large(record: object, size: int) -> str:
    if isinstance(record, Manifest):
        what = f"a backup of {len(record.disks)} disks at once has a manifest of {size} bytes"
        return f"{what}; {MAX_RECORD} are the most: back up fewer of them under one VM"
    return f"the {type(record).__name__} has {size} bytes; {MAX_RECORD} are the most"


def decode_record(payload: Buffer, kind: type[_T], key: str) -> _T:
    """The record in a payload of at most 64 KiB.

    Raises:
        IntegrityError: It is none of this kind, or is not written as we write it.
    """
    if len(payload) > MAX_RECORD:
        raise _refused(key, f"it has {len(payload)} bytes")
    try:
        record = _decoded(payload, kind)
        written = encode_record(record)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError, UsageError) as error:
        raise _refused(key, printable(str(error))) from error
    if written != payload:
        raise _refused(key, "it is not in canonical form")
    return record


def decode_again(payload: Buffer, kind: type[_T], key: str) -> _T:
    """As `decode_record`, of a payload that `decode_record` took before, and that is still the same: much faster.

    Raises:
        IntegrityError: It is none of this kind.
    """
    try:
        return _decoded(payload, kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError) as error:
        raise _refused(key, printable(str(error))) from error


def _decoded(payload: Buffer, kind: type[_T]) -> _T:
    record = msgspec.json.decode(payload, type=kind)
    _to_seconds(record)
    return record


def as_stored(manifest: Manifest) -> Manifest:
    """A manifest as it will read back: times to the millisecond.

    Raises:
        UsageError: As of `encode_record`.
    """
    return decode_record(encode_record(manifest), Manifest, "manifest")


def _whole(value: Any) -> Any:
    """A tree of plain values with its floats, which are seconds, as whole milliseconds."""
    if isinstance(value, float):
        return round(value * 1000)
    if isinstance(value, dict):
        return {name: _whole(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(inner) for inner in value]
    return value


def _to_seconds(record: Any) -> None:
    """Turn the floats of a record that was just decoded, and that nobody else has, from milliseconds into seconds.

    In place: building a manifest anew took ten times as long as decoding it.
    """
    struct = isinstance(record, msgspec.Struct)
    change = msgspec.structs.force_setattr if struct else object.__setattr__
    for name in record.__struct_fields__ if struct else record.__slots__:
        value = getattr(record, name)
        kind = type(value)
        if kind in _PLAIN:
            continue
        if kind is float:
            change(record, name, value / 1000)
        elif kind is dict:
            value.update({key: milliseconds / 1000 for key, milliseconds in value.items()})
        elif kind is tuple:
            for inner in value:
                if type(inner) not in _PLAIN:
                    _to_seconds(inner)
        else:
            _to_seconds(value)


def decode_configuration(payload: Buffer, key: str) -> Configuration:
    """The configuration in a payload.

    Raises:
        IntegrityError: As `decode_record`, or a value is out of range.
    """
    configuration = decode_record(payload, Configuration, key)
    _require(configuration.format == FORMAT, key, "its format is not 1")
    _require(_ID.fullmatch(configuration.id) is not None, key, "its id is not 32 hex digits")
    _require(configuration.chunk_size in CHUNK_SIZES, key, f"its chunk size is {configuration.chunk_size}")
    return configuration


def check_manifest(manifest: Manifest, key: str) -> None:
    """See that every value is in range.

    Raises:
        IntegrityError: One is not.
    """
    _require(_ID.fullmatch(manifest.id) is not None, key, "its id is not 32 hex digits")
    _require(_ID.fullmatch(manifest.repository) is not None, key, "its repository is not 32 hex digits")
    _require(manifest.parent is None or _ID.fullmatch(manifest.parent) is not None, key, "its parent is no id")
    _require(0 < manifest.seq <= LAST_SEQ, key, f"its number is {manifest.seq}")
    _require(len({disk.id for disk in manifest.disks}) == len(manifest.disks), key, "a disk is in it twice")
    _require(len({file.name for file in manifest.files}) == len(manifest.files), key, "a file is in it twice")
    for disk in manifest.disks:
        name = f"disk {disk.id!r}"
        _require(0 <= disk.size <= MAX_DISK, key, f"{name} has {disk.size} bytes")
        _require(_DIGEST.fullmatch(disk.root) is not None, key, f"the root of {name} is no digest")
        _require(_DIGEST.fullmatch(disk.tree) is not None, key, f"the tree digest of {name} is no digest")
        _require(disk.mode in _MODES, key, f"the mode of {name} is {disk.mode!r}")
        if disk.checkpoint is not None:
            _require(0 <= disk.checkpoint.size <= MAX_DISK, key, f"the checkpoint of {name} has a wrong size")
        if disk.audit is not None:
            numbers = (disk.audit.seed, disk.audit.position, disk.audit.chunks)
            _require(all(0 <= number <= MAX_DISK for number in numbers), key, f"the audit of {name} is out of range")
    for file in manifest.files:
        _require(0 <= file.size <= MAX_FILE, key, f"file {file.name!r} has {file.size} bytes")
        _require(_DIGEST.fullmatch(file.digest) is not None, key, f"the digest of file {file.name!r} is none")


def check_annotation(annotation: AnnotationRecord, key: str) -> None:
    """See that every value is in range.

    Raises:
        IntegrityError: One is not.
    """
    _require(_ID.fullmatch(annotation.backup) is not None, key, "its backup is no id")


def _require(condition: bool, key: str, what: str) -> None:
    if not condition:
        raise _refused(key, printable(what))


def _refused(key: str, why: str) -> IntegrityError:
    return IntegrityError(f"{printable(key)} is not a record of its kind: {why}", path=key)
