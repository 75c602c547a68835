"""Verification: whether all that backups need is there and, if asked for, whether every byte is what was written.

It believes nothing good that was remembered: the index is read anew into a private table, packs are read from their
first byte to their last. Only who asks for a part of the packs gets those that nobody has read for long. Memory does
not grow with the repository, but for the names of objects and the damage that is found.

What was read, and what was found bad, is recorded in the repository, as far as it can be written; nothing else changes.

Places of backups are listed first, then the index, then the packs: what a writer at work adds meanwhile is more than
the listed backups need, never less.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from ..errors import (
    BackupNotFoundError,
    ObjectMissingError,
    RepositoryVersionError,
    SfasyncError,
    StorageError,
    printable,
)
from ..models import VerifyResult
from ..workers import Workers, settled
from .annotations import gaps, is_lost
from .blobs import BlobReader
from .cache import Location
from .checks import Check, Checks, Scope
from .codec import MAX_OBJECT, decode_configuration
from .damage import DAMAGE, is_lasting
from .findings import Findings
from .index import IndexPack
from .journal import read_journal
from .locator import Locator
from .names import (
    CHECKS,
    CONFIG,
    INDEX,
    QUARANTINE,
    Annotated,
    JournalPlace,
    Numbered,
    annotation_key,
    backup_key,
    end_key,
    journal_key,
    pack_key,
    parse_annotation,
    parse_backup,
    parse_check,
    parse_end,
    parse_index,
    parse_journal,
    parse_pack,
    parse_quarantine,
    parse_session,
    session_key,
)
from .objects import ObjectKind, check_writable, decode
from .quarantine import BadObject, lift_quarantine, put_quarantine
from .records import Records
from .scrub import Scrubber
from .walk import ASTRAY, BackupWalk, Stopped

_T = TypeVar("_T")

_REPORT_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a verification reads of packs.

    Attributes:
        data: Whether it reads any; otherwise it looks whether they are there.
        older_than: Only those that nobody has read for so many seconds; None for all.
        percent: Only so much of the bytes concerned, of packs that are longest unread; above 0, at most 100.
    """

    data: bool = False
    older_than: float | None = None
    percent: float = 100.0

    def of(self, packs: Sequence[tuple[IndexPack, float]], now: float) -> set[bytes]:
        """Ids of the packs to read.

        Args:
            packs: Those concerned with the time when each was read last, those longest unread first.
            now: Seconds since the epoch.
        """
        if not self.data:
            return set()
        wanted = sum(pack.size for pack, _ in packs) * self.percent / 100
        chosen: set[bytes] = set()
        size = 0
        for pack, read in packs:
            if size >= wanted or (self.older_than is not None and read > now - self.older_than):
                break
            chosen.add(pack.id)
            size += pack.size
        return chosen

    @property
    def whole(self) -> bool:
        """Whether it reads all packs concerned, whatever was read before."""
        return self.data and self.older_than is None and self.percent == 100.0


