"""Checks packs against the index: that they are there with the right size and, if asked for, every byte of them.

Damage that is in quarantine was told when it was found. It is a problem again only where a backup needs what it spoils;
elsewhere it is known.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import IntegrityError, ObjectMissingError, SfasyncError, StorageError
from ..interfaces import ObjectStore
from .blobs import check_sealed
from .cache import QUARANTINED, IndexCache, Location
from .damage import DAMAGE, is_lasting
from .findings import Findings
from .index import IndexPack
from .names import pack_key, parse_pack
from .objects import damaged
from .packs import Blob, Pack, PackReader
from .quarantine import BadBlob, BadObject

_TABLE = (
    "CREATE TABLE bad (pack BLOB, ordinal INTEGER, problem TEXT, lasting INTEGER, PRIMARY KEY (pack, ordinal))"
    " WITHOUT ROWID"
)
_BY_PACK = "CREATE INDEX blobs_by_pack ON blobs (pack, ordinal)"
_BAD_COPIES = (
    "FROM bad JOIN packs ON packs.id = bad.pack JOIN blobs ON blobs.pack = packs.number AND blobs.ordinal = bad.ordinal"
)


@dataclass(frozen=True, slots=True)
class Examined:
    """What reading all of a pack showed.

    Attributes:
        pack: The pack as it describes itself; None if it cannot be taken apart.
        bad: Problems of blobs, by ordinal.
        error: What is wrong with the pack as such, where bad blobs do not explain it.
        session: Name of the session that wrote it; empty if the pack cannot be taken apart.
    """

    pack: Pack | None
    bad: dict[int, IntegrityError]
    error: SfasyncError | None = None
    session: str = ""


def examine(store: ObjectStore, pack: bytes, repository: bytes) -> Examined:
    """Read a pack from its first byte to its last, and check each blob and the pack as such. Raises nothing."""
    bad: dict[int, IntegrityError] = {}
    described: Pack | None = None
    session = ""
    wrong: SfasyncError | None = None
    try:
        reader = PackReader(store, pack, repository)
        described = Pack(pack, reader.digest, reader.size, reader.class_, reader.blobs)
        session = reader.session
        for ordinal, (blob, sealed) in enumerate(reader.read_all()):
            try:
                check_sealed(blob.kind, blob.name, blob.raw, sealed, pack_key(pack))
            except IntegrityError as error:
                bad[ordinal] = error
    except DAMAGE as error:
        wrong = None if bad and isinstance(error, IntegrityError) else error
    return Examined(described, bad, wrong, session)


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
        self._gone: set[bytes] = set()  # packs of which nothing can be read
        self._read: set[bytes] = set()  # packs whose blobs were all looked at: that counts, not what is in quarantine
        self._unsound: set[bytes] = set()  # packs of which something is bad
        self._spoiled: dict[bytes, str] = {}  # packs that are bad as such, which is not in quarantine
        self._unindexed: list[BadObject] = []
        self._sound_unindexed: set[bytes] = set()
        cache.execute(_TABLE)
        cache.execute(_BY_PACK)

    # --- what is asked of it ------------------------------------------------------------------------------------------

    def packs(self) -> list[IndexPack]:
        """The packs of the index."""
        return [IndexPack(*row) for row in self._cache.rows("SELECT DISTINCT id, digest, size, class FROM packs")]

    def is_good(self, location: Location) -> bool:
        """Whether nothing bad is known about a blob's bytes there."""
        place = (location.pack, location.ordinal)
        if self._cache.rows("SELECT 1 FROM bad WHERE pack = ? AND ordinal = ?", place):
            return False
        return location.pack in self._read or not self._cache.rows(
            "SELECT 1 FROM packs JOIN blobs ON blobs.pack = packs.number"  # noqa: S608  # fixed words
            f" WHERE packs.id = ? AND blobs.ordinal = ? AND {QUARANTINED}",
            place,
        )

    def is_known(self, key: str) -> bool:
        """Whether damage of an object is in quarantine."""
        return bool(self._cache.rows("SELECT 1 FROM bad_objects WHERE key = ?", (key,)))

    def is_there(self, pack: IndexPack) -> bool:
        """Whether there is anything to read of a pack whose presence was checked."""
        return pack.id not in self._gone

    def is_sound(self, key: str) -> bool:
        """Whether an object is a pack that was read as a whole, and nothing of it was found bad."""
        pack = parse_pack(key)
        return (pack in self._read and pack not in self._unsound) or pack in self._sound_unindexed

    @property
    def read(self) -> set[bytes]:
        """The packs that were read from their first byte to their last."""
        return self._read

    def new_damage(self) -> Iterator[BadObject]:
        """What was found bad, will not become good by itself, and is not in quarantine."""
        spoiled = dict(self._spoiled)
        for (pack,) in self._cache.rows("SELECT DISTINCT pack FROM bad WHERE lasting ORDER BY pack"):
            found = self._cache.rows(  # of one pack at a time: of a lost repository all would not fit into memory
                f"SELECT DISTINCT blobs.kind, blobs.name, blobs.raw, bad.problem {_BAD_COPIES}"
                f" WHERE lasting AND bad.pack = ? AND NOT {QUARANTINED}",
                (pack,),
            )
            if not found:
                continue
            blobs = tuple(BadBlob(kind=kind, name=name.hex(), raw=raw) for kind, name, raw, _ in found)
            yield BadObject(
                key=pack_key(pack),
                blobs=None if len(blobs) == len(self._blobs_of(pack)) else blobs,
                reason=spoiled.pop(pack, found[0][-1]),
            )
        for pack, reason in spoiled.items():
            yield BadObject(key=pack_key(pack), blobs=(), reason=reason)
        yield from self._unindexed

    def known_copies(self) -> int:
        """Copies of blobs that are in quarantine."""
        ((count,),) = self._cache.rows(
            "SELECT count(*) FROM (SELECT DISTINCT packs.id, blobs.ordinal FROM packs"  # noqa: S608  # fixed words
            " JOIN blobs ON blobs.pack = packs.number"
            f" WHERE packs.id IN (SELECT pack FROM bad_blobs) AND {QUARANTINED})"
        )
        return int(count)

    # --- checking -----------------------------------------------------------------------------------------------------

    def check_presence(self, pack: IndexPack) -> None:
        """Check that a pack is there with the size that the index says."""
        key = pack_key(pack.id)
        try:
            size = self._store.size(key)
        except (IntegrityError, StorageError) as error:
            with self._lock:
                self._gone.add(pack.id)
            problem = "it is missing" if isinstance(error, ObjectMissingError) else str(error)
            self._note_cut(pack.id, 0, problem, lasting=is_lasting(error))
            return
        if size != pack.size:
            self._note_cut(pack.id, size, f"it has {size} bytes; the index says {pack.size}", lasting=True)

    def recall(self, pack: bytes) -> None:
        """Take a pack that is not read for what is known of it."""
        if self.is_known(pack_key(pack)):
            whole = self._cache.rows("SELECT 1 FROM bad_blobs WHERE pack = ? AND kind = 0", (pack,))
            self._findings.know(pack_key(pack), "it was found damaged earlier", needed=bool(whole))

    def check_bytes(self, pack: IndexPack) -> None:
        """Read all of a pack that is there: its digest, each blob's digest, and that it says what the index says."""
        blobs = self._blobs_of(pack.id)
        examined = examine(self._store, pack.id, self._repository)
        said = examined.pack
        as_indexed = said is not None and (said.digest, said.class_, dict(enumerate(said.blobs))) == (
            *(pack.digest, pack.class_),
            blobs,
        )
        self._findings.count(bytes_read=said.size if said else 0)
        if as_indexed and examined.error is None:
            self._findings.count(blobs=len(blobs) - len(examined.bad))
            for ordinal, error in examined.bad.items():
                self._note_bad(pack.id, ordinal, blobs[ordinal], error)
        else:
            for ordinal, blob in blobs.items():  # what the index says is what backups rely on
                self._check_indexed_blob(pack.id, ordinal, blob)
            wrong = examined.error or damaged(pack_key(pack.id), "contradicts the index")
            self._note_spoiled(pack.id, str(wrong), lasting=is_lasting(wrong))
        if examined.error is None or is_lasting(examined.error):  # for want of a right or memory it is not read at all
            with self._lock:
                self._read.add(pack.id)

    def check_unindexed(self, pack: bytes) -> None:
        """Read all of a pack that no index has: no backup needs it, but no file is to rot unseen."""
        key = pack_key(pack)
        examined = examine(self._store, pack, self._repository)
        if examined.pack is not None:
            self._findings.count(bytes_read=examined.pack.size, blobs=len(examined.pack.blobs) - len(examined.bad))
        bad = bad_object(pack, examined)
        if bad is None:
            with self._lock:
                self._sound_unindexed.add(pack)
            return
        if self.is_known(key):
            self._findings.know(key, bad.reason)
            return
        self._findings.add(key, bad.reason)
        if examined.error is None or is_lasting(examined.error):
            with self._lock:
                self._unindexed.append(bad)

    def note_bad(self, location: Location, blob: Blob, error: IntegrityError | StorageError) -> None:
        """A copy of a blob was found bad by one who read it for its own sake."""
        self._note_bad(location.pack, location.ordinal, blob, error)

    def _check_indexed_blob(self, pack: bytes, ordinal: int, blob: Blob) -> None:
        sealed = memoryview(bytearray(blob.length))
        key = pack_key(pack)
        try:
            if self._store.read_into(key, blob.offset, sealed) != blob.length:
                raise damaged(key, "ends before one of its blobs")
            check_sealed(blob.kind, blob.name, blob.raw, sealed, key)
        except (IntegrityError, StorageError) as error:
            self._note_bad(pack, ordinal, blob, error)
        else:
            self._findings.count(blobs=1)

    def _blobs_of(self, pack: bytes) -> dict[int, Blob]:
        """The blobs of a pack as the index has them, by ordinal; of several in one place any one."""
        rows = self._cache.rows(
            "SELECT ordinal, kind, name, raw, offset, length FROM blobs"
            " WHERE pack IN (SELECT number FROM packs WHERE id = ?) GROUP BY ordinal",
            (pack,),
        )
        return {ordinal: Blob(*blob) for ordinal, *blob in rows}

    # --- what was found -----------------------------------------------------------------------------------------------

    def _note_bad(self, pack: bytes, ordinal: int, blob: Blob, error: IntegrityError | StorageError) -> None:
        with self._lock:
            self._unsound.add(pack)
        self._cache.execute(
            "INSERT OR IGNORE INTO bad VALUES (?, ?, ?, ?)", (pack, ordinal, str(error), is_lasting(error))
        )
        known = self._cache.rows(
            "SELECT 1 FROM bad_blobs WHERE pack = ? AND (kind = 0 OR (kind = ? AND name = ? AND raw = ?))",
            (pack, blob.kind, blob.name, blob.raw),
        )
        if known:
            self._findings.know(pack_key(pack), str(error), needed=False)
        else:
            self._findings.add(pack_key(pack), str(error), detail=ordinal)

    def _note_cut(self, pack: bytes, size: int, problem: str, *, lasting: bool) -> None:
        """A pack has another size than it should have; blobs beyond its end are lost."""
        self._cache.execute(
            "INSERT OR IGNORE INTO bad SELECT packs.id, ordinal, ?, ? FROM packs JOIN blobs ON blobs.pack = number"
            " WHERE packs.id = ? AND blobs.offset + blobs.length > ?",
            (problem, lasting, pack, size),
        )
        self._note_spoiled(pack, problem, lasting=lasting)

    def _note_spoiled(self, pack: bytes, problem: str, *, lasting: bool) -> None:
        """A pack is bad as such, or with blobs that were noted before."""
        key = pack_key(pack)
        with self._lock:
            self._unsound.add(pack)
        news = f"SELECT 1 {_BAD_COPIES} WHERE bad.pack = ? AND NOT {QUARANTINED} LIMIT 1"
        if self.is_known(key) and not self._cache.rows(news, (pack,)):
            self._findings.know(key, problem)
            return
        self._findings.add(key, problem)
        if lasting:
            with self._lock:
                self._spoiled[pack] = problem


def bad_object(pack: bytes, examined: Examined) -> BadObject | None:
    """What is bad of a pack, for a record of damage; None if all is well."""
    key = pack_key(pack)
    if examined.pack is None:
        return BadObject(key=key, blobs=None, reason=str(examined.error))
    if not examined.bad and examined.error is None:
        return None
    blobs = [examined.pack.blobs[ordinal] for ordinal in examined.bad]
    return BadObject(
        key=key,
        blobs=tuple(BadBlob(kind=blob.kind, name=blob.name.hex(), raw=blob.raw) for blob in blobs),
        reason=str(examined.error or next(iter(examined.bad.values()))),
    )
