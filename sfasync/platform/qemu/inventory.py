"""The disks of a VM, as its monitor tells them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ...errors import BusyError, PlatformError, UsageError, printable
from .monitor import Monitor
from .names import OURS


class Bitmap(msgspec.Struct, frozen=True, rename="kebab"):
    """A dirty bitmap of a node (QAPI, BlockDirtyInfo).

    Attributes:
        inconsistent: QEMU ended without storing it.
        busy: In use by a job or an export.
    """

    recording: bool
    busy: bool
    persistent: bool
    granularity: int
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
        UsageError: One of those chosen is not there, is read-only, or cannot be named.
        BusyError: A backup goes on through another monitor of this QEMU.
    """
    devices, served, known = await asyncio.gather(
        monitor.ask("query-block", tuple[_Device, ...]), exports(monitor), nodes(monitor)
    )
    by_name = {node.node_name: node for node in known}
    attached = [device for device in devices if device.inserted is not None and not device.removable]
    _refuse_foreign(vm, [export.node_name for export in served] + [_node(device).node_name for device in attached])
    if chosen:
        places = {name: device for device in attached for name in _names(device)}
        holders = {_node(device).node_name: device for device in attached}
        return [_chosen(vm, disk, name, places, holders, by_name) for disk, name in chosen.items()]
    found = [_of_device(vm, device, by_name) for device in attached if not _node(device).ro]
    taken = {disk.node.node_name for disk in found}
    for export in served:
        node = by_name.get(export.node_name)
        if node is not None and not node.ro and node.node_name not in taken:
            taken.add(node.node_name)
            found.append(Disk(_id(vm, node.node_name), node))
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


def _node(device: _Device) -> Node:
    assert device.inserted is not None, "only devices with a medium are looked at"
    return device.inserted


def _names(device: _Device) -> list[str]:
    """What a device may be called: its own name, or the id of the guest's device."""
    return [name for name in (device.device, _device_id(device.qdev), device.qdev) if name]


def _device_id(path: str) -> str:
    """The id that the user gave to a device: ``vda`` for ``vda`` and ``/machine/peripheral/vda/virtio-backend``."""
    match = re.fullmatch(r"/machine/peripheral/([^/]+)(/.*)?", path)
    return match[1] if match else "" if path.startswith("/") else path


def _of_device(vm: str, device: _Device, by_name: Mapping[str, Node]) -> Disk:
    node = by_name.get(_node(device).node_name, _node(device))
    name = next(iter(_names(device)), "")
    if name.startswith("/"):  # a device without an id: its place may be another tomorrow
        name = node.node_name
    return Disk(_id(vm, name), node, device.qdev or device.device)


def _id(vm: str, name: str) -> str:
    """A name that stays the same from one start of QEMU to the next."""
    if not name or name.startswith("#"):
        raise UsageError(
            f"VM {vm!r}: a disk has neither a device with an id nor a node with a name; give it one, "
            "or name the disks of the VM in the configuration"
        )
    return name


def _chosen(
    vm: str,
    disk: str,
    name: str,
    places: Mapping[str, _Device],
    holders: Mapping[str, _Device],
    by_name: Mapping[str, Node],
) -> Disk:
    device = places.get(name) or holders.get(name)
    node = by_name.get(name if device is None else _node(device).node_name)
    if node is None and device is not None:
        node = _node(device)
    if node is None:
        raise UsageError(f"VM {vm!r}: disk {disk!r}: there is no device or node '{printable(name)}'", disk=disk)
    if node.ro:
        raise UsageError(f"VM {vm!r}: disk {disk!r}: '{printable(name)}' is read-only", disk=disk)
    return Disk(disk, node, None if device is None else device.qdev or device.device)


def _refuse_foreign(vm: str, names: list[str]) -> None:
    for name in names:
        if OURS.match(name):
            raise BusyError(
                f"VM {vm!r}: a backup goes on through another monitor of this QEMU, or was killed there; "
                "`sfasync cleanup` with that monitor removes what is left"
            )


def _refuse_twins(vm: str, found: list[Disk]) -> None:
    ids = [disk.id for disk in found]
    for disk in found:
        if ids.count(disk.id) > 1:
            raise PlatformError(f"VM {vm!r} has two disks {disk.id!r}; name its disks in the configuration")
