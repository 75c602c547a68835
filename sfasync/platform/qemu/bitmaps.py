"""Which bitmaps a disk has of a chain, and which of them tells what changed since a base.

Every bitmap goes on recording until it is dropped. So the one that a base names has everything since, whatever became
of those that were made after it, and nothing has to be merged from several; a bitmap costs the guest next to nothing.

A bitmap in a qcow2 image goes where the image goes, and knows what was written to that image and nothing else. QEMU
marks it in use while it runs: after a crash it is there, and of no use. Other images have no place for bitmaps, theirs
end with QEMU.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from ...models import Checkpoint
from .inventory import Bitmap, Disk, Node
from .names import BitmapName
from .seal import doubt, seals

_MOST: Final = 8
"""Bitmaps of one chain on one disk. There are more than two only where backups failed one after another."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done with the bitmaps of a disk for one snapshot.

    Attributes:
        disk: The disk.
        new: The bitmap that records from the snapshot on.
        base: The one that has recorded since the base; None where there is none of use.
        reason: Why there is none, as a short code.
        useless: Bitmaps of the chain that are good for nothing any more, and seals of lines that have none.
        sealed: Whether the disk has the seal that belongs to `new`.
    """

    disk: Disk
    new: BitmapName
    base: Bitmap | None
    reason: str | None
    useless: tuple[str, ...]
    sealed: bool

    @property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(id=str(self.new), disk_identity=self.new.lineage, size=self.disk.size)


def plan(disk: Disk, others: Sequence[Disk], chain: str, base: Checkpoint | None) -> Plan:
    """What is to be done for a disk.

    Args:
        disk: As it is now.
        others: All disks of the VM.
        chain: The line of backups.
        base: What its last backup ended with.
    """
    bitmap, reason = usable(disk, others, chain, base)
    known = BitmapName.parse(bitmap.name) if bitmap is not None else None
    ours = of_chain(disk.node, chain)
    broken = [found.name for found in ours if found.inconsistent]
    spare = [found.name for found in ours if not found.inconsistent and (base is None or found.name != base.id)]
    gone = (*broken, *spare[: max(0, len(spare) - _MOST)])
    return Plan(
        disk,
        BitmapName.new(chain, known.lineage if known is not None else None),
        bitmap,
        reason,
        (*gone, *_unneeded_seals(disk, chain, gone)),
        sealed=bitmap is not None and base is not None and base.size == disk.size,
    )


def usable(
    disk: Disk, others: Sequence[Disk], chain: str | None, base: Checkpoint | None
) -> tuple[Bitmap | None, str | None]:
    """The bitmap that has recorded since a base, or why there is none, as a short code.

    Args:
        disk: The disk.
        others: All disks of the VM.
        chain: The line of backups that the base must belong to; None for any.
        base: The base.
    """
    if base is None:
        return None, "first-backup"
    name = BitmapName.parse(base.id)
    if name is None or (chain is not None and name.chain != chain):
        return None, "bitmap-missing"
    found = disk.bitmap(base.id)
    if found is None:
        elsewhere = any(other.bitmap(base.id) for other in others)
        return None, "disk-replaced" if elsewhere else "bitmap-missing"
    if not found.usable:
        return None, "bitmap-inconsistent"
    if found.busy:
        return None, "bitmap-busy"
    reason = doubt(disk, name, base.size)
    return (found, None) if reason is None else (None, reason)


def copying(node: str, bitmap: Bitmap, copy: str) -> list[dict[str, object]]:
    """What a transaction has to do to copy a bitmap of a node to one that records nothing more."""
    empty = {"node": node, "name": copy, "disabled": True, "granularity": bitmap.granularity}
    merge = {"node": node, "target": copy, "bitmaps": [bitmap.name]}
    return [{"type": "block-dirty-bitmap-add", "data": empty}, {"type": "block-dirty-bitmap-merge", "data": merge}]


def of_chain(node: Node, chain: str) -> list[Bitmap]:
    """The bitmaps of a chain, the oldest first."""
    named = ((BitmapName.parse(bitmap.name), bitmap) for bitmap in node.dirty_bitmaps)
    ours = [(name.when, bitmap) for name, bitmap in named if name is not None and name.chain == chain]
    return [bitmap for _, bitmap in sorted(ours, key=lambda entry: (entry[0], entry[1].name))]


def _unneeded_seals(disk: Disk, chain: str, gone: Collection[str]) -> list[str]:
    """The seals of a chain whose lines have no bitmap once some are gone."""
    names = (BitmapName.parse(bitmap.name) for bitmap in of_chain(disk.node, chain) if bitmap.name not in gone)
    lines = {name.lineage for name in names if name is not None}
    return [bitmap.name for name, bitmap in seals(disk.node, chain) if name.lineage not in lines]
