"""Backup resources: the calls about leases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..hypervisor import Progress
from ..leases import LONGEST, SHORTEST, Kind, Lease
from .envelope import Answer, Refusal, text_in
from .site import HOST_ID, Call, Operation, Site

_KINDS: Final[Mapping[str, Kind]] = {
    "backup": "backup",
    "Backup": "backup",
    "restore": "restore",
    "Recovery": "restore",
}
"""Values as the description of the interface has them, and as the guide has them."""


async def supports(site: Site, call: Call) -> Answer:
    """What the SDK of the platform would need to know."""
    site.machine_of(text_in(call.query, "server_id"))
    return Answer({"transport_modes": ["nbd", "nbd_ssl"], "versions": ["6.10.0"]})


async def create(site: Site, call: Call) -> Answer:
    """Begin a lease on a VM. The member that names its kind is called `type` or `resource_type`."""
    members = call.members
    machine = site.machine_of(text_in(members, "server_id"))
    kind = _KINDS.get(text_in(members, "type" if "type" in members else "resource_type"))
    if kind is None:
        raise Refusal(400, "type is backup or restore")
    if members.get("host_id", HOST_ID) != HOST_ID:
        raise Refusal(400, "the host does not exist")
    lock_time = _lock_time(members)
    site.refuse_busy(machine)
    lease = site.leases.reserve(machine, kind, lock_time)

    async def work(progress: Progress) -> None:
        await site.leases.grant(lease, site.gateway)

    task = site.start(f"create {kind} resource", machine, work)
    return Answer({"resource_id": lease.id, "task_id": task.id}, status=201)


async def resource(site: Site, call: Call) -> Answer:
    """A lease."""
    lease = _lease(site, call)
    return Answer(
        {
            "ca_cert": site.ca_cert,
            "remain_time": site.leases.remaining(lease),
            "server_id": lease.machine.id,
            "status": lease.status,
            "host_id": HOST_ID,
        }
    )


async def renew(site: Site, call: Call) -> Answer:
    """Let a lease last for longer."""
    lease, lock_time = _lease(site, call), _lock_time(call.members)
    if lease.status != "running":
        raise Refusal(400, f"the backup resource is {lease.status}")

    async def work(progress: Progress) -> None:
        site.leases.renew(lease, lock_time)

    return Answer({"task_id": site.start("renew backup resource", lease.machine, work).id})


async def delete(site: Site, call: Call) -> Answer:
    """End a lease."""
    lease = _lease(site, call)

    async def work(progress: Progress) -> None:
        await site.leases.release(lease)

    return Answer({"task_id": site.start("delete backup resource", lease.machine, work).id})


def _lease(site: Site, call: Call) -> Lease:
    lease = site.leases.find(call.ids["resource_id"])
    if lease is None:
        raise Refusal(404, "the backup resource does not exist")
    return lease


def _lock_time(members: Mapping[str, Any]) -> int:
    lock_time = members.get("lock_time")
    if not isinstance(lock_time, int) or isinstance(lock_time, bool) or not SHORTEST <= lock_time <= LONGEST:
        raise Refusal(400, f"lock_time is {SHORTEST} to {LONGEST} seconds")
    return lock_time


_RESOURCES = "/janus/20180725/backup-resources"

OPERATIONS = (
    Operation("GET", _RESOURCES + "/supports", supports),
    Operation("POST", _RESOURCES, create),
    Operation("GET", _RESOURCES + "/{resource_id}", resource),
    Operation("PUT", _RESOURCES + "/{resource_id}", renew),
    Operation("DELETE", _RESOURCES + "/{resource_id}", delete),
)
