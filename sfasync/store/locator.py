"""Finds blobs: keeps the cache in step with index objects and quarantine, and replaces it when it turns out damaged."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TypeVar

from ..errors import IntegrityError, ObjectMissingError, StateError, StorageError
from ..interfaces import ObjectStore
from .cache import BadCopy, IndexCache, Location, NameAndLength, cache_path
from .cachefile import remove_cache
from .damage import DAMAGE, Damage, is_confined
from .index import MAX_INDEX, IndexReader
from .names import (
    INDEX,
    PACKS,
    QUARANTINE,
    TOMBSTONES,
    index_key,
    pack_key,
    parse_index,
    parse_pack,
    parse_quarantine,
    parse_tombstone,
)
from .objects import ObjectKind, decode
from .quarantine import read_quarantine
from .seal import BlobKind

log = logging.getLogger("sfasync")

_T = TypeVar("_T")


class Locator:
    """Where the blobs of a repository are. Calls block; any thread may make them.

    Args:
        store: Where the repository is.
        repository: Its id.
        private: Use a cache of its own that begins empty and trusts nothing that was remembered.
    """

    def __init__(self, store: ObjectStore, repository: bytes, *, private: bool = False) -> None:
        self._store = store
        self._repository = repository
        self._lock = threading.Lock()
        self._private = private
        self._rebuilt = private
        self._path: Path | None = None
        self._torn = False  # index objects are damaged, or were lost
        self._is_choosy = False  # `set_usable` was called
        self._whole: set[bytes] = set()  # packs that have their size, since `set_usable`
        self._is_new = False  # no pack could be relied on at `set_usable`, and none has come with `add`
        self._cache: IndexCache | None = None
        self._closed = False

    @property
    def cache(self) -> IndexCache:
        """The cache, opened when it is first needed.

        Raises:
            StorageError: There is no place at all for one.
            StateError: It was given back.
        """
        with self._lock:
            self._check_open()
            if self._cache is None:
                self._path = None if self._private else cache_path(self._repository)
                self._cache = self._open()
            return self._cache

    def close(self) -> None:
        """Give the cache back; idempotent. A call that a thread is in, or begins later, raises a `StateError`."""
        with self._lock:
            self._closed = True
            if self._cache is not None:
                self._cache.close()

    def sync(self) -> list[Damage]:
        """Take in index objects and records of damage that are new, drop those that are gone or replaced.

        Returns:
            What was wrong with objects that could not be taken in; the blobs only they know are not found.

        Raises:
            StorageError: The repository cannot be read.
        """
        return self._use(self._sync)

    def set_usable(self) -> None:
        """Let deduplication rely on packs that are there and are not about to go, and on no others."""
        self._use(self._choose)
        self._whole.clear()
        self._is_choosy = True

    def usable(self, kind: BlobKind, blobs: Collection[NameAndLength]) -> dict[NameAndLength, bytes]:
        """Of those blobs, at most 128, on which deduplication may rely, the id of a pack that has it.

        A pack is looked at when it is first relied on. One that was cut short or emptied, as a file system may do to
        what it held when it was damaged, is left out: what it should hold is stored again.
        """
        if self._is_new:
            return {}
        while True:
            found = self._use(lambda cache: cache.usable(kind, blobs))
            unseen = set(found.values()) - self._whole
            troubles = {pack: trouble for pack in unseen if (trouble := self._trouble(pack)) is not None}
            self._whole.update(unseen - troubles.keys())
            if not troubles:
                return found
            for pack, trouble in troubles.items():
                self._leave_out(pack, trouble)

    def impaired(self) -> bool:
        """Whether backups may need what has no good copy, as far as was known at the last `sync` and `set_usable`."""
        return self._torn or self._use(lambda cache: cache.impaired())

    def unindexed(self, most: int) -> list[bytes]:
        """Ids of packs that are there, as of `set_usable`, and in no index object; no more than `most`."""
        return self._use(lambda cache: cache.unindexed(most))

    def quarantines(self) -> set[bytes]:
        """Ids of the records of damage that are known."""
        return self._use(lambda cache: cache.quarantines())

    def bad_copies(self, record: bytes) -> list[BadCopy]:
        """What a record of damage says of packs."""
        return self._use(lambda cache: cache.bad_copies(record))

    def good(self, kind: BlobKind, names: Iterable[bytes]) -> set[tuple[bytes, int]]:
        """Name and raw length of those blobs, of at most 128 names, that have a good copy as far as is known."""
        return self._use(lambda cache: cache.good(kind, names))

    def locations(self, kind: BlobKind, name: bytes, raw: int) -> list[Location]:
        """Everywhere the blob is said to be."""
        return self._use(lambda cache: cache.locations(kind, name, raw))

    def read(self, index: bytes) -> IndexReader:
        """An index object, from the repository.

        Raises:
            ObjectMissingError: There is none of this id.
            IntegrityError: It is damaged.
            RepositoryVersionError: A newer version wrote it.
        """
        key = index_key(index)
        frame = decode(self._store.get(key, limit=MAX_INDEX), key, self._repository, ObjectKind.INDEX)
        return IndexReader(frame.payload, key)

    def add(self, index: bytes, reader: IndexReader) -> None:
        """Take in an index object that was just made durable."""
        self._is_new = False
        self._use(lambda cache: cache.add(index, reader))

    def rebuild_once(self, used: IndexCache) -> bool:
        """Have another cache than the one that was used, which may be what is wrong; it is made anew only once.

        Returns:
            Whether there is another, with all that the index says. Not if the one used was made anew itself.
        """
        with self._lock:
            self._check_open()
            if self._cache is used:
                if self._rebuilt:
                    return False
                self._replace()
        self._use(self._fill)  # also if another thread replaced it: that one may not be done yet
        return True

    # --- the cache ----------------------------------------------------------------------------------------------------

    def _fill(self, cache: IndexCache) -> None:
        """Let a cache made anew know all that the one before it knew."""
        self._sync(cache)
        if self._is_choosy:
            self._choose(cache)

    def _choose(self, cache: IndexCache) -> None:
        present = _present_packs(self._store)
        doomed = _doomed_packs(self._store)
        cache.set_usable(present, doomed)
        self._is_new = not present - doomed

    def _sync(self, cache: IndexCache) -> list[Damage]:
        wrong = self._sync_quarantine(cache)
        listed = {index for key in self._store.list(INDEX) if (index := parse_index(key)) is not None}
        for index in cache.loaded() - listed:
            cache.drop(index)
        # One in quarantine may be readable now, and then its digest proves it; or what the cache took in while it was
        # good is not the index any more.
        suspect = set() if self._private else listed & {parse_index(key) for key in cache.bad_objects()}
        damaged: dict[bytes, Damage] = {}
        for index in sorted((listed - cache.loaded() | suspect) - cache.superseded()):
            try:
                cache.add(index, self.read(index))
            except DAMAGE as error:
                if not is_confined(error):
                    raise
                cache.drop(index)
                damaged[index] = error
        for index in cache.loaded() & cache.superseded():
            cache.drop(index)
        self._torn = bool(damaged.keys() - cache.superseded()) or INDEX in cache.bad_objects()
        wrong += [error for index, error in damaged.items() if index not in suspect | cache.superseded()]
        if not self._private:
            for what in wrong:
                log.warning("an object is left out: %s", what)
        return wrong

    def _sync_quarantine(self, cache: IndexCache) -> list[Damage]:
        listed = {record for key in self._store.list(QUARANTINE) if (record := parse_quarantine(key)) is not None}
        for record in cache.quarantines() - listed:
            cache.drop_quarantine(record)
        wrong: list[Damage] = []
        for record in sorted(listed - cache.quarantines()):
            try:
                cache.add_quarantine(record, read_quarantine(self._store, self._repository, record).objects)
            except ObjectMissingError:
                continue  # somebody found all of it good again
            except DAMAGE as error:
                if not is_confined(error):
                    raise
                wrong.append(error)
        return wrong

    def _leave_out(self, pack: bytes, trouble: str) -> None:
        log.warning("a pack cannot be relied on, what this backup needs of it is stored again: %s", trouble)
        self._use(lambda cache: cache.set_unusable(pack))

    def _trouble(self, pack: bytes) -> str | None:
        """What is wrong with a pack, as far as its size tells; None for nothing."""
        key = pack_key(pack)
        try:
            size = self._store.size(key)
        except (IntegrityError, StorageError) as error:
            return str(error)
        if size not in self._use(lambda cache: cache.sizes(pack)):
            return f"{key} has {size} bytes, and should not"
        return None

    def _use(self, use: Callable[[IndexCache], _T]) -> _T:
        """The result of a function of the cache; when that fails, of a cache made anew, the second time elsewhere.

        Raises:
            StorageError: There is no place for a cache that works.
        """
        failure: sqlite3.Error | None = None
        for _ in range(3):
            cache = self.cache
            try:
                return use(cache)
            except sqlite3.Error as error:
                self._check_open(error)
                failure = error
            try:
                self._recover(cache, failure)
            except sqlite3.Error as error:
                failure = error
        raise StorageError(f"the cache of the index cannot be used: {failure}") from failure

    def _check_open(self, error: sqlite3.Error | None = None) -> None:
        """Somebody who was cancelled may have left a thread behind, which is in no need of a cache made anew."""
        if self._closed:
            raise StateError("the repository was closed") from error

    def _recover(self, failed: IndexCache, error: sqlite3.Error) -> None:
        """Replace a cache that failed, unless another thread has done so."""
        with self._lock:
            self._check_open(error)
            if self._cache is not failed:
                return
            log.warning("the cache of the index is made anew: %s", error)
            if isinstance(error, sqlite3.OperationalError):  # locked, full, read-only: the place is of no use to us
                self._path = None
            self._fill(self._replace())

    def _replace(self) -> IndexCache:
        self._rebuilt = True
        if self._cache is not None:
            self._cache.close()
        remove_cache(self._path)
        self._cache = self._open()
        return self._cache

    def _open(self) -> IndexCache:
        if self._path is not None:
            try:
                return IndexCache(self._path, self._repository)
            except sqlite3.OperationalError:
                self._path = None
            except sqlite3.Error as error:
                log.warning("the cache of the index is made anew: %s", error)
                remove_cache(self._path)
        try:
            return IndexCache(self._path, self._repository)
        except sqlite3.Error:
            self._path = None
        try:
            return IndexCache(None, self._repository)
        except sqlite3.Error as error:
            raise StorageError(f"there is no place for a cache of the index: {error}") from error


def usable_packs(store: ObjectStore) -> set[bytes]:
    """Packs that are there and are not about to go. Tombstones are listed last: what has none then is safe from those
    who look for sessions after they wrote one.
    """
    present = _present_packs(store)
    return present - _doomed_packs(store)


def _present_packs(store: ObjectStore) -> set[bytes]:
    return {pack for key in store.list(PACKS) if (pack := parse_pack(key)) is not None}


def _doomed_packs(store: ObjectStore) -> set[bytes]:
    return {pack for key in store.list(TOMBSTONES) if (pack := parse_tombstone(key)) is not None}
