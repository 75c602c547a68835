"""The disks of a VM, as its monitor tells them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ...errors import BusyError, UsageError, printable
from ...models import check_id
from .monitor import Monitor
from .names import OURS


class Bitmap(msgspec.Struct, frozen=True, rename="kebab"):
    """A dirty bitmap of a node (QAPI, BlockDirtyInfo).

    Attributes:
        inconsistent: QEMU ended without storing it.
        busy: In use by a job or an export.
        count: Bytes that it marks.
    """

    recording: bool
    busy: bool
    persistent: bool
    granularity: int
    count: int
    name: str = ""
    inconsistent: bool = False

    @property
    def usable(self) -> bool:
        return self.recording and not self.inconsistent


class _Image(msgspec.Struct, frozen=True, rename="kebab"):
    filename: str
    virtual_size: int
    format_specific: Mapping[str, Any] | None = None


class Node(msgspec.Struct, frozen=True, rename="kebab"):
    """A node of the block graph (QAPI, BlockDeviceInfo)."""

    drv: str
    ro: bool
    image: _Image
    node_name: str = ""
    dirty_bitmaps: tuple[Bitmap, ...] = ()

    @property
    def keeps_bitmaps(self) -> bool:
        """Whether bitmaps survive the end of QEMU: in qcow2, but not in its first version."""
        specific = (self.image.format_specific or {}).get("data")
        return self.drv == "qcow2" and isinstance(specific, Mapping) and specific.get("compat") != "0.10"


class _Device(msgspec.Struct, frozen=True, rename="kebab"):
    device: str
    removable: bool
    qdev: str = ""
    inserted: Node | None = None

    @property
    def names(self) -> list[str]:
        """What the user has called it: by its own name, or by the id of the guest's device.

        That is ``vda`` for the path ``/machine/peripheral/vda/virtio-backend``.
        """
        match = re.fullmatch(r"/machine/peripheral/([^/]+)(?:/.*)?|([^/]+)", self.qdev)
        return [name for name in (self.device, *(match.groups() if match is not None else ())) if name]

    @property
    def place(self) -> str:
        """The device, for messages."""
        return self.qdev or self.device


class Export(msgspec.Struct, frozen=True, rename="kebab"):
    """An export (QAPI, BlockExportInfo)."""

    id: str
    type: str
    node_name: str
    shutting_down: bool = False


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk that can be backed up.

    Attributes:
        id: Its id in backups.
        node: The node that has its content.
        attached: The guest's device that it belongs to; None where there is none, or QEMU has no guest.
    """

    id: str
    node: Node
    attached: str | None = None

    @property
    def size(self) -> int:
        return self.node.image.virtual_size

    def bitmap(self, name: str) -> Bitmap | None:
        return next((bitmap for bitmap in self.node.dirty_bitmaps if bitmap.name == name), None)


async def nodes(monitor: Monitor) -> tuple[Node, ...]:
    """All nodes that have a name."""
    return await monitor.ask("query-named-block-nodes", tuple[Node, ...], {"flat": True})


async def exports(monitor: Monitor) -> tuple[Export, ...]:
    """All exports, the oldest first."""
    return (await monitor.ask("query-block-exports", tuple[Export, ...]))[::-1]


async def disks(monitor: Monitor, vm: str, chosen: Mapping[str, str]) -> list[Disk]:
    """The disks of a VM: those of its guest's devices that can be written, then those of its exports.

    Args:
        monitor: Of the VM.
        vm: Its name, for messages.
        chosen: Devices or nodes by disk id; empty for all.

    Raises:
        UsageError: One of those chosen is not there, is read-only, or is chosen twice; or one cannot be named.
        BusyError: A backup goes on through another monitor of this QEMU.
    """
    devices = await monitor.ask("query-block", tuple[_Device, ...])
    served = await exports(monitor)
    known = {node.node_name: node for node in await nodes(monitor)}
    attached = [(device, device.inserted) for device in devices if device.inserted is not None and not device.removable]
    _refuse_foreign(vm, [export.node_name for export in served] + [node.node_name for _, node in attached])
    if chosen:
        places: dict[str, tuple[Node, str | None]] = {name: (node, None) for name, node in known.items()}
        for device, node in attached:
            places |= dict.fromkeys((*device.names, node.node_name), (node, device.place))
        found = [_chosen(vm, disk, name, places) for disk, name in chosen.items()]
    else:
        found = [Disk(_id(vm, device, node), node, device.place) for device, node in attached]
        taken = {disk.node.node_name for disk in found}
        exported = [name for name in dict.fromkeys(export.node_name for export in served) if name not in taken]
        found += [Disk(_id(vm, None, known[name]), known[name]) for name in exported if name in known]
        found = [disk for disk in found if not disk.node.ro]
    _refuse_twins(vm, found)
    return found


def wanted(vm: str, known: list[Disk], ids: Iterable[str] | None) -> list[Disk]:
    """The disks of the given ids, in their order; all of them for None.

    Raises:
        UsageError: There is no such disk, or there are none at all.
    """
    if not known:
        raise UsageError(f"VM {vm!r} has no disk that can be written; name its disks in the configuration")
    if ids is None:
        return known
    by_id = {disk.id: disk for disk in known}
    for disk in ids:
        if disk not in by_id:
            names = ", ".join(repr(name) for name in by_id)
            raise UsageError(f"VM {vm!r} has no disk {disk!r}; it has {names}", disk=disk)
    return [by_id[disk] for disk in ids]


def _id(vm: str, device: _Device | None, node: Node) -> str:
    """What a disk is called: a name that stays the same from one start of QEMU to the next.

    A device without an id has none: its place may be another tomorrow.
    """
    name = next(iter(device.names), node.node_name) if device is not None else node.node_name
    if not name or name.startswith("#"):
        raise UsageError(
            f"VM {vm!r}: a disk has neither a device with an id nor a node with a name; give it one, "
            "or name the disks of the VM in the configuration"
        )
    check_id("disk", name)
    return name


def _chosen(vm: str, disk: str, name: str, places: Mapping[str, tuple[Node, str | None]]) -> Disk:
    if name not in places:
        raise UsageError(f"VM {vm!r}: disk {disk!r}: there is no device or node '{printable(name)}'", disk=disk)
    node, attached = places[name]
    if node.ro:
        raise UsageError(f"VM {vm!r}: disk {disk!r}: '{printable(name)}' is read-only", disk=disk)
    return Disk(disk, node, attached)


def _refuse_foreign(vm: str, names: list[str]) -> None:
    for name in names:
        if OURS.match(name):
            raise BusyError(
                f"VM {vm!r}: a backup goes on through another monitor of this QEMU, or was killed there; "
                "`sfasync cleanup` with that monitor removes what is left"
            )


def _refuse_twins(vm: str, found: list[Disk]) -> None:
    for kind, names in (
        ("disks called", [disk.id for disk in found]),
        ("disks in the configuration that are", [disk.node.node_name for disk in found]),
    ):
        for name, count in Counter(names).items():
            if count > 1:
                raise UsageError(
                    f"VM {vm!r} has {count} {kind} {printable(name)!r}; name each in the configuration once"
                )
