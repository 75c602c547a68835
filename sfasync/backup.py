"""One backup: from the session in the repository to the manifest, in the order that keeps every promise.

::

    session -> snapshot -> disks, each: open, plan, transfer -> check the snapshot -> files -> manifest -> committed

Until the manifest is durable nobody sees anything. The manifest is what advances a chain of checkpoints: `committed`
only tells the platform that older ones may go.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace

from . import badblocks
from ._version import VERSION
from .audit import NONE, SEEDS, Sample
from .basis import Parent
from .diskbackup import DiskBackup
from .errors import BusyError, LeaseLostError, SourceError, UsageError, one_line, printable
from .interfaces import BackupSession, BackupStore, Platform, SnapshotDisk, SnapshotView
from .leases import Watch, blame_loss
from .models import AuditRecord, BackupResult, DiskRecord, DiskStatistics, ExportAddress, FileRecord, Manifest, check_id
from .progress import Reporter
from .resources import Resources
from .resuming import with_checkpoints
from .tasks import Looks, finish, insist, run_all
from .units import KiB, MiB, TiB

log = logging.getLogger("sfasync")

CONFIG_FILE = "config.json"
"""The file of a backup that is the VM's configuration, as the platform told it."""

MODES = ("auto", "full", "incremental")
BAD_BLOCKS = ("fail", "zero")

_DIGEST = "0" * 64

_ABORT_SECONDS = 4.0  # cancelling a job ends it within 5 s
_AGAIN = 0.25
_LONGEST_PAUSE = 5.0  # each look costs a platform several answers


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupRequest:
    """What is wanted of one backup.

    Attributes:
        vm: Id of the VM.
        disks: Ids of the disks; None for all that the platform has.
        mode: `auto`: incremental where changes are known; `full`; `incremental`: that or an error.
        tags: Free words kept in the manifest.
        wait: Seconds to wait for another session of the same VM, and for whatever else its platform does with it.
        bad_blocks: `fail`, or `zero` to back up blocks that cannot be read as zeros.
        resume: Go on from where an interrupted backup of the same snapshot was stopped.
        audit: How much of what is called unchanged is read again.
    """

    vm: str
    disks: Sequence[str] | None = None
    mode: str = "auto"
    tags: tuple[str, ...] = ()
    wait: float = 0.0
    bad_blocks: str = "fail"
    resume: bool = True
    audit: Sample = NONE

    def __post_init__(self) -> None:
        if self.bad_blocks not in BAD_BLOCKS:
            raise UsageError(f"bad blocks {self.bad_blocks!r} is none of {', '.join(BAD_BLOCKS)}")
        if self.mode not in MODES:
            raise UsageError(f"mode {self.mode!r} is none of {', '.join(MODES)}")
        check_id("VM", self.vm)
        for tag in self.tags:
            check_id("tag", tag)


