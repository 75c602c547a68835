"""What a disk of a backup can build on: what the last backup has of it, and why that may be of no use."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeAlias

from . import badblocks
from .errors import IntegrityError, printable
from .interfaces import BackupStore, SnapshotDisk
from .models import Checkpoint, DiskRecord, Extent, Manifest
from .tracking import refusal

log = logging.getLogger("sfasync")

Lost: TypeAlias = Callable[[DiskRecord], Awaitable[tuple[Extent, ...]]]
"""As `BackupSession.lost`."""


class Basis(NamedTuple):
    """What can be built on of one disk.

    Attributes:
        record: The disk in the last backup; None if nothing of it can be kept.
        reasons: Why not, as short codes; or what is special about it.
        missing: What of it must be read whatever the platform says, in order.
    """

    record: DiskRecord | None
    reasons: tuple[str, ...] = ()
    missing: tuple[Extent, ...] = ()


class Parent:
    """The last backup of a VM, as the next one sees it.

    Args:
        manifest: The backup; None if there is none.
        platform: Name of the platform of the next one.
        bad: What it is missing, by disk; None if that is not known.
        forced: Whether nothing of it is wanted.
    """

    def __init__(
        self, manifest: Manifest | None, platform: str, *, bad: badblocks.BadBlocks | None = None, forced: bool = False
    ) -> None:
        self._manifest = manifest
        self._platform = platform
        self._bad = bad
        self._forced = forced

    @classmethod
    async def of(cls, manifest: Manifest | None, platform: str, store: BackupStore, *, forced: bool) -> Parent:
        """The last backup, with what it is missing."""
        bad: badblocks.BadBlocks | None = {}
        if manifest is not None and not forced:
            try:
                bad = await badblocks.of_backup(store, manifest)
            except IntegrityError as error:
                bad = None
                log.warning("the bad blocks of backup %s are not known, so all is read: %s", manifest.id, error)
        return cls(manifest, platform, bad=bad, forced=forced)

    @property
    def checkpoints(self) -> dict[str, Checkpoint]:
        """From where changes are wanted, by disk."""
        disks = self._manifest.disks if self._manifest is not None else ()
        return {disk.id: disk.checkpoint for disk in disks if disk.checkpoint and not self._useless(disk)}

    async def basis(self, disk: SnapshotDisk, size: int, lost: Lost) -> Basis:
        """What a frozen disk of so many bytes can build on; `lost` tells what the repository has not any more."""
        record = self._manifest.disk(disk.id) if self._manifest is not None else None
        if self._forced:
            return Basis(None, ("forced",))
        if record is None:
            theirs = () if disk.reason in (None, "first-backup") else (printable(disk.reason),)
            # Of a disk that an older backup has nobody knows where it was meanwhile: detached, it may have been written
            # by another VM, which the tracking of this one does not see.
            return Basis(None, ("first-backup" if self._manifest is None else "not-in-parent", *theirs))
        reason = self._useless(record) or refusal(record, disk, size)
        if reason is not None:
            return Basis(None, (reason,))
        try:
            gone = await lost(record)
        except IntegrityError as error:
            log.warning("disk %r is read as a whole, nothing is kept of the last backup: %s", disk.id, error)
            return Basis(None, ("parent-damaged",))
        if gone:
            log.warning(
                "disk %r: %d bytes of the last backup are lost in the repository and read again",
                disk.id,
                sum(extent.length for extent in gone),
            )
        bad = (self._bad or {}).get(disk.id, ())
        missing = sorted((*bad, *gone), key=lambda extent: extent.offset)
        return Basis(record, ("disk-resized",) if size != record.size else (), tuple(missing))

    def _useless(self, disk: DiskRecord) -> str | None:
        """Why nothing of a disk can be kept whatever the platform says, as a short code."""
        if self._forced:
            return "forced"
        assert self._manifest is not None, "a disk has a backup"
        if self._manifest.platform != self._platform:
            return "platform-changed"
        if disk.id in self._manifest.suspect:
            return "audit-failed"
        return "bad-blocks-unknown" if self._bad is None else None
