"""A VM frozen for a backup, in the order that the vendor's page "Create a Backup" has.

::

    no task runs -> tracking on -> snapshot -> details -> what changed -> lease -> addresses -> BIOS and TPM files

Everything made on the way is in the run, which is undone at the end: first the lease, then the snapshot.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import msgspec

from ..._version import VERSION
from ...errors import LeaseLostError, PlatformError, UsageError, printable
from ...models import Checkpoint, ExportAddress, Extent
from . import eligible
from .answers import Server, SnapshotDetails
from .changes import ChangedMap
from .disks import VmDisk, chosen, vm_disks
from .journal import Entry, Run
from .lease import Lease, leased
from .making import make
from .site import Site
from .tracking import EXPIRED, Changes, allocation, begin_anew, changes_since, checkpoint_of, extents_of, tracking
from .undo import DESCRIPTION, named_snapshot, remove, undo_entry

log = logging.getLogger("sfasync")

RECORD: Final = "sangfor.json"
"""The file of a backup that says where it comes from."""

BIOS: Final = "bios.bin"
TPM: Final = "tpm.zip"

_PREFIX: Final = "sfasync-"


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What a restore has to know of the VM besides its configuration.

    Attributes:
        server_id, vm_id, az_id, cluster_id, storage_id: Where it was.
        encrypted, cipher: Whether its disks were, and how, as the platform says it.
        platform: Version of the platform.
        sfasync: Ours.
    """

    server_id: str
    vm_id: int | None = None
    az_id: str | None = None
    cluster_id: str | None = None
    storage_id: str | None = None
    encrypted: bool = False
    cipher: object = None
    platform: str | None = None
    sfasync: str = VERSION


@dataclass(frozen=True, slots=True)
class Frozen:
    """A frozen VM.

    Attributes:
        entry: The snapshot, in the run.
        details: What was frozen.
        disks: Those that are wanted.
    """

    entry: Entry
    details: SnapshotDetails
    disks: Sequence[VmDisk]


@dataclass(frozen=True, slots=True)
class FrozenDisk:
    """An `AllocatedDisk`."""

    id: str
    size: int
    address: ExportAddress
    checkpoint: Checkpoint | None
    changes: Changes
    shares: Mapping[str, int]
    written: ChangedMap | None = field(default=None, repr=False)

    @property
    def reason(self) -> str | None:
        return self.changes.reason

    def changed(self) -> AsyncIterator[Extent] | None:
        """What changed since the base, as the platform has proven it; None if it has not."""
        return self.changes.extents()

    def allocated(self) -> AsyncIterator[Extent] | None:
        """What was ever written, where the platform is trusted about that."""
        return None if self.written is None else extents_of(self.written)


class FrozenVm:
    """A `SnapshotView`."""

    def __init__(
        self,
        site: Site,
        run: Run,
        server: Server,
        frozen: Frozen,
        lease: Lease,
        chain: str,
        disks: Sequence[FrozenDisk],
        files: Mapping[str, bytes],
    ) -> None:
        self.vm_id = server.id
        self.vm_name = server.name
        self.snapshot_id = frozen.entry.id
        self.config = frozen.details.config
        self.files = files
        self.disks = disks
        self.lost = lease.lost
        self._site = site
        self._run = run
        self._entry = frozen.entry
        self._lease = lease
        self._chain = chain

    async def check(self) -> None:
        """As `SnapshotView.check`.

        Raises:
            LeaseLostError: Lease or snapshot are lost.
            PlatformError: The platform does not answer.
        """
        await self._lease.check()
        if self.lost.done():
            raise LeaseLostError(f"the platform took the snapshot back: {self.lost.result()}")

    async def committed(self, disk_ids: Sequence[str]) -> None:
        """Changes are known by numbers in the platform's own files, so no snapshot has to stay for them.

        With `keep_last_snapshot` this one does, and that of the backup before goes.
        """
        api = self._site.api
        for snapshot in await api.snapshots(self.vm_id):
            if (snapshot.name or "").startswith(prefix_of(self._chain)) and snapshot.id != self.snapshot_id:
                await api.wait(await api.delete_snapshot(self.vm_id, snapshot.id))
        if self._site.settings.keep_last_snapshot:
            await self._run.gone(self._entry)


