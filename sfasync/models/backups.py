"""What a caller gets for a backup: done, stopped, or only estimated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .extents import Extent
    from .manifest import DiskRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupResult:
    """A finished backup, durable in the repository.

    Attributes:
        id, vm, parent, disks: As in the manifest.
        limited_by: What held the job up most: `source`, `network` (a connection has all that the platform gives it),
            `compression` or `store`.
        seconds: Wall seconds.
        resumed: By disk, the bytes that an interrupted backup of the same snapshot had finished and that were not read
            again.
        bad_blocks: By disk, the ranges that could not be read and are zeros in the backup, where that was allowed.
        untold: By disk, a range that an audit found changed although the platform had called it unchanged. The disk was
            read in full then, and the backups before are marked as suspect.
        warnings: What went wrong without harm to the backup, one line each.
    """

    id: str
    vm: str
    parent: str | None
    disks: tuple[DiskRecord, ...]
    limited_by: str
    seconds: float
    resumed: Mapping[str, int] = field(default_factory=dict)
    bad_blocks: Mapping[str, tuple[Extent, ...]] = field(default_factory=dict)
    untold: Mapping[str, Extent] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def bytes_read(self) -> int:
        return sum(disk.statistics.bytes_read for disk in self.disks)

    @property
    def bytes_resumed(self) -> int:
        return sum(self.resumed.values())

    @property
    def bytes_new(self) -> int:
        return sum(disk.statistics.bytes_new for disk in self.disks)

    @property
    def bytes_stored(self) -> int:
        return sum(disk.statistics.bytes_stored for disk in self.disks)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnfinishedBackup:
    """A backup that was stopped, or still runs, and what the next one of the same snapshot need not read again.

    Attributes:
        vm: Id of the VM.
        snapshot: Name of the snapshot it reads.
        disks: Ids of the disks of which something is finished.
        bytes_journaled: Bytes of these disks that are finished, zeros included.
        started: When its first session began, in seconds since the epoch.
        updated: When it last noted what it had finished, by the clock of the repository's file system.
        running: Whether a session works on the VM now.
    """

    vm: str
    snapshot: str
    disks: tuple[str, ...]
    bytes_journaled: int
    started: float
    updated: float
    running: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskEstimate:
    """What a backup would read of one disk.

    Attributes:
        id, size, mode, reasons: As its record would have them.
        bytes_to_read: From the source; what an audit reads comes on top.
        bytes_zero: Known to be zero, and not read.
        bytes_unchanged: Taken over from the last backup, and not read.
    """

    id: str
    size: int
    mode: str
    reasons: tuple[str, ...]
    bytes_to_read: int
    bytes_zero: int
    bytes_unchanged: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupEstimate:
    """What a backup would read.

    Attributes:
        vm, vm_name: The VM.
        parent: Id of the backup it would build on; None for a first one.
        disks: Its disks, in the platform's order.
        seconds: Wall seconds that the look took.
    """

    vm: str
    vm_name: str
    parent: str | None
    disks: tuple[DiskEstimate, ...]
    seconds: float

    @property
    def bytes_to_read(self) -> int:
        return sum(disk.bytes_to_read for disk in self.disks)
