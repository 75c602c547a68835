"""A VM made ready for its disks to be written: a new one, or the one that the backup was made of.

::

    new VM     BIOS file -> create (it stays off) -> TPM file -> lease -> addresses
    same VM    off? -> [snapshot -> what changed since] -> configuration -> files -> tracking anew -> lease -> addresses

Tracking begins anew before the first byte is written, so whatever happens, nobody builds on what was tracked before. A
VM that was made and not finished is removed with the run; finished is one whose lease was given back.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import msgspec

from ...errors import IntegrityError, LeaseLostError, PlatformError, SfasyncError, UsageError, one_line, printable
from ...models import Checkpoint, ExportAddress, Extent
from . import eligible, vmconf
from .answers import Server
from .api import FileKind
from .disks import disk_of, vm_disks
from .journal import Entry, Run
from .lease import Lease, leased
from .making import make
from .site import Site
from .snapshot import BIOS, RECORD, TPM, Origin, take_snapshot
from .tracking import Changes, begin_anew, changes_since, tracking
from .undo import remove, undo

log = logging.getLogger("sfasync")

_PREFIX = "sfasync-restore-"


@dataclass(frozen=True, slots=True)
class TargetDisk:
    """A `RestoreDisk`."""

    address: ExportAddress
    changes: Changes
    shares: Mapping[str, int]

    @property
    def reason(self) -> str | None:
        return self.changes.reason

    def changed(self) -> AsyncIterator[Extent] | None:
        """What changed since the backup, as the platform has proven it; None if it has not."""
        return self.changes.extents()


@dataclass(frozen=True, slots=True)
class _Target:
    """The VM that is written.

    Attributes:
        server: The VM.
        made: Its entry in the run, if it was made; None if it was there.
        changes: By disk, what changed since the backup.
        tracked: Whether its changes are tracked.
    """

    server: Server
    made: Entry | None
    changes: Mapping[str, Changes]
    tracked: bool


class RestoredVm:
    """A `RestoreView`."""

    def __init__(self, site: Site, run: Run, target: _Target, lease: Lease, disks: Mapping[str, TargetDisk]) -> None:
        self.vm_id = target.server.id
        self.vm_name = target.server.name
        self.disks = disks
        self.lost = lease.lost
        self._site = site
        self._run = run
        self._target = target
        self._lease = lease

    async def check(self) -> None:
        """As `RestoreView.check`.

        Raises:
            LeaseLostError: The lease is lost.
            PlatformError: The platform does not answer.
        """
        await self._lease.check()
        if self.lost.done():
            raise LeaseLostError(f"the platform took the disks back: {printable(self.lost.result())}")

    async def finish(self) -> Sequence[str]:
        """Give the lease back and start the VM, if that is wanted; what fails of it is a warning.

        Cancelled while it gives the lease back, it leaves a VM that was made to the run, which removes it; later, the
        VM stays, and the log says so.

        Raises:
            StorageError: It could not be written down that a VM that was made stays.
        """
        made = self._target.made
        problem = await _problem_of(self._lease.release())
        try:
            if made is not None:  # from now on it stays, whether or not the platform has taken the lease back
                await self._run.gone(made)
            problem = problem or await _problem_of(self._settle())
        except asyncio.CancelledError:
            if made is not None:
                log.warning("VM '%s' is restored and stays; the interruption came too late", printable(self.vm_name))
            raise
        tracked_anew = "changes are tracked anew: the next backup of this VM is a full one"
        return [*([tracked_anew] if self._target.tracked else []), *([problem] if problem else [])]

    async def _settle(self) -> None:
        """What is done when the lease is given back."""
        if self._target.tracked:  # once more, because the platform lets it expire at some moment of a recovery
            await begin_anew(self._site, self._target.server)
        for entry in reversed(self._run.entries):
            await remove(self._site.api, self._run, entry)
        if self._site.settings.power_on:
            await self._site.api.wait(await self._site.api.power(self.vm_id, "start"))


async def _problem_of(work: Awaitable[None]) -> str:
    """What went wrong with the last things to do, in one line; empty if nothing did."""
    try:
        await work
    except SfasyncError as error:
        return f"the disks are restored, but: {one_line(str(error))}"
    return ""


@asynccontextmanager
async def restored_vm(
    site: Site,
    vm: str | None,
    *,
    new_name: str | None,
    config: bytes | None,
    files: Mapping[str, bytes],
    disks: Mapping[str, int],
    since: Mapping[str, Checkpoint] | None,
) -> AsyncIterator[RestoredVm]:
    """Prepare a VM for the time of the block; arguments as of `Platform.restore`."""
    origin = _origin(files)
    async with site.run() as run:
        if vm is not None:
            target = await _existing(site, run, vm, origin, config, files, disks, since)
        elif new_name is not None:
            target = await _new(site, run, new_name, origin, config, files, disks)
        else:
            raise UsageError("a restore needs a VM, or a name for a new one")
        lease = leased(
            site.api,
            run,
            target.server.id,
            "restore",
            seconds=site.settings.lease_seconds,
            timeout=site.settings.timeouts.task,
            also=_nothing_else,
        )
        async with lease as held:
            addresses = await site.addresses(target.server, list(disks), held, None)
            found = {
                disk: TargetDisk(
                    addresses[disk],
                    target.changes[disk],
                    site.shares(target.server, held, disk_of(target.server, disk).storage_id),
                )
                for disk in disks
            }
            yield RestoredVm(site, run, target, held, found)


async def _nothing_else() -> str | None:
    """The lease is all that a restore needs to stand."""
    return None


def _origin(files: Mapping[str, bytes]) -> Origin | None:
    """Where the backup comes from; None if another platform's, or nobody, wrote it down."""
    if RECORD not in files:
        return None
    try:
        return msgspec.json.decode(files[RECORD], type=Origin)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise IntegrityError(f"{RECORD} of the backup cannot be read") from error