def prefix_of(chain: str) -> str:
    """How the names of all snapshots of a line of backups begin."""
    return f"{_PREFIX}{hashlib.blake2b(chain.encode(), digest_size=6).hexdigest()}-"


@asynccontextmanager
async def frozen_vm(
    site: Site,
    vm: str,
    *,
    disks: Sequence[str] | None,
    base: Mapping[str, Checkpoint],
    chain: str,
    reuse: str | None,
) -> AsyncIterator[FrozenVm]:
    """Freeze a VM for the time of the block; arguments as of `Platform.snapshot`."""
    server = await site.find(vm)
    await _require_eligible(site, server)
    async with site.run() as run:
        adopted = await _clean_up_before(site, run, server, chain, reuse)
        await site.require_idle(server)  # what dead runs of ours had begun has ended by now
        tracked = await tracking(site, server, enable=site.settings.enable_cbt)
        entry = adopted or await take_snapshot(site, run, server, prefix_of(chain))
        frozen = await _details(site, server, entry, disks)
        changes = await changes_since(site, server, frozen.disks, frozen.details, base, tracked)
        if any(change.reason == EXPIRED for change in changes.values()):
            await begin_anew(site, server)
            await remove(site.api, run, entry)
            entry = await take_snapshot(site, run, server, prefix_of(chain))
            frozen = await _details(site, server, entry, disks)
            changes = {disk.id: Changes(reason=EXPIRED) for disk in frozen.disks}
        written = {
            disk.id: await allocation(site, server, disk, frozen.details, tracked)
            for disk in frozen.disks
            if changes[disk.id].map is None
        }
        lease = leased(
            site.api,
            run,
            server.id,
            "backup",
            seconds=site.settings.lease_seconds,
            timeout=site.settings.timeouts.task,
            also=_Watch(site, server, frozen).look,
        )
        async with lease as held:
            addresses = await site.addresses(server, [disk.id for disk in frozen.disks], held, entry.id)
            found = [
                FrozenDisk(
                    disk.id,
                    disk.size,
                    addresses[disk.id],
                    checkpoint_of(disk, frozen.details, tracked),
                    changes[disk.id],
                    site.shares(server, held, disk.storage_id),
                    written.get(disk.id),
                )
                for disk in frozen.disks
            ]
            yield FrozenVm(site, run, server, frozen, held, chain, found, await _files(site, server, frozen))


# --- before ----------------------------------------------------------------------------------------------------------


async def _require_eligible(site: Site, server: Server) -> None:
    """Refuse a VM that cannot be backed up; warn of what its owner should know."""
    snapshots = await site.api.snapshots(server.id) if server.snap is not False else []
    reason = eligible.refusal(server, snapshots, encrypted_allowed=site.settings.encrypted_allowed)
    if reason is not None:
        raise UsageError(f"VM '{printable(server.name)}' cannot be backed up: {reason}")
    for warning in eligible.warnings(server):
        log.warning("VM %s: %s", printable(server.name), warning)


async def _clean_up_before(site: Site, run: Run, server: Server, chain: str, reuse: str | None) -> Entry | None:
    """Remove what dead runs left of this VM, but for the snapshot that is to be used again, which becomes ours."""
    adopted: Entry | None = None
    for dead in await site.journal.abandoned(server.id):
        try:
            for entry in reversed(dead.entries):
                if reuse is not None and entry.kind == "snapshot" and entry.id == reuse and adopted is None:
                    adopted = await _adopted(site, run, dead, entry)
                if adopted is None or entry.id != reuse:
                    await undo_entry(site.api, dead, entry)
        finally:
            await dead.end()
    if reuse is not None and adopted is None:
        adopted = await _kept(site, run, server, chain, reuse)
    return adopted


