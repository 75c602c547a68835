"""A copy of the index, and of the quarantine, in SQLite, for fast look-ups.

It proves nothing: what exists is what the index objects say, and what was relied on is checked against the repository
before a commit.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from .cachefile import CacheFile, cache_directory
from .index import IndexReader
from .names import parse_pack
from .packs import MAX_SIZE
from .quarantine import BadObject
from .seal import BlobKind

_VERSION = 2
_BUSY_SECONDS = 60.0

_SCHEMA = """
CREATE TABLE indexes (number INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE);
CREATE TABLE superseded (id BLOB NOT NULL, source INTEGER NOT NULL);
CREATE TABLE packs (
    number INTEGER PRIMARY KEY, source INTEGER NOT NULL, id BLOB NOT NULL, digest BLOB NOT NULL, size INTEGER NOT NULL,
    class INTEGER NOT NULL, present INTEGER NOT NULL DEFAULT 1, usable INTEGER NOT NULL DEFAULT 1
);
CREATE INDEX packs_by_id ON packs (id);
CREATE TABLE blobs (
    name BLOB NOT NULL, kind INTEGER NOT NULL, raw INTEGER NOT NULL, pack INTEGER NOT NULL, ordinal INTEGER NOT NULL,
    offset INTEGER NOT NULL, length INTEGER NOT NULL, PRIMARY KEY (name, kind, raw, pack, ordinal)
) WITHOUT ROWID;
CREATE TABLE quarantines (id BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE bad_objects (key TEXT NOT NULL, source BLOB NOT NULL, PRIMARY KEY (key, source)) WITHOUT ROWID;
CREATE TABLE bad_blobs (
    pack BLOB NOT NULL, kind INTEGER NOT NULL, name BLOB NOT NULL, raw INTEGER NOT NULL, source BLOB NOT NULL,
    PRIMARY KEY (pack, kind, name, raw, source)
) WITHOUT ROWID;
"""

# Of a row of `blobs` joined with its pack: whether that copy is in quarantine. All of a pack is kind 0 without a name.
QUARANTINED = """(
    EXISTS (SELECT 1 FROM bad_blobs AS bad WHERE bad.pack = packs.id AND bad.kind = blobs.kind
            AND bad.name = blobs.name AND bad.raw = blobs.raw)
    OR EXISTS (SELECT 1 FROM bad_blobs AS bad WHERE bad.pack = packs.id AND bad.kind = 0))"""
_COPIES = "blobs JOIN packs ON packs.number = blobs.pack"
_MOST_NAMES = 128
_PRESENT = "CREATE TEMP TABLE IF NOT EXISTS present (id BLOB PRIMARY KEY) WITHOUT ROWID"
_DOOMED = "CREATE TEMP TABLE IF NOT EXISTS doomed (id BLOB PRIMARY KEY) WITHOUT ROWID"

NameAndLength = tuple[bytes, int]
"""A blob of a kind: its name and raw length."""


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


class BadCopy(NamedTuple):
    """A copy of a blob that is in quarantine, or all that a pack has.

    Attributes:
        pack: Id of the pack.
        kind, name, raw: The blob; kind None for the whole pack.
    """

    pack: bytes
    kind: BlobKind | None
    name: bytes
    raw: int


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

    def set_usable(self, present: Iterable[bytes], doomed: Iterable[bytes] = ()) -> None:
        """Say which packs are there, and which of them deduplication must not rely on; it may rely on the others, and
        on those that are taken in later.
        """
        with self.transaction() as connection:
            connection.execute(_PRESENT)
            connection.execute(_DOOMED)
            for table, packs in (("present", present), ("doomed", doomed)):
                connection.execute(f"DELETE FROM {table}")  # noqa: S608  # fixed words
                connection.executemany(
                    f"INSERT OR IGNORE INTO {table} VALUES (?)",  # noqa: S608  # fixed words
                    ((pack,) for pack in packs),
                )
            for column, condition in (
                ("present", "id IN (SELECT id FROM temp.present)"),
                ("usable", "id IN (SELECT id FROM temp.present) AND id NOT IN (SELECT id FROM temp.doomed)"),
            ):
                flip = f"UPDATE packs SET {column} = NOT {column} WHERE {column} != ({condition})"  # noqa: S608 - as above
                connection.execute(flip)

    # --- following the quarantine -----------------------------------------------------------------------------------

    def quarantines(self) -> set[bytes]:
        """Ids of the records of damage that are here."""
        return {row[0] for row in self.rows("SELECT id FROM quarantines")}

    def add_quarantine(self, record: bytes, bad: Iterable[BadObject]) -> None:
        """Take a record of damage in; does nothing if it is here."""
        with self.transaction() as connection:
            if connection.execute("INSERT OR IGNORE INTO quarantines VALUES (?)", (record,)).rowcount == 0:
                return
            for damaged in bad:
                connection.execute("INSERT OR IGNORE INTO bad_objects VALUES (?, ?)", (damaged.key, record))
                pack = parse_pack(damaged.key)
                if pack is not None:
                    rows = [(blob.kind, bytes.fromhex(blob.name), blob.raw) for blob in damaged.blobs or ()]
                    connection.executemany(
                        "INSERT OR IGNORE INTO bad_blobs VALUES (?, ?, ?, ?, ?)",
                        ((pack, *row, record) for row in ([(0, b"", 0)] if damaged.blobs is None else rows)),
                    )

    def bad_objects(self) -> list[str]:
        """Keys of the objects of which something is in quarantine."""
        return [row[0] for row in self.rows("SELECT DISTINCT key FROM bad_objects")]

    def bad_copies(self, record: bytes) -> list[BadCopy]:
        """What a record of damage says of packs."""
        return [
            BadCopy(pack, BlobKind(kind) if kind else None, name, raw)
            for pack, kind, name, raw in self.rows(
                "SELECT pack, kind, name, raw FROM bad_blobs WHERE source = ?", (record,)
            )
        ]

    def drop_quarantine(self, record: bytes) -> None:
        """Forget a record of damage."""
        with self.transaction() as connection:
            for table, column in (("quarantines", "id"), ("bad_objects", "source"), ("bad_blobs", "source")):
                connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (record,))  # noqa: S608  # fixed words

    # --- look-ups ---------------------------------------------------------------------------------------------------

    def usable(self, kind: BlobKind, blobs: Collection[NameAndLength]) -> dict[NameAndLength, bytes]:
        """Of those blobs, at most 128, of which a usable pack has a copy that is not in quarantine, the id of one.

        About 3 µs, and 1 µs for each blob.
        """
        wanted = set(blobs)
        rows = self.rows(
            f"SELECT blobs.name, blobs.raw, packs.id FROM {_COPIES}"  # noqa: S608 - fixed words and question marks
            f" WHERE blobs.name IN ({_places(len(blobs))}) AND blobs.kind = ? AND usable AND NOT {QUARANTINED}",
            (*(name for name, _ in blobs), kind),
        )
        return {(name, raw): _checked_id(pack) for name, raw, pack in rows if (name, raw) in wanted}

    def sizes(self, pack: bytes) -> set[int]:
        """The bytes that a pack has, as each index object with it says."""
        return {row[0] for row in self.rows("SELECT size FROM packs WHERE id = ?", (pack,))}

    def set_unusable(self, pack: bytes) -> None:
        """Let deduplication not rely on a pack, until `set_usable` says otherwise."""
        with self.transaction() as connection:
            connection.execute("UPDATE packs SET present = 0, usable = 0 WHERE id = ?", (pack,))

    def locations(self, kind: BlobKind, name: bytes, raw: int) -> list[Location]:
        """Everywhere the blob is said to be: the usable packs first, copies in quarantine last."""
        rows = self.rows(
            f"SELECT packs.id, ordinal, offset, length FROM {_COPIES}"  # noqa: S608  # fixed words
            f" WHERE blobs.name = ? AND blobs.kind = ? AND blobs.raw = ? ORDER BY {QUARANTINED}, usable DESC",
            (name, kind, raw),
        )
        for pack, _, offset, length in rows:
            _checked_id(pack)
            if not (isinstance(offset, int) and isinstance(length, int) and 0 < length <= raw):
                raise sqlite3.DatabaseError("a location in the cache is none")
            if not 0 <= offset <= MAX_SIZE - length:
                raise sqlite3.DatabaseError("a location in the cache is out of range")
        return [Location(*row) for row in rows]

    def impaired(self) -> bool:
        """Whether some blob has no good copy as far as is known: none in a pack that is there and out of quarantine.

        Takes no time while nothing is known to be bad; else that of looking at every blob that is.
        """
        with self.transaction() as connection:
            lost = "SELECT number FROM packs WHERE NOT present OR id IN (SELECT pack FROM bad_blobs WHERE kind = 0)"
            suspects = ["SELECT name, kind, raw FROM bad_blobs WHERE kind != 0"]
            if connection.execute(f"{lost} LIMIT 1").fetchone() is not None:
                suspects.append(f"SELECT name, kind, raw FROM blobs WHERE pack IN ({lost})")  # noqa: S608  # fixed words
            return any(
                connection.execute(
                    f"SELECT 1 FROM ({suspect}) AS suspect "  # noqa: S608 - fixed words
                    f"WHERE NOT EXISTS (SELECT 1 FROM {_COPIES}"
                    " WHERE blobs.name = suspect.name AND blobs.kind = suspect.kind AND blobs.raw = suspect.raw"
                    f" AND present AND NOT {QUARANTINED}) LIMIT 1"
                ).fetchone()
                for suspect in suspects
            )

    def unindexed(self, most: int) -> list[bytes]:
        """Ids of packs that were there at the last `set_usable` and are in no index object; no more than `most`."""
        self.execute(_PRESENT)
        rows = self.rows("SELECT id FROM temp.present EXCEPT SELECT id FROM packs LIMIT ?", (most,))
        return [bytes(row[0]) for row in rows]

    def good(self, kind: BlobKind, names: Iterable[bytes]) -> set[tuple[bytes, int]]:
        """Name and raw length of those blobs, of at most 128 names, that have a good copy as far as is known."""
        wanted = tuple(names)
        return set(
            self.rows(
                f"SELECT blobs.name, blobs.raw FROM {_COPIES} "  # noqa: S608 - fixed words and question marks
                f"WHERE blobs.name IN ({_places(len(wanted))}) AND blobs.kind = ?"
                f" AND present AND NOT {QUARANTINED}",
                (*wanted, kind),
            )
        )


def cache_path(repository: bytes) -> Path | None:
    """Where the copy of a repository's index is; None if there is no place that can be written."""
    directory = cache_directory(repository)
    return None if directory is None else directory / "index.sqlite"


def _places(count: int) -> str:
    """Question marks for so many names."""
    assert count <= _MOST_NAMES, count
    return ", ".join("?" * count)


def _checked_id(value: object) -> bytes:
    if not isinstance(value, bytes) or len(value) != 16:
        raise sqlite3.DatabaseError("a pack id in the cache is none")
    return value
