"""Repair: what a repository can be given back from what is in it.

Packs that no index object has are indexed again, from their own trailers and after every byte of them was checked.
Index objects that cannot be read are replaced. What is bad goes into quarantine, what turned out good comes out of it.
Annotations and manifests that are lost are given up, so that verification does not tell of them for ever.
What killed writers left is removed. Nothing that cannot be read is ever removed, and no backup loses anything.

Packs are listed first, then sessions, then the index: who wrote a pack either lives still, and the pack is left alone,
or has ended, and the pack is in the index; but for those who were killed.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Container, Iterable
from functools import partial

from ..errors import IntegrityError, ObjectMissingError, RepositoryVersionError, printable
from ..models import RepairAction
from .annotations import gaps, is_lost
from .checks import remembered
from .damage import DAMAGE, is_confined, is_lasting
from .index import encode_index
from .intake import INDEX_BLOBS, INDEX_PACKS
from .local import is_temporary
from .locator import Locator
from .names import (
    PACKS,
    SESSIONS,
    Numbered,
    annotation_key,
    backup_key,
    end_key,
    index_key,
    pack_key,
    parse_end,
    parse_index,
    parse_pack,
    parse_session,
    session_key,
)
from .objects import ObjectKind, encode
from .packs import Pack
from .quarantine import BadObject, lift_quarantine, put_quarantine
from .records import Records
from .scrub import Examined, bad_object, examine
from .walk import Stopped

_MOST_FILLED = 1000
"""Numbers that follow each other; more were not lost, but made up."""


class Repair:
    """Repairs a repository once. Calls block.

    Args:
        records: Reads and creates small objects.
        dry_run: Say what would be done, and do nothing.
        stopped: Ends it early when set, between two steps.

    Attributes:
        actions: What was done, or would be.
    """

    def __init__(self, records: Records, *, dry_run: bool, stopped: threading.Event) -> None:
        self._records = records
        self._store = records.store
        self._dry_run = dry_run
        self._stopped = stopped
        self._locator = Locator(records.store, records.repository, private=True)
        self.actions: list[RepairAction] = []

    def run(self) -> None:
        """Repair.

        Raises:
            Stopped: The caller gave up. What was done stands.
            StorageError: Something could not be read or written. What was done stands.
        """
        try:
            packs = {pack for key in self._store.list(PACKS) if (pack := parse_pack(key)) is not None}
            live = self._end_sessions()
            self._remove_temporary_files()
            damaged, newer = self._read_index()
            if not newer:  # which packs an index object of a newer version has is not known
                self._index(packs - self._indexed(), damaged, live)
            self._release(packs)
            self._fill_gaps(self._give_up_annotations())
        finally:
            self._locator.close()

    def _do(self, action: str, key: str, reason: str, effect: Callable[[], object] = lambda: None) -> None:
        """One step: noted, and done unless this is a dry run."""
        if self._stopped.is_set():
            raise Stopped
        if not self._dry_run:
            effect()
        self.actions.append(RepairAction(object=key, action=action, reason=printable(reason)))

    # --- what killed writers left -------------------------------------------------------------------------------------

    def _end_sessions(self) -> set[str]:
        """End sessions whose writers are dead; returns the names of those that live."""
        keys = self._store.list(SESSIONS)
        live: set[str] = set()
        for place in filter(None, map(parse_session, keys)):
            key = session_key(*place)
            if self._is_held(key):
                live.add(key.removeprefix(SESSIONS))
                continue
            self._do("remove", key, "the backup that it belongs to was killed", partial(self._end_session, place))
        for place in filter(None, map(parse_end, keys)):
            if session_key(*place) not in keys:
                key = end_key(*place)
                self._do("remove", key, "the session that it belongs to has ended", partial(self._store.delete, key))
        return live

    def _end_session(self, place: Numbered) -> None:
        self._records.put_void(place, "fenced")
        for key in (session_key(*place), end_key(*place)):
            self._store.delete(key)

    def _remove_temporary_files(self) -> None:
        for key in self._store.list(""):
            if is_temporary(key.rpartition("/")[2]) and not self._is_held(key):
                self._do(
                    "remove", key, "its writer was killed before it was complete", partial(self._store.delete, key)
                )

    def _is_held(self, key: str) -> bool:
        try:
            return self._store.held(key)
        except IntegrityError:
            return True  # it is not even a file: nothing of ours, and left alone

    # --- index --------------------------------------------------------------------------------------------------------

    def _read_index(self) -> tuple[list[bytes], bool]:
        """Ids of the index objects that are damaged, and whether there are some of a newer version."""
        damaged: list[bytes] = []
        newer = False
        for error in self._locator.sync():
            index = parse_index(error.path or "")
            if index is not None:
                newer |= isinstance(error, RepositoryVersionError)
                damaged.append(index)
        return damaged, newer

    def _indexed(self) -> set[bytes]:
        return {bytes(row[0]) for row in self._locator.cache.rows("SELECT id FROM packs")}

    def _index(self, unindexed: Iterable[bytes], damaged: list[bytes], live: set[str]) -> None:
        """Index packs, and replace index objects that are damaged by those that are written here.

        Raises:
            StorageError: A pack could not be read to its end, and not because it is damaged.
        """
        known = set(self._locator.cache.bad_objects())
        waiting: list[Pack] = []
        for pack in sorted(unindexed):
            examined = examine(self._store, pack, self._records.repository)
            if examined.session in live:
                continue
            if examined.error is not None and not is_confined(examined.error):
                raise examined.error  # nobody knows what is good of it
            self._put_away(pack, examined, known)
            if examined.pack is None:
                continue
            blobs = examined.pack.blobs
            self._do("index", pack_key(pack), f"its {len(blobs)} blobs are in no index object")
            waiting.append(examined.pack)
            if len(waiting) >= INDEX_PACKS or sum(len(pack.blobs) for pack in waiting) >= INDEX_BLOBS:
                self._write_index(waiting, [])
                waiting = []
        for index in damaged:
            self._do("replace", index_key(index), "it is damaged; the packs that are there are indexed elsewhere now")
        if waiting or damaged:
            self._write_index(waiting, damaged)

    def _put_away(self, pack: bytes, examined: Examined, known: set[str]) -> None:
        """Put what is bad of a pack in quarantine, before anybody finds it in the index."""
        bad = bad_object(pack, examined)
        if bad is None or bad.key in known or (examined.error is not None and not is_lasting(examined.error)):
            return
        self._quarantine(bad)

    def _quarantine(self, bad: BadObject) -> None:
        put = partial(put_quarantine, self._store, self._records.repository, [bad])
        self._do("quarantine", bad.key, bad.reason, put)

    def _write_index(self, packs: list[Pack], supersedes: list[bytes]) -> None:
        if self._dry_run:
            return
        key = index_key(secrets.token_bytes(16))
        payload = encode_index(packs, supersedes)
        self._store.put(key, encode(ObjectKind.INDEX, key, self._records.repository, payload))

    # --- quarantine and gaps ------------------------------------------------------------------------------------------

    def _release(self, packs: set[bytes]) -> None:
        """Let out of quarantine what is good: all of a pack, or an index object."""
        loaded = self._locator.cache.loaded()
        good: set[str] = set()
        for key in self._locator.cache.bad_objects():
            pack = parse_pack(key)
            if (pack in packs and self._is_good(pack)) or parse_index(key) in loaded:
                good.add(key)
                self._do("release", key, "it is good again, and in quarantine")
        if not self._dry_run:
            known = self._locator.quarantines()
            lift_quarantine(self._store, self._records.repository, known, good.__contains__)

    def _is_good(self, pack: bytes | None) -> bool:
        """Whether every byte of a pack is good, and the index says of it what it says itself."""
        if pack is None:
            return False
        examined = examine(self._store, pack, self._records.repository)
        if examined.pack is None or bad_object(pack, examined) is not None:
            return False
        said = {
            (bytes(row[0]), row[1])
            for row in self._locator.cache.rows("SELECT digest, size FROM packs WHERE id = ?", (pack,))
        }
        return said <= {(examined.pack.digest, examined.pack.size)}

    def _fill_gaps(self, given_up: Container[str]) -> None:
        """Say of manifests that are gone that there is no such backup, so that their numbers are not used again.

        Args:
            given_up: As of `is_lost`.
        """
        for gap in self._records.gaps(remembered(self._store, self._records.repository)):
            for seq in range(gap.first, min(gap.last, gap.first + _MOST_FILLED - 1) + 1):
                self._void(Numbered(gap.vm, seq))
        for backup in sorted({Numbered(*place[:2]) for place in self._records.annotated()}):
            if is_lost(self._records, backup, given_up):
                self._void(backup)

    def _give_up_annotations(self) -> set[str]:
        """Put annotations that are damaged or missing in quarantine: nobody knows what they said. Returns the keys of
        those that are damaged.
        """
        known = set(self._locator.cache.bad_objects())
        given_up: set[str] = set()
        places = self._records.annotated()
        for place in places:
            key = annotation_key(*place)
            try:
                self._records.annotation(place)
            except ObjectMissingError:
                pass  # removed since it was listed
            except DAMAGE as error:
                if not is_lasting(error):
                    continue
                given_up.add(key)
                if key not in known:
                    self._quarantine(BadObject(key=key, blobs=None, reason=str(error)))
        for gap in gaps(places):
            if annotation_key(*gap) not in known:
                self._quarantine(BadObject(key=annotation_key(*gap), blobs=None, reason="it is missing"))
        return given_up

    def _void(self, place: Numbered) -> None:
        """Take the place of a manifest that is lost, unless there is something in it."""
        if not self._is_taken(backup_key(*place)):
            self._do(
                "void",
                backup_key(*place),
                "there was something, and it is gone: the number is not to be used again",
                partial(self._records.put_void, place, "lost"),
            )

    def _is_taken(self, key: str) -> bool:
        """Whether there is something under a name, if only a directory: that is for people to move away."""
        try:
            self._store.size(key)
        except ObjectMissingError:
            return False
        except IntegrityError:
            pass
        return True
