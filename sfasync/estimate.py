"""What a backup would read: the plan of each disk, made as for a backup and not carried out."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import aclosing

from .audit import Sample, stretch_of
from .backup import BackupRequest, chain_of
from .basis import Basis, Parent
from .diskbackup import GAP, changes, map_of, no_changes, opened_disk
from .errors import CbtError
from .extents import Action, chunks
from .interfaces import BackupStore, Platform, SnapshotDisk, Source
from .models import BackupEstimate, DiskEstimate, DiskRecord, Extent
from .resources import Resources
from .tasks import run_all


class Estimator:
    """Estimates backups into one store.

    Args:
        store: Where they would go.
        resources: Shared with the engine's other jobs.
    """

    def __init__(self, store: BackupStore, resources: Resources) -> None:
        self._store = store
        self._resources = resources

    async def run(self, request: BackupRequest, platform: Platform) -> BackupEstimate:
        """Freeze the disks, look, and let go. Nothing is written to the store, and nobody is kept from it.

        Raises:
            CbtError: The mode is ``incremental``, and changed blocks are not usable.
            SfasyncError: The platform or a disk failed.
        """
        began = time.monotonic()
        last = max(
            (backup for backup in await self._store.backups(request.vm) if backup.vm == request.vm),
            key=lambda backup: backup.seq,
            default=None,
        )
        parent = await Parent.of(last, platform.name, self._store, forced=request.mode == "full")
        async with platform.snapshot(
            request.vm, disks=request.disks, base=parent.checkpoints, chain=chain_of(self._store, request.vm)
        ) as view:
            full_allowed = request.mode != "incremental"
            disks = await run_all(self._disk(disk, parent, full_allowed, request.audit) for disk in view.disks)
            return BackupEstimate(
                vm=request.vm,
                vm_name=view.vm_name,
                parent=last.id if last else None,
                disks=tuple(disks),
                seconds=time.monotonic() - began,
            )

    async def _disk(self, disk: SnapshotDisk, parent: Parent, full_allowed: bool, sample: Sample) -> DiskEstimate:
        async with opened_disk(disk, self._resources) as source:
            basis = await parent.basis(disk, source.size, _nothing_lost)
            if basis.record is None and not full_allowed:
                raise no_changes(disk, basis.reasons)
            try:
                return await self._planned(disk, source, basis, sample)
            except CbtError as error:
                if not full_allowed:
                    raise
                return await self._planned(disk, source, Basis(None, (error.reason,)), sample)

    async def _planned(self, disk: SnapshotDisk, source: Source, basis: Basis, sample: Sample) -> DiskEstimate:
        counts: Counter[Action] = Counter()
        record, chunk = basis.record, self._store.chunk_size
        audited = None if record is None else stretch_of(record, source.size, chunk, sample)[0]
        async with changes(disk, basis, source.size, self._resources) as changed:
            plan = chunks(
                map_of(disk, source),
                size=source.size,
                chunk=chunk,
                alignment=source.block_size,
                gap=GAP,
                changed=changed,
                parent_size=None if record is None else record.size,
                audited=audited,
            )
            async with aclosing(plan) as steps:
                async for step in steps:
                    moved = step.action in (Action.DATA, Action.AUDIT)
                    read = sum(end - start for start, end in step.reads()) if moved else 0
                    counts[Action.DATA] += read
                    counts[Action.KEEP if step.action is Action.KEEP else Action.ZERO] += step.length - read
        return DiskEstimate(
            id=disk.id,
            size=source.size,
            mode="full" if record is None else "incremental",
            reasons=basis.reasons,
            bytes_to_read=counts[Action.DATA],
            bytes_zero=counts[Action.ZERO],
            bytes_unchanged=counts[Action.KEEP],
        )


async def _nothing_lost(_: DiskRecord) -> tuple[Extent, ...]:
    """What the repository has lost is known to sessions only; it is little, and read again by them."""
    return ()