class Verification:
    """Verifies a repository once.

    Args:
        records: Reads its small objects.
        chunk_size: Of the repository.
        ids: Ids of the backups to verify; none for everything.
        reading: What to read of their packs.
        remember: Whether to record what was read, and what was found bad.
    """

    def __init__(
        self, records: Records, chunk_size: int, ids: Collection[str], reading: Reading, *, remember: bool = True
    ) -> None:
        self._records = records
        self._store = records.store
        self._chunk_size = chunk_size
        self._ids = frozenset(ids)
        self._reading = reading
        self._remembers = remember
        self._unwritable: str | None = f"{CONFIG} cannot be read"
        self._time = round(time.time(), 3)
        self._stopped = threading.Event()
        self._findings = Findings()
        self._leftovers: list[str] = []
        self._annotations: defaultdict[Numbered, list[str]] = defaultdict(list)
        self._locator = Locator(records.store, records.repository, private=True)
        self._blobs = BlobReader(
            records.store,
            self._locator,
            lambda *bad: self._scrubber.note_bad(*bad),  # there is one before blobs are read
        )
        self._scrubber: Scrubber
        self._checks: Checks
        self._bad_objects: list[BadObject] = []
        self._bad_indexes: dict[str, str] = {}  # index objects that are not replaced, and what is wrong with them
        self._unreadable: set[str] = set()  # index objects, checks, records of damage, annotations in quarantine
        self._astray = False  # a backup needs a blob that no index object has
        self._concerned: set[bytes] = set()  # packs that were looked at
        self._last: dict[str, int] = {}  # the highest number of each VM, as far as it can be known
        self._lock = threading.Lock()
        self._done = self._total = 0
        self._told = 0.0
        self._report: Callable[[int, int], None] | None = None

    async def run(self, threads: int, progress: Callable[[int, int], None] | None) -> VerifyResult:
        """Verify, in threads of its own. Cancelling waits until they have stopped, which takes the time of one pack.

        Args:
            threads: How many of them read packs.
            progress: Called on the loop with objects done and objects in all, ten times a second at most.

        Raises:
            BackupNotFoundError: There is no backup of one of the ids.
            StorageError: The repository cannot be listed.
        """
        if progress is not None:
            self._report = _on_loop(asyncio.get_running_loop(), progress)
        workers = Workers(threads, "sfasync-verify")
        try:
            return await settled(workers.submit(self._run, workers, threads), stop=self._stopped.set)
        finally:
            workers.close()

    # --- in a thread --------------------------------------------------------------------------------------------------

    def _run(self, workers: Workers, threads: int) -> VerifyResult:
        began = time.monotonic()
        try:
            backups = self._check_some(workers, threads) if self._ids else self._check_all(workers, threads)
            problems = self._findings.problems()
            warnings = self._remember(len(problems)) if self._remembers else ()
            return VerifyResult(
                backups=backups,
                objects=self._findings.objects,
                blobs=self._findings.blobs,
                bytes_read=self._findings.bytes_read,
                data=self._reading.data,
                problems=problems,
                known=self._findings.known(),
                leftovers=tuple(sorted(printable(name) for name in self._leftovers)),
                quarantined=self._scrubber.known_copies(),
                all_read_since=self._all_read_since(),
                warnings=warnings,
                seconds=time.monotonic() - began,
            )
        finally:
            self._locator.close()

    def _check_all(self, workers: Workers, threads: int) -> int:
        places = self._records.numbered()
        keys = self._store.list("")
        ours = {key for key in keys if _is_ours(key)}
        self._total = len(ours)
        self._leftovers += (key for key in keys if key not in ours)
        self._check_configuration()
        live = self._check_sessions(filter(None, map(parse_session, keys)))
        self._check_ends(filter(None, map(parse_end, keys)))
        self._check_journals(filter(None, map(parse_journal, keys)))
        self._check_manifests(places)
        self._read_index()
        self._check_annotations(list(filter(None, map(parse_annotation, keys))))
        self._read_checks()
        packs = self._scrubber.packs()
        self._check_packs({pack.id for pack in packs}, workers, threads)
        unindexed = set(filter(None, map(parse_pack, keys))) - {pack.id for pack in packs}
        self._check_unindexed(unindexed, live=live)
        count, blobs = self._walk(places, self._scrubber.is_good)
        if not self._reading.data:
            self._findings.count(blobs=blobs)
        self._note_last(places)
        self._check_gaps()
        return count

    def _check_some(self, workers: Workers, threads: int) -> int:
        """As `_check_all`, for what some backups need; walks find out which packs that is.

        Where a copy is bad there may be another one, in a pack that was not looked at before.
        """
        all_places = self._records.numbered()
        places = self._places_of_ids(all_places)
        self._total = 1 + len(places)
        self._check_configuration()
        self._check_manifests(places)
        wanted = set(places)
        annotated = [place for place in self._records.annotated() if Numbered(*place[:2]) in wanted]
        self._read_index()
        self._check_annotations(annotated)
        self._read_checks()
        touched: set[bytes] = set()

        def touch(location: Location) -> bool:
            if location.pack in self._concerned:
                return self._scrubber.is_good(location)
            touched.add(location.pack)
            return True

        while True:
            touched.clear()
            count, blobs = self._walk(places, touch)
            if not touched:
                break
            self._total += len(touched)
            self._check_packs(touched, workers, threads)
        if not self._reading.data:
            self._findings.count(blobs=blobs)
        self._note_last(all_places)
        return count

    def _places_of_ids(self, all_places: Iterable[Numbered]) -> list[Numbered]:
        """The places of the backups asked for."""
        places = {
            manifest.id: place
            for place in all_places
            for manifest in self._records.manifests([place])
            if manifest.id in self._ids
        }
        for unknown in self._ids - places.keys():
            raise BackupNotFoundError(f"there is no backup {printable(unknown)} in {self._store.location}")
        return list(places.values())

    # --- small objects ------------------------------------------------------------------------------------------------

    def _check_configuration(self) -> None:
        def check() -> None:
            data = self._store.get(CONFIG, limit=MAX_OBJECT)
            decode_configuration(decode(data, CONFIG, self._records.repository, ObjectKind.CONFIG).payload, CONFIG)
            try:
                check_writable(data, CONFIG)
            except RepositoryVersionError as error:
                self._unwritable = str(error)
            else:
                self._unwritable = None

        self._check_object(CONFIG, check)

    def _check_manifests(self, places: Iterable[Numbered]) -> None:
        for place in places:
            self._check_object(backup_key(*place), partial(self._records.manifest, place))

    def _check_annotations(self, places: Collection[Annotated]) -> None:
        """Check annotations, and that none is lost, nor a backup that has some."""
        for place in places:
            self._check_object(annotation_key(*place), partial(self._records.annotation, place))
            self._annotations[Numbered(*place[:2])].append(annotation_key(*place))
        for gap in gaps(places):
            self._tell(annotation_key(*gap), "is missing: there are later ones")
            self._annotations[Numbered(*gap[:2])].append(annotation_key(*gap))
        for backup in self._annotations:
            if is_lost(self._records, backup, self._unreadable):
                self._findings.add(backup_key(*backup), "is missing: it has annotations, and none forgets it")

    def _check_sessions(self, places: Iterable[Numbered]) -> bool:
        """Check the objects of sessions; those that are dead are left-overs. Returns whether one lives."""
        live = False
        for place in places:
            key = session_key(*place)
            self._check_object(key, partial(self._records.session, place))
            if self._is_held(key):
                live = True
            else:
                self._leftovers.append(key)
        return live

    def _is_held(self, key: str) -> bool:
        try:
            return self._store.held(key)
        except DAMAGE:  # told already: it is not even a file
            return False

    def _check_ends(self, places: Iterable[Numbered]) -> None:
        for place in places:
            self._check_object(end_key(*place), partial(self._records.end, place))
            self._leftovers.append(end_key(*place))

    def _check_journals(self, places: Iterable[JournalPlace]) -> None:
        """Check what is noted of unfinished backups; what nobody goes on from is a left-over, some day."""
        for place in places:
            self._check_object(journal_key(*place), partial(read_journal, self._records, place))
            if not self._is_held(session_key(place.vm, place.seq)):
                self._leftovers.append(journal_key(*place))

    def _check_object(self, key: str, check: Callable[[], object]) -> None:
        """Check one object; one that is gone meanwhile was its owner's to remove."""
        self._stop_if_asked()
        try:
            check()
            self._findings.count(bytes_read=self._store.size(key))
        except ObjectMissingError as error:
            if key == CONFIG:
                self._findings.add(key, str(error))
        except DAMAGE as error:
            self._tell(key, str(error))
        self._step()

    def _tell(self, key: str, problem: str) -> None:
        """Tell what is wrong with a small object. Of an annotation that repair put in quarantine it is known: whatever
        it said is lost, and its backup restores without.
        """
        if parse_annotation(key) is not None and self._scrubber.is_known(key):
            self._unreadable.add(key)
            self._findings.know(key, problem, needed=False)
        else:
            self._findings.add(key, problem)

    # --- index and packs ----------------------------------------------------------------------------------------------

    def _read_index(self) -> None:
        wrong = self._locator.sync()
        self._scrubber = Scrubber(self._store, self._records.repository, self._locator.cache, self._findings)
        self._checks = Checks(self._store, self._records.repository, self._locator.cache, self._time)
        for error in wrong:
            self._put_away(error.path or INDEX, error)
            if parse_index(error.path or "") is not None:
                self._bad_indexes[error.path or ""] = str(error)
        self._check_replaced()
        for key in (*self._store.list(INDEX), *self._store.list(QUARANTINE)):
            if parse_index(key) is not None or parse_quarantine(key) is not None:
                with suppress(*DAMAGE):  # told already, by the locator
                    self._findings.count(bytes_read=self._store.size(key))
                self._step()

    def _check_replaced(self) -> None:
        """Look at index objects that others replace: nobody needs them, but none is to rot unseen."""
        replaced = self._locator.cache.superseded()
        for key in self._store.list(INDEX):
            index = parse_index(key)
            if index is None or index not in replaced:
                continue
            try:
                self._locator.read(index)
            except ObjectMissingError:
                pass  # removed since it was listed
            except DAMAGE as error:
                self._unreadable.add(key)
                self._findings.know(key, str(error))

    def _read_checks(self) -> None:
        for key in self._store.list(CHECKS):
            if parse_check(key) is None:
                continue
            try:
                for vm, seq in self._checks.load(key).last.items():
                    self._last[vm] = max(seq, self._last.get(vm, 0))
                self._findings.count(bytes_read=self._store.size(key))
            except ObjectMissingError:
                pass  # another verification found it worthless
            except DAMAGE as error:
                self._put_away(key, error)
            self._step()

    def _put_away(self, key: str, error: SfasyncError) -> None:
        """An object that backups can do without cannot be read. It is a problem once, and then in quarantine."""
        self._unreadable.add(key)
        if self._scrubber.is_known(key):
            self._findings.know(key, str(error))
            return
        self._findings.add(key, str(error))
        if is_lasting(error):
            self._bad_objects.append(BadObject(key=key, blobs=None, reason=str(error)))

    def _check_packs(self, ids: Collection[bytes], workers: Workers, threads: int) -> None:
        """Check packs of the index, and read those of them that are to be read."""
        packs = [(pack, read) for pack, read in self._checks.longest_unread() if pack.id in ids]
        chosen = self._reading.of(packs, self._time)
        self._concerned.update(ids)

        def check(pack: IndexPack) -> None:
            self._scrubber.check_presence(pack)
            if pack.id in chosen and self._scrubber.is_there(pack):
                self._scrubber.check_bytes(pack)
            else:
                self._scrubber.recall(pack.id)

        self._each([pack for pack, _ in packs], check, workers, threads)
        self._checks.note(self._scrubber.read, self._time)

    def _check_unindexed(self, packs: Iterable[bytes], *, live: bool) -> None:
        """Packs in no index: a live session's, or left over by a dead one."""
        for pack in packs:
            self._stop_if_asked()
            if not live:
                self._leftovers.append(pack_key(pack))
            if self._reading.whole:
                self._scrubber.check_unindexed(pack)
            else:
                self._scrubber.recall(pack)
            self._step()

    def _walk(self, places: Iterable[Numbered], is_good: Callable[[Location], bool]) -> tuple[int, int]:
        """Walk the backups in these places; returns how many there are, and how many blobs are in place."""
        walk = BackupWalk(
            self._records.repository,
            self._chunk_size,
            locator=self._locator,
            blobs=self._blobs,
            is_good=is_good,
            findings=self._findings,
            stopped=self._stopped,
        )
        count = 0
        for place in places:
            for manifest in self._records.manifests([place]):
                walk.check(manifest)
                for key in self._annotations.get(place, ()):
                    self._findings.blame(key, manifest.id)
                count += 1
        self._astray = walk.astray
        for key, problem in self._bad_indexes.items() if walk.lost else ():
            self._findings.add(key, problem)  # known or not: it may know of a good copy
        return count, walk.blobs

    # --- what is remembered -------------------------------------------------------------------------------------------

    def _note_last(self, places: Iterable[Numbered]) -> None:
        for vm, seq in places:
            self._last[vm] = max(seq, self._last.get(vm, 0))

    def _check_gaps(self) -> None:
        """A manifest that somebody removed leaves a gap, or is remembered."""
        for vm, first, last in self._records.gaps(self._last):
            more = f", and so are those up to number {last}" if last > first else ""
            problem = f"it is missing: a number is used once{more}"
            try:
                self._store.size(backup_key(vm, first))
            except ObjectMissingError:
                pass
            except DAMAGE as error:
                problem = str(error)  # there is something else under its name
            self._findings.add(backup_key(vm, first), problem)

    def _all_read_since(self) -> float | None:
        """When the longest unread pack concerned was read; now, where there is none."""
        times = (read for pack, read in self._checks.longest_unread() if pack.id in self._concerned)
        return next(times, self._time) or None

    def _remember(self, problems: int) -> tuple[str, ...]:
        """Record damage, then what was read. A repository that cannot be written is none the worse for being read.

        Returns:
            Why that failed, if it did.
        """
        whole = self._reading.whole and not self._ids
        scope = Scope.EVERYTHING if whole else Scope.SOME if self._scrubber.read else Scope.STRUCTURE
        check = Check(self._time, scope, problems, self._scrubber.read, self._last)
        why = self._unwritable
        if why is None:
            try:
                damage = [*self._scrubber.new_damage(), *self._bad_objects]
                if self._astray and not self._scrubber.is_known(INDEX):  # nothing else tells the next backup
                    damage.append(BadObject(key=INDEX, blobs=None, reason=ASTRAY))
                put_quarantine(self._store, self._records.repository, damage)
                known = self._locator.quarantines()
                lift_quarantine(self._store, self._records.repository, known, self._is_sound)
                self._checks.put(check)
            except StorageError as error:
                why = str(error)
        return () if why is None else (f"the result is not remembered: {why}",)

    def _is_sound(self, key: str) -> bool:
        """Whether an object that was in quarantine was looked at, and is good."""
        if key == INDEX:
            return not self._ids and not self._astray
        if parse_annotation(key) is not None:
            return not self._ids and key not in self._unreadable
        if any(parse(key) is not None for parse in (parse_index, parse_check, parse_quarantine)):
            return key not in self._unreadable
        return self._scrubber.is_sound(key)

    # --- threads and progress -----------------------------------------------------------------------------------------

    def _each(self, items: Iterable[_T], check: Callable[[_T], None], workers: Workers, threads: int) -> None:
        """Check items in several threads, this one among them: where no other can be started, it does them all.

        Raises:
            Stopped: The caller was cancelled.
        """
        waiting = iter(items)

        def lane() -> None:
            while True:
                self._stop_if_asked()
                with self._lock:
                    item = next(waiting, None)
                if item is None:
                    return
                check(item)
                self._step()

        lanes = [workers.submit(lane) for _ in range(threads - 1)]
        try:
            lane()
        finally:
            begun = [started for started in lanes if not started.cancel()]
            failures = [failure for started in begun if (failure := started.exception()) is not None]
        if failures:
            raise failures[0]

    def _step(self) -> None:
        """One more object is done."""
        self._findings.count(objects=1)
        with self._lock:
            self._done += 1
            self._total = max(self._total, self._done)  # writers at work add objects
            now = time.monotonic()
            if self._report is None or (now - self._told < _REPORT_SECONDS and self._done != self._total):
                return
            self._told = now
            self._report(self._done, self._total)

    def _stop_if_asked(self) -> None:
        if self._stopped.is_set():
            raise Stopped


def _is_ours(key: str) -> bool:
    """Whether a key is one that this version writes."""
    parsers: tuple[Callable[[str], object], ...] = (
        *(parse_pack, parse_index, parse_backup, parse_annotation, parse_session, parse_end, parse_journal),
        *(parse_check, parse_quarantine),
    )
    return key == CONFIG or any(parse(key) is not None for parse in parsers)


def _on_loop(loop: asyncio.AbstractEventLoop, progress: Callable[[int, int], None]) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        loop.call_soon_threadsafe(progress, done, total)

    return report
