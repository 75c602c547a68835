"""What can be done with machines: each call changes the storage and the inventory together, and keeps the inventory."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ..errors import UsageError, printable
from ..models import ExportAddress
from .configuration import configuration
from .machines import Changes, Disk, Inventory, Machine, MachineSpec, Snapshot
from .storage import Area, Frozen, Storage

Progress = Callable[[int], None]
"""Is told the percentage that is done."""


class ExpiredError(Exception):
    """Changes are not known from the checkpoint on; tracking has to be reset."""


class UntrackedError(Exception):
    """Changes of the disk are not tracked."""


class Hypervisor:
    """The machines of a lab.

    Attributes:
        inventory: What there is.
    """

    def __init__(self, directory: Path, storage: Storage, inventory: Inventory) -> None:
        self._directory = directory
        self._storage = storage
        self.inventory = inventory
        self._served: dict[str, tuple[str, str]] = {}  # of frozen disks, by export: the node, and the snapshot's id

    async def open(self) -> None:
        """Open the disks of all machines; what of their tracked changes did not survive has expired."""
        self._remove_strays()
        for machine in self.inventory.machines:
            for disk in machine.disks:
                await self._storage.attach(disk.node, self._image(disk.node))
                for name, sound in (await self._storage.bitmaps(disk.node)).items():
                    if name != disk.bitmap or not sound:
                        await self._storage.forget(disk.node, name)
                        machine.expired |= name == disk.bitmap
                if disk.bitmap is not None and disk.bitmap not in await self._storage.bitmaps(disk.node):
                    machine.expired = True
                    await self._storage.track(disk.node, disk.bitmap)
        self._save()

    # --- machines ----------------------------------------------------------------------------------------------------

    async def add(self, spec: MachineSpec, *, machine_id: str | None = None) -> Machine:
        """Make a machine with empty disks; none if one of them cannot be."""
        machine = Machine(
            id=machine_id or str(uuid.uuid4()),
            number=self.inventory.next_number,
            name=spec.name,
            running=spec.running,
            disks=[],
            facts=dict(spec.facts),
            settings=dict(spec.settings),
            files=dict(spec.files),
        )
        self.inventory.next_number += 1
        try:
            for size in spec.disks:
                await self.add_disk(machine, machine.free_slot(), size)
        except BaseException:
            for disk in list(machine.disks):
                await self.remove_disk(machine, disk)
            raise
        self.inventory.machines.append(machine)
        self._save()
        return machine

    async def add_disk(self, machine: Machine, disk_id: str, size: int) -> None:
        """Give a machine another disk, which is empty."""
        disk = Disk(id=disk_id, node=_node("disk"), size=size)
        image = self._image(disk.node)
        try:
            await self._storage.create(image, size)
            await self._storage.attach(disk.node, image)
        except BaseException:
            image.unlink(missing_ok=True)
            raise
        machine.disks.append(disk)
        self._save()

    async def grow_disk(self, disk: Disk, size: int) -> None:
        """Make a disk longer."""
        await self._storage.grow(disk.node, size)
        disk.size = size
        self._save()

    async def remove_disk(self, machine: Machine, disk: Disk) -> None:
        """Take a disk from a machine, and all it holds; snapshots keep theirs."""
        await self._storage.detach(disk.node)
        self._image(disk.node).unlink(missing_ok=True)
        machine.disks.remove(disk)
        self._save()

    async def remove(self, machine: Machine) -> None:
        """Remove a machine with its disks and snapshots."""
        for snapshot in list(machine.snapshots):
            await self.remove_snapshot(machine, snapshot)
        for disk in list(machine.disks):
            await self.remove_disk(machine, disk)
        self.inventory.machines.remove(machine)
        self._save()

    def switch(self, machine: Machine, *, running: bool) -> None:
        """Switch a machine on or off."""
        machine.running = running
        self._save()

    def configure(self, machine: Machine, settings: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """Change members of a machine's configuration, and files of it."""
        machine.name = str(settings.get("name", machine.name))
        machine.settings |= {name: value for name, value in settings.items() if name != "name"}
        machine.files |= files
        self._save()

    @property
    def socket(self) -> Path:
        """Where everything that is served can be reached within the lab."""
        return self._storage.socket

    @asynccontextmanager
    async def guest(self, machine: Machine, disk_id: str) -> AsyncIterator[ExportAddress]:
        """A disk as the guest of a running machine has it, to be read and written for the time of the block.

        Raises:
            UsageError: There is no such disk, or the machine is switched off.
        """
        disk = machine.disk(disk_id)
        if disk is None:
            raise UsageError(f"VM '{printable(machine.name)}' has no disk '{printable(disk_id)}'", disk=disk_id)
        if not machine.running:
            raise UsageError(f"VM '{printable(machine.name)}' is switched off, so that no guest writes")
        async with self._storage.exported(disk.node, writable=True) as address:
            yield address

    # --- snapshots ---------------------------------------------------------------------------------------------------

    async def freeze(
        self, machine: Machine, *, snapshot_id: str, name: str, description: str, progress: Progress
    ) -> Snapshot:
        """Take a snapshot: all disks at one instant, and a checkpoint where changes are tracked."""
        number = machine.number_of_checkpoints + 1
        frozen = [
            Frozen(
                node=disk.node,
                image=self._frozen(snapshot_id, disk.id),
                size=disk.size,
                begin=None if disk.bitmap is None else f"cbt-{machine.version}-{number}",
                end=disk.bitmap,
            )
            for disk in machine.disks
        ]
        await self._storage.freeze(frozen, progress)
        snapshot = Snapshot(
            id=snapshot_id,
            name=name,
            description=description,
            created=time.time(),
            checkpoint=machine.version << 32 | number if machine.tracked else 0,
            disks={disk.id: disk.size for disk in machine.disks},
            config=configuration(machine),
            files=dict(machine.files),
        )
        changes = Changes(checkpoint=snapshot.checkpoint, areas={})
        for disk, kept in zip(machine.disks, frozen, strict=True):
            if kept.end is not None:
                changes.areas[disk.id] = await self._storage.marked(disk.node, kept.end)
                await self._storage.forget(disk.node, kept.end)
                disk.bitmap = kept.begin
        if machine.tracked:
            machine.number_of_checkpoints = number
            machine.changes.append(changes)
        machine.snapshots.append(snapshot)
        self._save()
        return snapshot

    async def remove_snapshot(self, machine: Machine, snapshot: Snapshot) -> None:
        """Remove a snapshot; what is served of it ends."""
        machine.snapshots.remove(snapshot)  # first, so that nobody begins to serve it
        self._save()
        for export in [export for export, (_, served) in self._served.items() if served == snapshot.id]:
            await self.withdraw(export)
        for disk_id in snapshot.disks:
            self._frozen(snapshot.id, disk_id).unlink(missing_ok=True)

    # --- changes -----------------------------------------------------------------------------------------------------

    async def track(self, machine: Machine, disk_ids: Sequence[str], *, on: bool) -> None:
        """Begin or end to track changes of disks."""
        for disk in machine.disks:
            if disk.id not in disk_ids or on == (disk.bitmap is not None):
                continue
            if disk.bitmap is not None:
                await self._storage.forget(disk.node, disk.bitmap)
                disk.bitmap = None
            else:
                # Of a disk that joins, nothing is known from the checkpoints so far.
                await self._begin(machine, disk)
        self._save()

    async def reset(self, machine: Machine) -> None:
        """Begin to track anew: every checkpoint so far has expired."""
        machine.version += 1
        machine.number_of_checkpoints = 0
        machine.expired = False
        machine.changes.clear()
        for disk in machine.disks:
            if disk.bitmap is not None:
                await self._storage.forget(disk.node, disk.bitmap)
                await self._begin(machine, disk)
        self._save()

    def expire(self, machine: Machine) -> None:
        """The machine was written from outside: changes are not known until `reset`."""
        machine.expired = machine.tracked
        self._save()

    async def changed(self, machine: Machine, snapshot: Snapshot, disk_id: str, checkpoint: int) -> list[Area]:
        """What of a disk has changed from a checkpoint to a snapshot; from 0, what is allocated in the snapshot.

        Raises:
            ExpiredError: That is not known.
            UntrackedError: The disk's changes are not tracked.
        """
        if machine.expired:
            raise ExpiredError
        disk = machine.disk(disk_id)
        if disk is None or disk.bitmap is None or not snapshot.checkpoint:
            raise UntrackedError
        if checkpoint == 0:
            return await self._allocated(snapshot, disk_id)
        known = {record.checkpoint for record in machine.changes}
        later = [record for record in machine.changes if checkpoint < record.checkpoint <= snapshot.checkpoint]
        if checkpoint not in known or any(disk_id not in record.areas for record in later):
            raise ExpiredError
        return machine.changed(disk_id, checkpoint, snapshot.checkpoint)

    # --- exports -----------------------------------------------------------------------------------------------------

    async def serve_frozen(self, export: str, snapshot: Snapshot, disk_id: str) -> None:
        """Serve a disk of a snapshot, to be read, until `withdraw`."""
        node = _node("frozen")
        await self._storage.attach(node, self._frozen(snapshot.id, disk_id), read_only=True)
        self._served[export] = (node, snapshot.id)
        await self._storage.export(export, node)

    async def serve(self, export: str, disk: Disk) -> None:
        """Serve a disk itself, to be written, until `withdraw`."""
        await self._storage.export(export, disk.node, writable=True)

    async def withdraw(self, export: str) -> None:
        """Serve it no more; its connections are closed."""
        await self._storage.withdraw(export)
        if export in self._served:
            node, _ = self._served.pop(export)
            await self._storage.detach(node)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _image(self, node: str) -> Path:
        return self._directory / f"{node}.qcow2"

    def _frozen(self, snapshot_id: str, disk_id: str) -> Path:
        return self._directory / f"{snapshot_id}-{disk_id}.qcow2"

    def _remove_strays(self) -> None:
        """Images that were being made when a lab was killed."""
        known = {self._image(disk.node) for machine in self.inventory.machines for disk in machine.disks}
        for machine in self.inventory.machines:
            for each in machine.snapshots:
                known.update(self._frozen(each.id, disk_id) for disk_id in each.disks)
        for image in self._directory.glob("*.qcow2"):
            if image not in known:
                image.unlink()

    def _save(self) -> None:
        self.inventory.save(self._directory)

    async def _begin(self, machine: Machine, disk: Disk) -> None:
        disk.bitmap = f"cbt-{machine.version}-{machine.number_of_checkpoints}-{uuid.uuid4().hex[:8]}"
        await self._storage.track(disk.node, disk.bitmap)

    async def _allocated(self, snapshot: Snapshot, disk_id: str) -> list[Area]:
        node = _node("frozen")
        await self._storage.attach(node, self._frozen(snapshot.id, disk_id), read_only=True)
        try:
            return await self._storage.allocated(node)
        finally:
            await self._storage.detach(node)


def _node(kind: str) -> str:
    """A name for a node, which QEMU limits to 31 characters."""
    return f"{kind}-{uuid.uuid4().hex[:16]}"
