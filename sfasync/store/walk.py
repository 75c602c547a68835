"""Walks everything that a backup needs, from its manifest down to its chunks."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ..errors import IntegrityError, StorageError
from ..models import DiskRecord, Manifest
from .blobs import BlobReader, describe
from .cache import Location
from .findings import Findings
from .locator import Locator
from .names import INDEX, backup_key, pack_key, vm_name
from .seal import BlobKind
from .tree import DIGEST, FANOUT, ZERO, Geometry, disk_digest, split_page

ASTRAY = "blobs that backups need are in no index object"

_SEEN = "CREATE TABLE IF NOT EXISTS {} (digest BLOB, level INTEGER, length INTEGER,"
_SEEN_KEY = " PRIMARY KEY (digest, level, length)) WITHOUT ROWID"


class Stopped(Exception):  # noqa: N818  # not an error: nobody wants the result any more
    """The caller was cancelled."""


class BackupWalk:
    """Checks that every page, chunk and file of backups is in place.

    Subtrees are remembered, in tables of the cache: those in which nothing is wrong are not walked again for other
    backups, those with damage not again for the same one, so that each backup that needs it is told. Without the latter
    a few pages, each 128 times the next, would take for ever.

    Args:
        repository: Id of the repository.
        chunk_size: Of the repository.
        locator: One with a private cache.
        blobs: Reads pages with it.
        is_good: Whether a blob can be relied on in a place.
        findings: Told what is missing, and who needs what is damaged.
        stopped: Ends the walk early when set.

    Attributes:
        blobs: How many were found in place.
        lost: Whether one has no good copy.
        astray: Whether one was in no index object.
    """

    def __init__(
        self,
        repository: bytes,
        chunk_size: int,
        *,
        locator: Locator,
        blobs: BlobReader,
        is_good: Callable[[Location], bool],
        findings: Findings,
        stopped: threading.Event,
    ) -> None:
        self._repository = repository
        self._chunk_size = chunk_size
        self._locator = locator
        self._cache = locator.cache
        self._blobs = blobs
        self._is_good = is_good
        self._findings = findings
        self._stopped = stopped
        self._backup = ""
        self.blobs = 0
        self.lost = self.astray = False
        for table in ("sound", "unsound"):
            self._cache.execute(_SEEN.format(table) + _SEEN_KEY)
        self._cache.execute("DELETE FROM sound")

    def check(self, manifest: Manifest) -> None:
        """Walk one backup.

        Raises:
            Stopped: The caller was cancelled.
        """
        self._backup = manifest.id
        self._cache.execute("DELETE FROM unsound")
        for disk in manifest.disks:
            self._check_disk(disk, backup_key(vm_name(self._repository, manifest.vm), manifest.seq))
        for file in manifest.files:
            if file.digest != ZERO.hex():
                self._has(BlobKind.FILE, bytes.fromhex(file.digest), file.size)

    def _check_disk(self, disk: DiskRecord, key: str) -> None:
        root = bytes.fromhex(disk.root)
        if disk_digest(disk.size, root).hex() != disk.tree:
            self._findings.add(key, f"the tree digest of disk {disk.id!r} is not that of its root and size")
            self._findings.blame(key, self._backup)
        geometry = Geometry(disk.size, self._chunk_size)
        self._is_sound(geometry, geometry.depth, 0, root)

    def _is_sound(self, geometry: Geometry, level: int, index: int, digest: bytes) -> bool:
        """Whether a node and everything below it is in place."""
        if digest == ZERO:
            return True
        length = geometry.length(level, index)
        if level == 0:
            return self._has(BlobKind.CHUNK, digest, length)
        if self._stopped.is_set():
            raise Stopped
        key = (digest, level, length)
        for known, table in ((True, "sound"), (False, "unsound")):
            if self._cache.rows(f"SELECT 1 FROM {table} WHERE digest = ? AND level = ? AND length = ?", key):  # noqa: S608  # fixed words
                return known
        page = self._page(digest, geometry.children(level, index) * DIGEST)
        first = index * FANOUT
        children = enumerate(split_page(page) if page is not None else ())
        below = [self._is_sound(geometry, level - 1, first + n, child) for n, child in children]
        sound = page is not None and all(below)
        table = "sound" if sound else "unsound"
        self._cache.execute(f"INSERT INTO {table} VALUES (?, ?, ?)", key)  # noqa: S608 - one of two words
        return sound

    def _page(self, digest: bytes, length: int) -> bytes | None:
        if not self._has(BlobKind.PAGE, digest, length):
            return None
        try:
            page = self._blobs.read(BlobKind.PAGE, digest, length)
        except (IntegrityError, StorageError):  # what was wrong with each copy has been told
            self._blame(BlobKind.PAGE, digest, length)
            return None
        self._findings.count(bytes_read=length)
        return page

    def _has(self, kind: BlobKind, name: bytes, length: int) -> bool:
        """Whether a blob is in place somewhere; tells who needs it if it is not."""
        for location in self._locator.locations(kind, name, length):
            if self._is_good(location):
                self.blobs += 1
                return True
        self._blame(kind, name, length)
        return False

    def _blame(self, kind: BlobKind, name: bytes, length: int) -> None:
        """Tell who needs a blob of which no copy is good."""
        self.lost = True
        locations = self._locator.locations(kind, name, length)
        for location in locations:
            problem = f"{describe(kind, name)} was found damaged earlier, and there is no good copy of it"
            self._findings.blame(pack_key(location.pack), self._backup, detail=location.ordinal, problem=problem)
        if not locations:
            self.astray = True
            self._findings.add(INDEX, ASTRAY)
            self._findings.blame(INDEX, self._backup)
