"""A copy of the index in SQLite, for fast look-ups.

It proves nothing: what exists is what the index objects say, and what was relied on is checked against the repository
before a commit.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from .cachefile import CacheFile, cache_directory
from .index import IndexReader
from .packs import MAX_SIZE
from .seal import BlobKind

_VERSION = 1
_BUSY_SECONDS = 60.0

_SCHEMA = """
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


class IndexCache(CacheFile):
    """The copy of one repository's index; arguments and errors as of `CacheFile`."""

    def __init__(self, path: Path | None, repository: bytes) -> None:
        super().__init__(path, repository, schema=_SCHEMA, version=_VERSION, patience=_BUSY_SECONDS)

    # --- following the index ----------------------------------------------------------------------------------------

    def loaded(self) -> set[bytes]:
        """Ids of the index objects whose rows are here."""
        return {row[0] for row in self.rows("SELECT id FROM indexes")}

    def superseded(self) -> set[bytes]:
        """Ids of the index objects that one of those replaces."""
        return {row[0] for row in self.rows("SELECT id FROM superseded")}

    def add(self, index: bytes, reader: IndexReader) -> None:
        """Take the rows of an index object in; does nothing if they are here.

        Raises:
            IntegrityError: The object contradicts itself; nothing of it was taken in.
        """
        with self.transaction() as connection:
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
        with self.transaction() as connection:
            row = connection.execute("SELECT number FROM indexes WHERE id = ?", (index,)).fetchone()
            if row is None:
                return
            connection.execute("DELETE FROM blobs WHERE pack IN (SELECT number FROM packs WHERE source = ?)", row)
            for table, column in (("packs", "source"), ("superseded", "source"), ("indexes", "number")):
                connection.execute(f"DELETE FROM {table} WHERE {column} = ?", row)  # noqa: S608  # fixed words

    def set_usable(self, packs: Iterable[bytes]) -> None:
        """Say which packs deduplication may rely on: these, and those that are taken in later."""
        with self.transaction() as connection:
            connection.execute("CREATE TEMP TABLE IF NOT EXISTS present (id BLOB PRIMARY KEY) WITHOUT ROWID")
            connection.execute("DELETE FROM present")
            connection.executemany("INSERT OR IGNORE INTO present VALUES (?)", ((pack,) for pack in packs))
            connection.execute("UPDATE packs SET usable = NOT usable WHERE usable != (id IN (SELECT id FROM present))")

    # --- look-ups ---------------------------------------------------------------------------------------------------

    def usable(self, kind: BlobKind, name: bytes, raw: int) -> bytes | None:
        """Id of a usable pack that has the blob, or None. About 10 µs."""
        rows = self.rows(
            "SELECT packs.id FROM blobs JOIN packs ON packs.number = blobs.pack"
            " WHERE name = ? AND kind = ? AND raw = ? AND usable LIMIT 1",
            (name, kind, raw),
        )
        return _checked_id(rows[0][0]) if rows else None

    def sizes(self, pack: bytes) -> set[int]:
        """The bytes that a pack has, as each index object with it says."""
        return {row[0] for row in self.rows("SELECT size FROM packs WHERE id = ?", (pack,))}

    def set_unusable(self, pack: bytes) -> None:
        """Let deduplication not rely on a pack, until `set_usable` says otherwise."""
        with self.transaction() as connection:
            connection.execute("UPDATE packs SET usable = 0 WHERE id = ?", (pack,))

    def locations(self, kind: BlobKind, name: bytes, raw: int) -> list[Location]:
        """Everywhere the blob is said to be, the usable packs first."""
        rows = self.rows(
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


def cache_path(repository: bytes) -> Path | None:
    """Where the copy of a repository's index is; None if there is no place that can be written."""
    directory = cache_directory(repository)
    return None if directory is None else directory / "index.sqlite"


def _checked_id(value: object) -> bytes:
    if not isinstance(value, bytes) or len(value) != 16:
        raise sqlite3.DatabaseError("a pack id in the cache is none")
    return value
