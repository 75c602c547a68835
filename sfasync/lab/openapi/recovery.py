"""BIOS and TPM files, and the calls of quick recovery.

The calls of quick recovery are answered as documented, but the lab mounts nothing: disks stay what they are.
"""

from __future__ import annotations

import re
import uuid

from ..hypervisor import Progress
from .envelope import Answer, Refusal, text_in
from .site import Call, Operation, Site

_BOUNDARY = re.compile(r'boundary="?([^";]+)"?')  # RFC 2046, "multipart"


async def download(site: Site, call: Call) -> Answer:
    """A VM's BIOS, or the TPM's state that a snapshot has."""
    _check_cluster(site, call)
    kind = _kind(call)
    machine = site.machine_of(text_in(call.query, "server_id"))
    snapshot_id = call.query.get("snapshot_id")
    if kind == "TPM" and snapshot_id is None:
        raise Refusal(400, "snapshot_id is missing")
    files = machine.files if snapshot_id is None else site.snapshot(machine, snapshot_id).files
    if kind not in files:
        raise Refusal(404, f"there is no {kind} file")
    return Answer(files[kind])


async def upload(site: Site, call: Call) -> Answer:
    """Take a file, as a form or as it is: into a VM's directory, or for VMs to come."""
    _check_cluster(site, call)
    kind = _kind(call)
    storage, name = text_in(call.query, "storage_id"), text_in(call.query, "file_name")
    content = _content(call)
    server_id = call.query.get("server_id")
    if server_id is not None:
        site.hypervisor.configure(site.machine_of(server_id), {}, {kind: content})
    else:
        path = f"{storage}:/{storage}/iso/{name}"
        if path in site.files:
            raise Refusal(409, "a file of that name exists")
        site.files[path] = content
    return Answer({"success": True}, status=201)


async def attach(site: Site, call: Call) -> Answer:
    """Mount an NFS export."""
    members = call.members
    store = members.get("nfs_datastore")
    if members.get("cluster_id") != site.hypervisor.inventory.cluster_id or not isinstance(store, dict):
        raise Refusal(400, "cluster_id or nfs_datastore is missing")
    name = text_in(store, "name")
    server = store.get("server")
    if not isinstance(server, dict) or not {"ip_address", "export_path"} <= server.keys():
        raise Refusal(400, "nfs_datastore.server: ip_address or export_path is missing")
    if name in site.storages.values():
        raise Refusal(409, "a storage of that name exists")

    async def work(progress: Progress) -> None:
        site.storages[f"nfs_{uuid.uuid4().hex[:12]}"] = name

    return Answer({"task_id": site.tasks.start("mount NFS", name, name, work).id}, status=201)


async def detach(site: Site, call: Call) -> Answer:
    """Unmount an NFS export."""
    storage_id = call.ids["storage_id"]
    if storage_id not in site.storages:
        raise Refusal(404, "the storage does not exist")

    async def work(progress: Progress) -> None:
        site.storages.pop(storage_id, None)

    return Answer({"task_id": site.tasks.start("unmount NFS", storage_id, storage_id, work).id})


async def rebase(site: Site, call: Call) -> Answer:
    """Let disks of a VM that is off read from files of an NFS export."""
    machine = site.machine(call)
    disks = call.members.get("disks")
    if not isinstance(disks, list) or not all(_is_rebased(site, each) for each in disks):
        raise Refusal(400, "disks: each has a disk_id, a datastore and a path")
    if machine.running:
        raise Refusal(400, "the server must be shut down")

    async def work(progress: Progress) -> None:
        machine.facts["instant_vm"] = 1

    return Answer({"task_id": site.start("rebase disks", machine, work).id}, status=201)


async def merge(site: Site, call: Call) -> Answer:
    """Take over what disks read from files of an NFS export."""
    machine = site.machine(call)
    if not machine.facts.get("instant_vm"):
        raise Refusal(400, "the server has no disks to merge")

    async def work(progress: Progress) -> None:
        del machine.facts["instant_vm"]

    return Answer({"task_id": site.start("merge backup data", machine, work).id}, status=201)


def _check_cluster(site: Site, call: Call) -> None:
    if call.ids["cluster_id"] != site.hypervisor.inventory.cluster_id:
        raise Refusal(404, "the cluster does not exist")


def _kind(call: Call) -> str:
    kind = text_in(call.query, "file_type")
    if kind not in ("BIOS", "TPM"):
        raise Refusal(400, "file_type is BIOS or TPM")
    return kind


def _content(call: Call) -> bytes:
    """The file in a body, which is a form with one file, or the file.

    Raises:
        Refusal: The form is something else.
    """
    kind = call.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        return call.body
    boundary = _BOUNDARY.search(kind)
    parts = (b"\r\n" + call.body).split(b"\r\n--" + boundary[1].encode()) if boundary else []
    if len(parts) != 3 or not parts[2].startswith(b"--"):  # nothing before it, the file, and the end
        raise Refusal(400, "the form has not exactly one file")
    return parts[1].partition(b"\r\n\r\n")[2]


def _is_rebased(site: Site, disk: object) -> bool:
    return (
        isinstance(disk, dict)
        and {"disk_id", "datastore", "path"} <= disk.keys()
        and disk["datastore"] in site.storages
    )


_FILES = "/janus/20180725/clusters/{cluster_id}/files"
_SERVER = "/janus/20180725/servers/{server_id}"

OPERATIONS = (
    Operation("GET", _FILES + "/download", download),
    Operation("POST", _FILES + "/upload", upload),
    Operation("POST", "/janus/20210725/storages/attachnfs", attach),
    Operation("POST", "/janus/20180725/storages/attachnfs", attach),
    Operation("DELETE", "/janus/20180725/storages/{storage_id}", detach),
    Operation("POST", _SERVER + "/rebase-backing-file", rebase),
    Operation("POST", _SERVER + "/merge-backup-data", merge),
)