# --- a VM that is there ----------------------------------------------------------------------------------------------


async def _existing(
    site: Site,
    run: Run,
    vm: str,
    origin: Origin | None,
    config: bytes | None,
    files: Mapping[str, bytes],
    disks: Mapping[str, int],
    since: Mapping[str, Checkpoint] | None,
) -> _Target:
    server = await site.find(vm)
    if not eligible.is_off(server):
        raise UsageError(f"VM '{printable(server.name)}' is not off; stop it before its disks are written")
    _require_same_cipher(server, origin)
    await _clean_up_before(site, server)
    await site.require_idle(server)
    tracked = await tracking(site, server, enable=False)
    changes = {disk: Changes(reason="not-differential") for disk in disks}
    if since is not None:
        entry = await take_snapshot(site, run, server, _PREFIX)
        frozen = await site.api.snapshot(server.id, entry.id)
        known = [disk for disk in vm_disks(server, frozen) if disk.id in disks]
        changes |= await changes_since(site, server, known, frozen, since, tracked)
    same = origin is not None and origin.server_id == server.id
    if same and config is not None:
        body = vmconf.for_the_same_vm(vmconf.parse(config))
        await site.api.wait(await site.api.edit_server(server.id, body))
        server = await site.api.server(server.id)
    _require_room(server, disks)
    if same:
        await _upload(site, server, files)
    if tracked.now.is_enabled:
        await begin_anew(site, server)
    return _Target(server, None, changes, tracked.now.is_enabled)


async def _clean_up_before(site: Site, server: Server) -> None:
    """Remove what dead runs left of this VM."""
    for dead in await site.journal.abandoned(server.id):
        await undo(site.api, dead)


def _require_same_cipher(server: Server, origin: Origin | None) -> None:
    """Refuse to write plain text where there should be none, or the reverse."""
    if origin is not None and origin.encrypted != bool(server.encrypted):
        is_, was = ("is", "was not") if server.encrypted else ("is not", "was")
        raise UsageError(f"VM '{printable(server.name)}' {is_} encrypted, and the VM of the backup {was}")


def _require_room(server: Server, disks: Mapping[str, int]) -> None:
    """See that a VM has the disks, and that they are large enough.

    Raises:
        UsageError: One is missing or too small.
    """
    for disk, size in disks.items():
        found = disk_of(server, disk)
        if found.size is not None and found.size < size:
            raise UsageError(
                f"disk '{printable(disk)}' of VM '{printable(server.name)}' has {found.size} bytes, that of the backup "
                f"has {size}",
                disk=disk,
            )


