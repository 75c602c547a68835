"""One restore: from the manifest to durable disks, every block checked before it goes out."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, nullcontext
from dataclasses import dataclass, field, replace

from . import badblocks
from .carrying import STRETCH, stretches
from .endpoints import TargetSink
from .errors import CbtError, IntegrityError, SourceError, TargetError, UsageError, printable
from .extents import Step, align_down, align_up, pieces, touched, with_also
from .interfaces import BackupStore, RestoreDisk, Sink, Source
from .models import DiskRecord, Extent, Manifest, RestoredDisk, RestoreResult
from .moving import move
from .progress import Meter, Reporter
from .resources import Resources
from .rewriting import make_durable
from .store.digest import DigestSink
from .targets import OpenTarget
from .tasks import run_all
from .tracking import proven
from .transport.file import FileSink, FileSource
from .units import MiB

log = logging.getLogger("sfasync")

_ON_DISK = 4 * MiB
"""Bytes that a thread moves at once from or to a file, past the page cache: a disk takes them in half the time of four
times 1 MiB (docs/performance.md). A server gets each chunk while it is in the caches.
"""

_SUSPECT = "disk {!r} is suspect in this backup: it may lack changes that the platform did not tell of"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a disk goes.

    Attributes:
        opening: Opens it, for the time of a block.
        shares: What it shares with other disks, as of `RestoreDisk`; where there is anything, it is opened only when it
            is its turn.
        disk: Tells what of it may differ from the backup; None if all of it may.
        reason: Why not, where that was wanted, as a short code.
    """

    opening: AbstractAsyncContextManager[OpenTarget]
    shares: Mapping[str, int] = field(default_factory=dict)
    disk: RestoreDisk | None = None
    reason: str | None = None


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
        targets: Mapping[str, Target],
        *,
        verify_after: bool,
        reporter: Reporter,
    ) -> RestoreResult:
        """Restore disks of a backup. Every target without shares is opened, and so checked, before one is written.

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
            opened = {
                disk: await stack.enter_async_context(target.opening)
                for disk, target in targets.items()
                if not target.shares
            }
            bad, warnings = await self._bad_blocks(manifest)
            reporter.enter("running")
            disks = await run_all(
                self._disk(
                    manifest,
                    record_of(manifest, disk),
                    replace(target, opening=nullcontext(opened[disk])) if disk in opened else target,
                    bad.get(disk, ()),
                    verify_after,
                    reporter,
                )
                for disk, target in targets.items()
            )
            reporter.enter("committing")
        return RestoreResult(
            id=manifest.id,
            vm=manifest.vm,
            disks=tuple(disks),
            seconds=time.monotonic() - began,
            warnings=(
                *(_SUSPECT.format(disk) for disk in targets if disk in manifest.suspect),
                *warnings,
                *(badblocks.describe(disk, bad[disk]) for disk in targets if disk in bad),
            ),
        )

    async def _bad_blocks(self, manifest: Manifest) -> tuple[badblocks.BadBlocks, list[str]]:
        """What the backup itself never had, and a warning if that is not known."""
        try:
            return await badblocks.of_backup(self._store, manifest), []
        except IntegrityError as error:
            return {}, [f"the backup has bad blocks, and the list of them is damaged: {error}"]

    async def _disk(
        self,
        manifest: Manifest,
        record: DiskRecord,
        target: Target,
        bad: Sequence[Extent],
        verify_after: bool,
        reporter: Reporter,
    ) -> RestoredDisk:
        async with self._resources.share(target.shares), self._resources.slots, target.opening as opened:
            began = time.monotonic()
            meter = reporter.meter(record.id, record.size)
            source = self._resources.throttled(self._store.open_disk(manifest, record.id))
            reason = target.reason
            differential = False
            if target.disk is not None:
                try:
                    await self._transfer_changed(source, opened.sink, target.disk, bad, meter)
                    differential = True
                except CbtError as error:
                    log.warning("disk %r is written as a whole: %s", record.id, error)
                    reason = error.reason
                    meter.restart()
            if not differential:
                await self._transfer(source, opened.sink, 0, record.size, meter)

            async def rewrite(start: int, end: int) -> None:
                await self._transfer(source, opened.sink, start, end, Meter(record.id, record.size))

            await make_durable(opened.sink, rewrite, attempts=self._resources.retry.attempts)
            if verify_after:
                await self._compare(record, opened)
        return RestoredDisk(
            id=record.id,
            size=record.size,
            target=opened.name,
            bytes_written=meter.written,
            bytes_zero=meter.zero,
            tree=record.tree,
            verified=verify_after,
            seconds=time.monotonic() - began,
            mode="differential" if differential else "full",
            reason=reason,
            bytes_skipped=meter.skipped,
        )

    async def _transfer_changed(
        self, source: Source, sink: Sink, disk: RestoreDisk, bad: Sequence[Extent], meter: Meter
    ) -> None:
        """Move what may differ on the target, and what the backup has as zeros because it could not be read.

        Raises:
            CbtError: That is not known, or what is said of it cannot be believed.
        """
        async with self._resources.endpoints.changes(disk.changed()) as told:
            if told is None:
                reason = printable(disk.reason or "no-cbt")
                raise CbtError(f"what has changed on disk {meter.id!r} is not known ({reason})", reason=reason)
            async with (
                aclosing(proven(told, size=sink.size, disk=meter.id)) as known,
                aclosing(with_also(known, bad)) as ranges,
                aclosing(self._changed_pieces(source, sink, ranges, meter)) as plan,
            ):
                await self._carry_out(plan, source, sink, meter)

    async def _changed_pieces(
        self, source: Source, sink: Sink, ranges: AsyncIterator[Extent], meter: Meter
    ) -> AsyncGenerator[Step, None]:
        """The plan for ranges that are in order, rounded outward to chunks; the rest is skipped."""
        chunk = self._store.chunk_size
        alignment = max(source.block_size, sink.block_size)
        position = 0
        async with aclosing(touched(ranges, max(chunk, alignment))) as wanted:
            async for start, stop in wanted:
                end = min(stop, meter.size)
                if start >= end:
                    break  # behind the end of the backup's disk, on a larger one
                meter.skipped += start - position
                async with aclosing(self._stretches(source, start, end, alignment)) as steps:
                    async for step in steps:
                        yield step
                position = end
        meter.skipped += meter.size - position

    async def _transfer(self, source: Source, sink: Sink, start: int, end: int, meter: Meter) -> None:
        """Move the bytes from `start` to before `end`, and those around them that alignment takes in."""
        alignment = max(source.block_size, sink.block_size)
        start, end = align_down(start, alignment), min(align_up(end, alignment), meter.size)
        async with aclosing(self._stretches(source, start, end, alignment)) as plan:
            await self._carry_out(plan, source, sink, meter)

    def _stretches(self, source: Source, start: int, end: int, alignment: int) -> AsyncGenerator[Step, None]:
        """The plan for the bytes from `start` to before `end`."""
        crew, connections = self._resources.crew, self._resources.limits.connections
        return pieces(
            source.extents(start, end - start),
            size=end,
            piece=stretches(end, crew=crew, connections=connections, least=STRETCH),
            alignment=alignment,
            start=start,
        )

    async def _carry_out(self, plan: AsyncIterator[Step], source: Source, sink: Sink, meter: Meter) -> None:
        """Carry out a plan of stretches."""
        limits, chunk = self._resources.limits, self._store.chunk_size
        await move(
            plan,
            source,
            sink,
            resources=self._resources,
            connections=limits.connections,
            carried=max(chunk, _ON_DISK) if _is_file(source) or _is_file(sink) else chunk,
            piped=chunk,
            lanes=limits.requests,
            meter=meter,
        )

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


def _is_file(end: Source | Sink) -> bool:
    inner = end.inner if isinstance(end, TargetSink) else end
    return isinstance(inner, FileSource | FileSink)


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
