"""Snapshots and changed areas.

A task's snapshot can be used only when the task has ended; its id is told before. How many areas one answer may have is
not public: here an answer covers at most 1 GiB of the disk and 1,000 areas.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any, Final

from ...units import GiB, MiB
from ..hypervisor import ExpiredError, Progress, UntrackedError
from ..machines import Machine, Snapshot
from ..storage import Area
from .envelope import Answer, Refusal, number_in, text_in
from .site import Call, Operation, Site

_COVERED: Final = GiB
_MOST_AREAS: Final = 1000
_LONGEST_NAME: Final = 90
_EXPIRED: Final = "The VM CBT has expired. Please reset it."


async def snapshots(site: Site, call: Call) -> Answer:
    """The snapshots of a VM; this list has no pages."""
    machine = site.machine(call)
    return Answer([_listed(machine, snapshot) for snapshot in machine.snapshots])


async def create(site: Site, call: Call) -> Answer:
    """Take a snapshot."""
    machine, members = site.machine(call), call.members
    name, description = text_in(members, "name"), text_in(members, "description", "")
    if not name or name == "current" or max(len(name), len(description)) > _LONGEST_NAME:
        raise Refusal(400, "name: 1 to 90 characters, and not 'current'")
    site.refuse_busy(machine)
    snapshot_id = str(uuid.uuid4())

    async def work(progress: Progress) -> None:
        await site.hypervisor.freeze(
            machine, snapshot_id=snapshot_id, name=name, description=description, progress=progress
        )

    task = site.start("create snapshot", machine, work)
    return Answer({"resource_id": snapshot_id, "task_id": task.id}, status=201)


async def snapshot(site: Site, call: Call) -> Answer:
    """The details of a snapshot, with the VM's configuration."""
    found = site.snapshot(site.machine(call), call.ids["snapshot_id"])
    return Answer(
        {
            "id": found.id,
            "name": found.name,
            "type": "external_qcow2",
            "created_at": datetime.fromtimestamp(found.created).astimezone().isoformat(timespec="seconds"),
            "description": found.description,
            "is_protected": 0,
            "checkpoint_id": str(found.checkpoint),
            "vmconf": found.config,
        }
    )


async def delete(site: Site, call: Call) -> Answer:
    """Delete a snapshot."""
    machine = site.machine(call)
    found = site.snapshot(machine, call.ids["snapshot_id"])

    async def work(progress: Progress) -> None:
        if found in machine.snapshots:  # nobody else was faster
            await site.hypervisor.remove_snapshot(machine, found)

    return Answer({"task_id": site.start("delete snapshot", machine, work).id})


async def cbt_status(site: Site, call: Call) -> Answer:
    """Whether changes are tracked."""
    machine = site.machine(call)
    disks = [{"id": disk.id, "is_enabled": disk.bitmap is not None} for disk in machine.disks]
    return Answer({"server_id": machine.id, "is_enabled": machine.tracked, "disks": disks})


async def set_cbt(site: Site, call: Call) -> Answer:
    """Begin or end to track changes, or begin anew."""
    machine, members = site.machine(call), call.members
    kind = text_in(members, "type")
    known = [disk.id for disk in machine.disks]
    disk_ids = members.get("disk_ids") or known
    if kind not in ("enable", "disable", "reset") or not isinstance(disk_ids, list) or not set(disk_ids) <= set(known):
        raise Refusal(400, "type is enable, disable or reset; disk_ids are those of the server")

    async def work(progress: Progress) -> None:
        if kind == "reset":
            await site.hypervisor.reset(machine)
        else:
            await site.hypervisor.track(machine, disk_ids, on=kind == "enable")

    return Answer({"task_id": site.start(f"{kind} CBT", machine, work).id})


async def changed_areas(site: Site, call: Call) -> Answer:
    """What has changed on a disk from a checkpoint to a snapshot, in pieces."""
    machine = site.machine(call)
    found = site.snapshot(machine, text_in(call.query, "snapshot_id"))
    disk_id = text_in(call.query, "disk_id")
    checkpoint, start = number_in(call.query, "checkpoint_id"), number_in(call.query, "start_offset")
    size = found.disks.get(disk_id)
    if size is None or not 0 <= start <= size:
        raise Refusal(400, "disk_id or start_offset is not of this snapshot")
    if site.misbehaviour.due("cbt-expired"):
        raise Refusal(400, _EXPIRED)
    try:
        areas = await site.hypervisor.changed(machine, found, disk_id, checkpoint)
    except ExpiredError:
        raise Refusal(400, _EXPIRED) from None
    except UntrackedError:
        raise Refusal(400, "CBT of the disk is not enabled") from None
    question = (machine.id, found.id, disk_id, str(checkpoint))
    before = site.pages.get(question)
    if before is not None and start and site.misbehaviour.due("cbt-repeated-page"):
        return Answer(before)
    answer = _piece(areas, start, size)
    if site.misbehaviour.due("cbt-missing-page"):
        answer = _piece(areas, min(size, start + answer["length"]), size) | {"start_offset": start}
    site.pages = {question: answer}
    return Answer(answer)


def _listed(machine: Machine, snapshot: Snapshot) -> dict[str, Any]:
    return {
        "id": snapshot.id,
        "name": snapshot.name,
        "description": snapshot.description,
        "created_at": datetime.fromtimestamp(snapshot.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "disks": [
            {"id": f"vm-disk-{number}.qcow2", "size": size / MiB, "type": "qcow2"}
            for number, size in enumerate(snapshot.disks.values(), 1)
        ],
        "is_latest": int(snapshot is machine.snapshots[-1]),
        "is_protected": 0,
        "parent_id": "",
        "quiesced": 0,
        "status": "normal",
        "type": "external_qcow2",
    }


def _piece(areas: list[Area], start: int, size: int) -> dict[str, Any]:
    """One answer: the areas of a region that begins at `start`, and how far that goes."""
    end = min(size, start + _COVERED)
    inside = [(max(start, at), min(end, at + length)) for at, length in areas if at < end and at + length > start]
    if len(inside) > _MOST_AREAS:
        inside = inside[:_MOST_AREAS]
        end = inside[-1][1]
    return {
        "changed_area": [{"start": first, "length": last - first} for first, last in inside],
        "start_offset": start,
        "length": end - start,
    }


_SNAPSHOTS = "/janus/{}/servers/{{server_id}}/snapshots"
_CBT = "/janus/20180725/servers/{server_id}/cbt"

OPERATIONS = (
    Operation("GET", _SNAPSHOTS.format(20210725), snapshots),
    Operation("POST", _SNAPSHOTS.format(20190725), create),
    Operation("GET", _SNAPSHOTS.format(20180725) + "/{snapshot_id}", snapshot),
    Operation("DELETE", _SNAPSHOTS.format(20180725) + "/{snapshot_id}", delete),
    Operation("GET", _CBT + "/status", cbt_status),
    Operation("PUT", _CBT + "/status", set_cbt),
    Operation("GET", _CBT + "/changed-areas", changed_areas),
)
