"""Whether a disk was made smaller since a base, though it may be as large as before by now.

What is cut off a disk is in no bitmap: QEMU forgets those bits, and where the disk grows again there are zeros that
nobody is said to have written. So each line of bitmaps on a disk has a seal: a bitmap that is set from end to end and
records nothing. A disk that gets smaller breaks it, for the bits that it loses never come back. How many it had is in
its name.

QEMU has no command that sets bits. But a backup job that is cancelled leaves those set of what it had not copied
(``bitmap-mode`` ``always``), and so one copies from nothing to nothing; the guest's disk has no part in that. It
copies the first MiB, which cannot be helped: a smaller disk has no seal, and is always read as a whole.
"""

from __future__ import annotations

from typing import Final

import msgspec

from ...errors import PlatformError
from ...extents import align_up
from ...tasks import Looks
from .inventory import Bitmap, Disk, Node, nodes
from .monitor import CommandError, Monitor
from .names import BitmapName, Kind, SealName
from .places import Places

_BITS: Final = 1 << 24
"""A seal has no more, 2 MiB of memory. A disk of 8 GiB that lost a sector has a broken one, one of 1 TiB that lost
64 KiB."""

_SECTOR: Final = 512

_LOOK: Final = 0.002
_LONGEST_LOOK: Final = 0.1


class _Job(msgspec.Struct, frozen=True):
    id: str


def seals(node: Node, chain: str) -> list[tuple[SealName, Bitmap]]:
    """The seals that a disk has of a chain."""
    named = ((SealName.parse(bitmap.name), bitmap) for bitmap in node.dirty_bitmaps)
    return [(name, bitmap) for name, bitmap in named if name is not None and name.chain == chain]


def doubt(disk: Disk, base: BitmapName, size: int) -> str | None:
    """Why the disk may have been smaller in between than at a base and now, as a short code; None where it was not.

    Args:
        disk: The disk.
        base: The bitmap that records since the base.
        size: Bytes that the disk had then.
    """
    for name, bitmap in seals(disk.node, base.chain):
        if (name.lineage, name.size) == (base.lineage, size):
            if bitmap.inconsistent:
                return "bitmap-inconsistent"
            cut_off = _marks(size, bitmap) - _marks(min(size, disk.size), bitmap)
            return None if bitmap.count == name.count - cut_off else "disk-resized"
    return "bitmap-missing"


def _marks(size: int, bitmap: Bitmap) -> int:
    return align_up(size, bitmap.granularity)


async def put_seal(monitor: Monitor, places: Places, number: int, disk: Disk, line: BitmapName) -> None:
    """Give a disk the seal of a line of bitmaps, before the first of them is made that the disk has with this size.

    Args:
        monitor: Of the VM.
        places: Its places.
        number: Of the disk.
        disk: The disk.
        line: That bitmap.

    Raises:
        PlatformError: QEMU refuses; what was made is there for the sweep.
    """
    for name, bitmap in seals(disk.node, line.chain):
        if (name.lineage, name.size) == (line.lineage, disk.size):  # the disk had another size since, so it is broken
            await monitor.run("block-dirty-bitmap-remove", {"node": disk.node.node_name, "name": bitmap.name})
    source, target, job = (places.name(number, kind) for kind in (Kind.SEAL_SOURCE, Kind.SEAL_TARGET, Kind.SEAL_JOB))
    granularity = max(_SECTOR, 1 << (-(-disk.size // _BITS) - 1).bit_length())
    for node in (source, target):
        nothing = {"driver": "null-co", "node-name": node, "size": disk.size, "read-zeroes": False}
        await monitor.run("blockdev-add", nothing)
    await monitor.run("block-dirty-bitmap-add", {"node": source, "name": source, "granularity": granularity})
    copying = {"job-id": job, "device": source, "target": target, "sync": "full", "speed": 1}
    await monitor.run("blockdev-backup", {**copying, "bitmap": source, "bitmap-mode": "always"})
    try:
        await monitor.run("job-cancel", {"id": job})
    except CommandError as error:
        if "not found" not in error.said:  # it may have copied all of a small disk
            raise
    await _ended(monitor, job)
    seal_name = SealName(line.chain, line.lineage, disk.size, await _count(monitor, source))
    if seal_name.count:
        seal = {"node": disk.node.node_name, "name": str(seal_name), "granularity": granularity, "disabled": True}
        merge = {"node": disk.node.node_name, "target": str(seal_name), "bitmaps": [{"node": source, "name": source}]}
        actions = [
            {"type": "block-dirty-bitmap-add", "data": {**seal, "persistent": disk.node.keeps_bitmaps}},
            {"type": "block-dirty-bitmap-merge", "data": merge},
        ]
        await monitor.run("transaction", {"actions": actions})
    for node in (source, target):
        await monitor.run("blockdev-del", {"node-name": node})


async def _ended(monitor: Monitor, job: str) -> None:
    async for _ in Looks(_LOOK, _LONGEST_LOOK):
        if all(entry.id != job for entry in await monitor.ask("query-jobs", tuple[_Job, ...])):
            break


async def _count(monitor: Monitor, name: str) -> int:
    """Bytes that the bitmap has marked which bears the name of its node."""
    for node in await nodes(monitor):
        if node.node_name == name:
            return next(bitmap.count for bitmap in node.dirty_bitmaps if bitmap.name == name)
    raise PlatformError("QEMU was to mark a disk from end to end, and forgot about it")