def chain_of(store: BackupStore, vm: str) -> str:
    """What the line of backups of a VM in a store is called at its platform."""
    return f"{store.id}/{vm}"


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
            BusyError: Another session works on this VM, or its platform is busy with it.
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
        parent = await Parent.of(session.parent, platform.name, self._store, forced=request.mode == "full")
        chain = chain_of(self._store, request.vm)
        result: BackupResult | None = None
        try:
            before = session.interrupted
            async with AsyncExitStack() as stack:
                # The last backup of the VM has ended its session before its snapshot is gone.
                view = await insist(
                    lambda: stack.enter_async_context(
                        platform.snapshot(
                            request.vm,
                            disks=request.disks,
                            base=parent.checkpoints,
                            chain=chain,
                            reuse=before.snapshot if before else None,
                        )
                    ),
                    BusyError,
                    Looks(_AGAIN, _LONGEST_PAUSE, seconds=began + request.wait - time.monotonic()),
                )
                result = await self._from_view(view, session, parent, request, platform.name, reporter, began)
        except Exception as error:
            if result is None:
                raise
            what = f"the platform did not clean up: {one_line(str(error) or type(error).__name__)}"
            log.warning("backup %s: %s", result.id, what)
            result = replace(result, warnings=(*result.warnings, what))
        assert result is not None, "the platform swallowed a failure"
        return result

    async def _from_view(
        self,
        view: SnapshotView,
        session: BackupSession,
        parent: Parent,
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
        disks = [
            DiskBackup(
                disk,
                view=view,
                session=session,
                parent=parent,
                reporter=reporter,
                store=self._store,
                resources=self._resources,
                full_allowed=request.mode != "incremental",
                zero_bad_blocks=request.bad_blocks == "zero",
                audit=request.audit,
            )
            for disk in view.disks
        ]
        work = run_all(disk.run() for disk in disks)
        with Watch(view.lost, "the snapshot") as watch:
            try:
                moved = await watch.guard(
                    work if view.snapshot_id is None else with_checkpoints(session, work),
                    needed=lambda: not all(disk.is_read for disk in disks),
                )
            except SourceError as error:
                await blame_loss(view.check, error)
                raise
            reporter.enter("committing")
            bad = {disk.record.id: disk.bad for disk in moved if disk.bad}
            files = [await session.add_file(name, data) for name, data in _files(view, bad).items()]
            manifest = await session.commit(manifest_of([disk.record for disk in moved], files))
            warnings = [badblocks.describe(disk, blocks) for disk, blocks in bad.items()]
            warnings += [warning for disk in moved for warning in disk.warnings]
            warnings += await _tell_committed(view, manifest)
            warnings += [f"after everything was read, {watch.loss}"] if watch.loss else []
        return BackupResult(
            id=manifest.id,
            vm=manifest.vm,
            parent=manifest.parent,
            disks=manifest.disks,
            limited_by=_limited_by(manifest.disks, _rates(view)),
            seconds=time.monotonic() - began,
            resumed={disk.record.id: disk.resumed for disk in moved if disk.resumed},
            bad_blocks=bad,
            untold={disk.record.id: disk.untold for disk in moved if disk.untold},
            warnings=tuple(warnings),
        )


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
        audit=AuditRecord(seed=SEEDS, position=size // KiB, chunks=MiB),
        statistics=DiskStatistics(bytes_read=size, bytes_zero=size, bytes_new=size, bytes_stored=size, seconds=seconds),
    )


def _draft_file(name: str) -> FileRecord:
    return FileRecord(name=name, size=MiB, digest=_DIGEST)


def _files(view: SnapshotView, bad: badblocks.BadBlocks) -> dict[str, bytes]:
    files = dict(view.files)
    if view.config is not None:
        files[CONFIG_FILE] = view.config
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


_NEAR = 0.8  # of the rate that a platform allows, on average of a whole disk


def _at_its_rate(disk: DiskRecord, rate: int | None) -> bool:
    """Whether a disk came about as fast as its platform lets it."""
    seconds = disk.statistics.seconds.get("total", 0.0)
    return rate is not None and disk.statistics.bytes_read >= _NEAR * rate * seconds > 0


def _rates(view: SnapshotView) -> dict[str, int]:
    """Bytes a second that each disk can be had at, where its platform knows."""
    return {
        disk.id: disk.address.rate * (disk.address.connections or 1)
        for disk in view.disks
        if isinstance(disk.address, ExportAddress) and disk.address.rate is not None
    }


def _limited_by(disks: Sequence[DiskRecord], rates: Mapping[str, int]) -> str:
    """The stage that the lanes of all disks waited for longest; of a source, whether it gave all that it may.

    Waiting for memory does not count: who holds it is reading or writing, and both are counted.
    """

    def waited(stage: str) -> float:
        return sum(disk.statistics.seconds.get(stage, 0.0) for disk in disks)

    if waited("read") >= waited("write"):
        longest = max(disks, key=lambda disk: disk.statistics.seconds.get("total", 0.0), default=None)
        return "network" if longest is not None and _at_its_rate(longest, rates.get(longest.id)) else "source"
    return "compression" if waited("seal") >= waited("store") else "store"
