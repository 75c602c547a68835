"""Backup resources: the lease on a machine, and the exports that exist as long as it does.

What an export is called is not public. Here a client asks for ``RESOURCE/DISK``, which is the machine's last snapshot
in a backup and the disk itself in a restore, or for ``RESOURCE/SNAPSHOT/DISK``.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, Literal

from ..errors import PlatformError
from ..tasks import cancelled
from .gateway import Gateway
from .hypervisor import Hypervisor
from .machines import Machine, Snapshot
from .misbehaviour import Misbehaviour

Kind = Literal["backup", "restore"]

SHORTEST: Final = 60
LONGEST: Final = 7200
"""Seconds that a lease may last unless it is renewed."""

EXPORT: Final = "{resource_id}/{disk_id}"
"""The template of export names for clients."""

_LOOK_SECONDS = 0.2
_REMEMBERED = 100  # leases that have ended and can still be asked about


@dataclass(slots=True, kw_only=True)
class Lease:
    """One backup resource.

    Attributes:
        id: Two UUIDs with a colon between.
        machine: What is leased.
        kind: To read a snapshot of it, or to write it.
        status: `pending`, `running`, `occupied`, `failed`, `expired` or `cancelled`.
        deadline: When it ends, by the clock of `Leases`.
        exports: What is served for it.
    """

    id: str
    machine: Machine
    kind: Kind
    deadline: float
    status: str = "pending"
    exports: list[str] = field(default_factory=list)


class Leases:
    """All backup resources; made by `leases`.

    Attributes:
        speed: Seconds of the platform in a second of ours, for leases.
    """

    def __init__(self, hypervisor: Hypervisor, misbehaviour: Misbehaviour, *, speed: float) -> None:
        self.speed = speed
        self._hypervisor = hypervisor
        self._misbehaviour = misbehaviour
        self._leases: dict[str, Lease] = {}
        self._serving = asyncio.Lock()

    def reserve(self, machine: Machine, kind: Kind, lock_time: int) -> Lease:
        """Begin a lease; `grant` makes it usable."""
        lease = Lease(id=f"{uuid.uuid4()}:{uuid.uuid4()}", machine=machine, kind=kind, deadline=self._now() + lock_time)
        ended = [each.id for each in self._leases.values() if each.status in ("expired", "cancelled")]
        for lease_id in ended[:-_REMEMBERED]:
            del self._leases[lease_id]
        self._leases[lease.id] = lease
        return lease

    async def grant(self, lease: Lease, gateway: Gateway) -> None:
        """Let a lease run, if nobody else has the machine.

        Raises:
            PlatformError: The disks of a machine that runs cannot be written.
        """
        if self.of(lease.machine):
            lease.status = "occupied"
            return
        if lease.kind == "restore":
            if lease.machine.running:
                lease.status = "failed"
                raise PlatformError("the server must be shut down before its disks are written")
            self._hypervisor.expire(lease.machine)
        await gateway.start()
        lease.status = "running"

    def find(self, lease_id: str) -> Lease | None:
        """The lease of that id."""
        return self._leases.get(lease_id)

    def of(self, machine: Machine) -> list[Lease]:
        """Leases of a machine that run."""
        return [each for each in self.running() if each.machine is machine]

    def running(self) -> list[Lease]:
        """Leases that run."""
        return [each for each in self._leases.values() if each.status == "running"]

    def all(self) -> list[Lease]:
        """What has not ended."""
        return [each for each in self._leases.values() if each.status not in ("expired", "cancelled")]

    def remaining(self, lease: Lease) -> int:
        """Seconds that are left of a lease; less than 0 when it has ended."""
        return int(lease.deadline - self._now()) if lease.status in ("pending", "running", "occupied") else -1

    def renew(self, lease: Lease, lock_time: int) -> None:
        """Let a lease last for so many seconds from now."""
        if not self._misbehaviour.due("lease-not-renewed"):
            lease.deadline = self._now() + lock_time

    async def release(self, lease: Lease) -> None:
        """End a lease and forget it."""
        await self._end(lease, "cancelled")
        self._leases.pop(lease.id, None)

    async def cancel(self, lease: Lease) -> None:
        """Take a lease back."""
        await self._end(lease, "cancelled")

    async def admit(self, name: str) -> bool:
        """Whether an export is to be had; begins to serve it at the first time."""
        async with self._serving:
            lease = self._leases.get(name.partition("/")[0])
            if lease is None or lease.status != "running":
                return False
            return name in lease.exports or await self._serve(lease, name)

    async def watch(self) -> None:
        """End leases that run out, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            for lease in self.all():
                if lease.deadline < self._now():
                    await self._end(lease, "expired")

    async def _serve(self, lease: Lease, name: str) -> bool:
        snapshot, disk_id = _parts(lease, name)
        disk = lease.machine.disk(disk_id)
        if lease.kind == "restore" and disk is not None and "/" not in name.partition("/")[2]:
            await self._hypervisor.serve(name, disk)
        elif lease.kind == "backup" and snapshot is not None and disk_id in snapshot.disks:
            await self._hypervisor.serve_frozen(name, snapshot, disk_id)
        else:
            return False
        lease.exports.append(name)
        return True

    async def _end(self, lease: Lease, status: str) -> None:
        lease.status = status
        async with self._serving:
            while lease.exports:
                with suppress(PlatformError):  # a storage daemon that has gone serves nothing any more
                    await self._hypervisor.withdraw(lease.exports.pop())

    def _now(self) -> float:
        return asyncio.get_running_loop().time() * self.speed


@asynccontextmanager
async def leases(hypervisor: Hypervisor, misbehaviour: Misbehaviour, *, speed: float) -> AsyncIterator[Leases]:
    """No leases yet, for the time of the block; those that are left end with it."""
    made = Leases(hypervisor, misbehaviour, speed=speed)
    watching = asyncio.create_task(made.watch(), name="lab: leases")
    try:
        yield made
    finally:
        await cancelled(watching)
        for lease in made.all():
            await made.release(lease)


def _parts(lease: Lease, name: str) -> tuple[Snapshot | None, str]:
    """The snapshot and the disk that the name of an export of this lease means."""
    snapshot_id, _, disk_id = name.partition("/")[2].rpartition("/")
    snapshots = lease.machine.snapshots
    if snapshot_id:
        return lease.machine.snapshot(snapshot_id), disk_id
    return snapshots[-1] if snapshots else None, disk_id
