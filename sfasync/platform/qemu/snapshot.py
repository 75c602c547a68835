"""A frozen state of all disks of a VM at one moment, while the guest goes on.

::

    fleecing nodes, NBD server        nothing yet is on the guest's path
    file systems frozen               by the guest agent, if there is one
    ONE TRANSACTION                   per disk a backup job that copies nothing by itself (its filter preserves what the
                                      guest overwrites), a new bitmap, and a copy of the one that the base names
    file systems thawed
    exports                           what is read, with the copied bitmap as a metadata context
    ...
    everything removed (`sweep`)      but the bitmaps of the chain

Each job stops its disk from the moment it is made to the end of the transaction, so the bitmaps, which come after all
jobs, are of the very state that the jobs froze, and nothing reaches a second disk that depends on what a first one did
not get any more.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from ...models import Checkpoint, ExportAddress, MetadataContext
from .agent import quiesced
from .bitmaps import Plan, copying, of_chain, plan
from .fleecing import add_fleecing_node
from .inventory import disks, nodes, wanted
from .monitor import CommandError, Monitor, open_monitor
from .names import Kind, chain_of
from .places import Places
from .seal import put_seal, seals
from .serving import serve, start_server
from .settings import QemuTimeouts, QemuVm
from .sweep import Cleaner
from .watch import Watch


@dataclass(frozen=True, slots=True)
class FrozenDisk:
    """A disk of a snapshot."""

    id: str
    size: int
    address: ExportAddress
    checkpoint: Checkpoint
    reason: str | None
    context: MetadataContext | None
    shares: Mapping[str, int] = field(default_factory=dict)

    def changed(self) -> MetadataContext | None:
        """Where the bitmap that the base names is told, as it was at the moment of the snapshot."""
        return self.context


class QemuSnapshot:
    """A snapshot while its context is open; made by `open_snapshot`.

    Attributes:
        vm_id: Name of the VM in the settings.
        disks: What is frozen.
        files: Files that the settings name.
        lost: Completes when the snapshot is of no use any more.
    """

    snapshot_id: str | None = None  # it ends with its context, so nothing is resumed on it
    config: bytes | None = None

    def __init__(
        self, vm: str, monitor: Monitor, places: Places, plans: Sequence[Plan], files: Mapping[str, bytes]
    ) -> None:
        self.vm_id = vm
        self.disks: Sequence[FrozenDisk] = ()
        self.files = files
        self._monitor = monitor
        self._places = places
        self._plans = plans
        self._watch = Watch(monitor, places, [entry.disk.id for entry in plans])
        self.lost = self._watch.lost

    @property
    def vm_name(self) -> str:
        return self.vm_id

    async def check(self) -> None:
        """Ask QEMU; its answer comes after all that it had to tell before.

        Raises:
            LeaseLostError: The snapshot is of no use any more.
        """
        await self._watch.check(Kind.BACKUP_JOB, Kind.EXPORT)

    async def committed(self, disk_ids: Sequence[str]) -> None:
        """Drop all bitmaps of the chain but the new ones.

        Raises:
            PlatformError: One of them stays.
        """
        now = {node.node_name: node for node in await nodes(self._monitor)}
        for entry in self._plans:
            node = now.get(entry.disk.node.node_name)
            if node is None or entry.disk.id not in disk_ids:
                continue
            for bitmap in of_chain(node, entry.new.chain):
                if bitmap.name != str(entry.new):
                    await self._remove_bitmap(node.node_name, bitmap.name)
            for name, seal in seals(node, entry.new.chain):
                if (name.lineage, name.size) != (entry.new.lineage, entry.disk.size):
                    await self._remove_bitmap(node.node_name, seal.name)

    # --- how it is made ---

    async def take(self, settings: QemuVm, timeouts: QemuTimeouts) -> None:
        """Freeze and serve the disks.

        Raises:
            PlatformError: QEMU refuses; what was made is there for the sweep.
        """
        for entry in self._plans:
            for bitmap in entry.useless:
                await self._remove_bitmap(entry.disk.node.node_name, bitmap)
        for number, entry in enumerate(self._plans):
            if not entry.sealed:
                await put_seal(self._monitor, self._places, number, entry.disk, entry.new)
        targets = [
            await add_fleecing_node(self._monitor, self._places, number, entry.disk, reserve=settings.reserve)
            for number, entry in enumerate(self._plans)
        ]
        await start_server(self._monitor, self.vm_id, settings, self._places)
        async with quiesced(self.vm_id, settings, timeouts):
            await self._monitor.run("transaction", {"actions": self._actions(targets)})
        self.disks = [await self._serve(number, entry, settings) for number, entry in enumerate(self._plans)]

    def end(self) -> None:
        """Nothing is lost any more."""
        self._watch.end()

    def _actions(self, targets: Sequence[str]) -> list[dict[str, object]]:
        """What happens at the one moment. The jobs come first: from then on to the end nothing is written."""
        actions: list[dict[str, object]] = []
        for number, (entry, target) in enumerate(zip(self._plans, targets, strict=True)):
            job = {
                "job-id": self._places.name(number, Kind.BACKUP_JOB),
                "device": entry.disk.node.node_name,
                "target": target,
                "sync": "none",
                "filter-node-name": self._places.name(number, Kind.FILTER),
            }
            actions.append({"type": "blockdev-backup", "data": job})
        for number, entry in enumerate(self._plans):
            node = entry.disk.node.node_name
            new = {"node": node, "name": str(entry.new), "persistent": entry.disk.node.keeps_bitmaps}
            actions.append({"type": "block-dirty-bitmap-add", "data": new})
            if entry.base is not None:
                actions += copying(node, entry.base, self._places.name(number, Kind.CHANGED))
        return actions

    async def _serve(self, number: int, entry: Plan, settings: QemuVm) -> FrozenDisk:
        overlay = self._places.name(number, Kind.OVERLAY)
        bitmap = self._places.name(number, Kind.CHANGED) if entry.base is not None else None
        address = await serve(self._monitor, settings, self._places, number, overlay, bitmap=bitmap)
        return FrozenDisk(
            id=entry.disk.id,
            size=entry.disk.size,
            address=address,
            checkpoint=entry.checkpoint,
            reason=entry.reason,
            context=MetadataContext(address, f"qemu:dirty-bitmap:{bitmap}") if bitmap is not None else None,
        )

    async def _remove_bitmap(self, node: str, bitmap: str) -> None:
        """Remove a bitmap; one that is not there is no error."""
        try:
            await self._monitor.run("block-dirty-bitmap-remove", {"node": node, "name": bitmap})
        except CommandError as error:
            if "not found" not in error.said:
                raise


@asynccontextmanager
async def open_snapshot(
    vm: str,
    settings: QemuVm,
    timeouts: QemuTimeouts,
    *,
    ids: Sequence[str] | None,
    base: Mapping[str, Checkpoint],
    chain: str,
    files: Mapping[str, bytes],
) -> AsyncIterator[QemuSnapshot]:
    """Freeze disks for the time of the block. What is left of killed runs is removed first.

    Raises:
        UsageError: A disk that is not there.
        BusyError: Somebody else holds the monitor, or backs up through another one.
        PlatformError: QEMU refuses or fails; or, at the end, something could not be removed.
    """
    places = Places.of(settings)
    async with open_monitor(vm, settings, timeouts) as monitor:
        cleaner = Cleaner(vm, settings, timeouts, places)
        await cleaner.sweep(monitor)
        known = await disks(monitor, vm, settings.disks)
        plans = [plan(disk, known, chain_of(chain), base.get(disk.id)) for disk in wanted(vm, known, ids)]
        async with cleaner.cleaning(monitor):
            view = QemuSnapshot(vm, monitor, places, plans, files)
            try:
                await view.take(settings, timeouts)
                yield view
            finally:
                view.end()
