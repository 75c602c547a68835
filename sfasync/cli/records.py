"""The records of the library as JSON objects and as lines for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ..errors import printable
from ..units import format_size

if TYPE_CHECKING:
    from ..models import DiskRecord, Manifest, RestoredDisk

SHORT = 12
"""Hex digits of a backup's id that people get to see; enough for a unique prefix."""


def disk_object(disk: DiskRecord) -> dict[str, object]:
    """A disk of a backup and what storing it took."""
    statistics = disk.statistics
    return {
        "id": disk.id,
        "size": disk.size,
        "mode": disk.mode,
        "reasons": list(disk.reasons),
        "bytes_read": statistics.bytes_read,
        "bytes_skipped": statistics.bytes_skipped,
        "bytes_zero": statistics.bytes_zero,
        "bytes_new": statistics.bytes_new,
        "bytes_duplicate": statistics.bytes_duplicate,
        "bytes_stored": statistics.bytes_stored,
        "seconds": dict(statistics.seconds),
        "retries": statistics.retries,
        "tree": disk.tree,
        "audited": disk.audit.chunks if disk.audit is not None else 0,
    }


def restored_object(disk: RestoredDisk) -> dict[str, object]:
    """A disk that was written."""
    return {
        "id": disk.id,
        "size": disk.size,
        "target": disk.target,
        "bytes_written": disk.bytes_written,
        "bytes_zero": disk.bytes_zero,
        "tree": disk.tree,
        "verified": disk.verified,
        "seconds": round(disk.seconds, 3),
        "mode": disk.mode,
        "reason": disk.reason,
        "bytes_skipped": disk.bytes_skipped,
    }


def backup_object(manifest: Manifest) -> dict[str, object]:
    """A backup as its manifest describes it."""
    return {
        "id": manifest.id,
        "vm": manifest.vm,
        "vm_name": manifest.vm_name,
        "time": utc_time(manifest.time),
        "seq": manifest.seq,
        "parent": manifest.parent,
        "tags": list(manifest.tags),
        "note": manifest.note,
        "suspect": list(manifest.suspect),
        "disks": [disk_object(disk) for disk in manifest.disks],
    }


def utc_time(seconds: float) -> str | None:
    """An instant as ``2026-01-31T17:00:00.000Z``; None for one that no calendar has (a manifest may say anything)."""
    try:
        instant = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return None
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def local_time(seconds: float) -> str:
    """An instant for people, in their time zone: ``2026-01-31 18:00:00``."""
    try:
        return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return "(no date)"


def mode_of(disks: Iterable[DiskRecord]) -> str:
    """`full`, `incremental`, or `mixed` where disks differ."""
    modes = {disk.mode for disk in disks}
    return modes.pop() if len(modes) == 1 else "mixed"


def size_of(disks: Iterable[DiskRecord]) -> str:
    """The size of all disks together, for people."""
    return format_size(sum(disk.size for disk in disks))


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows as aligned lines, made safe for a terminal; the first row is the heading."""
    safe = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*safe, strict=True)]
    for row in safe:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
