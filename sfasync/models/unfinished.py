"""What a caller gets for a backup that was stopped."""

from __future__ import annotations

from dataclasses import dataclass


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
