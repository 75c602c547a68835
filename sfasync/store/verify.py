"""Verification: whether all that backups need is there and, if asked for, whether every byte is what was written.

It changes nothing and believes nothing that was remembered: the index is read anew into a private table, packs are read
from their first byte to their last. Memory does not grow with the repository, but for the names of objects and the
damage that is found.

Places of backups are listed first, then the index, then the packs: what a writer at work adds meanwhile is more than
the listed backups need, never less.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from ..errors import BackupNotFoundError, ObjectMissingError, printable
from ..models import VerifyResult
from ..workers import Workers, settled
from .annotations import gaps, is_lost
from .blobs import BlobReader
from .cache import Location
from .codec import MAX_OBJECT, decode_configuration
from .findings import DAMAGE, Findings
from .index import IndexPack
from .journal import read_journal
from .locator import Locator
from .names import (
    CONFIG,
    INDEX,
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
    parse_end,
    parse_index,
    parse_journal,
    parse_pack,
    parse_session,
    session_key,
)
from .objects import ObjectKind, decode
from .records import Records
from .scrub import Scrubber
from .walk import BackupWalk, Stopped

_T = TypeVar("_T")

_REPORT_SECONDS = 0.1


class Verification:
    """Verifies a repository once.

    Args:
        records: Reads its small objects.
        chunk_size: Of the repository.
        ids: Ids of the backups to verify; none for everything.
        data: Whether to read every byte.
    """

    def __init__(self, records: Records, chunk_size: int, ids: Collection[str], *, data: bool) -> None:
        self._records = records
        self._store = records.store
        self._chunk_size = chunk_size
        self._ids = frozenset(ids)
        self._data = data
        self._stopped = threading.Event()
        self._findings = Findings()
        self._leftovers: list[str] = []
        self._annotations: defaultdict[Numbered, list[str]] = defaultdict(list)
        self._locator = Locator(records.store, records.repository, private=True)
        self._blobs = BlobReader(records.store, self._locator)
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
        finally:
            self._locator.close()
        return VerifyResult(
            backups=backups,
            objects=self._findings.objects,
            blobs=self._findings.blobs,
            bytes_read=self._findings.bytes_read,
            data=self._data,
            problems=self._findings.problems(),
            leftovers=tuple(sorted(printable(name) for name in self._leftovers)),
            seconds=time.monotonic() - began,
        )

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
        self._check_annotations(list(filter(None, map(parse_annotation, keys))))
        scrubber = self._read_index()
        packs = scrubber.packs()
        self._check_packs(packs, scrubber, workers, threads)
        unindexed = set(filter(None, map(parse_pack, keys))) - {pack.id for pack in packs}
        self._check_unindexed(unindexed, scrubber, live=live)
        return self._walk(places, scrubber.is_good, self._findings)

    def _check_some(self, workers: Workers, threads: int) -> int:
        """As `_check_all`, for what some backups need; a first walk finds out which packs that is."""
        places = self._places_of_ids()
        self._total = 1 + len(places)
        self._check_configuration()
        self._check_manifests(places)
        wanted = set(places)
        self._check_annotations([place for place in self._records.annotated() if Numbered(*place[:2]) in wanted])
        scrubber = self._read_index()
        touched: set[bytes] = set()

        def touch(location: Location) -> bool:
            touched.add(location.pack)
            return True

        self._walk(places, touch, Findings())
        packs = [pack for pack in scrubber.packs() if pack.id in touched]
        self._total += len(packs)
        self._check_packs(packs, scrubber, workers, threads)
        return self._walk(places, scrubber.is_good, self._findings)

    def _places_of_ids(self) -> list[Numbered]:
        """The places of the backups asked for."""
        places = {
            manifest.id: place
            for place in self._records.numbered()
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
            self._findings.add(annotation_key(*gap), "is missing: there are later ones")
            self._annotations[Numbered(*gap[:2])].append(annotation_key(*gap))
        for backup in self._annotations:
            if is_lost(self._records, backup):
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
            self._findings.add(key, str(error))
        self._step()

    # --- index and packs ----------------------------------------------------------------------------------------------

    def _read_index(self) -> Scrubber:
        for error in self._locator.sync():
            self._findings.add(error.path or INDEX, str(error))
        for key in self._store.list(INDEX):
            if parse_index(key) is not None:
                with suppress(*DAMAGE):  # told already, by the locator
                    self._findings.count(bytes_read=self._store.size(key))
                self._step()
        return Scrubber(self._store, self._records.repository, self._locator.cache, self._findings)

    def _check_packs(self, packs: Iterable[IndexPack], scrubber: Scrubber, workers: Workers, threads: int) -> None:
        def check(pack: IndexPack) -> None:
            scrubber.check_presence(pack)
            if self._data and scrubber.is_there(pack):
                scrubber.check_bytes(pack)

        self._each(packs, check, workers, threads)

    def _check_unindexed(self, packs: Iterable[bytes], scrubber: Scrubber, *, live: bool) -> None:
        """Packs in no index: a live session's, or left over by a dead one."""
        for pack in packs:
            self._stop_if_asked()
            if not live:
                self._leftovers.append(pack_key(pack))
            if self._data:
                scrubber.check_unindexed(pack)
            self._step()

    def _walk(self, places: Iterable[Numbered], is_good: Callable[[Location], bool], findings: Findings) -> int:
        """Walk the backups in these places; returns how many there are."""
        walk = BackupWalk(
            self._records.repository,
            self._chunk_size,
            locator=self._locator,
            blobs=self._blobs,
            is_good=is_good,
            findings=findings,
            stopped=self._stopped,
        )
        count = 0
        for place in places:
            for manifest in self._records.manifests([place]):
                walk.check(manifest)
                for key in self._annotations.get(place, ()):
                    findings.blame(key, manifest.id)
                count += 1
        if not self._data:
            findings.count(blobs=walk.blobs)
        return count

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
    )
    return key == CONFIG or any(parse(key) is not None for parse in parsers)


def _on_loop(loop: asyncio.AbstractEventLoop, progress: Callable[[int, int], None]) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        loop.call_soon_threadsafe(progress, done, total)

    return report
