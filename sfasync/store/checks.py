"""What verifications read, and when: so that others can read what nobody has read for long.

::

    counts      ms since the epoch 8 | scope 4 | problems found 4 | packs 4 | VMs 4
    packs       ids of the packs of which every byte was read, 16 each, ascending
    VMs         name in keys 16 | number of its last backup 8, ascending

The numbers prove later that a VM's last backup was there: a manifest that is removed leaves no other trace.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum

from ..errors import IntegrityError
from ..interfaces import ObjectStore
from ..units import MiB
from .cache import IndexCache
from .damage import DAMAGE
from .index import IndexPack
from .names import CHECKS, LAST_SEQ, check_key, parse_check
from .objects import ObjectKind, damaged, decode, encode

MAX_CHECK = 64 * MiB
"""Bytes of an object that a reader accepts: about 4 million packs, 128 TiB."""

_COUNTS = struct.Struct("<QIIII")
_PACK_SIZE = 16
_SKEW = 86400.0  # seconds that the clocks of two hosts may differ
_VM = struct.Struct("<16sQ")


class Scope(IntEnum):
    """What a verification looked at."""

    STRUCTURE = 1
    """No pack was read as a whole."""
    EVERYTHING = 2
    SOME = 3


@dataclass(frozen=True, slots=True)
class Check:
    """What one verification did.

    Attributes:
        time: When it began, in seconds since the epoch.
        scope: What it looked at.
        problems: How many it told.
        packs: The packs of which it read every byte.
        last: The number of the last backup of each VM, by the VM's name in keys.
    """

    time: float
    scope: Scope
    problems: int
    packs: Collection[bytes]
    last: Mapping[str, int]


def encode_check(check: Check) -> bytes:
    """The payload for a check."""
    counts = _COUNTS.pack(
        *(round(check.time * 1000), check.scope, min(check.problems, 2**32 - 1)), len(check.packs), len(check.last)
    )
    vms = (_VM.pack(bytes.fromhex(vm), seq) for vm, seq in sorted(check.last.items()))
    return b"".join((counts, *sorted(check.packs), *vms))


def decode_check(payload: memoryview, key: str) -> Check:
    """The check in a payload.

    Raises:
        IntegrityError: It contradicts itself.
    """
    if len(payload) < _COUNTS.size:
        raise damaged(key, "contradicts itself")
    time, scope, problems, pack_count, vm_count = _COUNTS.unpack_from(payload)
    vms = _COUNTS.size + pack_count * _PACK_SIZE
    if vms + vm_count * _VM.size != len(payload) or scope not in frozenset(Scope):
        raise damaged(key, "contradicts itself")
    packs = [bytes(payload[start : start + _PACK_SIZE]) for start in range(_COUNTS.size, vms, _PACK_SIZE)]
    last = {vm.hex(): seq for vm, seq in _VM.iter_unpack(payload[vms:])}
    if any(not 0 < seq <= LAST_SEQ for seq in last.values()):
        raise damaged(key, "has a number that no backup can have")
    return Check(time / 1000, Scope(scope), problems, packs, last)


def read_check(store: ObjectStore, repository: bytes, key: str) -> Check:
    """A check; errors as of `Checks.load`."""
    frame = decode(store.get(key, limit=MAX_CHECK), key, repository, ObjectKind.CHECK)
    return decode_check(frame.payload, key)


def remembered(store: ObjectStore, repository: bytes) -> dict[str, int]:
    """The highest number that a check saw of each VM, by the VM's name in keys; damaged checks are passed over."""
    last: dict[str, int] = {}
    for key in store.list(CHECKS):
        if parse_check(key) is not None:
            with suppress(*DAMAGE):
                for vm, seq in read_check(store, repository, key).last.items():
                    last[vm] = max(seq, last.get(vm, 0))
    return last


class Checks:
    """The checks of a repository. One thread at a time.

    Args:
        store: Where they are.
        repository: Its id.
        cache: A private one, into which the whole index was taken; it gets a table of when packs were read.
        now: Seconds since the epoch.
    """

    def __init__(self, store: ObjectStore, repository: bytes, cache: IndexCache, now: float) -> None:
        self._store = store
        self._repository = repository
        self._cache = cache
        self._now = now
        cache.execute("CREATE TABLE reads (pack BLOB PRIMARY KEY, time REAL NOT NULL) WITHOUT ROWID")

    def load(self, key: str) -> Check:
        """Read a check, and note what it read.

        Raises:
            ObjectMissingError: There is none of this name.
            IntegrityError: It is damaged.
            RepositoryVersionError: A newer version wrote it.
        """
        check = read_check(self._store, self._repository, key)
        if not self._is_impossible(check):
            self.note(check.packs, check.time)
        return check

    def note(self, packs: Iterable[bytes], time: float) -> None:
        """Packs were read at a time."""
        for pack in packs:
            self._cache.execute(
                "INSERT INTO reads VALUES (?, ?) ON CONFLICT (pack) DO UPDATE SET time = max(time, excluded.time)",
                (pack, time),
            )

    def longest_unread(self) -> list[tuple[IndexPack, float]]:
        """The packs of the index and when each was read last, 0 for never; those longest unread first."""
        rows = self._cache.rows(
            "SELECT DISTINCT packs.id, digest, size, class, coalesce(time, 0) AS read FROM packs"
            " LEFT JOIN reads ON reads.pack = packs.id ORDER BY read, packs.id"
        )
        return [(IndexPack(*row[:4]), row[4]) for row in rows]

    def put(self, check: Check) -> None:
        """Remember a check, and remove those that tell nothing which younger ones do not tell.

        Raises:
            StorageError: It could not be written, or others could not be removed.
        """
        mine = check_key(secrets.token_bytes(16))
        self._store.put(mine, encode(ObjectKind.CHECK, mine, self._repository, encode_check(check)))
        others = [key for key in self._store.list(CHECKS) if parse_check(key) is not None and key != mine]
        self.note(check.packs, check.time)
        known: list[str] = []
        for key in others:
            with suppress(*DAMAGE):  # verify tells; nobody removes what cannot be read
                self.load(key)
                known.append(key)
        for key in known:
            with suppress(IntegrityError):  # another verification was faster
                if self._is_worthless(self.load(key), check):
                    self._store.delete(key)

    def _is_worthless(self, check: Check, newest: Check) -> bool:
        """Whether all packs that a check read and that still count were read later."""
        if self._is_impossible(check):
            return True
        if check.time > newest.time:
            return False  # another verification has just ended
        return not any(
            self._cache.rows(
                "SELECT 1 FROM reads WHERE pack = ? AND time <= ? AND pack IN (SELECT id FROM packs)",
                (pack, check.time),
            )
            for pack in check.packs
        )

    def _is_impossible(self, check: Check) -> bool:
        """Whether a check was made by a clock that was wrong: nobody knows when that was."""
        return check.time > self._now + _SKEW
