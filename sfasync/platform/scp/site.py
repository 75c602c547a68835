"""What the flows share: one platform, and finding things on it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final

from ...errors import BusyError, PlatformError, UsageError, printable
from ...interfaces import EndpointResolver
from ...models import EndpointRequest, ExportAddress
from .answers import Cluster, Server
from .api import ScpApi
from .eligible import busy
from .journal import Journal, Run
from .lease import Lease
from .settings import ScpSettings
from .undo import undone

_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


@dataclass(frozen=True, slots=True)
class Site:
    """One platform.

    Attributes:
        api: Its calls.
        settings: What its owner wants.
        journal: What we make on it.
        resolver: Tells where disks are served.
    """

    api: ScpApi
    settings: ScpSettings
    journal: Journal
    resolver: EndpointResolver

    def run(self) -> AbstractAsyncContextManager[Run]:
        """A run, which is undone at the end of the block."""
        return undone(self.api, self.journal)

    async def find(self, vm: str) -> Server:
        """A VM by its id on the platform, its number on the cluster, or its name where that is unique.

        Raises:
            UsageError: There is none, or there are several.
        """
        if _UUID.fullmatch(vm):
            try:
                return await self.api.server(vm)
            except PlatformError as error:
                if error.status != 404:
                    raise
        found = [server for server in await self.api.servers(name=vm) if server.name == vm]
        if not found:  # thousands of VMs are only listed where the platform cannot look for the name
            everything = await self.api.servers()
            found = [server for server in everything if vm in (server.id, str(server.vm_id), server.name)]
        if not found:
            raise UsageError(f"the platform has no VM '{printable(vm)}' that this account can see")
        if len(found) > 1:
            ids = ", ".join(server.id for server in found)
            raise UsageError(f"{len(found)} VMs are called '{printable(vm)}'; name one by its id: {ids}")
        return await self.api.server(found[0].id)

    async def require_idle(self, server: Server) -> None:
        """Refuse a VM that something else is going on with.

        Raises:
            BusyError: Something is.
        """
        reason = busy(server)
        if reason is None:
            try:
                for task in await self.api.running_tasks(server.id):
                    reason = f"the platform is at work on it ({printable(task.action or 'a task')})"
            except PlatformError as error:
                if error.status != 404:
                    raise
        if reason is not None:
            raise BusyError(f"VM '{printable(server.name)}': {reason}; try again when that has ended")

    async def cluster(self, server: Server) -> Cluster:
        """The cluster of a VM.

        Raises:
            PlatformError: It cannot be told.
        """
        clusters = await self.api.clusters()
        found = [cluster for cluster in clusters if cluster.az_id is not None and cluster.az_id == server.az_id]
        if len(found) != 1 and server.host_id is not None:
            hosts = {host.id: host.cluster_id for host in await self.api.hosts()}
            found = [cluster for cluster in clusters if cluster.id == hosts.get(server.host_id)]
        if len(found) != 1:
            raise PlatformError(f"the platform does not tell the cluster of VM '{printable(server.name)}'")
        return found[0]

    async def addresses(
        self, server: Server, disks: Sequence[str], lease: Lease, snapshot_id: str | None
    ) -> Mapping[str, ExportAddress]:
        """Where the disks of a leased VM are served, those of a snapshot or the VM's own.

        Raises:
            SfasyncError: The resolver cannot tell.
        """
        return {
            disk: await self.resolver.resolve(
                EndpointRequest(
                    vm_id=str(server.vm_id if server.vm_id is not None else server.id),
                    disk_id=disk,
                    snapshot_id=snapshot_id,
                    server_id=server.id,
                    resource_id=lease.id,
                    mode=self.settings.transport,
                )
            )
            for disk in disks
        }

    def shares(self, server: Server, lease: Lease, storage_id: str | None) -> dict[str, int]:
        """What a disk shares with others, and how many may be open there."""
        shares = {}
        if storage_id is not None:
            shares[f"datastore:{storage_id}"] = self.settings.disks_per_datastore
        host = lease.host_id or server.host_id
        if host is not None:
            shares[f"host:{host}"] = self.settings.disks_per_host
        return shares
