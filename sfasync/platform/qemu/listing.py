"""VMs as they are listed, and what killed runs have left in them."""

from __future__ import annotations

import logging

from ...errors import BusyError, SfasyncError
from ...models import Leftover, VirtualDisk, VirtualMachine
from .inventory import Disk, disks
from .monitor import AbsentError, open_monitor
from .names import BitmapName
from .places import Places
from .restore import status
from .settings import QemuTimeouts, QemuVm
from .sweep import Sweep

_logger = logging.getLogger(__name__)


async def describe(vm: str, settings: QemuVm, timeouts: QemuTimeouts) -> VirtualMachine:
    """A VM with its disks, or why it cannot be backed up."""
    state, found, warnings = "unknown", [], []
    try:
        places = Places.of(settings)
        async with open_monitor(vm, settings, timeouts) as monitor:
            guest = await status(monitor)
            state = guest.status if guest is not None else "served"
            if await Sweep(monitor, vm, settings, places, timeouts.clean).look():
                warnings.append("a killed run left something; the next backup removes it, or `sfasync cleanup`")
            else:
                found = await disks(monitor, vm, settings.disks)
    except SfasyncError as error:
        return VirtualMachine(id=vm, name=vm, state=state, disks=(), refusal=str(error))
    warnings += [
        f"changes of disk {disk.id!r} are forgotten when QEMU ends: its format ({disk.node.drv}) keeps no bitmaps"
        for disk in found
        if not disk.node.keeps_bitmaps
    ]
    listed = tuple(VirtualDisk(id=disk.id, size=disk.size, tracked=_tracked(disk)) for disk in found)
    return VirtualMachine(id=vm, name=vm, state=state, disks=listed, warnings=tuple(warnings))


async def clean(vm: str, settings: QemuVm, timeouts: QemuTimeouts, *, dry_run: bool) -> list[Leftover]:
    """Remove what killed runs have left in one VM, or only look for it.

    Raises:
        SfasyncError: It cannot be told what is left, or not removed.
    """
    try:
        places = Places.of(settings)
        async with open_monitor(vm, settings, timeouts) as monitor:
            sweep = Sweep(monitor, vm, settings, places, timeouts.clean)
            return await (sweep.look() if dry_run else sweep.run())
    except BusyError as error:
        _logger.info("left alone: %s", error)
    except AbsentError as error:  # with QEMU, all that was in it has ended
        _logger.warning("not looked at: %s", error)
    return []


def _tracked(disk: Disk) -> bool:
    return any(bitmap.usable and BitmapName.parse(bitmap.name) for bitmap in disk.node.dirty_bitmaps)
