"""A copy of the index in SQLite, for fast look-ups.

It lives in the user's cache directory, never in the repository, may be deleted at any time, and proves nothing: what
exists is what the index objects say, and what was relied on is checked against the repository before a commit. Several
processes may share the file.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .index import IndexReader
from .packs import MAX_SIZE
from .seal import BlobKind

_APPLICATION = 0x53464121
_VERSION = 1
_BUSY_SECONDS = 60.0

_SCHEMA = f"""
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
CREATE TABLE repository (id BLOB NOT NULL);
CREATE TABLE indexes (number INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE);
CREATE TABLE superseded (id BLOB NOT NULL, source INTEGER NOT NULL);
CREATE TABLE packs (
    number INTEGER PRIMARY KEY, source INTEGER NOT NULL, id BLOB NOT NULL, digest BLOB NOT NULL, size INTEGER NOT NULL,
    class INTEGER NOT NULL, usable INTEGER NOT NULL DEFAULT 1
);
CREATE INDEX packs_by_id ON packs (id);
CREATE TABLE blobs (
    name BLOB NOT NULL, kind INTEGER NOT NULL, raw INTEGER NOT NULL, pack INTEGER NOT NULL, ordinal INTEGER NOT NULL,
    offset INTEGER NOT NULL, length INTEGER NOT NULL, PRIMARY KEY (name, kind, raw, pack, ordinal)
) WITHOUT ROWID;
"""


class Location(NamedTuple):
    """Where a blob is.

    Attributes:
        pack: Id of the pack.
        ordinal: Its place among the blobs of the pack.
        offset, length: Bytes of the pack that hold it.
    """

    pack: bytes
    ordinal: int
    offset: int
    length: int


class IndexCache:
    """One connection to a cache, for any number of threads.

    Args:
        path: The file; None for a private one without a name, which goes with the connection.
        repository: Id of the repository whose index it copies.

    Raises:
        sqlite3.Error: The file cannot be used, or is not this repository's cache.
    """

    def __init__(self, path: Path | None, repository: bytes) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            "" if path is None else path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            self._prepare(repository, shared=path is not None)
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    # --- following the index ----------------------------------------------------------------------------------------

    def loaded(self) -> set[bytes]:
        """Ids of the index objects whose rows are here."""
        return {row[0] for row in self._rows("SELECT id FROM indexes")}

    def superseded(self) -> set[bytes]:
        """Ids of the index objects that one of those replaces."""
        return {row[0] for row in self._rows("SELECT id FROM superseded")}

    def add(self, index: bytes, reader: IndexReader) -> None:
        """Take the rows of an index object in; does nothing if they are here.

        Raises:
            IntegrityError: The object contradicts itself; nothing of it was taken in.
        """
        with self._transaction() as connection:
            cursor = connection.execute("INSERT OR IGNORE INTO indexes (id) VALUES (?)", (index,))
            if cursor.rowcount == 0:
                return
            source = cursor.lastrowid
            packs = [
                connection.execute(
                    "INSERT INTO packs (source, id, digest, size, class) VALUES (?, ?, ?, ?, ?)", (source, *pack)
                ).lastrowid
                for pack in reader.packs
            ]
            connection.executemany(
                "INSERT OR IGNORE INTO blobs VALUES (?, ?, ?, ?, ?, ?, ?)",
                ((*row[:3], packs[row.pack], *row[4:]) for row in reader.rows()),
            )
            connection.executemany(
                "INSERT INTO superseded VALUES (?, ?)", ((replaced, source) for replaced in reader.supersedes)
            )

    def drop(self, index: bytes) -> None:
        """Forget the rows of an index object."""
        with self._transaction() as connection:
            row = connection.execute("SELECT number FROM indexes WHERE id = ?", (index,)).fetchone()
            if row is None:
                return
            connection.execute("DELETE FROM blobs WHERE pack IN (SELECT number FROM packs WHERE source = ?)", row)
            for table, column in (("packs", "source"), ("superseded", "source"), ("indexes", "number")):
                connection.execute(f"DELETE FROM {table} WHERE {column} = ?", row)  # noqa: S608  # fixed words

    def set_usable(self, packs: Iterable[bytes]) -> None:
        """Say which packs deduplication may rely on: these, and those that are taken in later."""
        with self._transaction() as connection:
            connection.execute("CREATE TEMP TABLE IF NOT EXISTS present (id BLOB PRIMARY KEY) WITHOUT ROWID")
            connection.execute("DELETE FROM present")
            connection.executemany("INSERT OR IGNORE INTO present VALUES (?)", ((pack,) for pack in packs))
            connection.execute("UPDATE packs SET usable = NOT usable WHERE usable != (id IN (SELECT id FROM present))")

    # --- look-ups ---------------------------------------------------------------------------------------------------

    def usable(self, kind: BlobKind, name: bytes, raw: int) -> bytes | None:
        """Id of a usable pack that has the blob, or None. About 10 µs."""
        rows = self._rows(
            "SELECT packs.id FROM blobs JOIN packs ON packs.number = blobs.pack"
            " WHERE name = ? AND kind = ? AND raw = ? AND usable LIMIT 1",
            (name, kind, raw),
        )
        return _checked_id(rows[0][0]) if rows else None

    def sizes(self, pack: bytes) -> set[int]:
        """The bytes that a pack has, as each index object with it says."""
        return {row[0] for row in self._rows("SELECT size FROM packs WHERE id = ?", (pack,))}

    def set_unusable(self, pack: bytes) -> None:
        """Let deduplication not rely on a pack, until `set_usable` says otherwise."""
        with self._transaction() as connection:
            connection.execute("UPDATE packs SET usable = 0 WHERE id = ?", (pack,))

    def locations(self, kind: BlobKind, name: bytes, raw: int) -> list[Location]:
        """Everywhere the blob is said to be, the usable packs first."""
        rows = self._rows(
            "SELECT packs.id, ordinal, offset, length FROM blobs JOIN packs ON packs.number = blobs.pack"
            " WHERE name = ? AND kind = ? AND raw = ? ORDER BY usable DESC",
            (name, kind, raw),
        )
        for pack, _, offset, length in rows:
            _checked_id(pack)
            if not (isinstance(offset, int) and isinstance(length, int) and 0 < length <= raw):
                raise sqlite3.DatabaseError("a location in the cache is none")
            if not 0 <= offset <= MAX_SIZE - length:
                raise sqlite3.DatabaseError("a location in the cache is out of range")
        return [Location(*row) for row in rows]

    # --- the connection ---------------------------------------------------------------------------------------------

    def execute(self, statement: str, parameters: Iterable[object] = ()) -> None:
        """Run a statement of one who owns the cache alone and keeps tables of its own in it."""
        with self._lock:
            self._connection.execute(statement, tuple(parameters))

    def rows(self, statement: str, parameters: Iterable[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of such a statement."""
        return self._rows(statement, tuple(parameters))

    def _rows(self, statement: str, parameters: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._connection.execute(statement, parameters).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _prepare(self, repository: bytes, *, shared: bool) -> None:
        connection = self._connection
        if shared:
            # NORMAL: the last additions may be lost with the power, but what is there then is consistent
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA cache_size = -8192")
        with self._transaction():
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
                connection.execute("INSERT INTO repository VALUES (?)", (repository,))
        found = [
            connection.execute("PRAGMA application_id").fetchone(),
            connection.execute("PRAGMA user_version").fetchone(),
            *connection.execute("SELECT id FROM repository"),
        ]
        if found != [(_APPLICATION,), (_VERSION,), (repository,)]:
            raise sqlite3.DatabaseError("not the cache of this repository")


def cache_path(repository: bytes) -> Path | None:
    """Where the cache of a repository is: below XDG_CACHE_HOME, or ~/.cache. The directory is created.

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
    return directory / "index.sqlite"


def _checked_id(value: object) -> bytes:
    if not isinstance(value, bytes) or len(value) != 16:
        raise sqlite3.DatabaseError("a pack id in the cache is none")
    return value
