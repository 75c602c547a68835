"""Everything the platform is asked for, as methods with types. No order between them is known here: that is the flow's.

What changes something answers with the id of a task, or None where there is nothing to wait for; `ScpApi.wait` takes
either. What a creating call made is of use only when its task has ended well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

from ...errors import BusyError, PlatformError, UsageError
from ...models import Retry
from .answers import (
    Az,
    CbtStatus,
    ChangedAreas,
    Cluster,
    Host,
    HostInterface,
    PlatformVersion,
    Resource,
    Server,
    Snapshot,
    SnapshotDetails,
    Storage,
    snapshot_details,
)
from .client import ScpClient
from .envelope import malformed
from .paths import answered_id, checked_checkpoint, checked_id
from .patience import PACE
from .settings import ScpSettings
from .tasks import Task, wait

CbtChange: TypeAlias = Literal["enable", "disable", "reset"]
ResourceKind: TypeAlias = Literal["backup", "restore"]
FileKind: TypeAlias = Literal["BIOS", "TPM"]
Power: TypeAlias = Literal["start", "stop"]


class Created(NamedTuple):
    """Something that is being made.

    Attributes:
        id: Its id; None where the platform did not tell, and it has to be found by its name.
        task_id: The task that makes it; None where it is there already.
    """

    id: str | None
    task_id: str | None


class ScpApi:
    """One platform, for as long as the context is open.

    Args:
        settings: The platform, and who we are.
        pace: How pauses grow between attempts.

    Raises:
        UsageError: The settings have no credentials, or name files that cannot be used.
    """

    def __init__(self, settings: ScpSettings, *, pace: Retry = PACE) -> None:
        self._settings = settings
        self._client = ScpClient(settings, pace=pace)

    def __repr__(self) -> str:
        return f"<ScpApi of {self._settings.origin}>"

    @property
    def silent(self) -> bool:
        """Whether the platform gave no answer when it was asked last, or none but that it is busy."""
        return self._client.silent

    async def __aenter__(self) -> ScpApi:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, error, trace)

    async def wait(self, task_id: str | None, timeout: float | None = None) -> Task | None:
        """The task, when it has ended well. Cancelling leaves it going on.

        Args:
            task_id: Which; for None there is nothing to wait for.
            timeout: Seconds that it may take; None for what the settings say.

        Raises:
            CbtExpiredError, PlatformError: It failed, was cancelled, or took longer.
        """
        if task_id is None:
            return None
        timeouts = self._settings.timeouts
        limit = timeouts.task if timeout is None else timeout
        return await wait(self._client, task_id, timeout=limit, poll=timeouts.poll)

    async def ended(self, task_id: str) -> None:
        """Wait until a task has ended, well or not; one that the platform does not know any more has.

        Raises:
            PlatformError: It takes longer than the settings allow.
        """
        timeouts = self._settings.timeouts
        try:
            await wait(self._client, task_id, timeout=timeouts.task, poll=timeouts.poll, failed=True)
        except PlatformError as error:
            if error.status != 404:
                raise

    async def running_tasks(self, object_id: str) -> list[Task]:
        """What the platform is doing with something, as far as the first page of its tasks tells."""
        query = {"object_id": checked_id("object_id", object_id)}
        found = await self._client.first("tasks", Task, query=query)
        return [task for task in found if task.object_id == object_id and task.running]

    # --- the platform and what it manages ----------------------------------------------------------------------------

    async def version(self) -> PlatformVersion:
        """Which platform it is."""
        return await self._client.call("platform", PlatformVersion)

    async def azs(self) -> list[Az]:
        """The resource pools."""
        return await self._client.listing("azs", Az)

    async def clusters(self) -> list[Cluster]:
        """The clusters."""
        return await self._client.listing("clusters", Cluster)

    async def hosts(self) -> list[Host]:
        """The hosts of all clusters."""
        return await self._client.listing("hosts", Host)

    async def host_interfaces(self, host_id: str, function: str | None = "mgmt") -> list[HostInterface]:
        """The interfaces of a host that are used for something; None for all."""
        query = {"function": function}
        return await self._client.page("host-interfaces", HostInterface, ids={"host_id": host_id}, query=query)

    async def storages(self) -> list[Storage]:
        """The datastores of all clusters."""
        return await self._client.listing("storages", Storage)

    # --- virtual machines --------------------------------------------------------------------------------------------

    async def servers(self, *, name: str | None = None) -> list[Server]:
        """The VMs that this account can see; with a name, those that the platform thinks match it."""
        return await self._client.listing("servers", Server, query={"query_name": name})

    async def server(self, server_id: str) -> Server:
        """One VM."""
        return await self._client.call("server", Server, ids={"server_id": server_id})

    async def create_server_from_config(self, config: Mapping[str, Any], *, token: str | None = None) -> Created:
        """Make a VM from a configuration: that of a snapshot's details, with ``az_id``. It stays off.

        Args:
            config: The configuration.
            token: As of `create_snapshot`.
        """
        started = await self._client.change("server-create", body=config, token=token)
        return Created(_optional("server_id", started.uuid), started.task_id)

    async def edit_server(self, server_id: str, config: Mapping[str, Any]) -> str | None:
        """Change the configuration of a VM; what is not in `config` stays."""
        return (await self._client.change("server-edit", ids={"server_id": server_id}, body=config)).task_id

    async def delete_server(self, server_id: str, *, for_good: bool = False) -> str | None:
        """Remove a VM: into the recycle bin, or for good."""
        body = {"force": int(for_good)}
        return (await self._client.change("server-delete", ids={"server_id": server_id}, body=body)).task_id

    async def power(self, server_id: str, action: Power, *, force: bool = False) -> str | None:
        """Start a VM, or stop it."""
        body = None if action == "start" else {"force": int(force)}
        return (await self._client.change(f"server-{action}", ids={"server_id": server_id}, body=body)).task_id

    # --- snapshots ---------------------------------------------------------------------------------------------------

    async def snapshots(self, server_id: str) -> list[Snapshot]:
        """The snapshots of a VM."""
        return await self._client.page("snapshots", Snapshot, ids={"server_id": server_id})

    async def create_snapshot(
        self, server_id: str, name: str, description: str = "", *, token: str | None = None
    ) -> Created:
        """Freeze a VM.

        Args:
            server_id: Which.
            name: 1 to 90 characters that no other snapshot of the VM has, and not ``current``.
            description: At most 90 characters.
            token: With which the same call, made again within 15 minutes, makes nothing new.

        Raises:
            UsageError: The name or the description cannot be used.
        """
        if not 0 < len(name) <= 90 or name == "current" or len(description) > 90:
            raise UsageError(
                "a snapshot has a name of 1 to 90 characters, not 'current', and a description of up to 90"
            )
        ids, body = {"server_id": server_id}, {"name": name, "description": description}
        try:
            started = await self._client.change("snapshot-create", ids=ids, body=body, token=token)
        except (BusyError, PlatformError) as error:
            if isinstance(error, PlatformError) and error.status != 429:
                raise
            # Perhaps it was made by a request whose answer was lost: there is only one of this name.
            for snapshot in await self.snapshots(server_id):
                if snapshot.name == name:
                    return Created(snapshot.id, None)
            raise
        return Created(_optional("snapshot_id", started.resource_id), started.task_id)

    async def snapshot(self, server_id: str, snapshot_id: str) -> SnapshotDetails:
        """A snapshot, with the configuration that was frozen and the checkpoint that changes can be asked from."""
        ids = {"server_id": server_id, "snapshot_id": snapshot_id}
        return snapshot_details(await self._client.call("snapshot", msgspec.Raw, ids=ids), "snapshot")

    async def delete_snapshot(self, server_id: str, snapshot_id: str) -> str | None:
        """Remove a snapshot."""
        ids = {"server_id": server_id, "snapshot_id": snapshot_id}
        return (await self._client.change("snapshot-delete", ids=ids)).task_id

    # --- changed blocks ----------------------------------------------------------------------------------------------

    async def cbt_status(self, server_id: str) -> CbtStatus:
        """Whether changes of a VM are tracked."""
        return await self._client.call("cbt-status", CbtStatus, ids={"server_id": server_id})

    async def set_cbt(self, server_id: str, change: CbtChange, disks: Sequence[str] | None = None) -> str | None:
        """Begin or end to track changes, or begin anew; of some disks, or of all. Beginning anew is always for all."""
        body: dict[str, Any] = {"type": change}
        if disks is not None:
            body["disk_ids"] = [checked_id("disk_id", disk) for disk in disks]
        return (await self._client.change("cbt-set", ids={"server_id": server_id}, body=body)).task_id

    async def changed_areas(
        self, server_id: str, disk_id: str, snapshot_id: str, checkpoint_id: str | int, start: int
    ) -> ChangedAreas:
        """What has changed on a disk between a checkpoint and a snapshot, as far as one answer goes.

        Args:
            server_id, disk_id, snapshot_id: The frozen disk.
            checkpoint_id: The point to compare with; 0 for what was ever written.
            start: First byte to tell about.

        Raises:
            CbtExpiredError: Changes are tracked anew since.
            UsageError: The checkpoint can be none.
        """
        query: dict[str, str | int | None] = {
            "disk_id": checked_id("disk_id", disk_id),
            "snapshot_id": checked_id("snapshot_id", snapshot_id),
            "checkpoint_id": checked_checkpoint(str(checkpoint_id)),
            "start_offset": start,
        }
        return await self._client.call("changed-areas", ChangedAreas, ids={"server_id": server_id}, query=query)

    # --- backup resources: the lease on a VM -------------------------------------------------------------------------

    async def create_resource(
        self,
        server_id: str,
        kind: ResourceKind,
        lock_time: int,
        host_id: str | None = None,
        *,
        token: str | None = None,
    ) -> Created:
        """Lease a VM for a backup or a restore: while the lease lasts, its disks are served.

        Args:
            server_id: Which.
            kind: What for.
            lock_time: Seconds, 60 to 7200.
            host_id: The host that should serve the disks, from 6.11.3 on; None to leave that to the platform.
            token: As of `create_snapshot`.
        """
        dialect = self._settings.dialect
        body: dict[str, Any] = {
            "server_id": checked_id("server_id", server_id),
            dialect.resource_member: dialect.backup_kind if kind == "backup" else dialect.restore_kind,
            "lock_time": lock_time,
        }
        if host_id is not None:
            body["host_id"] = checked_id("host_id", host_id)
        started = await self._client.change("resource-create", body=body, token=token)
        if started.resource_id is None:
            raise malformed("resource-create", "there is no resource_id")
        return Created(answered_id("resource_id", started.resource_id), started.task_id)

    async def resource(self, resource_id: str) -> Resource:
        """A lease: whether it is good, and for how long."""
        return await self._client.call("resource", Resource, ids={"resource_id": resource_id})

    async def renew_resource(self, resource_id: str, lock_time: int) -> str | None:
        """Ask for a lease to last longer: for `lock_time` seconds from now, 60 to 7200."""
        ids = {"resource_id": resource_id}
        return (await self._client.change("resource-renew", ids=ids, body={"lock_time": lock_time})).task_id

    async def delete_resource(self, resource_id: str) -> str | None:
        """Give a lease back."""
        return (await self._client.change("resource-delete", ids={"resource_id": resource_id})).task_id

    # --- files of a VM -----------------------------------------------------------------------------------------------

    async def download_file(
        self, cluster_id: str, kind: FileKind, server_id: str, snapshot_id: str | None = None
    ) -> bytes | None:
        """The BIOS or TPM file of a VM; None if it has none. The TPM's is a ZIP, and that of a snapshot."""
        query: dict[str, str | int | None] = {"file_type": kind, "server_id": checked_id("server_id", server_id)}
        if snapshot_id is not None:
            query["snapshot_id"] = checked_id("snapshot_id", snapshot_id)
        try:
            return await self._client.download("file-download", ids={"cluster_id": cluster_id}, query=query)
        except PlatformError as error:
            if error.status == 404:
                return None
            raise

    async def upload_file(
        self,
        cluster_id: str,
        kind: FileKind,
        storage_id: str,
        name: str,
        content: bytes,
        *,
        server_id: str | None = None,
    ) -> None:
        """Send a BIOS or TPM file: to a VM, whose file of the name is replaced, or to the images of a storage."""
        query: dict[str, str | int | None] = {
            "file_type": kind,
            "storage_id": checked_id("storage_id", storage_id),
            "file_name": name,
            "server_id": None if server_id is None else checked_id("server_id", server_id),
        }
        ids = {"cluster_id": cluster_id}
        await self._client.upload("file-upload", ids=ids, query=query, name=name, content=content)

    # --- quick recovery ----------------------------------------------------------------------------------------------

    async def attach_nfs(
        self, cluster_id: str, name: str, *, host_ids: Sequence[str], address: str, export: str, description: str = ""
    ) -> str | None:
        """Mount an NFS export as a datastore on hosts of a cluster. Its id is found in `storages` by its name."""
        datastore = {
            "name": name,
            "description": description,
            "attached_host_ids": [checked_id("host_id", host) for host in host_ids],
            "server": {"ip_address": address, "export_path": export},
        }
        body = {"cluster_id": checked_id("cluster_id", cluster_id), "nfs_datastore": datastore}
        return (await self._client.change("storage-attach", body=body)).task_id

    async def detach_storage(self, storage_id: str, cluster_id: str, *, force: bool = False) -> str | None:
        """Unmount a datastore."""
        body = {"cluster_id": checked_id("cluster_id", cluster_id), "is_enforce": force}
        return (await self._client.change("storage-detach", ids={"storage_id": storage_id}, body=body)).task_id

    async def rebase(self, server_id: str, disks: Mapping[str, tuple[str, str]]) -> str | None:
        """Let disks of a VM begin with what backup files hold: by disk, the datastore and the path in it."""
        places = [
            {
                "disk_id": checked_id("disk_id", disk),
                "datastore": checked_id("storage_id", storage),
                "path": path,
            }
            for disk, (storage, path) in disks.items()
        ]
        return (await self._client.change("rebase", ids={"server_id": server_id}, body={"disks": places})).task_id

    async def merge(self, server_id: str) -> str | None:
        """Copy what was rebased into the VM's own disks."""
        return (await self._client.change("merge", ids={"server_id": server_id})).task_id


def _optional(what: str, value: str | None) -> str | None:
    return None if not value else answered_id(what, value)
