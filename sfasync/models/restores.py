"""What a caller gets for a restore."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredDisk:
    """One restored disk.

    Attributes:
        id: The disk's id.
        size: Bytes of the disk.
        target: Path or address written to, without secrets.
        bytes_written: Data bytes written.
        bytes_zero: Bytes made zero without writing data.
        tree: Hex tree digest of the content, checked block by block before writing.
        verified: Whether the target was read back and found equal.
        seconds: Wall seconds.
        mode: `full`, or `differential` where only what may have changed since the backup was written.
        reason: Why it was not differential although that was wanted, as a short code.
        bytes_skipped: Not written, because unchanged since the backup.
    """

    id: str
    size: int
    target: str
    bytes_written: int
    bytes_zero: int
    tree: str
    verified: bool
    seconds: float
    mode: str = "full"
    reason: str | None = None
    bytes_skipped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreResult:
    """A finished restore, durable on its targets.

    Attributes:
        id, vm: Of the backup.
        disks: The disks restored, in the order they were asked for.
        seconds: Wall seconds.
        restored_vm: Id of the VM that has these disks now; None where no platform is behind them.
        warnings: What went wrong without harm to the disks, one line each.
    """

    id: str
    vm: str
    disks: tuple[RestoredDisk, ...]
    seconds: float
    restored_vm: str | None = None
    warnings: tuple[str, ...] = ()
