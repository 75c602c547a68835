"""Whether to believe what a platform says of changed blocks.

What can be seen is seen here: whether the changes are those of this disk since that backup, and whether the answer is
one that a correct platform gives. That something is missing in it can only be found by reading (`audit`). What is not
believed costs a full backup of the disk, never a byte of it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from .errors import CbtError, printable
from .interfaces import SnapshotDisk
from .models import DiskRecord, Extent


def refusal(record: DiskRecord, disk: SnapshotDisk, size: int) -> str | None:
    """Why the changes of a disk are not those since a backup, as a short code; None if nothing speaks against them.

    Args:
        record: The disk in that backup.
        disk: The disk in the snapshot.
        size: Its bytes.
    """
    base, new = record.checkpoint, disk.checkpoint
    if disk.reason is not None:
        return printable(disk.reason)
    if base is None or new is None:
        return "no-checkpoint"
    if base.disk_identity != new.disk_identity:
        return "disk-replaced"
    if (base.size, new.size) != (record.size, size) or base.id == new.id:
        return "checkpoint-mismatch"
    return None


async def proven(changed: AsyncIterator[Extent], *, size: int, disk: str) -> AsyncGenerator[Extent, None]:
    """Changed ranges as they come, as long as they are what a platform must say: in order, without overlap or
    repetition, each of at least a byte, within the disk.

    ::

        size 16    aa..bbbb..c     passes
                   bbbb..aa        goes back          aaaa        overlaps (or repeats)
                                                        bbbb

    Closing it closes `changed`, if that is a generator.

    Args:
        changed: What the platform says.
        size: Bytes of the disk.
        disk: Its id, for the message.

    Raises:
        CbtError: The first range that is none, or that cannot come here. Those before it have been handed out.
    """
    end = 0
    try:
        async for extent in changed:
            if extent.length < 1:
                raise _refused(disk, extent, "is empty")
            if extent.offset < end:
                raise _refused(disk, extent, f"comes after one that ended at {end}")
            if extent.end > size:
                raise _refused(disk, extent, f"ends beyond the disk, which has {size} bytes")
            yield extent
            end = extent.end
    finally:
        if isinstance(changed, AsyncGenerator):
            await changed.aclose()


def _refused(disk: str, extent: Extent, why: str) -> CbtError:
    return CbtError(
        f"the platform's changed blocks of disk {disk!r} cannot be right: a range of {extent.length} bytes from "
        f"{extent.offset} {why}; use mode auto or full",
        disk=disk,
    )
