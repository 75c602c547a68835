"""One backup: from the session in the repository to the manifest, in the order that keeps every promise.

::

    session -> snapshot -> disks, each: open, plan, transfer -> check the snapshot -> files -> manifest -> committed

Until the manifest is durable nobody sees anything. The manifest is what advances a chain of checkpoints: `committed`
only tells the platform that older ones may go.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from . import badblocks
from ._version import VERSION
from .errors import CbtError, IntegrityError, LeaseLostError, SourceError, TlsError, UsageError, printable
from .extents import chunks, with_also
from .interfaces import (
    BackupSession,
    BackupStore,
    DiskWriter,
    Platform,
    SnapshotDisk,
    SnapshotView,
    Source,
    SurveyedSource,
)
from .models import (
    BackupResult,
    DiskRecord,
    DiskStatistics,
    Extent,
    FileRecord,
    Frozen,
    Manifest,
    check_id,
)
from .pipeline import transfer
from .progress import Meter, Reporter
from .resources import Resources
from .resuming import remaining, with_checkpoints
from .tasks import cancelled, finish, run_all
from .units import KiB, MiB, TiB

log = logging.getLogger("sfasync")

_T = TypeVar("_T")

MODES = ("auto", "full", "incremental")
BAD_BLOCKS = ("fail", "zero")

_GAP = 64 * KiB
"""A round trip for the data behind a shorter run of zeros costs more than the zeros (docs/performance.md)."""

_DIGEST = "0" * 64

_ABORT_SECONDS = 4.0  # cancelling a job ends it within 5 s


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupRequest:
    """What is wanted of one backup.

    Attributes:
        vm: Id of the VM.
        disks: Ids of the disks; None for all that the platform has.
        mode: `auto`: incremental where changes are known; `full`; `incremental`: that or an error.
        tags: Free words kept in the manifest.
        wait: Seconds to wait for another session of the same VM.
        bad_blocks: `fail`, or `zero` to back up blocks that cannot be read as zeros.
        resume: Go on from where an interrupted backup of the same snapshot was stopped.
    """

    vm: str
    disks: Sequence[str] | None = None
    mode: str = "auto"
    tags: tuple[str, ...] = ()
    wait: float = 0.0
    bad_blocks: str = "fail"
    resume: bool = True

    def __post_init__(self) -> None:
        if self.bad_blocks not in BAD_BLOCKS:
            raise UsageError(f"bad blocks {self.bad_blocks!r} is none of {', '.join(BAD_BLOCKS)}")
        if self.mode not in MODES:
            raise UsageError(f"mode {self.mode!r} is none of {', '.join(MODES)}")
        check_id("VM", self.vm)
        for tag in self.tags:
            check_id("tag", tag)


class Backup:
    """Carries out backups into one store.

    Args:
        store: Where they go.
        resources: Shared with the engine's other jobs.
    """

    def __init__(self, store: BackupStore, resources: Resources) -> None:
        self._store = store
        self._resources = resources

    async def run(self, request: BackupRequest, platform: Platform, reporter: Reporter) -> BackupResult:
        """Make the backup.

        Raises:
            BusyError: Another session works on this VM.
            SfasyncError: The first failure; nothing became visible.
            asyncio.CancelledError: As above; the session has ended.
        """
        began = time.monotonic()
        session = await self._store.begin(request.vm, wait=request.wait, resume=request.resume)
        try:
            return await self._in_session(session, request, platform, reporter, began)
        except BaseException as error:
            lost = isinstance(error, LeaseLostError)  # nobody knows since when: what was read may not be the snapshot's
            with suppress(TimeoutError):  # a slow disk; what failed before is the news
                await finish(session.abort(keep=not lost), _ABORT_SECONDS)
            raise

    async def _in_session(
        self, session: BackupSession, request: BackupRequest, platform: Platform, reporter: Reporter, began: float
    ) -> BackupResult:
        parent = session.parent if request.mode != "full" else None
        base = {disk.id: disk.checkpoint for disk in parent.disks if disk.checkpoint} if parent else {}
        chain = f"{self._store.id}/{request.vm}"
        result: BackupResult | None = None
        try:
            before = session.interrupted
            async with platform.snapshot(
                request.vm, disks=request.disks, base=base, chain=chain, reuse=before.snapshot if before else None
            ) as view:
                result = await self._from_view(view, session, parent, request, platform.name, reporter, began)
        except Exception as error:
            if result is None:
                raise
            log.warning("backup %s: the platform did not clean up: %s", result.id, error)
            result = replace(result, warnings=(*result.warnings, f"the platform did not clean up: {error}"))
        assert result is not None, "the platform swallowed a failure"
        return result

    async def _from_view(
        self,
        view: SnapshotView,
        session: BackupSession,
        parent: Manifest | None,
        request: BackupRequest,
        platform: str,
        reporter: Reporter,
        began: float,
    ) -> BackupResult:
        """Move the frozen disks, commit, and tell the platform."""
        snapshot_time = time.time()
        if session.interrupted is not None and session.interrupted.snapshot == view.snapshot_id:
            snapshot_time = session.interrupted.began

        def manifest_of(disks: Sequence[DiskRecord], files: Sequence[FileRecord]) -> Manifest:
            return Manifest(
                id="",
                repository=self._store.id,
                seq=session.seq,
                vm=request.vm,
                vm_name=view.vm_name,
                time=snapshot_time,
                parent=session.parent.id if session.parent else None,
                platform=platform,
                version=VERSION,
                snapshot=view.snapshot_id,
                tags=request.tags,
                disks=tuple(disks),
                files=tuple(files),
                seconds=time.monotonic() - began,
            )

        session.check(manifest_of([_draft(disk) for disk in view.disks], [_draft_file(name) for name in view.files]))
        reporter.enter("running")
        lists = await self._bad_before(parent)
        before = {disk.id: _Before(parent.disk(disk.id) if parent else None, lists) for disk in view.disks}
        disks = (self._disk(session, view, disk, before[disk.id], request, reporter) for disk in view.disks)
        work = run_all(disks)
        moved = await _unless_lost(view, work if view.snapshot_id is None else with_checkpoints(session, work))
        bad = {disk.record.id: disk.bad for disk in moved if disk.bad}
        reporter.enter("committing")
        files = [await session.add_file(name, data) for name, data in _files(view, bad).items()]
        manifest = await session.commit(manifest_of([disk.record for disk in moved], files))
        warnings = [badblocks.describe(disk, blocks) for disk, blocks in bad.items()]
        warnings += await _tell_committed(view, manifest)
        return BackupResult(
            id=manifest.id,
            vm=manifest.vm,
            parent=manifest.parent,
            disks=manifest.disks,
            limited_by=_limited_by(manifest.disks),
            seconds=time.monotonic() - began,
            resumed={disk.record.id: disk.resumed for disk in moved if disk.resumed},
            bad_blocks=bad,
            warnings=tuple(warnings),
        )

    async def _bad_before(self, parent: Manifest | None) -> badblocks.BadBlocks | None:
        """What the parent is missing; None if that cannot be found out, so that nothing of it can be kept."""
        if parent is None:
            return {}
        try:
            return await badblocks.of_backup(self._store, parent)
        except IntegrityError as error:
            log.warning("the bad blocks of backup %s are not known, so all is read: %s", parent.id, error)
            return None

    async def _disk(
        self,
        session: BackupSession,
        view: SnapshotView,
        disk: SnapshotDisk,
        before: _Before,
        request: BackupRequest,
        reporter: Reporter,
    ) -> _Moved:
        """Move one disk into the session."""
        async with self._resources.slots, self._opened(disk) as opened:
            began = time.monotonic()
            salvaged = _salvaged(opened, request)
            source = self._resources.throttled(salvaged or opened)
            before = await _with_losses(session, disk, before, request)
            mode, reasons = _mode(disk, before, request)
            meter = reporter.meter(disk.id, source.size)
            writer = session.disk(
                disk.id,
                source.size,
                parent=before.record if mode == "incremental" else None,
                frozen=Frozen(snapshot=view.snapshot_id, checkpoint=disk.checkpoint) if view.snapshot_id else None,
                doubtful=salvaged.touches if salvaged else None,
            )
            try:
                await self._transfer(disk, source, writer, before, mode, meter)
            except IntegrityError as error:
                if mode == "full":
                    raise
                _tell_damaged(disk, error)
                before = replace(before, lost=None)
                mode, reasons = _mode(disk, before, request)
                writer.restart()
                meter.restart()
                await self._transfer(disk, source, writer, before, mode, meter)
            await view.check()  # what was read last was still the snapshot's
            root, tree = await writer.finish()
            retries = opened.retries if isinstance(opened, SurveyedSource) else 0
        stored = writer.statistics
        total = time.monotonic() - began
        seconds = {**_divided(meter.seconds, total), **stored.seconds, "total": total}
        record = DiskRecord(
            id=disk.id,
            size=source.size,
            root=root,
            tree=tree,
            mode=mode,
            reasons=(*reasons, "resumed") if meter.resumed else reasons,
            checkpoint=disk.checkpoint,
            statistics=replace(
                stored,
                bytes_read=meter.read,
                bytes_skipped=meter.skipped,
                retries=retries,
                seconds={stage: round(spent, 3) for stage, spent in seconds.items()},
            ),
        )
        return _Moved(record, meter.resumed, salvaged.blocks if salvaged else ())

    @asynccontextmanager
    async def _opened(self, disk: SnapshotDisk) -> AsyncIterator[Source]:
        """Open a disk for the time of the block; what fails over it, then or later, names it."""
        try:
            async with self._resources.endpoints.source(disk.address) as opened:
                yield opened
        except (SourceError, TlsError) as error:
            error.disk = error.disk or disk.id
            raise

    async def _transfer(
        self,
        disk: SnapshotDisk,
        source: Source,
        writer: DiskWriter,
        before: _Before,
        mode: str,
        meter: Meter,
    ) -> None:
        limits = self._resources.limits
        lanes = limits.requests * limits.connections
        ranges = disk.changed() if mode == "incremental" else None
        missing = before.missing(disk.id)
        async with self._resources.endpoints.changes(ranges) as changed:
            if changed is not None and missing:
                changed = with_also(changed, missing)
            plan = chunks(
                source.extents(),
                size=source.size,
                chunk=writer.chunk_size,
                alignment=source.block_size,
                gap=_GAP,
                changed=changed,
                parent_size=before.record.size if before.record else None,
            )
            async with aclosing(remaining(plan, writer, meter)) as plan:
                await transfer(plan, source, writer, pool=self._resources.pool, lanes=lanes, meter=meter)


@dataclass(frozen=True, slots=True)
class _Moved:
    """A disk that is in the session.

    Attributes:
        record: Its record.
        resumed: Bytes that were adopted from an interrupted backup.
        bad: What could not be read.
    """

    record: DiskRecord
    resumed: int
    bad: tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class _Before:
    """What the parent has of a disk.

    Attributes:
        record: Its record there; None if it was not in it.
        lists: The bad blocks of all its disks, which are not what was on them; None if they are not known.
        lost: What the repository lost of this one; None if that is too much to keep anything.
    """

    record: DiskRecord | None
    lists: badblocks.BadBlocks | None
    lost: tuple[Extent, ...] | None = ()

    def missing(self, disk: str) -> tuple[Extent, ...]:
        """What the parent is missing of a disk, in order."""
        bad = () if self.lists is None else self.lists.get(disk, ())
        return tuple(sorted((*bad, *(self.lost or ())), key=lambda extent: extent.offset))


def _draft(disk: SnapshotDisk) -> DiskRecord:
    """A record about as long as that of the disk will be."""
    size = disk.size or TiB
    seconds = dict.fromkeys(("total", "memory", "read", "write", "seal", "store"), 1000.0)
    return DiskRecord(
        id=disk.id,
        size=size,
        root=_DIGEST,
        tree=_DIGEST,
        mode="incremental",
        checkpoint=disk.checkpoint,
        statistics=DiskStatistics(bytes_read=size, bytes_zero=size, bytes_new=size, bytes_stored=size, seconds=seconds),
    )


def _draft_file(name: str) -> FileRecord:
    return FileRecord(name=name, size=MiB, digest=_DIGEST)


def _salvaged(source: Source, request: BackupRequest) -> badblocks.SalvagedSource | None:
    """The source with zeros for bad blocks, where that is wanted and it can tell them."""
    if request.bad_blocks == "zero" and isinstance(source, SurveyedSource):
        return badblocks.SalvagedSource(source)
    return None


async def _with_losses(session: BackupSession, disk: SnapshotDisk, before: _Before, request: BackupRequest) -> _Before:
    """What the parent has of a disk, and what of that is lost, where something might be kept."""
    if request.mode == "full" or before.record is None or disk.reason is not None:
        return before
    try:
        lost = await session.lost(before.record)
    except IntegrityError as error:
        _tell_damaged(disk, error)
        return replace(before, lost=None)
    if lost:
        size = sum(extent.length for extent in lost)
        log.warning("disk %r: %d bytes of the last backup are lost in the repository and read again", disk.id, size)
    return replace(before, lost=lost)


def _tell_damaged(disk: SnapshotDisk, error: IntegrityError) -> None:
    log.warning("disk %r is read as a whole, nothing is kept of the last backup: %s", disk.id, error)


def _mode(disk: SnapshotDisk, before: _Before, request: BackupRequest) -> tuple[str, tuple[str, ...]]:
    """Full or incremental, and why."""
    reasons = []
    if request.mode == "full":
        reasons.append("requested")
    elif before.record is None:
        reasons.append("first-backup")
    elif before.lists is None:
        reasons.append("bad-blocks-unknown")
    elif before.lost is None:
        reasons.append("parent-damaged")
    if request.mode != "full" and disk.reason is not None:
        reasons.append(disk.reason)
    if not reasons:
        assert before.record is not None, "without a parent there is a reason"
        return "incremental", ("disk-resized",) if disk.size not in (None, before.record.size) else ()
    if request.mode == "incremental":
        raise CbtError(
            f"disk {disk.id!r} has no usable changed blocks ({', '.join(reasons)}) and a full backup was not allowed; "
            "use mode auto or full",
            disk=disk.id,
        )
    return "full", tuple(dict.fromkeys(reasons))


async def _unless_lost(view: SnapshotView, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of the work, which is cancelled when the platform takes lease or snapshot back."""
    task = asyncio.ensure_future(work)
    lost: asyncio.Future[str] = asyncio.shield(view.lost)
    either: set[asyncio.Future[Any]] = {task, lost}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise LeaseLostError(f"the platform took the snapshot back: {printable(lost.result())}")
        return task.result()
    finally:
        lost.cancel()
        await cancelled(task)


