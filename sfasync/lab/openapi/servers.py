"""VMs: list, details, power, creation and change."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import PlatformError, UsageError
from ...units import GiB, MiB
from ..configuration import STORAGE_ID, configuration
from ..hypervisor import Progress
from ..machines import Machine, MachineSpec
from .envelope import Answer, Refusal, page, text_in
from .site import HOST_ID, Call, Operation, Site

_NOT_OURS = ("hardware_option", "az_id", "datastore_id", "host_id")
"""Members of a configuration that a machine does not simply keep."""


async def servers(site: Site, call: Call) -> Answer:
    """The list of VMs."""
    wanted = [each for each in site.hypervisor.inventory.machines if _matches(each, call.query)]
    return Answer(page([_listed(site, machine) for machine in wanted], call.query))


async def server(site: Site, call: Call) -> Answer:
    """One VM."""
    machine = site.machine(call)
    settings = configuration(machine)
    details = {
        "application": settings["application"],
        "derived": 0,
        "snap": int(bool(machine.snapshots)),
        "backup": 0,
        "machine_type": "i440fx",
        "location": {"id": HOST_ID, "location": "cluster", "policy_type": "auto"},
        "storage_location": STORAGE_ID,
        "cdroms": [],
        "usbs": [],
        "serials": [],
    }
    return Answer(_listed(site, machine) | details | machine.facts)


async def power(site: Site, call: Call) -> Answer:
    """Switch a VM on or off."""
    machine = site.machine(call)
    running = call.path.endswith("/start")

    async def work(progress: Progress) -> None:
        if running and site.leases.of(machine):
            raise PlatformError("a backup resource holds the VM")
        site.hypervisor.switch(machine, running=running)

    task = site.start("start" if running else "stop", machine, work)
    return Answer({"task_id": task.id}, status=201)


async def create(site: Site, call: Call) -> Answer:
    """Make a VM from a configuration that a snapshot had."""
    members = call.members
    for name in ("az_id", "datastore_id", "name"):
        text_in(members, name)
    if members["az_id"] != site.hypervisor.inventory.zone_id:
        raise Refusal(400, "az_id: there is no such resource pool")
    if members["datastore_id"] not in (STORAGE_ID, *site.storages):
        raise Refusal(400, "datastore_id: there is no such datastore")
    disks = _disks(members)
    if not disks or not isinstance(members.get("os_option"), dict):
        raise Refusal(400, "os_option or hardware_option is missing")
    server_id = str(uuid.uuid4())
    settings = {name: value for name, value in members.items() if name not in _NOT_OURS}
    files = _bios(site, members)

    async def work(progress: Progress) -> None:
        try:
            spec = MachineSpec(name=members["name"], disks=tuple(disks.values()), running=False, settings=settings)
        except UsageError as error:
            raise PlatformError(str(error)) from error
        machine = await site.hypervisor.add(spec, machine_id=server_id)
        for disk, disk_id in zip(machine.disks, disks, strict=True):
            disk.id = disk_id
        site.hypervisor.configure(machine, {}, files)

    task = site.tasks.start("create server", server_id, members["name"], work)
    return Answer({"task_id": task.id, "uuid": server_id}, status=201)


async def edit(site: Site, call: Call) -> Answer:
    """Change a VM; disks that are named and not there are made, smaller ones grow, others stay."""
    machine, members = site.machine(call), call.members
    disks = _disks(members)
    settings = {name: value for name, value in members.items() if name not in _NOT_OURS}
    if machine.running and disks:
        raise Refusal(400, "the server must be shut down")

    async def work(progress: Progress) -> None:
        for disk_id, size in disks.items():
            disk = machine.disk(disk_id)
            if disk is None:
                await site.hypervisor.add_disk(machine, disk_id, size)
            elif disk.size < size:
                await site.hypervisor.grow_disk(disk, size)
        site.hypervisor.configure(machine, settings, {})

    return Answer({"task_id": site.start("edit server", machine, work).id})


async def delete(site: Site, call: Call) -> Answer:
    """Remove a VM; there is no recycle bin."""
    machine = site.machine(call)

    async def work(progress: Progress) -> None:
        if site.leases.of(machine):
            raise PlatformError("a backup resource holds the VM")
        await site.hypervisor.remove(machine)

    return Answer({"task_id": site.start("delete server", machine, work).id})


def _listed(site: Site, machine: Machine) -> dict[str, Any]:
    return {
        "id": machine.id,
        "vm_id": machine.number,
        "name": machine.name,
        "az_id": site.hypervisor.inventory.zone_id,
        "host_id": HOST_ID,
        "host_name": "lab",
        "status": "running" if machine.running else "stopped",
        "power_state": "on" if machine.running else "off",
        "is_stopped": int(not machine.running),
        "type": "hci",
        "vmtype": "vm",
        "os_name": "Debian 12",
        "os_type": "l2664",
        "encrypted": 0,
        "advance_param": {"tpm": int("TPM" in machine.files), "turbo_mode_enabled": False},
        "disks": [
            {
                "id": disk.id,
                "size_mb": disk.size / MiB if disk.size % MiB else disk.size // MiB,
                "size_gb": disk.size / GiB,
                "storage_file": f"vm-disk-{number}.qcow2",
                "storage_id": STORAGE_ID,
                "storage_name": "lab",
                "preallocate": "off",
                "type": "new_disk",
            }
            for number, disk in enumerate(machine.disks, 1)
        ],
        "storage_id": STORAGE_ID,
        "vtool_installed": 1,
        "in_protection": 0,
        "backup_policy_enable": 0,
        "backup_file_count": 0,
        "instant_vm": 0,
        "networks": [],
        "template_id": "",
        "vm_compatibility_version": {"vmx_version": 1},
    } | machine.facts


def _matches(machine: Machine, query: Mapping[str, str]) -> bool:
    ids = query.get("ids")
    return (not ids or machine.id in ids.split(",")) and query.get("query_name", "") in machine.name


def _disks(members: Mapping[str, Any]) -> dict[str, int]:
    """Sizes in bytes, by id, of the disks in a configuration.

    Raises:
        Refusal: They are not what a configuration has.
    """
    hardware = members.get("hardware_option", {})
    disks: Sequence[Any] = hardware.get("disks", []) if isinstance(hardware, dict) else [None]
    try:
        return {str(disk["device_id"]): round(disk["size_gb"] * GiB) for disk in disks}
    except (TypeError, KeyError, ValueError, OverflowError):
        raise Refusal(400, "hardware_option.disks: each has a device_id and a size_gb") from None


def _bios(site: Site, members: Mapping[str, Any]) -> dict[str, bytes]:
    """The BIOS that a configuration points to, among the files that were sent before.

    Raises:
        Refusal: It is not there.
    """
    bios = members["hardware_option"].get("bios", {})
    if not isinstance(bios, dict) or bios.get("bios_type") != "CUSTOM":
        return {}
    path = str(bios.get("path", ""))
    if path not in site.files:
        raise Refusal(400, "hardware_option.bios.path: there is no such file")
    return {"BIOS": site.files[path]}


OPERATIONS = (
    Operation("GET", "/janus/20240725/servers", servers),
    Operation("GET", "/janus/20240725/servers/{server_id}", server),
    Operation("POST", "/janus/20180725/servers/{server_id}/start", power),
    Operation("POST", "/janus/20180725/servers/{server_id}/stop", power),
    Operation("POST", "/janus/20180725/servers/config", create),
    Operation("PUT", "/janus/20180725/servers/{server_id}/config", edit),
    Operation("DELETE", "/janus/20180725/servers/{server_id}", delete),
)
