"""Sangfor Cloud Platform as a `Platform`: its VMs are listed, frozen, restored and cleaned up after, all by REST."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Final

from ...errors import PlatformError, one_line
from ...interfaces import EndpointResolver
from ...models import Checkpoint, Leftover, VirtualDisk, VirtualMachine
from ...tasks import run_all
from ...workers import Workers
from . import eligible
from .answers import CbtStatus, Server
from .api import ScpApi
from .journal import Journal
from .resolve import ResourceResolver
from .restore import RestoredVm, restored_vm
from .settings import ScpSettings
from .site import Site
from .snapshot import FrozenVm, frozen_vm
from .undo import leftover_of, undo

_ASKED_AT_ONCE: Final = 4


class ScpPlatform:
    """A `Platform`, for as long as the context is open. Belongs to one event loop.

    Args:
        settings: The platform, who we are, and what its owner wants.
        resolver: Tells where disks are served; None for what the settings and the platform tell.
        directory: Where the journal is; None for ``$XDG_STATE_HOME/sfasync/scp``.

    Raises:
        UsageError: The settings have no credentials, or name files that cannot be used.
    """

    name = "scp"

    def __init__(
        self, settings: ScpSettings, *, resolver: EndpointResolver | None = None, directory: Path | None = None
    ) -> None:
        self._api = ScpApi(settings)
        self._workers = Workers(1, "sfasync-scp")
        journal = Journal(settings.origin, self._workers, directory)
        self._site = Site(self._api, settings, journal, resolver or ResourceResolver(self._api, settings))

    def __repr__(self) -> str:
        return f"<ScpPlatform {self._site.settings.origin}>"

    async def __aenter__(self) -> ScpPlatform:
        await self._api.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._workers.close()
        await self._api.__aexit__(kind, error, trace)

    async def vms(self) -> Sequence[VirtualMachine]:
        """The VMs that this account can see, by name; each costs one to three questions of its own.

        Raises:
            PlatformError, AuthenticationError, TlsError: The platform does not answer.
        """
        lanes = asyncio.Semaphore(_ASKED_AT_ONCE)
        found = await run_all(self._described(server, lanes) for server in await self._api.servers())
        return sorted(found, key=lambda vm: (vm.name, vm.id))

    async def identify(self, vm: str) -> str:
        """As `Platform.identify`; costs one to three questions.

        Raises:
            UsageError: There is no such VM, or several have the name.
            PlatformError, AuthenticationError, TlsError: The platform does not answer.
        """
        return (await self._site.find(vm)).id

    @asynccontextmanager
    async def snapshot(
        self,
        vm: str,
        *,
        disks: Sequence[str] | None = None,
        base: Mapping[str, Checkpoint] | None = None,
        chain: str = "",
        reuse: str | None = None,
    ) -> AsyncIterator[FrozenVm]:
        """As `Platform.snapshot`.

        Raises:
            UsageError: There is no such VM or disk, or it cannot be backed up.
            BusyError: Something else is going on with the VM.
            PlatformError: The platform failed or refused; what was made is removed.
            AuthenticationError, TlsError, StorageError: As they say; likewise.
        """
        async with frozen_vm(self._site, vm, disks=disks, base=base or {}, chain=chain, reuse=reuse) as view:
            yield view

    @asynccontextmanager
    async def restore(
        self,
        vm: str | None,
        *,
        new_name: str | None = None,
        config: bytes | None,
        files: Mapping[str, bytes],
        disks: Mapping[str, int],
        since: Mapping[str, Checkpoint] | None = None,
    ) -> AsyncIterator[RestoredVm]:
        """As `Platform.restore`.

        Raises:
            UsageError: The VM cannot be restored so: it runs, a disk is missing or too small, a name is taken.
            BusyError: Something else is going on with the VM.
            PlatformError: The platform failed or refused; what was made is removed.
            AuthenticationError, TlsError, StorageError: As they say; likewise.
        """
        async with restored_vm(
            self._site, vm, new_name=new_name, config=config, files=files, disks=disks, since=since
        ) as view:
            yield view

    async def cleanup(self, *, dry_run: bool = False) -> Sequence[Leftover]:
        """As `Platform.cleanup`: what the journals of dead processes of this user name.

        Raises:
            StorageError: The journal cannot be read.
        """
        found: list[Leftover] = []
        for run in await self._site.journal.abandoned():
            if dry_run:
                found += [leftover_of(entry) for entry in run.entries]
                await run.end()
            else:
                found += await undo(self._api, run)
        return found

    async def _described(self, listed: Server, lanes: asyncio.Semaphore) -> VirtualMachine:
        """A VM of the list, with what only its own pages tell."""
        refusal = eligible.refusal(listed, encrypted_allowed=self._site.settings.encrypted_allowed)
        server, status = listed, None
        if refusal is None:
            async with lanes:
                server, status, refusal = await self._asked(listed)
        return VirtualMachine(
            id=server.id,
            name=server.name,
            state=server.status or "",
            disks=tuple(
                VirtualDisk(id=disk.id, size=disk.size, tracked=None if status is None else status.tracked(disk.id))
                for disk in server.disks or ()
            ),
            refusal=refusal or eligible.busy(server),
            warnings=eligible.warnings(server),
        )

    async def _asked(self, listed: Server) -> tuple[Server, CbtStatus | None, str | None]:
        """Its own page, whether it is tracked, and why it cannot be backed up."""
        try:
            server = await self._api.server(listed.id)
            snapshots = await self._api.snapshots(listed.id) if server.snap is not False else []
            status = await self._api.cbt_status(listed.id)
        except PlatformError as error:
            return listed, None, f"the platform does not tell more of it: {one_line(str(error))}"
        allowed = self._site.settings.encrypted_allowed
        return server, status, eligible.refusal(server, snapshots, encrypted_allowed=allowed)
