"""What interrupted backups of a VM had finished, read from their journals.

Nothing here is proof of anything but that a session noted it: who takes a chunk over sees that the index has it.
Memory is bounded: runs beyond a number are forgotten, and their chunks are read again.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from ..errors import IntegrityError, ObjectMissingError, RepositoryVersionError, StorageError
from ..models import Frozen, Interruption
from .journal import Journal, read_journal
from .names import JournalPlace, Numbered, journal_key, session_key
from .records import Records
from .tree import DIGEST, ZERO, Geometry

if TYPE_CHECKING:
    from ..models import UnfinishedBackup

log = logging.getLogger("sfasync")

MAX_RUNS = 200_000
MAX_JOURNALS = 20_000
"""Runs and journals of one VM that are looked at: about 40 MB of memory, and 80 TiB of disk in chunks of 1 MiB."""

LIFETIME = 7 * 86400.0
"""Seconds for which a journal is kept after its session died."""

_LEFT_OUT = "a journal is left out, what it noted is read again: %s"
_UNREADABLE = (IntegrityError, RepositoryVersionError, StorageError)
_CACHED = 8  # journals in memory at a time

_State = tuple[str, int, Frozen]  # id, size, state of a disk


class _Piece(NamedTuple):
    """A run of a disk, and which journal has its digests.

    Attributes:
        first, end: Numbers of the first chunk, and of the one after the last.
        journal: The place of the journal.
        position: Where in its payload the digest of the first chunk is; None for zeros.
    """

    first: int
    end: int
    journal: JournalPlace
    position: int | None


class Remains:
    """The finished chunks of one frozen disk. Calls block; any thread may make them.

    Args:
        pieces: Runs, in any order; where they overlap they say the same.
        journals: Reads the journals.
    """

    def __init__(self, pieces: Iterable[_Piece], journals: _Journals) -> None:
        self._pieces = _disjoint(pieces)
        self._journals = journals

    def digests(self, first: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Finished chunks from `first` to before `end`, with their digests, in order."""
        start = max(0, bisect_right(self._pieces, first, key=attrgetter("first")) - 1)
        for number in range(start, len(self._pieces)):
            piece = self._pieces[number]
            if piece.first >= end:
                return
            indices = range(max(first, piece.first), min(end, piece.end))
            if piece.position is None:
                yield from ((index, ZERO) for index in indices)
            elif (payload := self._journals.payload(piece.journal)) is not None:
                for index in indices:
                    position = piece.position + (index - piece.first) * DIGEST
                    yield index, payload[position : position + DIGEST]