async def _adopted(site: Site, run: Run, dead: Run, entry: Entry) -> Entry | None:
    """A snapshot of a dead run, as ours; None if it is gone."""
    if not await _stands(site, entry.vm, entry.id):
        return None
    taken = await run.take_over(entry)
    await dead.gone(entry)
    return taken


async def _kept(site: Site, run: Run, server: Server, chain: str, snapshot_id: str) -> Entry | None:
    """A snapshot that an earlier backup of this line left in place, as ours; None if there is no such one."""
    for snapshot in await site.api.snapshots(server.id):
        if snapshot.id == snapshot_id and (snapshot.name or "").startswith(prefix_of(chain)):
            entry = await run.intend("snapshot", vm=server.id, name=snapshot.name or "")
            await run.made(entry, snapshot.id)
            return entry
    return None


async def _stands(site: Site, server_id: str, snapshot_id: str) -> bool:
    try:
        await site.api.snapshot(server_id, snapshot_id)
    except PlatformError as error:
        if error.status != 404:
            raise
        return False
    return True


# --- freezing --------------------------------------------------------------------------------------------------------


async def take_snapshot(site: Site, run: Run, server: Server, prefix: str) -> Entry:
    """Freeze the VM; the snapshot is in the run.

    Raises:
        BusyError: Something else is going on with the VM.
        PlatformError: The platform does not do it.
    """
    name = prefix + secrets.token_hex(6)
    entry = await run.intend("snapshot", vm=server.id, name=name)
    create = partial(site.api.create_snapshot, server.id, name, DESCRIPTION, token=entry.token)
    await make(site.api, run, entry, create)
    if not entry.id:
        identity = await named_snapshot(site.api, server.id, name)
        if identity is None:
            raise PlatformError("the platform says that the snapshot is made, and has none of its name")
        await run.made(entry, identity)
    return entry


async def _details(site: Site, server: Server, entry: Entry, wanted: Sequence[str] | None) -> Frozen:
    details = await site.api.snapshot(server.id, entry.id)
    if details.id != entry.id:
        raise PlatformError(f"asked for snapshot {printable(entry.id)}, the platform told of {printable(details.id)}")
    return Frozen(entry, details, chosen(vm_disks(server, details), wanted, server.name))


class _Watch:
    """Looks whether the snapshot still stands."""

    def __init__(self, site: Site, server: Server, frozen: Frozen) -> None:
        self._site = site
        self._server = server
        self._frozen = frozen

    async def look(self) -> str | None:
        """Why reading has to end, or None."""
        if await _stands(self._site, self._server.id, self._frozen.entry.id):
            return None
        return "the snapshot is gone"


# --- files -----------------------------------------------------------------------------------------------------------


async def _files(site: Site, server: Server, frozen: Frozen) -> dict[str, bytes]:
    """BIOS and TPM files of the VM, and where it comes from."""
    cluster = await site.cluster(server)
    details = frozen.details
    origin = Origin(
        server_id=server.id,
        vm_id=server.vm_id,
        az_id=server.az_id,
        cluster_id=cluster.id,
        storage_id=details.datastore_id or server.storage_id,
        encrypted=bool(server.encrypted or details.encrypted),
        cipher=server.cipher,
        platform=(await site.api.version()).version,
    )
    files = {RECORD: msgspec.json.encode(origin)}
    if details.bios_type == "CUSTOM":
        bios = await site.api.download_file(cluster.id, "BIOS", server.id)
        if bios is None:
            raise PlatformError(
                f"VM '{printable(server.name)}' has a BIOS of its own, and the platform has no file of it"
            )
        files[BIOS] = bios
    if details.tpm_enabled:
        tpm = await site.api.download_file(cluster.id, "TPM", server.id, details.id)
        if tpm is not None:  # there is none before the VM was started for the first time
            files[TPM] = tpm
    return files
