"""Sessions: one writer for each VM, who either makes a backup visible whole or leaves nothing.

1. A session object is created exclusively, under the number after the last, and held while the session lives. A number
   is never used twice. Where the holder of a session is dead, the place of its manifest is taken by a void first: a
   writer that comes back to life finds it taken and commits nothing. So holds decide when to take over, never whether
   it is safe.
2. Only then are tombstones and index listed and the parent read again: whoever removes things sees the session first.
3. Packs durable, index durable, what was relied on checked again, then the manifest, created exclusively. Then the end
   of the session is recorded and its objects are removed.

While a session reads frozen disks it notes what is finished, in journals. The session after one that died goes on from
there, and a backup removes all journals of its VM.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from ..errors import (
    BusyError,
    IntegrityError,
    ObjectExistsError,
    SfasyncError,
    StateError,
    StorageError,
    UsageError,
    printable,
)
from ..interfaces import Hold
from ..models import DiskRecord, Extent, FileRecord, Frozen, Interruption, Manifest
from ..tasks import finish
from ..workers import Workers
from .annotations import current, of_backup, readable
from .blobs import BlobReader
from .cache import Location
from .codec import as_stored, encode_record
from .damage import is_lasting
from .intake import Intake
from .journal import JournalWriter
from .locator import Locator, usable_packs
from .losses import lost_ranges, may_be_lost
from .names import LAST_SEQ, JournalPlace, Numbered, end_key, journal_key, pack_key, session_key, vm_name
from .packs import Blob
from .pages import TreeReader
from .quarantine import BadBlob, BadObject, put_quarantine
from .records import Records
from .resume import Interrupted
from .seal import MAX_FILE, BlobKind
from .tree import ZERO, Geometry, content_digest
from .writer import ChunkWriter

_MOST_RESUMED = 1000
"""Sessions of one VM, killed one after the other, whose journals are looked at."""

_SHORTEST, _LONGEST = 0.25, 5.0
_SHARE = 40
_COST = 20
"""Seconds between two checkpoints, so that a killed backup loses little of its time: a fortieth of it, within these
bounds. They take no more than a twentieth of the time of one thread.
"""

_ENDED = ("committed", "aborted")
_ABORT_SECONDS = 4.0  # cancelling a job ends it within 5 s
_SOME_ID = "0" * 32


class Claim(NamedTuple):
    """The right to make the next backup of a VM.

    Attributes:
        place: Its name in keys, and the number of the backup.
        hold: Keeps others away.
        parent: The VM's last backup.
        journals: What was noted by sessions that died since.
    """

    place: Numbered
    hold: Hold
    parent: Manifest | None
    journals: list[JournalPlace]


def claim(records: Records, vm: str, *, resume: bool = True) -> Claim:
    """Become the one who makes the next backup of a VM. Journals that are of no use are removed. Blocks.

    Args:
        records: Reads and creates what is needed.
        vm: Id of the VM.
        resume: Whether journals are of use.

    Raises:
        BusyError: Another session works on the VM.
        StorageError: The session could not be created.
    """
    name = vm_name(records.repository, vm)
    while True:
        _clear(records, name, vm)
        places = records.numbered(name)
        parent = records.latest(places)
        place = Numbered(name, _last(records, places, name) + 1)
        if place.seq > LAST_SEQ:
            raise StorageError(f"VM {printable(vm)} has used up all numbers of backups in {records.store.location}")
        journals = records.journals(name)
        useful = _useful(journals, parent[0].seq if parent else 0) if resume else []
        try:
            hold = records.hold_session(place, parent, sorted({journal.seq for journal in useful}))
        except ObjectExistsError:
            continue  # another session began just now
        try:
            if _last(records, records.numbered(name), name) >= place.seq:
                _remove(records, place, hold)  # one began and ended since the places were listed
                continue
            remove_journals(records, [journal for journal in journals if journal not in useful])
            return Claim(place, hold, _still_there(records, parent), useful)
        except BaseException:
            _remove(records, place, hold)
            raise


def _last(records: Records, places: list[Numbered], name: str) -> int:
    """The highest number that a backup of a VM has or had: of one that was forgotten, annotations tell.

    They are listed after the places: whoever removes a manifest has said so before.
    """
    made = [place.seq for place in places]
    return max(made + [place.seq for place in records.annotated(name)], default=0)


def _useful(journals: list[JournalPlace], finished: int) -> list[JournalPlace]:
    """The journals written since the last backup, whose number is `finished`; of the last thousand sessions."""
    seqs = sorted({journal.seq for journal in journals if journal.seq > finished})[-_MOST_RESUMED:]
    return [journal for journal in journals if journal.seq in seqs]


def remove_journals(records: Records, journals: Iterable[JournalPlace]) -> None:
    """Remove journals; those that stay are removed by a later backup."""
    for journal in journals:
        with suppress(StorageError):
            records.store.delete(journal_key(*journal))


def _clear(records: Records, name: str, vm: str) -> None:
    """Take the places of dead sessions of a VM, and tidy up after them.

    Raises:
        BusyError: A session lives.
    """
    for place in records.sessions(name):
        if records.store.held(session_key(*place)):
            raise BusyError(f"another session works on VM {printable(vm)}{_who(records, place)}; wait, or end it")
        records.put_void(place, "fenced")
        _remove(records, place, None)
    for place in records.ends(name):
        _remove(records, place, None)


def _who(records: Records, place: Numbered) -> str:
    with suppress(SfasyncError):
        session = records.session(place)
        return f" (process {session.pid} on {printable(session.host)})"
    return ""


def _still_there(records: Records, parent: tuple[Numbered, Manifest] | None) -> Manifest | None:
    """The parent, unless it was forgotten before this session protected it."""
    if parent is None:
        return None
    place = parent[0]
    annotations = readable(records, of_backup(records, place))
    return next((current(manifest, annotations) for manifest in records.manifests([place])), None)


def _remove(records: Records, place: Numbered, hold: Hold | None) -> None:
    """Remove the objects of a session that has ended, the session first; what stays is reported by verify."""
    if hold is not None:
        hold.release()
    for key in (session_key(*place), end_key(*place)):
        with suppress(StorageError):
            records.store.delete(key)


class Session:
    """A running backup of one VM: a `BackupSession`.

    States: open, committing, committed, aborted. Made by `Repository.begin`.

    Args:
        vm: Id of the VM.
        claimed: The right to make the backup.
        chunk_size: Of the repository.
        records: Reads and creates small objects.
        locator: Knows the blobs.
        workers: Threads to seal in.
        closers: Threads to close packs in.
        scribes: Threads for checkpoints.
        on_end: Called, in a thread, when the session has ended.
    """

    def __init__(
        self,
        vm: str,
        claimed: Claim,
        *,
        chunk_size: int,
        records: Records,
        locator: Locator,
        workers: Workers,
        closers: Workers,
        scribes: Workers,
        on_end: Callable[[Session], None],
    ) -> None:
        self._vm = vm
        self._claim = claimed
        self._chunk_size = chunk_size
        self._records = records
        self._locator = locator
        self._blobs = BlobReader(records.store, locator, self._put_away)
        self._put_away_already: set[tuple[bytes, int]] = set()
        self._known_damage: set[bytes] = set()
        self._is_impaired = False
        self._workers = workers
        self._scribes = scribes
        self._on_end = on_end
        self._state = "open"
        self._ending = threading.Lock()  # a session ends one way, by commit or by abort, and not within a checkpoint
        self._interrupted: Interrupted | None = None
        self._journal: JournalWriter | None = None
        self._began = time.monotonic()
        self._pause = _SHORTEST
        self._writers: dict[str, ChunkWriter] = {}
        self._files: dict[str, FileRecord] = {}
        name = session_key(*claimed.place).rpartition("/")[2]
        self._intake = Intake(records.store, records.repository, name, locator, closers)

    def __repr__(self) -> str:
        return f"<Session {self._vm!r} {self.seq}, {self._state}>"

    @property
    def seq(self) -> int:
        return self._claim.place.seq

    @property
    def parent(self) -> Manifest | None:
        return self._claim.parent

    @property
    def interrupted(self) -> Interruption | None:
        return self._interrupted.last if self._interrupted else None

    def disk(
        self,
        disk_id: str,
        size: int,
        *,
        parent: DiskRecord | None = None,
        frozen: Frozen | None = None,
        doubtful: Callable[[int, int], bool] | None = None,
    ) -> ChunkWriter:
        """As of `BackupSession`.

        Raises:
            StateError: The session is not open, or the disk was begun, or the disks before it are of another snapshot.
        """
        self._require_open()
        if disk_id in self._writers:
            raise StateError(f"disk {disk_id!r} was begun already", disk=disk_id)
        writer = self._writers[disk_id] = ChunkWriter(
            disk_id,
            Geometry(size, self._chunk_size),
            parent=self._tree_of(parent) if parent else None,
            intake=self._intake,
            workers=self._workers,
            notes=self._noting().disk(disk_id, size, frozen) if frozen else None,
            remains=self._interrupted.disk(disk_id, size, frozen) if frozen and self._interrupted else None,
            doubtful=doubtful,
        )
        return writer

    async def lost(self, disk: DiskRecord) -> tuple[Extent, ...]:
        """As of `BackupSession`."""
        if not self._is_impaired:
            return ()
        geometry = Geometry(disk.size, self._chunk_size)
        root = bytes.fromhex(disk.root)
        return await self._workers.run(lost_ranges, self._locator, self._page_of_parent, geometry, root)

    async def checkpoint(self) -> float:
        """As of `BackupSession`. Raises nothing: what fails here fails what comes next."""
        await self._scribes.run(self._checkpoint)
        return self._pause

    async def add_file(self, name: str, data: bytes) -> FileRecord:
        """Store a file of the VM.

        Raises:
            UsageError: It is larger than 16 MiB.
            StateError: The session is not open, or has a file of this name.
            StorageError: It could not be written.
        """
        self._require_open()
        if name in self._files:
            raise StateError(f"file {name!r} was added already")
        if len(data) > MAX_FILE:
            raise UsageError(f"file {name!r} has {len(data)} bytes; {MAX_FILE} are the most")
        record = self._files[name] = await self._workers.run_to_end(self._add_file, name, data)
        return record

    def check(self, manifest: Manifest) -> None:
        """As of `BackupSession`.

        Raises:
            UsageError: The manifest is larger than 64 KiB.
        """
        encode_record(self._identified(manifest, _SOME_ID))

    async def commit(self, manifest: Manifest) -> Manifest:
        """As of `BackupSession`. Cancelling waits until it is decided; the backup may exist then, or not.

        Raises:
            StateError: The session is not open, or the manifest has disks or files that were not finished in it.
            UsageError: The manifest is larger than 64 KiB.
            BusyError: Another session took over; nothing became visible.
            StorageError: Something could not be made durable, or a pack that was relied on is gone.
        """
        self._require_open()
        self._check_content(manifest)
        manifest = as_stored(self._identified(manifest, secrets.token_hex(16)))
        self._state = "committing"
        await self._workers.run_to_end(self._commit, manifest)
        return manifest

    async def abort(self, *, keep: bool = True) -> None:
        """End the session without a backup; does nothing when it has ended. Runs to its end even if cancelled.

        It is not waited for longer than 4 s, should the disk hang; closing the repository tells then.

        What is finished of frozen disks is made durable and noted, unless the repository failed; without `keep`, what
        this session noted is removed.
        """
        if self._state not in _ENDED:
            with suppress(TimeoutError):
                await finish(self._workers.run_anyway(partial(self.abort_now, keep=keep)), _ABORT_SECONDS)

    # --- in a thread --------------------------------------------------------------------------------------------------

    def abort_now(self, *, keep: bool = True) -> None:
        """As `abort`, and blocks."""
        with self._ending:
            if self._state in _ENDED:
                return
            self._state = "aborted"
            self._intake.abort(keep=keep and self._journal is not None)
            if self._journal is not None and keep:
                self._journal.write()
            elif self._journal is not None:
                self._forget()
            with suppress(SfasyncError):  # on a full disk the number may be used again; nobody is left who used it
                self._records.put_void(self._claim.place, "aborted")
            self._end()

    def look_back(self) -> None:
        """Find out what sessions that died had finished, and what is damaged. Blocks."""
        self._known_damage = self._locator.quarantines()
        self._is_impaired = may_be_lost(self._records, self._locator)
        self._interrupted = Interrupted(self._records, self._claim.journals, self._chunk_size)

    def _checkpoint(self) -> None:
        began = time.monotonic()
        with self._ending:
            if self._state != "open" or self._journal is None:
                return
            with suppress(SfasyncError):  # the session has failed, and says so when more is stored in it
                self._intake.flush(self._pause / 2)
            self._journal.write()
        now = time.monotonic()
        pause = min((now - self._began) / _SHARE, _LONGEST)
        self._pause = max(pause, _SHORTEST, _COST * (now - began))

    def _forget(self) -> None:
        """Remove what this session noted."""
        vm, seq = self._claim.place
        with suppress(SfasyncError):
            remove_journals(self._records, [place for place in self._records.journals(vm) if place.seq == seq])

    def _noting(self) -> JournalWriter:
        if self._journal is None:
            same_place = (journal.number for journal in self._claim.journals if journal.seq == self.seq)
            self._journal = JournalWriter(
                self._records,
                self._claim.place,
                vm=self._vm,
                chunk_size=self._chunk_size,
                is_durable=lambda digest, raw: digest == ZERO or self._intake.is_indexed(BlobKind.CHUNK, digest, raw),
                before=max(same_place, default=0),
            )
        return self._journal

    def _add_file(self, name: str, data: bytes) -> FileRecord:
        digest = content_digest(data)
        if digest != ZERO:
            self._intake.add(BlobKind.FILE, digest, data)
        return FileRecord(name=name, size=len(data), digest=digest.hex())

    def _commit(self, manifest: Manifest) -> None:
        with self._ending:
            if self._state != "committing":
                raise StateError(f"the session is {self._state}; it cannot be committed")
            self._make_visible(manifest)

    def _make_visible(self, manifest: Manifest) -> None:
        self._intake.finish()
        self._check_relied_on()
        try:
            self._records.put_manifest(self._claim.place, manifest)
        except ObjectExistsError:
            raise BusyError(
                f"another session took over from this backup of VM {printable(self._vm)}; nothing was committed"
            ) from None
        self._state = "committed"
        with suppress(SfasyncError):  # the backup stands; what is missing only needs tidying up
            remove_journals(self._records, self._records.journals(self._claim.place.vm))
            self._records.put_end(self._claim.place)
        self._end()

    def _check_relied_on(self) -> None:
        """See that the packs which deduplication relied on are still there, are not about to go, and were not found
        damaged meanwhile.
        """
        relied_on = self._intake.relied_on
        if not relied_on:
            return
        store = self._records.store
        gone = relied_on - usable_packs(store)
        if gone:
            raise StorageError(
                f"{len(gone)} packs that this backup relied on were removed from {store.location}; run it again"
            )
        self._locator.sync()
        for record in self._locator.quarantines() - self._known_damage:
            for pack, kind, name, raw in self._locator.bad_copies(record):
                if pack in relied_on and (kind is None or self._is_missing(kind, name, raw)):
                    raise StorageError(
                        f"{pack_key(pack)}, which this backup relied on, was found damaged meanwhile; run it again"
                    )

    def _is_missing(self, kind: BlobKind, name: bytes, raw: int) -> bool:
        """Whether this backup may need a blob that has no good copy any more."""
        return self._intake.may_rely_on(kind, name, raw) and not self._locator.usable(kind, [(name, raw)])

    def _tree_of(self, disk: DiskRecord) -> TreeReader:
        return TreeReader(Geometry(disk.size, self._chunk_size), bytes.fromhex(disk.root), self._page_of_parent)

    def _page_of_parent(self, digest: bytes, length: int) -> bytes:
        """A page; one on a bad sector is as lost as a damaged one."""
        try:
            return self._blobs.read(BlobKind.PAGE, digest, length)
        except StorageError as error:
            if not is_lasting(error):
                raise
            raise IntegrityError(str(error), path=error.path) from error

    def _put_away(self, location: Location, blob: Blob, error: IntegrityError | StorageError) -> None:
        """Put a copy that was found bad in quarantine: this backup, or the next one, must not rely on it."""
        place = location.pack, location.ordinal
        if place in self._put_away_already or not is_lasting(error):
            return
        self._put_away_already.add(place)
        bad = BadBlob(kind=blob.kind, name=blob.name.hex(), raw=blob.raw)
        damage = BadObject(key=pack_key(location.pack), blobs=(bad,), reason=str(error))
        put_quarantine(self._records.store, self._records.repository, [damage])
        self._locator.sync()

    def _end(self) -> None:
        _remove(self._records, self._claim.place, self._claim.hold)
        self._on_end(self)

    def _identified(self, manifest: Manifest, backup: str) -> Manifest:
        return replace(manifest, id=backup, repository=self._records.repository.hex(), seq=self.seq)

    def _check_content(self, manifest: Manifest) -> None:
        """See that the manifest tells of what this session holds, and of nothing else."""
        for disk in manifest.disks:
            writer = self._writers.get(disk.id)
            if writer is None or writer.size != disk.size or writer.result != (disk.root, disk.tree):
                raise StateError(f"disk {disk.id!r} of the manifest was not finished in this session", disk=disk.id)
        for file in manifest.files:
            if self._files.get(file.name) != file:
                raise StateError(f"file {file.name!r} of the manifest was not added in this session")
        if manifest.vm != self._vm:
            raise StateError(f"the manifest is of VM {manifest.vm!r}, the session of {self._vm!r}")

    def _require_open(self) -> None:
        if self._state != "open":
            raise StateError(f"the session is {self._state}; it must be open")