def _divided(waits: Mapping[str, float], total: float) -> dict[str, float]:
    """The wall time of a disk, divided as all its lanes together spent theirs."""
    spent = sum(waits.values()) or 1.0
    return {stage: total * wait / spent for stage, wait in waits.items()}


def _files(view: SnapshotView, bad: badblocks.BadBlocks) -> dict[str, bytes]:
    files = dict(view.files)
    if view.config is not None:
        files["config.json"] = view.config
    files.pop(badblocks.FILE, None)  # the name is taken
    if bad:
        files[badblocks.FILE] = badblocks.encode(bad)
    return files


async def _tell_committed(view: SnapshotView, manifest: Manifest) -> list[str]:
    """The backup stands, whatever happens now: a failure is a warning."""
    try:
        await view.committed([disk.id for disk in manifest.disks])
    except Exception as error:  # noqa: BLE001 - anybody may write a platform
        reason = printable(str(error) or type(error).__name__)
        log.warning("backup %s: older checkpoints were not dropped: %s", manifest.id, reason)
        return [f"older checkpoints were not dropped: {reason}"]
    return []


def _limited_by(disks: Sequence[DiskRecord]) -> str:
    """The stage that the lanes of all disks waited for longest.

    Waiting for memory does not count: who holds it is reading or writing, and both are counted.
    """

    def waited(stage: str) -> float:
        return sum(disk.statistics.seconds.get(stage, 0.0) for disk in disks)

    if waited("read") >= waited("write"):
        return "source"
    return "compression" if waited("seal") >= waited("store") else "store"
