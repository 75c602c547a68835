"""Disks of a VM, ready to be written.

What is written is recorded by the bitmaps that the disk has, as everything is: the next incremental backup of a chain
knows what the restore has changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec

from ...errors import PlatformError, UsageError
from ...models import Checkpoint, ExportAddress, MetadataContext
from .bitmaps import copying, usable
from .inventory import Bitmap, Disk, disks, wanted
from .monitor import CommandError, Monitor, open_monitor
from .names import Kind
from .places import Places
from .serving import serve, start_server
from .settings import QemuTimeouts, QemuVm
from .sweep import Cleaner
from .watch import Watch


class Status(msgspec.Struct, frozen=True):
    """What the guest does (QAPI, StatusInfo)."""

    status: str
    running: bool


@dataclass(frozen=True, slots=True)
class TargetDisk:
    """A disk to be written."""

    address: ExportAddress
    reason: str | None
    context: MetadataContext | None
    shares: Mapping[str, int] = field(default_factory=dict)

    def changed(self) -> MetadataContext | None:
        """Where the bitmap of the checkpoint is told, as it was before anything was written."""
        return self.context


@dataclass(frozen=True, slots=True)
class QemuTarget:
    """Disks to be written while the context is open; made by `open_target`."""

    vm_id: str
    disks: Mapping[str, TargetDisk]
    watch: Watch

    @property
    def lost(self) -> asyncio.Future[str]:
        return self.watch.lost

    @property
    def vm_name(self) -> str:
        return self.vm_id

    async def check(self) -> None:
        """Ask QEMU.

        Raises:
            LeaseLostError: The disks are served no more.
        """
        await self.watch.check(Kind.EXPORT)

    async def finish(self) -> Sequence[str]:
        """The disks are as they were; nothing else of the VM was touched."""
        return ()


async def status(monitor: Monitor) -> Status | None:
    """What the guest does; None where there is none, as in qemu-storage-daemon."""
    try:
        return await monitor.ask("query-status", Status)
    except CommandError:
        return None


@asynccontextmanager
async def open_target(
    vm: str,
    settings: QemuVm,
    timeouts: QemuTimeouts,
    *,
    sizes: Mapping[str, int],
    since: Mapping[str, Checkpoint],
) -> AsyncIterator[QemuTarget]:
    """Serve disks to be written for the time of the block.

    Args:
        vm: The VM.
        settings: Its settings.
        timeouts: When to give up.
        sizes: Bytes that each disk must have, by disk id.
        since: Checkpoints after which changes are to be told.

    Raises:
        UsageError: A disk is not there or too small, or the guest runs.
        BusyError: Somebody else holds the monitor.
        PlatformError: QEMU refuses or fails; or, at the end, something could not be removed.
    """
    places = Places.of(settings)
    async with open_monitor(vm, settings, timeouts) as monitor:
        cleaner = Cleaner(vm, settings, timeouts, places)
        await cleaner.sweep(monitor)
        known = await disks(monitor, vm, settings.disks)
        chosen = wanted(vm, known, list(sizes))
        await _refuse(monitor, vm, chosen, sizes)
        bases = {
            disk.id: usable(disk, known, None, since[disk.id]) if disk.id in since else (None, "no-checkpoint")
            for disk in chosen
        }
        async with cleaner.cleaning(monitor):
            watch = Watch(monitor, places, [disk.id for disk in chosen])
            try:
                await start_server(monitor, vm, settings, places)
                targets = {
                    disk.id: await _target(monitor, settings, places, number, disk, *bases[disk.id])
                    for number, disk in enumerate(chosen)
                }
                yield QemuTarget(vm, targets, watch)
            finally:
                watch.end()


async def _refuse(monitor: Monitor, vm: str, chosen: Sequence[Disk], sizes: Mapping[str, int]) -> None:
    for disk in chosen:
        if disk.size < sizes[disk.id]:
            raise UsageError(
                f"VM {vm!r}: disk {disk.id!r} has {disk.size} bytes, the backup needs {sizes[disk.id]}; enlarge it",
                disk=disk.id,
            )
    guest = await status(monitor)
    for disk in chosen:
        if guest is not None and guest.running and disk.attached is not None:
            raise UsageError(f"VM {vm!r} runs; power it off to restore its disk {disk.id!r}", disk=disk.id)


async def _target(
    monitor: Monitor,
    settings: QemuVm,
    places: Places,
    number: int,
    disk: Disk,
    base: Bitmap | None,
    reason: str | None,
) -> TargetDisk:
    copy: str | None = None
    if base is not None:  # it goes on recording, and what the restore writes is not what has to be written
        copy = places.name(number, Kind.CHANGED)
        await monitor.run("transaction", {"actions": copying(disk.node.node_name, base, copy)})
    try:
        address = await serve(monitor, settings, places, number, disk.node.node_name, writable=True, bitmap=copy)
    except CommandError as error:
        if "Permission conflict" not in error.said or disk.attached is None:
            raise
        raise PlatformError(
            f"disk {disk.id!r} belongs to the guest's device {disk.attached} alone, even while the guest is off; serve "
            "its image with qemu-storage-daemon and restore there, or give the device share-rw=on"
        ) from error
    context = None if copy is None else MetadataContext(address, f"qemu:dirty-bitmap:{copy}")
    return TargetDisk(address, reason, context)