async def _upload(site: Site, server: Server, files: Mapping[str, bytes]) -> None:
    """Give a VM its BIOS and TPM files."""
    kinds: tuple[tuple[FileKind, str], ...] = (("BIOS", BIOS), ("TPM", TPM))
    for kind, name in kinds:
        if name in files:
            cluster = await site.cluster(server)
            await site.api.upload_file(cluster.id, kind, _storage(server), name, files[name], server_id=server.id)


def _storage(server: Server) -> str:
    found = server.storage_id or next((disk.storage_id for disk in server.disks or () if disk.storage_id), None)
    if found is None:
        raise PlatformError(f"the platform does not tell the datastore of VM '{printable(server.name)}'")
    return found


# --- a new VM --------------------------------------------------------------------------------------------------------


async def _new(
    site: Site,
    run: Run,
    name: str,
    origin: Origin | None,
    config: bytes | None,
    files: Mapping[str, bytes],
    disks: Mapping[str, int],
) -> _Target:
    parsed = vmconf.parse(config)
    if origin is None or origin.az_id is None:
        raise UsageError("the backup does not say in which resource pool its VM was; restore to a VM that is there")
    if origin.encrypted:
        raise UsageError("the VM of the backup was encrypted; a new one would have another key, and could not start")
    servers = await site.api.servers()
    if any(server.name == name for server in servers):
        raise UsageError(f"there is a VM '{printable(name)}' already")
    datastore = str(parsed.get("datastore_id") or origin.storage_id or "")
    if not datastore:
        raise UsageError("the backup does not say on which datastore its VM was; restore to a VM that is there")
    try:
        body = vmconf.for_a_new_vm(
            parsed,
            name=name,
            az_id=origin.az_id,
            datastore_id=datastore,
            beside=any(server.id == origin.server_id for server in servers),
            bios_path=await _bios(site, origin, datastore, files),
        )
        entry = await run.intend("virtual machine", vm="", name=name, body=body)
        await make(site.api, run, entry, partial(site.api.create_server_from_config, body, token=entry.token))
    except PlatformError as error:
        await _blame_what_is_gone(site, origin.az_id, datastore, error)
        raise
    if not entry.id:
        raise PlatformError("the platform has made a VM and does not tell its id")
    server = await site.api.server(entry.id)
    if not eligible.is_off(server):
        raise PlatformError(f"the new VM '{printable(name)}' is not off")
    _require_room(server, disks)
    if TPM in files:
        await _upload(site, server, {TPM: files[TPM]})
    return _Target(server, entry, {disk: Changes(reason="new-vm") for disk in disks}, tracked=False)


async def _blame_what_is_gone(site: Site, az_id: str, datastore_id: str, error: PlatformError) -> None:
    """See whether a VM could not be made because what it was on is not there any more.

    That is asked afterwards, not before: whether the lists have every pool and datastore that can be used is not
    public, and no restore is to be refused for want of a line in them.

    Raises:
        UsageError: So it is.
    """
    try:
        pools = {pool.id: pool.name for pool in await site.api.azs()}
        stores = {store.id: store.name for store in await site.api.storages()}
    except SfasyncError as other:
        log.info("whether pool and datastore of the backup are there is not known: %s", other)
        return
    for what, wanted, there in (("resource pool", az_id, pools), ("datastore", datastore_id, stores)):
        if wanted not in there:
            names = ", ".join(printable(name or identity) for identity, name in sorted(there.items())) or "none"
            raise UsageError(
                f"the platform has no {what} '{printable(wanted)}' any more, where the VM of the backup was (it has "
                f"{names}); restore to a VM that is there: {one_line(str(error))}"
            ) from error


async def _bios(site: Site, origin: Origin, datastore: str, files: Mapping[str, bytes]) -> str | None:
    """Put the BIOS file where a VM that does not exist yet can have it from; gives the path to name it by."""
    if BIOS not in files:
        return None
    if origin.cluster_id is None:
        raise UsageError("the backup has a BIOS file, and does not say of which cluster")
    name = f"sfasync-{secrets.token_hex(6)}.bin"
    await site.api.upload_file(origin.cluster_id, "BIOS", datastore, name, files[BIOS])
    return f"{datastore}:/{datastore}/iso/{name}"
