"""The states that a disk was in: frozen, tracked from, read half-way."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The point in time from which a platform tracks changes of one disk.

    Attributes:
        id: The platform's name for it.
        disk_identity: What tells this disk from every other one of the platform, and from a later one of its name.
        size: Size of the disk at that point, in bytes.
    """

    id: str
    disk_identity: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """What tells a frozen disk from every other state of it: where this is equal, and the size, so are the bytes.

    Attributes:
        snapshot: The platform's name of the snapshot, or the caller's.
        checkpoint: The checkpoint that came with it; None where changes are not tracked.
    """

    snapshot: str
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interruption:
    """A backup that was interrupted.

    Attributes:
        snapshot: The snapshot that it read.
        began: When it began to do so, in seconds since the epoch.
    """

    snapshot: str
    began: float
