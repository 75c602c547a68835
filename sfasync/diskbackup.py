"""One disk of a backup: from the frozen disk to its record.

What a platform says of changed blocks is believed until something speaks against it. Then the disk begins once more, as
a full one: nothing that was kept on the platform's word is left in it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from typing import NamedTuple

from . import badblocks
from .audit import Sample, stretch_of
from .basis import Basis, Parent
from .errors import CbtError, IntegrityError, SourceError, TlsError
from .extents import chunks, with_also, zero_outside
from .hauling import haul
from .interfaces import (
    AllocatedDisk,
    BackupSession,
    BackupStore,
    DiskWriter,
    SnapshotDisk,
    SnapshotView,
    Source,
    SurveyedSource,
)
from .models import AuditRecord, DiskRecord, Extent, Frozen
from .progress import Meter, Reporter
from .resources import Resources
from .resuming import remaining
from .tracking import proven
from .units import KiB

log = logging.getLogger("sfasync")

GAP = 64 * KiB
"""A round trip for the data behind a shorter run of zeros costs more than the zeros (docs/performance.md)."""


class MovedDisk(NamedTuple):
    """A disk that is in the session.

    Attributes:
        record: Its record.
        resumed: Bytes that were adopted from an interrupted backup.
        bad: What could not be read.
        untold: What an audit found changed although it was called unchanged.
        warnings: One line each.
    """

    record: DiskRecord
    resumed: int
    bad: tuple[Extent, ...]
    untold: Extent | None
    warnings: tuple[str, ...]


class DiskBackup:
    """Moves one frozen disk into the session of a backup.

    Args:
        disk: The disk.
        view: The snapshot that it belongs to.
        session: Takes it.
        parent: What it may build on.
        reporter: Told how far it is.
        store: Keeps backups.
        resources: Shared with the engine's other jobs.
        full_allowed: Whether it may be read in full where changes are not known.
        zero_bad_blocks: Whether what cannot be read is backed up as zeros.
        audit: How much of what is called unchanged is read again.

    Attributes:
        is_read: Whether the snapshot is not needed any more.
    """

    def __init__(
        self,
        disk: SnapshotDisk,
        *,
        view: SnapshotView,
        session: BackupSession,
        parent: Parent,
        reporter: Reporter,
        store: BackupStore,
        resources: Resources,
        full_allowed: bool,
        zero_bad_blocks: bool,
        audit: Sample,
    ) -> None:
        self._disk = disk
        self._view = view
        self._session = session
        self._parent = parent
        self._reporter = reporter
        self._store = store
        self._resources = resources
        self._full_allowed = full_allowed
        self._zero_bad_blocks = zero_bad_blocks
        self._sample = audit
        self._untold: Extent | None = None
        self._warnings: list[str] = []
        self.is_read = False

    async def run(self) -> MovedDisk:
        """Move it.

        Raises:
            CbtError: Changes are not known, or cannot be believed, and it may not be read in full.
            SourceError: It could not be read, or has another size than the snapshot says.
            LeaseLostError: The snapshot is gone.
            SfasyncError: The first other failure.
        """
        disk, view = self._disk, self._view
        async with opened_disk(disk, self._resources) as opened:
            basis = await self._parent.basis(disk, opened.size, self._session.lost)
            if basis.record is None and not self._full_allowed:
                raise no_changes(disk, basis.reasons)
            began = time.monotonic()
            salvaged = None
            if self._zero_bad_blocks and isinstance(opened, SurveyedSource):
                salvaged = badblocks.SalvagedSource(opened)
            source = self._resources.throttled(salvaged or opened)
            meter = self._reporter.meter(disk.id, source.size)
            writer = self._session.disk(
                disk.id,
                source.size,
                parent=basis.record,
                frozen=Frozen(snapshot=view.snapshot_id, checkpoint=disk.checkpoint) if view.snapshot_id else None,
                doubtful=salvaged.touches if salvaged else None,
            )
            try:
                audit, (root, tree) = await self._transfer(source, writer, basis, meter)
            except (CbtError, IntegrityError) as error:
                if basis.record is None:
                    raise
                basis = await self._without_parent(error)
                writer.restart()
                meter.restart()
                if salvaged is not None:
                    salvaged.restart()
                audit, (root, tree) = await self._transfer(source, writer, basis, meter)
            await view.check()  # what was read last was still the snapshot's
            self.is_read = True
            retries = opened.retries if isinstance(opened, SurveyedSource) else 0
        stored, total = writer.statistics, time.monotonic() - began
        seconds = {**_divided(meter.seconds, total), **stored.seconds, "total": total}
        record = DiskRecord(
            id=disk.id,
            size=source.size,
            root=root,
            tree=tree,
            mode="full" if basis.record is None else "incremental",
            reasons=(*basis.reasons, "resumed") if meter.resumed else basis.reasons,
            checkpoint=disk.checkpoint,
            audit=audit,
            statistics=replace(
                stored,
                bytes_read=meter.read,
                bytes_skipped=meter.skipped,
                retries=retries,
                seconds={stage: round(spent, 3) for stage, spent in seconds.items()},
            ),
        )
        return MovedDisk(
            record=record,
            resumed=meter.resumed,
            bad=salvaged.blocks if salvaged else (),
            untold=self._untold,
            warnings=tuple(self._warnings),
        )

    async def _transfer(
        self, source: Source, writer: DiskWriter, basis: Basis, meter: Meter
    ) -> tuple[AuditRecord | None, tuple[str, str]]:
        """Move all of it, as what it builds on allows; gives how far audits have come, and the root and tree digest."""
        limits = self._resources.limits
        audited = audit = None
        async with AsyncExitStack() as stack:
            changed = await stack.enter_async_context(changes(self._disk, basis, source.size, self._resources))
            if basis.record is not None:
                audited, audit = stretch_of(basis.record, source.size, writer.chunk_size, self._sample)
            plan = chunks(
                map_of(self._disk, source),
                size=source.size,
                chunk=writer.chunk_size,
                alignment=source.block_size,
                gap=GAP,
                changed=changed,
                parent_size=basis.record.size if basis.record is not None else None,
                audited=audited,
            )
            if self._session.interrupted is not None:
                plan = remaining(plan, writer, meter)
            steps = await stack.enter_async_context(aclosing(plan))
            await haul(
                steps,
                source,
                writer,
                crew=self._resources.crew,
                connections=limits.connections,
                pool=self._resources.pool,
                lanes=limits.requests * limits.connections,
                meter=meter,
                dense=basis.record is None,
            )
        result = await writer.finish()
        return replace(audit, chunks=meter.audited) if audit is not None else None, result

    async def _without_parent(self, error: CbtError | IntegrityError) -> Basis:
        """Build on nothing, because what was told of changes is not believed, or what was to be kept is lost.

        Raises:
            CbtError: The disk may not be read in full.
        """
        reason = error.reason if isinstance(error, CbtError) else "parent-damaged"
        log.warning("disk %r is read as a whole, nothing is kept of the last backup: %s", self._disk.id, error)
        if reason == "audit-failed":
            await self._distrust(Extent(error.offset or 0, error.length or 0))
        if not self._full_allowed:
            raise error if isinstance(error, CbtError) else no_changes(self._disk, (reason,)) from error
        return Basis(None, (reason,))

    async def _distrust(self, untold: Extent) -> None:
        """Mark what was made on the same word as the one that was found wrong."""
        last = self._session.parent
        assert last is not None, "only what has a parent is audited"
        suspects = await self._store.distrust(last, self._disk.id)
        self._untold = untold
        self._warnings.append(
            f"disk {self._disk.id!r}: the platform called {untold.length} bytes from {untold.offset} unchanged, and "
            f"they are not; it was read in full, and {len(suspects)} earlier backups are suspect"
        )


def map_of(disk: SnapshotDisk, source: Source) -> AsyncIterator[Extent]:
    """What is known of a frozen disk without reading it: by the map of its source, and by its platform."""
    allocated = disk.allocated() if isinstance(disk, AllocatedDisk) else None
    return source.extents() if allocated is None else zero_outside(source.extents(), allocated)


@asynccontextmanager
async def opened_disk(disk: SnapshotDisk, resources: Resources) -> AsyncIterator[Source]:
    """Open a frozen disk for the time of the block, in its turn; what fails over it, then or later, names it.

    Raises:
        SourceError: It has another size than the snapshot says: it was resized since.
    """
    try:
        async with (
            resources.share(disk.shares),
            resources.slots,
            resources.endpoints.source(disk.address) as opened,
        ):
            _check_size(disk, opened.size)
            yield opened
    except (SourceError, TlsError) as error:
        error.disk = error.disk or disk.id
        raise


@asynccontextmanager
async def changes(
    disk: SnapshotDisk, basis: Basis, size: int, resources: Resources
) -> AsyncIterator[AsyncIterator[Extent] | None]:
    """What has to be read because it may have changed, or is missing; None for everything.

    Raises:
        CbtError: The platform says nothing, or then or later what cannot be right.
    """
    if basis.record is None:
        yield None
        return
    async with resources.endpoints.changes(disk.changed()) as told:
        if told is None:
            raise no_changes(disk, ("no-cbt",))
        async with aclosing(proven(told, size=size, disk=disk.id)) as known:
            yield with_also(known, basis.missing) if basis.missing else known


def no_changes(disk: SnapshotDisk, reasons: Sequence[str]) -> CbtError:
    """The error for a disk that would have to be read in full, and may not."""
    return CbtError(
        f"disk {disk.id!r} has no usable changed blocks ({', '.join(reasons)}) and a full backup was not allowed; use "
        "mode auto or full",
        reason=reasons[0],
        disk=disk.id,
    )


def _check_size(disk: SnapshotDisk, size: int) -> None:
    if disk.size not in (None, size):
        raise SourceError(
            f"disk {disk.id!r} has {size} bytes, and {disk.size} in the snapshot: was it resized? run the backup again"
        )


def _divided(waits: Mapping[str, float], total: float) -> dict[str, float]:
    """The wall time of a disk, divided as all its lanes together spent theirs."""
    spent = sum(waits.values()) or 1.0
    return {stage: total * wait / spent for stage, wait in waits.items()}
