"""What a caller gets for a backup."""

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
