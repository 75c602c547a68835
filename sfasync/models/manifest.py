"""A backup as the repository keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .states import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """A file of the VM that is not a disk: configuration, BIOS variables, TPM state.

    Attributes:
        name: Name of the file.
        size: Bytes.
        digest: Content digest in hex.
    """

    name: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskStatistics:
    """What moving one disk took; all counts in bytes of the disk unless said.

    Attributes:
        bytes_read: Read from the source.
        bytes_skipped: Not read, because unchanged since the parent (KEEP).
        bytes_zero: Zero in the backup, whether told by the map or found.
        bytes_new: In chunks that the repository did not have.
        bytes_duplicate: In chunks that the repository had.
        bytes_stored: Written to the repository for this disk, after compression.
        retries: Requests that were repeated.
        seconds: `total` wall seconds, which `memory` (waiting for a free buffer), `read` and `write` divide among them;
            beside them the seconds that threads spent in `seal` (digest, compress, check) and `store` (packs).
    """

    bytes_read: int = 0
    bytes_skipped: int = 0
    bytes_zero: int = 0
    bytes_new: int = 0
    bytes_duplicate: int = 0
    bytes_stored: int = 0
    retries: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """How far the audits of a disk have come since it was last read in full.

    Attributes:
        seed: Which walk over its chunks they take.
        position: Where on it the next one begins: 0 to the number of chunks - 1.
        chunks: How many chunks this backup read again although they were called unchanged, and found so.
    """

    seed: int
    position: int
    chunks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskRecord:
    """One disk of a backup, as its manifest records it.

    Attributes:
        id: The disk's id within its VM.
        size: Bytes.
        root: Hex digest of the root of its content tree.
        tree: Hex tree digest: the proof of its content, independent of chunk size, key and repository.
        mode: `full` or `incremental`.
        reasons: Why that mode, as short codes (`first-backup`, `no-cbt`, `cbt-expired`, `disk-resized`); and `resumed`
            where part of it was finished by a backup that was interrupted.
        checkpoint: From where the next incremental may go on; None where the platform has none.
        statistics: What this backup took.
        audit: Of an incremental disk; None if nothing was ever audited since the last full one.
    """

    id: str
    size: int
    root: str
    tree: str
    mode: str
    reasons: tuple[str, ...] = ()
    checkpoint: Checkpoint | None = None
    statistics: DiskStatistics = DiskStatistics()
    audit: AuditRecord | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A backup. Its presence in the repository means that the backup is there, whole.

    Attributes:
        id: 32 hex digits.
        repository: Id of the repository it was made in.
        seq: Its number among the backups of this VM; orders them.
        vm: Id of the VM.
        vm_name: Name of the VM, for people.
        time: Seconds since the epoch at which the snapshot was taken.
        parent: Id of the backup it builds on; None for a first one.
        platform: Name of the platform.
        version: Version of sfasync that wrote it.
        snapshot: The platform's name of the snapshot read; None where it has none.
        tags: Free words given by the user, as they are now.
        disks: Its disks, in the platform's order.
        files: Its other files.
        seconds: Wall seconds the backup took.
        note: What the user has to say of it, as it is now.
        suspect: Ids of disks that may lack changes: a later audit found that the platform had not told of some.
    """

    id: str
    repository: str
    seq: int
    vm: str
    vm_name: str
    time: float
    parent: str | None = None
    platform: str
    version: str
    snapshot: str | None = None
    tags: tuple[str, ...] = ()
    disks: tuple[DiskRecord, ...]
    files: tuple[FileRecord, ...] = ()
    seconds: float = 0.0
    note: str = ""
    suspect: tuple[str, ...] = ()

    def disk(self, disk_id: str) -> DiskRecord | None:
        """The record of a disk, or None."""
        return next((disk for disk in self.disks if disk.id == disk_id), None)
