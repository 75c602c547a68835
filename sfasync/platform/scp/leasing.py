"""Where disks of a VM are served, with the lease that they are served under: what SFVDDK finds out by itself."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from ...errors import PlatformError, printable
from ...models import EndpointRequest, ExportAddress
from ...workers import Workers
from .api import ResourceKind, ScpApi
from .journal import Journal
from .lease import Lease, leased
from .resolve import ResourceResolver
from .settings import ScpSettings
from .site import Site
from .undo import undo


class LeasingResolver:
    """A `CleaningResolver` that leases a VM when the first of its disks is asked for, for as long as it is open.

    A request that names a lease (``resource_id``) is resolved with that one, which is whoever made it to keep. Without
    a snapshot the lease is one to write, which the platform gives only for a VM that is off. Belongs to one event loop.

    Args:
        settings: The platform, and who we are.
        directory: Where the journal is; None for the usual place.

    Raises:
        UsageError: The settings have no credentials, or name files that cannot be used.
    """

    def __init__(self, settings: ScpSettings, *, directory: Path | None = None) -> None:
        self._api = ScpApi(settings)
        self._workers = Workers(1, "sfasync-scp")
        self._resolver = ResourceResolver(self._api, settings)
        journal = Journal(settings.origin, self._workers, directory)
        self._site = Site(self._api, settings, journal, self._resolver)
        self._held: dict[tuple[str, str | None], tuple[str, Lease]] = {}
        self._taking = asyncio.Lock()
        self._stack = AsyncExitStack()

    def __repr__(self) -> str:
        return f"<LeasingResolver of {self._site.settings.origin}, {len(self._held)} leases>"

    async def __aenter__(self) -> LeasingResolver:
        await self._api.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give all leases back; what cannot be is in the journal, for `cleanup`.

        Raises:
            PlatformError: Something could not be given back.
        """
        try:
            await self._stack.__aexit__(kind, error, trace)
        finally:
            self._workers.close()
            await self._api.__aexit__(None, None, None)

    async def resolve(self, request: EndpointRequest) -> ExportAddress:
        """As `EndpointResolver.resolve`.

        Raises:
            BusyError: Somebody else works with the VM.
            PlatformError, AuthenticationError: The platform gives no lease.
            UsageError: There is no such VM, or the settings are not enough to find the disk.
        """
        if request.resource_id is None:
            async with self._taking:
                server_id, lease = await self._leased(request)
            request = replace(request, server_id=server_id, resource_id=lease.id)
        elif request.server_id is None:
            request = replace(request, server_id=(await self._site.find(request.vm_id)).id)
        return await self._resolver.resolve(request)

    async def cleanup(self) -> None:
        """Remove everything that dead processes of this user left on the platform.

        Raises:
            PlatformError: Something could not be removed.
        """
        await self._undo(None)

    async def _leased(self, request: EndpointRequest) -> tuple[str, Lease]:
        key = (request.vm_id, request.snapshot_id)
        if key not in self._held:
            server_id = await self._server_id(request)
            await self._undo(server_id)
            kind: ResourceKind = "restore" if request.snapshot_id is None else "backup"
            settings = self._site.settings
            async with AsyncExitStack() as stack:
                run = await stack.enter_async_context(self._site.run())
                lease = leased(
                    self._api,
                    run,
                    server_id,
                    kind,
                    seconds=settings.lease_seconds,
                    timeout=settings.timeouts.task,
                    also=_nothing_else,
                )
                self._held[key] = (server_id, await stack.enter_async_context(lease))
                self._stack.push_async_exit(stack.pop_all())
        return self._held[key]

    async def _server_id(self, request: EndpointRequest) -> str:
        return request.server_id or (await self._site.find(request.vm_id)).id

    async def _undo(self, server_id: str | None) -> None:
        """Remove what dead processes left, of one VM or of all."""
        problems = []
        for run in await self._site.journal.abandoned(server_id):
            problems += [
                f"{left.kind} {printable(left.id)} was not removed: {left.problem}"
                for left in await undo(self._api, run)
                if not left.removed
            ]
        if problems:
            raise PlatformError("; ".join(problems))


async def _nothing_else() -> str | None:
    """The snapshot is the caller's own to look after."""
    return None
