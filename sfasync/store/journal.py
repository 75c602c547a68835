"""Journals: what a session has finished, for the one that goes on after it was killed.

::

    length of header 4 | header, a record | for each disk of it, in order, its runs
    run    first chunk 8 | chunks 4 | kind 4: 0 zeros, 1 data | digests, 32 each, for data

A journal is bound to what it says of the disks: VM, frozen snapshot, checkpoint, size, chunk size. It says of a chunk
only what is durable and in the index already. The last journal of a session is written again, with what came since,
until it is full: the number of journals follows the data, not the time.
"""

from __future__ import annotations

import logging
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

import msgspec

from ..errors import IntegrityError, SfasyncError, StateError, StorageError
from ..models import Checkpoint, Frozen
from ..units import KiB
from .codec import MAX_DISK, MAX_RECORD, decode_record, encode_record
from .names import JournalPlace, Numbered, journal_key, vm_name
from .objects import ObjectKind, damaged, decode, encode
from .records import Records
from .tree import DIGEST, ZERO, Geometry

log = logging.getLogger("sfasync")

MAX_JOURNAL = 256 * KiB
"""Bytes of a journal that a reader accepts."""

FULL = 128 * KiB
"""Bytes of runs after which a writer begins the next journal: 4 GiB of disk in chunks of 1 MiB."""

_HEADER_FULL = 32 * KiB  # what the disks in a header may take together, far below the limit of a record
_LENGTH = struct.Struct("<I")
_RUN = struct.Struct("<QII")
_ZEROS, _DATA = 0, 1
_MOST_CHUNKS = 2**32 - 1


class JournalDisk(msgspec.Struct, frozen=True, kw_only=True):
    """A disk in the header of a journal.

    Attributes:
        id, size: The disk.
        checkpoint: That of the snapshot, if it has one.
        runs: How many runs follow.
    """

    id: str
    size: int
    checkpoint: Checkpoint | None
    runs: int


class JournalHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What a journal is about.

    Attributes:
        vm: Id of the VM.
        snapshot: Name of the frozen snapshot.
        chunk_size: Bytes of a chunk.
        created: When the session began, in seconds since the epoch.
        disks: Its disks, each once.
    """

    vm: str
    snapshot: str
    chunk_size: int
    created: float
    disks: tuple[JournalDisk, ...]


class Run(NamedTuple):
    """Adjacent chunks that are finished.

    Attributes:
        first: Number of the first chunk.
        chunks: How many, at least one.
        digests: Theirs, one after the other; empty if all are zeros.
    """

    first: int
    chunks: int
    digests: bytes = b""

    @property
    def end(self) -> int:
        return self.first + self.chunks


class FoundRun(NamedTuple):
    """A run in the payload of a journal.

    Attributes:
        first, chunks: As of `Run`.
        position: Where in the payload its digests are; None for zeros.
    """

    first: int
    chunks: int
    position: int | None


class Journal(NamedTuple):
    """A journal that was read.

    Attributes:
        payload: All of it.
        header: What it is about.
        disks: The runs of each disk of the header, in order.
    """

    payload: memoryview
    header: JournalHeader
    disks: list[list[FoundRun]]


Runs = Mapping[str, list[Run]]
"""By disk."""


# --- the format ------------------------------------------------------------------------------------------------------


def encode_journal(header: JournalHeader, runs: Iterable[Run]) -> bytes:
    """The payload of a journal with the runs of all its disks, in the order of the disks.

    Raises:
        UsageError: The header is larger than 64 KiB.
    """
    record = encode_record(header)
    rows = (_RUN.pack(run.first, run.chunks, _DATA if run.digests else _ZEROS) + run.digests for run in runs)
    return b"".join((_LENGTH.pack(len(record)), record, *rows))


def decode_journal(payload: memoryview, key: str) -> Journal:
    """A journal, from the payload of its object.

    Raises:
        IntegrityError: It contradicts itself.
    """
    length = _LENGTH.unpack_from(payload)[0] if len(payload) >= _LENGTH.size else len(payload)
    position = _LENGTH.size + length
    if length > MAX_RECORD or position > len(payload):
        raise _contradicts(key)
    header = decode_record(bytes(payload[_LENGTH.size : position]), JournalHeader, key)
    if header.chunk_size < 1 or len({disk.id for disk in header.disks}) != len(header.disks):
        raise _contradicts(key)
    disks = []
    for disk in header.disks:
        if not 0 <= disk.size <= MAX_DISK or disk.runs > len(payload):
            raise _contradicts(key)
        runs, position = _decode_runs(payload, position, disk, header.chunk_size, key)
        disks.append(runs)
    if position != len(payload):
        raise _contradicts(key)
    return Journal(payload, header, disks)


def read_journal(records: Records, place: JournalPlace) -> Journal:
    """The journal in a place.

    Raises:
        ObjectMissingError: There is none.
        IntegrityError: It is damaged, or of another VM.
        RepositoryVersionError: A newer version wrote it.
    """
    key = journal_key(*place)
    frame = decode(records.store.get(key, limit=MAX_JOURNAL), key, records.repository, ObjectKind.JOURNAL)
    journal = decode_journal(frame.payload, key)
    if vm_name(records.repository, journal.header.vm) != place.vm:
        raise damaged(key, "belongs elsewhere")
    return journal


def _decode_runs(
    view: memoryview, position: int, disk: JournalDisk, chunk_size: int, key: str
) -> tuple[list[FoundRun], int]:
    """The runs of a disk, and where they end. They ascend, do not overlap, and lie within the disk."""
    runs = []
    free = 0
    end = Geometry(disk.size, chunk_size).count(0)
    for _ in range(disk.runs):
        if position + _RUN.size > len(view):
            raise _contradicts(key)
        first, chunks, kind = _RUN.unpack_from(view, position)
        position += _RUN.size
        if first < free or chunks < 1 or first + chunks > end or kind not in (_ZEROS, _DATA):
            raise _contradicts(key)
        runs.append(FoundRun(first, chunks, position if kind == _DATA else None))
        position += chunks * DIGEST if kind == _DATA else 0
        free = first + chunks
    return runs, position


def _contradicts(key: str) -> IntegrityError:
    return damaged(key, "contradicts itself")


# --- runs ------------------------------------------------------------------------------------------------------------


def runs_of(finished: Iterable[tuple[int, bytes]]) -> list[Run]:
    """Chunks, by number, with their digests, as runs in order."""
    return joined(Run(index, 1, b"" if digest == ZERO else digest) for index, digest in finished)


def joined(runs: Iterable[Run]) -> list[Run]:
    """Runs in order, without what is said twice; neighbours of one kind are one."""
    groups: list[list[Run]] = []
    for run in sorted(runs):
        last = groups[-1][-1] if groups else None
        if last is not None and run.first < last.end:  # of a disk that was begun once more
            if run.end <= last.end:
                continue
            run = Run(last.end, run.end - last.end, run.digests[(last.end - run.first) * DIGEST :])
        if last is not None and last.end == run.first and bool(last.digests) == bool(run.digests):
            groups[-1].append(run)
        else:
            groups.append([run])
    return [_one(group) for group in groups]


def _one(group: list[Run]) -> Run:
    return Run(group[0].first, sum(run.chunks for run in group), b"".join(run.digests for run in group))


def pieces(runs: Runs, header_size: Callable[[str], int]) -> Iterator[Runs]:
    """Cut runs into journals, each as full as may be, but for the last."""
    piece: dict[str, list[Run]] = {}
    room, header_room = FULL, _HEADER_FULL
    for disk, run in ((disk, run) for disk, its_runs in runs.items() for run in its_runs):
        left: Run | None = run
        while left is not None:
            if room < _RUN.size + DIGEST or (disk not in piece and piece and header_room < header_size(disk)):
                yield piece
                piece, room, header_room = {}, FULL, _HEADER_FULL
            if disk not in piece:
                header_room -= header_size(disk)
            head, left = _cut(left, (room - _RUN.size) // DIGEST)
            piece.setdefault(disk, []).append(head)
            room -= _RUN.size + len(head.digests)
    if piece:
        yield piece


def _cut(run: Run, most: int) -> tuple[Run, Run | None]:
    """A run without what is beyond `most` digests, and that, if there is anything."""
    most = most if run.digests else _MOST_CHUNKS
    if run.chunks <= most:
        return run, None
    head = Run(run.first, most, run.digests[: most * DIGEST])
    return head, Run(run.first + most, run.chunks - most, run.digests[most * DIGEST :])


# --- writing ---------------------------------------------------------------------------------------------------------


class DiskNotes:
    """What is finished of one disk and in no journal yet. Any thread may add.

    Args:
        disk_id, size: The disk.
        frozen: The state of it that is read.
    """

    def __init__(self, disk_id: str, size: int, frozen: Frozen) -> None:
        self.id = disk_id
        self.size = size
        self.frozen = frozen
        self._lock = threading.Lock()
        self._finished: list[tuple[int, bytes]] = []

    def add(self, index: int, digest: bytes) -> None:
        """A chunk has been taken in."""
        with self._lock:
            self._finished.append((index, digest))

    def take(self, is_durable: Callable[[int, bytes], bool]) -> list[Run]:
        """What is durable by now; the rest stays for later."""
        with self._lock:
            finished, self._finished = self._finished, []
        durable: list[tuple[int, bytes]] = []
        waiting: list[tuple[int, bytes]] = []
        for chunk in finished:
            (durable if is_durable(*chunk) else waiting).append(chunk)
        with self._lock:
            self._finished += waiting
        return runs_of(durable)


class JournalWriter:
    """Writes the journals of one session. Not for several threads at once, but for `DiskNotes.add`.

    A journal that cannot be written is a warning and the last one: the backup does not need it.

    Args:
        records: Creates objects.
        place: The session.
        vm: Id of the VM.
        chunk_size: Of the repository.
        is_durable: Whether a chunk, by digest and length, is in the index, or needs no place in it.
        before: The number of the last journal that is there already: a session that could not even leave a void, on a
            full disk, had the same place.
    """

    def __init__(
        self,
        records: Records,
        place: Numbered,
        *,
        vm: str,
        chunk_size: int,
        is_durable: Callable[[bytes, int], bool],
        before: int = 0,
    ) -> None:
        self._records = records
        self._place = place
        self._vm = vm
        self._chunk_size = chunk_size
        self._is_durable = is_durable
        self._created = time.time()
        self._disks: dict[str, DiskNotes] = {}
        self._last: dict[str, list[Run]] = {}  # what the last journal has, which is not full
        self._last_key: str | None = None
        self._number = before
        self._broken = False

    def disk(self, disk_id: str, size: int, frozen: Frozen) -> DiskNotes:
        """Begin a disk.

        Raises:
            StateError: The disks before it are of another snapshot.
        """
        if any(notes.frozen.snapshot != frozen.snapshot for notes in self._disks.values()):
            raise StateError(f"disk {disk_id!r} is of another snapshot than the disks before it", disk=disk_id)
        notes = self._disks[disk_id] = DiskNotes(disk_id, size, frozen)
        return notes

    def write(self) -> None:
        """Note what has become durable since the last time. Blocks."""
        fresh = {disk: runs for disk in list(self._disks) if (runs := self._take(disk))}
        if not fresh or self._broken:
            return
        try:
            self._put(fresh)
        except SfasyncError as error:
            log.warning("what this backup finishes is not noted any more, it could not be resumed: %s", error)
            self._broken = True

    def _take(self, disk: str) -> list[Run]:
        notes = self._disks[disk]
        geometry = Geometry(notes.size, self._chunk_size)
        return notes.take(lambda index, digest: self._is_durable(digest, geometry.length(0, index)))

    def _put(self, fresh: Runs) -> None:
        """Write the last journal again with what is new in it, and others if it is too much for one."""
        replaced = self._last_key
        disks = [disk for disk in self._disks if disk in fresh or disk in self._last]
        runs = {disk: joined([*self._last.get(disk, ()), *fresh.get(disk, ())]) for disk in disks}
        for piece in pieces(runs, lambda disk: len(encode_record(self._described(disk, 0)))):
            self._number += 1
            key = journal_key(*self._place, self._number)
            frozen = self._disks[next(iter(piece))].frozen
            header = JournalHeader(
                vm=self._vm,
                snapshot=frozen.snapshot,
                chunk_size=self._chunk_size,
                created=self._created,
                disks=tuple(self._described(disk, len(runs)) for disk, runs in piece.items()),
            )
            payload = encode_journal(header, (run for runs in piece.values() for run in runs))
            self._records.store.put(key, encode(ObjectKind.JOURNAL, key, self._records.repository, payload))
            self._last, self._last_key = dict(piece), key
        if replaced is not None:
            with suppress(StorageError):  # what is said twice does no harm
                self._records.store.delete(replaced)

    def _described(self, disk: str, runs: int) -> JournalDisk:
        notes = self._disks[disk]
        return JournalDisk(id=disk, size=notes.size, checkpoint=notes.frozen.checkpoint, runs=runs)
