"""A cache in SQLite: one file for each repository and purpose, in the user's cache directory, never in the repository.

It may be deleted at any time, and several processes may share it. Nothing that is in it is proof of anything.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

log = logging.getLogger("sfasync")

_APPLICATION = 0x53464121
_SIDE_FILES = ("", "-wal", "-shm", "-journal")


class CacheFile:
    """One connection to a cache, for any number of threads.

    Args:
        path: The file; None for a private one without a name, which goes with the connection.
        repository: Id of the repository that it is about.
        schema: Statements that make its tables, each ended by a semicolon.
        version: Of the schema.
        patience: Seconds to wait for other processes.

    Raises:
        sqlite3.Error: The file cannot be used, or is not such a cache of this repository.
    """

    def __init__(self, path: Path | None, repository: bytes, *, schema: str, version: int, patience: float) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            "" if path is None else path, timeout=patience, isolation_level=None, check_same_thread=False
        )
        try:
            self._prepare(repository, schema, version, shared=path is not None)
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def execute(self, statement: str, parameters: Iterable[object] = ()) -> None:
        """Run a statement outside of a transaction."""
        with self._lock:
            self._connection.execute(statement, tuple(parameters))

    def rows(self, statement: str, parameters: Iterable[object] = ()) -> list[tuple[Any, ...]]:
        """All rows that a statement gives."""
        with self._lock:
            return self._connection.execute(statement, tuple(parameters)).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Write: all of the block, or nothing if it fails."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _prepare(self, repository: bytes, schema: str, version: int, *, shared: bool) -> None:
        connection = self._connection
        if shared:
            # A new file waits for no disk: what a lost power leaves of it is no cache, and made anew.
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("PRAGMA journal_mode = WAL")
            # NORMAL: the last additions may be lost with the power, but what is there then is consistent
            connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA cache_size = -8192")
        with self.transaction():
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
                connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                connection.execute(f"PRAGMA user_version = {version}")
                connection.execute("CREATE TABLE repository (id BLOB NOT NULL)")
                connection.execute("INSERT INTO repository VALUES (?)", (repository,))
                for statement in schema.split(";"):
                    connection.execute(statement)
        found = [connection.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")]
        if found != [(_APPLICATION,), (version,)]:
            raise sqlite3.DatabaseError("not a cache of this kind")
        if connection.execute("SELECT id FROM repository").fetchall() != [(repository,)]:
            raise sqlite3.DatabaseError("not the cache of this repository")


def cache_directory(repository: bytes) -> Path | None:
    """Where the caches of a repository are: below XDG_CACHE_HOME, or ~/.cache. The directory is created.

    Returns:
        None if there is no place that can be written.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # "must be absolute, otherwise ignored": XDG Base Directory Specification
        base = os.path.expanduser("~/.cache")
    if not os.path.isabs(base):
        return None
    directory = Path(base) / "sfasync" / repository.hex()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    return directory


def remove_cache(path: Path | None) -> None:
    """Remove the file of a cache and what SQLite keeps beside it, as far as that can be done."""
    for suffix in _SIDE_FILES if path is not None else ():
        try:
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        except OSError as error:
            log.warning("cannot remove %s%s: %s", path, suffix, error.strerror)
