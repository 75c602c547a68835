"""Checks packs against the index: that they are there with the right size and, if asked for, every byte of them."""

from __future__ import annotations

import threading

from ..errors import IntegrityError, ObjectMissingError, StorageError
from ..interfaces import ObjectStore
from .blobs import open_blob
from .cache import IndexCache, Location
from .findings import DAMAGE, Findings
from .index import IndexPack
from .names import pack_key
from .objects import damaged
from .packs import Blob, PackReader

_TABLE = "CREATE TABLE bad (pack BLOB, ordinal INTEGER, PRIMARY KEY (pack, ordinal)) WITHOUT ROWID"
_BY_PACK = "CREATE INDEX blobs_by_pack ON blobs (pack, ordinal)"


class Scrubber:
    """Checks packs and remembers which blobs are bad. Any thread may check another pack.

    Args:
        store: Where the packs are.
        repository: Id of the repository.
        cache: A private one, into which the whole index was taken.
        findings: Told about damage.
    """

    def __init__(self, store: ObjectStore, repository: bytes, cache: IndexCache, findings: Findings) -> None:
        self._store = store
        self._repository = repository
        self._cache = cache
        self._findings = findings
        self._lock = threading.Lock()
        self._short: dict[bytes, int] = {}  # the true size of packs that are not as the index says
        cache.execute(_TABLE)
        cache.execute(_BY_PACK)

    def packs(self) -> list[IndexPack]:
        """The packs of the index."""
        return [IndexPack(*row) for row in self._cache.rows("SELECT DISTINCT id, digest, size, class FROM packs")]

    def is_good(self, location: Location) -> bool:
        """Whether nothing bad was found out about a blob's bytes there."""
        if location.offset + location.length > self._short.get(location.pack, location.offset + location.length):
            return False
        rows = self._cache.rows("SELECT 1 FROM bad WHERE pack = ? AND ordinal = ?", (location.pack, location.ordinal))
        return not rows

    def check_presence(self, pack: IndexPack) -> None:
        """Check that a pack is there with the size that the index says."""
        key = pack_key(pack.id)
        try:
            size = self._store.size(key)
        except ObjectMissingError:
            self._note_short(pack.id, 0)
            self._findings.add(key, "it is missing")
            return
        except (IntegrityError, StorageError) as error:
            self._note_short(pack.id, 0)
            self._findings.add(key, str(error))
            return
        if size != pack.size:
            self._note_short(pack.id, size)
            self._findings.add(key, f"it has {size} bytes; the index says {pack.size}")

    def is_there(self, pack: IndexPack) -> bool:
        """Whether there is anything to read of a pack whose presence was checked."""
        return self._short.get(pack.id, pack.size) > 0

    def check_bytes(self, pack: IndexPack) -> None:
        """Read all of a pack that is there: its digest, each blob's digest, and that it says what the index says."""
        blobs = self._blobs_of(pack.id)
        try:
            reader = PackReader(self._store, pack.id, self._repository)
            self._findings.count(bytes_read=reader.size)
            self._compare(pack, reader, blobs)
            self._check_all(pack.id, reader)
        except DAMAGE as error:
            self._findings.add(pack_key(pack.id), str(error))
            for ordinal, blob in blobs.items():  # what the index says is what backups rely on
                self._check_indexed_blob(pack.id, ordinal, blob)

    def check_unindexed(self, pack: bytes) -> None:
        """Read all of a pack that no index has: no backup needs it, but no file is to rot unseen."""
        try:
            reader = PackReader(self._store, pack, self._repository)
            self._findings.count(bytes_read=reader.size)
            self._check_all(pack, reader)
        except DAMAGE as error:
            self._findings.add(pack_key(pack), str(error))

    def _compare(self, pack: IndexPack, reader: PackReader, blobs: dict[int, Blob]) -> None:
        """See that a pack says of itself what the index says of it.

        Raises:
            IntegrityError: It does not.
        """
        said = reader.digest, reader.class_, dict(enumerate(reader.blobs))
        if said != (pack.digest, pack.class_, blobs):
            raise damaged(pack_key(pack.id), "contradicts the index")

    def _check_all(self, pack: bytes, reader: PackReader) -> None:
        """Check each blob, and then the pack as such: bad blobs are told one by one, and explain a wrong digest.

        Raises:
            IntegrityError: The pack is damaged elsewhere.
        """
        bad = 0
        try:
            for ordinal, (blob, sealed) in enumerate(reader.read_all()):
                bad += not self._check_blob(pack, ordinal, blob, sealed)
        except IntegrityError:
            if not bad:
                raise

    def _check_indexed_blob(self, pack: bytes, ordinal: int, blob: Blob) -> None:
        sealed = memoryview(bytearray(blob.length))
        try:
            if self._store.read_into(pack_key(pack), blob.offset, sealed) == blob.length:
                self._check_blob(pack, ordinal, blob, sealed)
                return
            problem = "a blob is beyond its end"
        except (IntegrityError, StorageError) as error:
            problem = str(error)
        self._note_bad(pack, ordinal, problem)

    def _check_blob(self, pack: bytes, ordinal: int, blob: Blob, sealed: memoryview) -> bool:
        try:
            open_blob(blob.kind, blob.name, blob.raw, sealed, pack_key(pack))
        except IntegrityError as error:
            self._note_bad(pack, ordinal, str(error))
            return False
        self._findings.count(blobs=1)
        return True

    def _blobs_of(self, pack: bytes) -> dict[int, Blob]:
        """The blobs of a pack as the index has them, by ordinal."""
        rows = self._cache.rows(
            "SELECT ordinal, kind, name, raw, offset, length FROM blobs"
            " WHERE pack IN (SELECT number FROM packs WHERE id = ?) ORDER BY pack, ordinal",
            (pack,),
        )
        return {ordinal: Blob(*blob) for ordinal, *blob in rows}

    def _note_short(self, pack: bytes, size: int) -> None:
        with self._lock:
            self._short[pack] = size

    def _note_bad(self, pack: bytes, ordinal: int, problem: str) -> None:
        self._cache.execute("INSERT OR IGNORE INTO bad VALUES (?, ?)", (pack, ordinal))
        self._findings.add(pack_key(pack), problem, detail=ordinal)
