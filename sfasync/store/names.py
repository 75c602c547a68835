"""Names of objects: lower-case hex that we computed, or fixed words. Anything else in a listing is not ours.

::

    config
    domains/default/packs/ab/ab…        32 hex digits, random; the directory is the first two
    domains/default/index/…             32 hex digits, random
    domains/default/backups/<vm>/<seq>  32 and 16 hex digits
    domains/default/sessions/<vm>.<seq>, and <vm>.<seq>.end
    domains/default/annotations/<vm>/<seq>.<number>  32, 16 and 8 hex digits
    domains/default/journals/<vm>.<seq>.<number>     32, 16 and 16 hex digits
    domains/default/checks/…            32 hex digits, random
    domains/default/quarantine/…        32 hex digits, random
    domains/default/tombstones/…        id of a pack that is about to go
"""

from __future__ import annotations

import re
from typing import NamedTuple

from blake3 import blake3

DOMAIN = "default"
"""The scope of deduplication. Others may come; this version works in one."""

CONFIG = "config"
_BASE = f"domains/{DOMAIN}/"
PACKS = _BASE + "packs/"
INDEX = _BASE + "index/"
BACKUPS = _BASE + "backups/"
SESSIONS = _BASE + "sessions/"
ANNOTATIONS = _BASE + "annotations/"
JOURNALS = _BASE + "journals/"
CHECKS = _BASE + "checks/"
QUARANTINE = _BASE + "quarantine/"
TOMBSTONES = _BASE + "tombstones/"

LAST_SEQ = 2**52
"""The highest number a backup may have: far out of reach, and safe in every language's numbers."""

LAST_NUMBER = 2**32 - 1
"""The highest number that an annotation of a backup may have."""

_VM_CONTEXT = "sfasync 1 vm name"

_ID = r"([0-9a-f]{32})"
_SEQ = r"([0-9a-f]{16})"
_PACK = re.compile(rf"{re.escape(PACKS)}([0-9a-f]{{2}})/{_ID}")
_INDEX = re.compile(rf"{re.escape(INDEX)}{_ID}")
_BACKUP = re.compile(rf"{re.escape(BACKUPS)}{_ID}/{_SEQ}")
_SESSION = re.compile(rf"{re.escape(SESSIONS)}{_ID}\.{_SEQ}(\.end)?")
_ANNOTATION = re.compile(rf"{re.escape(ANNOTATIONS)}{_ID}/{_SEQ}\.([0-9a-f]{{8}})")
_JOURNAL = re.compile(rf"{re.escape(JOURNALS)}{_ID}\.{_SEQ}\.{_SEQ}")
_CHECK = re.compile(rf"{re.escape(CHECKS)}{_ID}")
_QUARANTINE = re.compile(rf"{re.escape(QUARANTINE)}{_ID}")
_TOMBSTONE = re.compile(rf"{re.escape(TOMBSTONES)}{_ID}")


class Numbered(NamedTuple):
    """The place of a backup or a session: which VM, which number."""

    vm: str
    seq: int


class Annotated(NamedTuple):
    """The place of an annotation: which VM, which of its backups, and the number of the annotation, from 1."""

    vm: str
    seq: int
    number: int


class JournalPlace(NamedTuple):
    """The place of a journal: of which VM's session it is, and which of that session's."""

    vm: str
    seq: int
    number: int


def vm_name(repository: bytes, vm: str) -> str:
    """The name that a VM has in keys: 32 hex digits that tell nothing of its id to those who do not know it."""
    key = blake3(repository, derive_key_context=_VM_CONTEXT).digest()
    return blake3(vm.encode("utf-8", "surrogatepass"), key=key).digest(16).hex()


def pack_key(pack: bytes) -> str:
    name = pack.hex()
    return f"{PACKS}{name[:2]}/{name}"


def index_key(index: bytes) -> str:
    return INDEX + index.hex()


def backup_key(vm: str, seq: int) -> str:
    return f"{BACKUPS}{vm}/{seq:016x}"


def session_key(vm: str, seq: int) -> str:
    return f"{SESSIONS}{vm}.{seq:016x}"


def end_key(vm: str, seq: int) -> str:
    return session_key(vm, seq) + ".end"


def annotation_key(vm: str, seq: int, number: int) -> str:
    return f"{ANNOTATIONS}{vm}/{seq:016x}.{number:08x}"


def journal_key(vm: str, seq: int, number: int) -> str:
    return f"{JOURNALS}{vm}.{seq:016x}.{number:016x}"


def check_key(check: bytes) -> str:
    return CHECKS + check.hex()


def quarantine_key(record: bytes) -> str:
    return QUARANTINE + record.hex()


def parse_pack(key: str) -> bytes | None:
    """The id of the pack that a key names, or None if it names none; as the functions below."""
    match = _PACK.fullmatch(key)
    if match is None or not match[2].startswith(match[1]):
        return None
    return bytes.fromhex(match[2])


def parse_index(key: str) -> bytes | None:
    match = _INDEX.fullmatch(key)
    return bytes.fromhex(match[1]) if match else None


def parse_tombstone(key: str) -> bytes | None:
    match = _TOMBSTONE.fullmatch(key)
    return bytes.fromhex(match[1]) if match else None


def parse_check(key: str) -> bytes | None:
    match = _CHECK.fullmatch(key)
    return bytes.fromhex(match[1]) if match else None


def parse_quarantine(key: str) -> bytes | None:
    match = _QUARANTINE.fullmatch(key)
    return bytes.fromhex(match[1]) if match else None


def parse_backup(key: str) -> Numbered | None:
    match = _BACKUP.fullmatch(key)
    return _numbered(match[1], match[2]) if match else None


def parse_session(key: str) -> Numbered | None:
    """Of the session object itself, not of its end."""
    match = _SESSION.fullmatch(key)
    return _numbered(match[1], match[2]) if match and match[3] is None else None


def parse_end(key: str) -> Numbered | None:
    match = _SESSION.fullmatch(key)
    return _numbered(match[1], match[2]) if match and match[3] else None


def parse_annotation(key: str) -> Annotated | None:
    match = _ANNOTATION.fullmatch(key)
    place = _numbered(match[1], match[2]) if match else None
    if match is None or place is None or match[3] == "00000000":
        return None
    return Annotated(*place, int(match[3], 16))


def parse_journal(key: str) -> JournalPlace | None:
    match = _JOURNAL.fullmatch(key)
    session = _numbered(match[1], match[2]) if match else None
    return JournalPlace(*session, int(match[3], 16)) if match and session else None


def _numbered(vm: str, seq: str) -> Numbered | None:
    number = int(seq, 16)
    return Numbered(vm, number) if 0 < number <= LAST_SEQ else None
