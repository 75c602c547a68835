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
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ._version import VERSION
from .errors import CbtError, LeaseLostError, UsageError, printable
from .extents import chunks
from .interfaces import BackupSession, BackupStore, DiskWriter, Platform, SnapshotDisk, SnapshotView, Source
from .models import BackupResult, DiskRecord, Manifest
from .pipeline import transfer
from .progress import Meter, Reporter
from .resources import Resources
from .tasks import cancelled, finish, run_all

log = logging.getLogger("sfasync")

_T = TypeVar("_T")

MODES = ("auto", "full", "incremental")

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
    """

    vm: str
    disks: Sequence[str] | None = None
    mode: str = "auto"
    tags: tuple[str, ...] = ()
    wait: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"mode {self.mode!r} is none of {', '.join(MODES)}")
        check_id("VM", self.vm)
        for tag in self.tags:
            check_id("tag", tag)


def check_id(what: str, text: str) -> None:
    """Refuse ids that no file name, log line or manifest should have to carry.

    Raises:
        UsageError: Empty, longer than 255 bytes, or with control characters.
    """
    if not text or len(text.encode("utf-8", "surrogatepass")) > 255 or not text.isprintable():
        raise UsageError(f"{what} {text[:64]!r} must be 1 to 255 bytes of printable text")


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
        session = await self._store.begin(request.vm, wait=request.wait)
        try:
            return await self._in_session(session, request, platform, reporter, began)
        except BaseException:
            with suppress(TimeoutError):  # a slow disk; what failed before is the news
                await finish(session.abort(), _ABORT_SECONDS)
            raise

    async def _in_session(
        self, session: BackupSession, request: BackupRequest, platform: Platform, reporter: Reporter, began: float
    ) -> BackupResult:
        parent = session.parent if request.mode != "full" else None
        base = {disk.id: disk.checkpoint for disk in parent.disks if disk.checkpoint} if parent else {}
        chain = f"{self._store.id}/{request.vm}"
        async with platform.snapshot(request.vm, disks=request.disks, base=base, chain=chain) as view:
            snapshot_time = time.time()
            reporter.enter("running")
            disks = (self._disk(session, view, disk, parent, request, reporter) for disk in view.disks)
            records = await _unless_lost(view, run_all(disks))
            reporter.enter("committing")
            files = [await session.add_file(name, data) for name, data in _files(view).items()]
            manifest = await session.commit(
                Manifest(
                    id="",
                    repository=self._store.id,
                    seq=session.seq,
                    vm=request.vm,
                    vm_name=view.vm_name,
                    time=snapshot_time,
                    parent=session.parent.id if session.parent else None,
                    platform=platform.name,
                    version=VERSION,
                    snapshot=view.snapshot_id,
                    tags=request.tags,
                    disks=tuple(records),
                    files=tuple(files),
                    seconds=time.monotonic() - began,
                )
            )
            warnings = await _tell_committed(view, manifest)
        return BackupResult(
            id=manifest.id,
            vm=manifest.vm,
            parent=manifest.parent,
            disks=manifest.disks,
            limited_by=_limited_by(manifest.disks),
            seconds=time.monotonic() - began,
            warnings=tuple(warnings),
        )

    async def _disk(
        self,
        session: BackupSession,
        view: SnapshotView,
        disk: SnapshotDisk,
        parent: Manifest | None,
        request: BackupRequest,
        reporter: Reporter,
    ) -> DiskRecord:
        """Move one disk into the session."""
        async with self._resources.slots, self._resources.endpoints.source(disk.address) as opened:
            began = time.monotonic()
            source = self._resources.throttled(opened)
            before = parent.disk(disk.id) if parent else None
            mode, reasons = _mode(disk, before, request)
            meter = reporter.meter(disk.id, source.size)
            writer = session.disk(disk.id, source.size, parent=before if mode == "incremental" else None)
            await self._transfer(disk, source, writer, before, mode, meter)
            await view.check()  # what was read last was still the snapshot's
            root, tree = await writer.finish()
        stored = writer.statistics
        total = time.monotonic() - began
        seconds = {**_divided(meter.seconds, total), **stored.seconds, "total": total}
        return DiskRecord(
            id=disk.id,
            size=source.size,
            root=root,
            tree=tree,
            mode=mode,
            reasons=reasons,
            checkpoint=disk.checkpoint,
            statistics=replace(
                stored,
                bytes_read=meter.read,
                bytes_skipped=meter.skipped,
                seconds={stage: round(spent, 3) for stage, spent in seconds.items()},
            ),
        )

    async def _transfer(
        self,
        disk: SnapshotDisk,
        source: Source,
        writer: DiskWriter,
        before: DiskRecord | None,
        mode: str,
        meter: Meter,
    ) -> None:
        plan = chunks(
            source.extents(),
            size=source.size,
            chunk=writer.chunk_size,
            alignment=source.block_size,
            changed=disk.changed() if mode == "incremental" else None,
            parent_size=before.size if before else None,
        )
        limits = self._resources.limits
        lanes = limits.requests * limits.connections
        async with aclosing(plan):
            await transfer(plan, source, writer, pool=self._resources.pool, lanes=lanes, meter=meter)


def _mode(disk: SnapshotDisk, before: DiskRecord | None, request: BackupRequest) -> tuple[str, tuple[str, ...]]:
    """Full or incremental, and why."""
    reasons = []
    if request.mode == "full":
        reasons.append("requested")
    elif before is None:
        reasons.append("first-backup")
    if request.mode != "full" and disk.reason is not None:
        reasons.append(disk.reason)
    if not reasons:
        assert before is not None
        return "incremental", ("disk-resized",) if disk.size not in (None, before.size) else ()
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


def _files(view: SnapshotView) -> dict[str, bytes]:
    files = dict(view.files)
    if view.config is not None:
        files["config.json"] = view.config
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
    """The stage that the lanes of all disks waited for longest."""

    def waited(stage: str) -> float:
        return sum(disk.statistics.seconds.get(stage, 0.0) for disk in disks)

    if waited("read") >= waited("write") + waited("memory"):
        return "source"
    return "compression" if waited("seal") >= waited("store") else "store"
