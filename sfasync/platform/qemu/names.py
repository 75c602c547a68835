"""Names of what we make in QEMU, by which it is found again.

::

    sfasync-1b2c3d4e-0e                         node, job, export or bitmap for the time of a job
            |        | what it is (`Kind`)
            |        which disk
            which monitor it was made through
    sfasync-chain-<chain>-<lineage>-<when>      bitmap that records changes, kept from backup to backup
    sfasync-seal-<chain>-<lineage>-<size>-<count>   bitmap that a disk loses bits of when it gets smaller (`seal`)

What a job makes is known by the monitor. A monitor has one client at a time, so what is found under its name while we
hold it was left by somebody who is dead; what was made through another monitor of the same QEMU is left alone. Nothing
has to be written down to know that, and nothing can be lost with it.

A name of a node has at most 31 bytes (QEMU, block.c).
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from dataclasses import dataclass
from enum import Enum
from typing import Final

from .settings import QemuVm

OURS: Final = re.compile(r"sfasync-[0-9a-f]{8}-")
"""How names begin of what is made for the time of a job, through whatever monitor."""

_CHAIN: Final = "sfasync-chain-"
_BITMAP = re.compile(r"sfasync-chain-([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{12})-([0-9a-f]{8})")
_SEAL = re.compile(r"sfasync-seal-([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{1,16})-([0-9a-f]{1,16})")


class Kind(Enum):
    """What it is that bears a name, as the letter in it. Letters stay: what earlier versions left must be found.

    For each disk that is frozen: a job with its filter, and an overlay over map and data (`fleecing`).
    """

    BACKUP_JOB = "b"
    FILTER = "w"
    OVERLAY = "f"
    MAP = "m"
    DATA = "d"
    QUORUM = "q"
    FILE_JOB = "j"
    """It makes the files of map and data."""

    EXPORT = "e"
    CHANGED = "c"
    """A bitmap: what had changed at the moment of the snapshot."""

    SEAL_SOURCE = "z"
    SEAL_TARGET = "y"
    SEAL_JOB = "s"
    """It copies from nothing to nothing, and is cancelled (`seal`)."""


def prefix_of(settings: QemuVm) -> str:
    """What everything begins with that is made through a monitor for the time of a job."""
    return f"sfasync-{hashlib.sha256(settings.monitor.encode(errors='surrogateescape')).hexdigest()[:8]}-"


@dataclass(frozen=True, slots=True)
class BitmapName:
    """The name of a bitmap that records changes.

    Attributes:
        chain: Which line of backups it belongs to.
        lineage: Goes from bitmap to bitmap of one disk and chain: where it is the same, the disk is.
        when: Orders the bitmaps of a chain.
        token: Makes the name unique.
    """

    chain: str
    lineage: str
    when: str
    token: str

    @classmethod
    def parse(cls, name: str) -> BitmapName | None:
        """None if the name is none of ours."""
        match = _BITMAP.fullmatch(name)
        return None if match is None else cls(*match.groups())

    @classmethod
    def new(cls, chain: str, lineage: str | None) -> BitmapName:
        """A name nobody has; with no lineage, one that begins here."""
        milliseconds = time.time_ns() // 1_000_000
        return cls(chain, lineage or secrets.token_hex(8), f"{milliseconds:012x}"[-12:], secrets.token_hex(4))

    def __str__(self) -> str:
        return f"{_CHAIN}{self.chain}-{self.lineage}-{self.when}-{self.token}"


@dataclass(frozen=True, slots=True)
class SealName:
    """The name of the seal of a line of bitmaps.

    Attributes:
        chain: As of `BitmapName`.
        lineage: As of `BitmapName`.
        size: Bytes of the disk that it was made for.
        count: Bytes that it marks until it is broken.
    """

    chain: str
    lineage: str
    size: int
    count: int

    @classmethod
    def parse(cls, name: str) -> SealName | None:
        """None if the name is none of ours."""
        match = _SEAL.fullmatch(name)
        return None if match is None else cls(match[1], match[2], int(match[3], 16), int(match[4], 16))

    def __str__(self) -> str:
        return f"sfasync-seal-{self.chain}-{self.lineage}-{self.size:x}-{self.count:x}"


def chain_of(chain: str) -> str:
    """A line of backups as it stands in names of bitmaps."""
    return hashlib.sha256(chain.encode(errors="surrogateescape")).hexdigest()[:16]
