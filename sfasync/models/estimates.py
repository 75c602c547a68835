"""What a caller gets for a look at what a backup would read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskEstimate:
    """What a backup would read of one disk.

    Attributes:
        id, size, mode, reasons: As its record would have them.
        bytes_to_read: From the source, audits included; what the repository has lost comes on top, which only a backup
            looks for.
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
