"""How far a job is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskProgress:
    """How far one disk is; all counts in bytes.

    Attributes:
        id: The disk's id.
        size: Bytes of the disk.
        done: Bytes dealt with: read, zero, skipped or resumed.
        read: Bytes read from the source.
        zero: Bytes that were known to be zero and not read.
        skipped: Bytes taken over from the parent, not read.
        resumed: Bytes taken over from an interrupted backup of the same snapshot, not read.
    """

    id: str
    size: int
    done: int
    read: int
    zero: int
    skipped: int
    resumed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a job is.

    Attributes:
        state: `starting`, `running`, `committing`, and at the end `done`, `failed` or `cancelled`.
        disks: The disks begun so far.
        seconds: Wall seconds since the job began.
    """

    state: str
    disks: tuple[DiskProgress, ...]
    seconds: float

    @property
    def size(self) -> int:
        return sum(disk.size for disk in self.disks)

    @property
    def done(self) -> int:
        return sum(disk.done for disk in self.disks)

    @property
    def read(self) -> int:
        return sum(disk.read for disk in self.disks)
