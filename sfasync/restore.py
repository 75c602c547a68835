"""One restore: from the manifest to durable disks, every block checked before it goes out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing

from . import badblocks
from .errors import IntegrityError, SourceError, TargetError, UsageError
from .extents import align_down, align_up, pieces
from .interfaces import BackupStore, Sink, Source
from .models import DiskRecord, Manifest, RestoredDisk, RestoreResult
from .pipeline import transfer
from .progress import Meter, Reporter
from .resources import Resources
from .rewriting import make_durable
from .store.digest import DigestSink
from .targets import OpenTarget
from .tasks import run_all

_SUSPECT = "disk {!r} is suspect in this backup: it may lack changes that the platform did not tell of"


class Restore:
    """Carries out restores from one store.

    Args:
        store: Where the backups are.
        resources: Shared with the engine's other jobs.
    """

    def __init__(self, store: BackupStore, resources: Resources) -> None:
        self._store = store
        self._resources = resources

    async def run(
        self,
        manifest: Manifest,
        targets: Mapping[str, AbstractAsyncContextManager[OpenTarget]],
        *,
        verify_after: bool,
        reporter: Reporter,
    ) -> RestoreResult:
        """Restore disks of a backup. Every target is opened, and thereby checked, before the first one is written.

        Args:
            manifest: The backup.
            targets: Where each disk goes, by disk id; opened and closed here.
            verify_after: Read every target back and compare its tree digest.
            reporter: Told how far it is.

        Raises:
            IntegrityError: A block of the backup is damaged, and was not written; or a target reads back other bytes.
            TargetError: A target cannot be written, or read back.
            SfasyncError: The first other failure. Disks have partial content; files under construction are gone.
        """
        began = time.monotonic()
        async with AsyncExitStack() as stack:
            opened = {disk: await stack.enter_async_context(target) for disk, target in targets.items()}
            reporter.enter("running")
            disks = await run_all(
                self._disk(manifest, record_of(manifest, disk), target, verify_after, reporter)
                for disk, target in opened.items()
            )
            reporter.enter("committing")
        return RestoreResult(
            id=manifest.id,
            vm=manifest.vm,
            disks=tuple(disks),
            seconds=time.monotonic() - began,
            warnings=tuple(await self._missing(manifest, targets)),
        )

    async def _missing(self, manifest: Manifest, disks: Iterable[str]) -> list[str]:
        """What the backup itself never had of these disks, or may not have."""
        warnings = [_SUSPECT.format(disk) for disk in disks if disk in manifest.suspect]
        try:
            lists = await badblocks.of_backup(self._store, manifest)
        except IntegrityError as error:
            return [*warnings, f"the backup has bad blocks, and the list of them is damaged: {error}"]
        return warnings + [badblocks.describe(disk, lists[disk]) for disk in disks if disk in lists]

    async def _disk(
        self, manifest: Manifest, record: DiskRecord, target: OpenTarget, verify_after: bool, reporter: Reporter
    ) -> RestoredDisk:
        async with self._resources.slots:
            began = time.monotonic()
            meter = reporter.meter(record.id, record.size)
            source = self._resources.throttled(self._store.open_disk(manifest, record.id))
            await self._transfer(source, target.sink, 0, record.size, meter)

            async def rewrite(start: int, end: int) -> None:
                await self._transfer(source, target.sink, start, end, Meter(record.id, record.size))

            await make_durable(target.sink, rewrite, attempts=self._resources.retry.attempts)
            if verify_after:
                await self._compare(record, target)
        return RestoredDisk(
            id=record.id,
            size=record.size,
            target=target.name,
            bytes_written=meter.written,
            bytes_zero=meter.zero,
            tree=record.tree,
            verified=verify_after,
            seconds=time.monotonic() - began,
        )

    async def _transfer(self, source: Source, sink: Sink, start: int, end: int, meter: Meter) -> None:
        """Move the bytes from `start` to before `end`, and those around them that alignment takes in."""
        alignment = max(source.block_size, sink.block_size)
        start, end = align_down(start, alignment), min(align_up(end, alignment), meter.size)
        extents = source.extents(start, end - start)
        plan = pieces(extents, size=end, piece=self._store.chunk_size, alignment=alignment, start=start)
        async with aclosing(plan):
            lanes = self._resources.limits.requests
            await transfer(plan, source, sink, pool=self._resources.pool, lanes=lanes, meter=meter)

    async def _compare(self, record: DiskRecord, target: OpenTarget) -> None:
        """Read the target back, all of it, and compare its tree digest."""
        if target.read_back is None:
            raise UsageError(f"target {target.name} cannot be read back", disk=record.id)
        digest = DigestSink(record.size, self._store.chunk_size, self._resources.workers)
        try:
            async with self._resources.endpoints.source(target.read_back) as source:
                await self._transfer(source, digest, 0, record.size, Meter(record.id, record.size))
        except SourceError as error:
            raise TargetError(
                f"reading back failed: {error}", disk=record.id, offset=error.offset, length=error.length
            ) from error
        if digest.finish()[1] != record.tree:
            raise IntegrityError(
                f"{target.name} reads back other bytes than were written to it (disk {record.id!r})", disk=record.id
            )


def record_of(manifest: Manifest, disk_id: str) -> DiskRecord:
    """The record of a disk.

    Raises:
        UsageError: The backup has no such disk.
    """
    record = manifest.disk(disk_id)
    if record is None:
        known = ", ".join(repr(disk.id) for disk in manifest.disks)
        raise UsageError(f"backup {manifest.id[:12]} has no disk {disk_id!r}; it has {known}", disk=disk_id)
    return record