class _Journals:
    """Reads journals and keeps some."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._lock = threading.Lock()
        self._kept: OrderedDict[JournalPlace, bytes | None] = OrderedDict()

    def payload(self, place: JournalPlace) -> bytes | None:
        """The payload of a journal; None if it cannot be read any more."""
        with self._lock:
            if place in self._kept:
                self._kept.move_to_end(place)
                return self._kept[place]
        payload: bytes | None = None
        try:
            payload = bytes(read_journal(self._records, place).payload)
        except _UNREADABLE as error:
            log.warning(_LEFT_OUT, error)
        with self._lock:
            self._kept[place] = payload
            if len(self._kept) > _CACHED:
                self._kept.popitem(last=False)
        return payload


class Interrupted:
    """What interrupted backups of one VM had finished. Reads their journals once when it is made, which blocks.

    Args:
        records: Reads them.
        places: Where they are.
        chunk_size: Of the repository.

    Attributes:
        last: The snapshot that the last of them read; None if there is none.
    """

    def __init__(self, records: Records, places: Sequence[JournalPlace], chunk_size: int) -> None:
        self._journals = _Journals(records)
        self._found: dict[_State, list[_Piece]] = {}
        self.last: Interruption | None = None
        left = MAX_RUNS
        for place, (_, header, disks) in _readable(records, places):
            if header.chunk_size != chunk_size:
                continue
            if self.last is None or self.last.snapshot != header.snapshot:
                self.last = Interruption(snapshot=header.snapshot, began=header.created)
            for disk, runs in zip(header.disks, disks, strict=True):
                state = disk.id, disk.size, Frozen(snapshot=header.snapshot, checkpoint=disk.checkpoint)
                pieces = self._found.setdefault(state, [])
                pieces += (_Piece(run.first, run.first + run.chunks, place, run.position) for run in runs[:left])
                left = max(0, left - len(runs))

    def disk(self, disk_id: str, size: int, frozen: Frozen) -> Remains | None:
        """What is finished of a disk in exactly this state; None for nothing."""
        pieces = self._found.pop((disk_id, size, frozen), None)
        return Remains(pieces, self._journals) if pieces else None


def _readable(records: Records, places: Sequence[JournalPlace]) -> Iterator[tuple[JournalPlace, Journal]]:
    """The last journals in these places. One that is damaged is left out, with a warning in the log; one that is gone,
    without.
    """
    for place in places[-MAX_JOURNALS:]:
        try:
            journal = read_journal(records, place)
        except ObjectMissingError:
            continue
        except _UNREADABLE as error:
            log.warning(_LEFT_OUT, error)
            continue
        yield place, journal


def _disjoint(pieces: Iterable[_Piece]) -> list[_Piece]:
    """The same in order and without overlaps."""
    kept: list[_Piece] = []
    for piece in sorted(pieces, key=attrgetter("first")):
        skip = kept[-1].end - piece.first if kept else 0
        if skip > 0:
            position = None if piece.position is None else piece.position + skip * DIGEST
            piece = piece._replace(first=piece.first + skip, position=position)
        if piece.first < piece.end:
            kept.append(piece)
    return kept


# --- all VMs ---------------------------------------------------------------------------------------------------------


def reclaim(records: Records, clock: str) -> None:
    """Remove journals that nobody came back for: those of VMs that no session works on, after seven days.

    Args:
        records: Lists and removes.
        clock: Key of an object that was created just now: what tells the time by the store's clock.
    """
    places = records.journals()
    if not places:
        return
    store = records.store
    live = _live(records)
    now = store.modified(clock)
    for place in places:
        key = journal_key(*place)
        try:
            if place.vm not in live and now - store.modified(key) > LIFETIME:
                store.delete(key)
        except (IntegrityError, StorageError):  # gone meanwhile, or not to be removed: verify tells
            continue


def unfinished(records: Records) -> list[UnfinishedBackup]:
    """The backups that were stopped or still run and can be resumed, by VM and age."""
    live = _live(records)
    found: list[UnfinishedBackup] = []
    for vm, places in groupby(records.journals(), key=attrgetter("vm")):
        last = records.latest(records.numbered(vm))
        finished = last[0].seq if last else 0
        tallies: dict[str, _Tally] = {}
        for place, (_, header, disks) in _readable(records, [place for place in places if place.seq > finished]):
            tally = tallies.setdefault(header.snapshot, _Tally(header.vm, header.created))
            with suppress(ObjectMissingError):  # taken away by its session a moment ago
                tally.updated = max(tally.updated, records.store.modified(journal_key(*place)))
            for disk, runs in zip(header.disks, disks, strict=True):
                pieces = tally.disks.setdefault((disk.id, Geometry(disk.size, header.chunk_size)), [])
                room = max(0, MAX_RUNS - tally.runs)
                pieces += (_Piece(run.first, run.first + run.chunks, place, None) for run in runs[:room])
                tally.runs += len(runs)
        found += (tally.summary(snapshot, running=vm in live) for snapshot, tally in tallies.items())
    return sorted(found, key=attrgetter("vm", "started"))


class _Tally:
    """What is finished of one snapshot of a VM.

    Attributes:
        vm: Its id.
        started: When the first session of it began.
        updated: When its last journal was created.
        disks: Runs of each disk.
        runs: How many in all.
    """

    def __init__(self, vm: str, started: float) -> None:
        self.vm = vm
        self.started = started
        self.updated = 0.0
        self.disks: dict[tuple[str, Geometry], list[_Piece]] = {}
        self.runs = 0

    def summary(self, snapshot: str, *, running: bool) -> UnfinishedBackup:
        from ..models import UnfinishedBackup  # a backup needs none

        return UnfinishedBackup(
            vm=self.vm,
            snapshot=snapshot,
            disks=tuple(dict.fromkeys(disk for disk, _ in self.disks)),
            bytes_journaled=sum(map(_bytes, self.disks, self.disks.values())),
            started=self.started,
            updated=self.updated,
            running=running,
        )


def _bytes(disk: tuple[str, Geometry], pieces: Iterable[_Piece]) -> int:
    """Bytes of a disk in runs."""
    size, chunk = disk[1].size, disk[1].chunk_size
    return sum(min(piece.end * chunk, size) - piece.first * chunk for piece in _disjoint(pieces))


def _live(records: Records) -> set[str]:
    """The VMs, by their names in keys, that a session works on."""
    return {place.vm for place in records.sessions() if _is_live(records, place)}


def _is_live(records: Records, place: Numbered) -> bool:
    try:
        return records.store.held(session_key(*place))
    except IntegrityError:  # not even a file: nobody can tell
        return True
