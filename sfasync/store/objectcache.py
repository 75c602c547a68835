"""Small objects as they were when they were last read, so that a listing need not read them all again.

What exists is what the repository lists. A remembered object counts only while its stamp (`ObjectStore.stamps`) is the
one it was read under, and it is a whole object still, with the digest at its end. Whatever is wrong with the cache
means that nothing is remembered.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from .cachefile import CacheFile, cache_directory, remove_cache

log = logging.getLogger("sfasync")

_T = TypeVar("_T")

_VERSION = 1
_PATIENCE = 1.0  # seconds; reading the objects takes less for thousands of them
_SCHEMA = """
CREATE TABLE objects (key TEXT PRIMARY KEY, stamp TEXT NOT NULL, backup TEXT NOT NULL, data BLOB NOT NULL);
CREATE INDEX objects_by_backup ON objects (backup)
"""


class Remembered(NamedTuple):
    """An object that was read.

    Attributes:
        stamp: What it was listed with.
        backup: Id of the backup that it is about; empty if it is about none.
        data: All its bytes.
    """

    stamp: str
    backup: str
    data: bytes


class ObjectCache:
    """The objects of one repository that are remembered. Calls block; any thread may make them.

    Args:
        repository: Its id.
    """

    def __init__(self, repository: bytes) -> None:
        self._repository = repository
        self._lock = threading.Lock()
        self._path: Path | None = None
        self._file: CacheFile | None = None
        self._failed = False

    def close(self) -> None:
        """Give the file back; idempotent. No other call may follow."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def load(self, prefix: str) -> dict[str, Remembered]:
        """What is remembered of the objects whose keys begin so, by key."""
        statement = "SELECT key, stamp, backup, data FROM objects WHERE key >= ? AND key < ?"
        rows = self._rows(statement, prefix, prefix + "\U0010ffff")
        return {key: Remembered(*rest) for key, *rest in rows}

    def keys_of(self, backup: str) -> list[str]:
        """Keys of the objects that are said to be about a backup."""
        return [row[0] for row in self._rows("SELECT key FROM objects WHERE backup = ?", backup)]

    def update(self, new: Mapping[str, Remembered], gone: Iterable[str]) -> None:
        """Remember objects, in the place of what was known under their keys, and forget others."""
        forgotten = [(key,) for key in gone]
        if not new and not forgotten:
            return

        def write(file: CacheFile) -> None:
            with file.transaction() as connection:
                connection.executemany("DELETE FROM objects WHERE key = ?", forgotten)
                rows = ((key, *remembered) for key, remembered in new.items())
                connection.executemany("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?)", rows)

        self._use(write, None)

    def _rows(self, statement: str, *parameters: str) -> list[tuple[Any, ...]]:
        nothing: list[tuple[Any, ...]] = []
        return self._use(lambda file: file.rows(statement, parameters), nothing)

    def _use(self, use: Callable[[CacheFile], _T], otherwise: _T) -> _T:
        """The result of a function of the file, or the other if there is no file that can be used."""
        with self._lock:
            if self._failed:
                return otherwise
            try:
                return use(self._opened())
            except sqlite3.Error as error:
                log.info("the cache of small objects cannot be used: %s", error)
                self._failed = True
                self._close()
                if not isinstance(error, sqlite3.OperationalError):  # then it is not busy or read-only, but damaged
                    remove_cache(self._path)
                return otherwise

    def _opened(self) -> CacheFile:
        if self._file is None:
            directory = cache_directory(self._repository)
            self._path = None if directory is None else directory / "objects.sqlite"
            self._file = CacheFile(self._path, self._repository, schema=_SCHEMA, version=_VERSION, patience=_PATIENCE)
        return self._file
