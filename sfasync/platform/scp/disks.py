"""The disks of a VM, as its page and its frozen configuration tell of them together. Pure.

Every call wants the id that the frozen configuration has (``ide0``). The page of the VM may have another (``virtio0``),
and is where the datastore and the file are told; its sizes are in megabytes, where the configuration has gigabytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ...errors import PlatformError, UsageError, printable
from ...models import Checkpoint
from .answers import Server, ServerDisk, SnapshotDetails, SnapshotDisk

_NUMBER: Final = re.compile(r"[a-z]+([0-9]+)")


@dataclass(frozen=True, slots=True)
class VmDisk:
    """A disk of a VM.

    Attributes:
        id: What calls want.
        size: Bytes.
        identity: What tells it from another disk of that id: its VM, datastore, file and serial number.
        storage_id: Its datastore; None if that is not told.
    """

    id: str
    size: int
    identity: str
    storage_id: str | None

    def checkpoint(self, identity: str) -> Checkpoint:
        """A checkpoint of this disk."""
        return Checkpoint(id=identity, disk_identity=self.identity, size=self.size)


def vm_disks(server: Server, frozen: SnapshotDetails) -> list[VmDisk]:
    """The disks of a frozen VM, in the configuration's order.

    Raises:
        PlatformError: The size of one is not told.
    """
    listed = server.disks or ()
    return [_joined(server, disk, _named(disk.device_id, listed)) for disk in frozen.disks]


def chosen(known: Sequence[VmDisk], wanted: Sequence[str] | None, vm: str) -> list[VmDisk]:
    """The disks that are wanted; None for all.

    Raises:
        UsageError: The VM has no such disk, or none at all.
    """
    by_id = {disk.id: disk for disk in known}
    for disk in wanted or ():
        if disk not in by_id:
            has = ", ".join(by_id) or "none"
            raise UsageError(f"VM '{printable(vm)}' has no disk '{printable(disk)}'; it has {has}", disk=disk)
    found = list(known) if wanted is None else [by_id[disk] for disk in wanted]
    if not found:
        raise UsageError(f"VM '{printable(vm)}' has no disks")
    return found


def disk_of(server: Server, disk: str) -> ServerDisk:
    """A disk on the VM's page, by the id that calls want.

    Raises:
        UsageError: The VM has no such disk.
    """
    found = _named(disk, server.disks or ())
    if found is None:
        has = ", ".join(one.id for one in server.disks or ()) or "none"
        raise UsageError(f"VM '{printable(server.name)}' has no disk '{printable(disk)}'; it has {has}", disk=disk)
    return found


def _named(disk: str, listed: Sequence[ServerDisk]) -> ServerDisk | None:
    """The disk of that id, or of that number."""
    number = _NUMBER.fullmatch(disk)
    for one in listed:
        if one.id == disk:
            return one
    for one in listed:
        other = _NUMBER.fullmatch(one.id)
        if number and other and number[1] == other[1]:
            return one
    return None


def _joined(server: Server, disk: SnapshotDisk, listed: ServerDisk | None) -> VmDisk:
    size = (listed.size if listed else None) or disk.size
    if size is None:
        raise PlatformError(f"the platform does not tell the size of disk '{printable(disk.device_id)}'")
    storage = (listed.storage_id if listed else None) or server.storage_id
    file = ((listed.storage_file if listed else None) or "").rpartition(":")[2]
    identity = "/".join((server.id, disk.device_id, storage or "", file, disk.serial or ""))
    return VmDisk(disk.device_id, size, identity, storage)
