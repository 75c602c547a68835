"""The engine: backs up, restores, verifies and copies, any number of jobs at once under one set of limits.

What not every job needs is imported where it is needed: a copy of a gigabyte takes half a second, start-up included.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from .endpoints import STANDARD, Pipe, parse_disk, parse_endpoint
from .errors import StateError, StorageError, TargetRefusedError, UsageError, printable
from .interfaces import BackupStore, Platform, Sink, Source
from .jobs import Job
from .models import ExportAddress, Limits, Retry, Timeouts, TlsPolicy, check_id
from .progress import ProgressCallback, Reporter
from .resources import Resources
from .sparse import SPARSE_BLOCK
from .tasks import finish

if TYPE_CHECKING:
    from .models import BackupEstimate, BackupResult, CopyResult, RestoreResult, VerifyResult

_T = TypeVar("_T")

Disk = str | ExportAddress | Source
TargetDisk = str | ExportAddress | Sink

_CLOSE_SECONDS = 5.0


class Engine:
    """Runs jobs in the caller's event loop, asyncio's or uvloop's.

    An engine belongs to one loop and is an async context manager: leaving the block cancels what still runs. All its
    jobs share one set of limits: memory, disks at a time, bytes per second.

    Args:
        repository: Where backups live; not needed to copy. It is not closed by the engine.
        limits: What the engine may use.
        timeouts: When the transport gives up.
        retry: How faults of connections and servers are met; by default outages of a minute are survived.
        tls: Whom to believe, and who we are, for exports over TLS whose address says neither (`TlsPolicy.completed`).
    """

    def __init__(
        self,
        repository: BackupStore | None = None,
        *,
        limits: Limits | None = None,
        timeouts: Timeouts | None = None,
        retry: Retry | None = None,
        tls: TlsPolicy | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self._repository = repository
        self._resources = Resources(self.limits, timeouts or Timeouts(), retry or Retry(), tls)
        self._jobs: set[Job[Any]] = set()
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._jobs)} jobs"
        pool = self._resources.pool
        return f"<Engine {state}, {pool.in_use} of {pool.budget} buffer bytes in use>"

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel the jobs that still run, wait until they have ended, and give everything back. Idempotent.

        Raises:
            StorageError: Some have not ended after 5 s: a disk hangs, and a thread in it has their memory. What they
                use is given back when they end.
        """
        self._closed = True
        try:
            await finish(self._end_jobs(), _CLOSE_SECONDS)
        except TimeoutError as error:
            raise StorageError(
                f"{len(self._jobs)} jobs do not end within {_CLOSE_SECONDS:g} s: a disk that they use does not answer"
            ) from error
        finally:
            self._give_back()

    async def _end_jobs(self) -> None:
        jobs = list(self._jobs)
        for job in jobs:
            job.cancel()
        for job in jobs:
            await job.ended()

    # --- backup -------------------------------------------------------------------------------------------------------

    def start_backup(
        self,
        vm: str,
        disks: Mapping[str, Disk] | Sequence[str] | None = None,
        *,
        platform: Platform | None = None,
        mode: str = "auto",
        tags: Sequence[str] = (),
        wait: float = 0.0,
        bad_blocks: str = "fail",
        snapshot_id: str | None = None,
        resume: bool = True,
        audit: int | str = 16,
        progress: ProgressCallback | None = None,
    ) -> Job[BackupResult]:
        """Begin a backup and return a handle on it.

        Args:
            vm: Id of the VM. A platform takes its name as well, if that is unique; the repository gets to see the id.
            disks: Without a platform, where each disk is read, by disk id. With one, the ids wanted; None for all.
            platform: Freezes the VM's disks and tells what changed.
            mode: ``auto`` (incremental where changes are known), ``full``, or ``incremental`` (that or an error).
            tags: Free words kept with the backup.
            wait: Seconds to wait while another session, or the platform, works on the same VM.
            bad_blocks: What becomes of blocks that cannot be read: ``fail`` the backup, or back them up as ``zero``,
                at most 1 MiB of a disk; `BackupResult.bad_blocks` says which.
            snapshot_id: Without a platform, the name of the frozen state that the disks are in. A backup of the same
                VM and state goes on where one was interrupted; without a name, all is read again.
            resume: False to read all again, and to forget what an interrupted backup had finished.
            audit: About how many chunks of each disk are read again although they are called unchanged, or what share
                of them: ``16``, ``"5%"``, ``"off"``.
            progress: Called on the loop with a `Progress`, twice a second at most and at each change of state.

        Raises:
            UsageError: At once, for arguments that cannot be used. Everything else comes from the job.
        """
        from .audit import parse_sample
        from .backup import Backup, BackupRequest

        platform, ids = _places(disks, platform, snapshot_id)
        request = BackupRequest(
            vm=vm,
            disks=ids,
            mode=mode,
            tags=tuple(tags),
            wait=wait,
            bad_blocks=bad_blocks,
            resume=resume,
            audit=parse_sample(audit),
        )
        backup = Backup(self._store, self._resources)

        async def work(reporter: Reporter) -> BackupResult:
            return await backup.run(replace(request, vm=await platform.identify(request.vm)), platform, reporter)

        return self._start(work, progress)

    async def backup_vm(
        self,
        vm: str,
        disks: Mapping[str, Disk] | Sequence[str] | None = None,
        *,
        platform: Platform | None = None,
        mode: str = "auto",
        tags: Sequence[str] = (),
        wait: float = 0.0,
        bad_blocks: str = "fail",
        snapshot_id: str | None = None,
        resume: bool = True,
        audit: int | str = 16,
        progress: ProgressCallback | None = None,
    ) -> BackupResult:
        """Back up a VM; arguments as of `start_backup`.

        When it returns, the backup is complete and durable. Cancelling it, like any error, leaves no backup; the next
        one of the same snapshot goes on from there, another finds again the chunks whose index was written.

        Raises:
            UsageError: Arguments, before anything is touched.
            BusyError: Another session, or the platform, works on this VM.
            TlsError, SourceError: A disk could not be read.
            StorageError: The repository could not be written.
            CbtError: `mode` is ``incremental`` and changed blocks are not usable.
            LeaseLostError: The platform took the snapshot back.
        """
        async with self.start_backup(
            vm,
            disks,
            platform=platform,
            mode=mode,
            tags=tags,
            wait=wait,
            bad_blocks=bad_blocks,
            snapshot_id=snapshot_id,
            resume=resume,
            audit=audit,
            progress=progress,
        ) as job:
            return await job.result()

    async def estimate_backup(
        self,
        vm: str,
        disks: Mapping[str, Disk] | Sequence[str] | None = None,
        *,
        platform: Platform | None = None,
        mode: str = "auto",
        audit: int | str = 16,
    ) -> BackupEstimate:
        """What a backup would read; arguments as of `start_backup`.

        The disks are frozen, their maps and changes read, and let go. The repository is only read.

        Raises:
            UsageError: Arguments, before anything is touched.
            TlsError, SourceError: A disk could not be looked at.
            CbtError: `mode` is ``incremental`` and changed blocks are not usable.
        """
        from .audit import parse_sample
        from .backup import BackupRequest
        from .estimate import Estimator

        place, ids = _places(disks, platform, None)
        request = BackupRequest(vm=vm, disks=ids, mode=mode, audit=parse_sample(audit))
        estimator = Estimator(self._store, self._resources)

        async def work(reporter: Reporter) -> BackupEstimate:
            return await estimator.run(replace(request, vm=await place.identify(request.vm)), place)

        async with self._start(work, None) as job:
            return await job.result()

    # --- restore ------------------------------------------------------------------------------------------------------

    def start_restore(
        self,
        backup: str,
        *,
        to: str | os.PathLike[str] | None = None,
        to_disks: Mapping[str, TargetDisk] | None = None,
        disks: Sequence[str] | None = None,
        image_format: str = "raw",
        force: bool = False,
        platform: Platform | None = None,
        vm: str | None = None,
        new_name: str | None = None,
        differential: bool = False,
        verify_after: bool = False,
        progress: ProgressCallback | None = None,
    ) -> Job[RestoreResult]:
        """Begin a restore and return a handle on it.

        Args:
            backup: Id, unique prefix of one, or ``VM@latest``.
            to: Directory for image files ``<disk>.raw`` or ``<disk>.qcow2``; created if needed.
            to_disks: Instead of `to`: where each disk is written, by disk id; exactly these disks are restored.
            disks: With `to` or `platform`, the ids of the disks wanted; None for all.
            image_format: With `to`: ``raw`` (sparse) or ``qcow2`` (needs qemu-img and qemu-nbd).
            force: With `to`: replace image files that exist.
            platform: Instead of `to` and `to_disks`: gives a VM its disks back, or makes a new one.
            vm: With `platform`: id or name of the VM; None for the one of the backup.
            new_name: With `platform`: name of the new VM.
            differential: With `platform`: write only what may have changed since the backup, where that is known; the
                result says of each disk whether it was.
            verify_after: Read every target back and compare its tree digest with the backup's.
            progress: As of `start_backup`.

        Raises:
            UsageError: At once, for arguments that cannot be used. Everything else comes from the job.
        """
        from .destinations import disk_targets, file_targets, refuse_shared
        from .recovery import Recovery, RecoveryRequest
        from .restore import Restore
        from .targets import check_format

        if (to is not None) + (to_disks is not None) + (platform is not None) != 1:
            raise UsageError("restore either to a directory, or to disks, or to a VM of a platform")
        if platform is None and (vm is not None or new_name is not None or differential):
            raise UsageError("only a platform restores to a VM, or by what has changed")
        recovery = RecoveryRequest(
            vm=vm,
            new_name=new_name,
            disks=None if platform is None else disks,
            differential=differential,
            verify_after=verify_after,
        )
        addresses = None
        if to_disks is not None:
            if not to_disks or disks is not None:
                raise UsageError("a restore to disks restores exactly the disks named, and at least one")
            addresses = {disk: parse_disk(address) for disk, address in to_disks.items()}
            refuse_shared(addresses)
        check_format(image_format)

        async def work(reporter: Reporter) -> RestoreResult:
            manifest = await self._store.find(backup)
            if platform is not None:
                return await Recovery(self._store, self._resources).run(manifest, platform, recovery, reporter)
            if addresses is not None:
                targets = disk_targets(self._resources, manifest, addresses)
            else:
                assert to is not None
                targets = await file_targets(
                    self._resources, manifest, Path(to), disks, image_format=image_format, force=force
                )
            restore = Restore(self._store, self._resources)
            return await restore.run(manifest, targets, verify_after=verify_after, reporter=reporter)

        return self._start(work, progress)

    async def restore_vm(
        self,
        backup: str,
        *,
        to: str | os.PathLike[str] | None = None,
        to_disks: Mapping[str, TargetDisk] | None = None,
        disks: Sequence[str] | None = None,
        image_format: str = "raw",
        force: bool = False,
        platform: Platform | None = None,
        vm: str | None = None,
        new_name: str | None = None,
        differential: bool = False,
        verify_after: bool = False,
        progress: ProgressCallback | None = None,
    ) -> RestoreResult:
        """Restore disks of a backup; arguments as of `start_restore`.

        Every block is checked against its digest before it is written. When it returns, the disks are durable. An
        image file appears under its name only when it is complete; an NBD target that failed or was cancelled half-way
        keeps partial content. A platform gives up what it made for a restore that failed.

        Raises:
            UsageError: Arguments, an unknown backup or disk, a target that exists or is too small, a VM that runs;
                nothing was written.
            IntegrityError: The repository is damaged where this backup needs it; no wrong byte was written.
            TlsError, StorageError: A target could not be written.
            PlatformError: The platform failed or refused.
            LeaseLostError: The platform took the disks back.
        """
        async with self.start_restore(
            backup,
            to=to,
            to_disks=to_disks,
            disks=disks,
            image_format=image_format,
            force=force,
            platform=platform,
            vm=vm,
            new_name=new_name,
            differential=differential,
            verify_after=verify_after,
            progress=progress,
        ) as job:
            return await job.result()

    # --- export -------------------------------------------------------------------------------------------------------

    def start_export(
        self,
        backup: str,
        disk: str,
        target: str | os.PathLike[str],
        *,
        image_format: str | None = None,
        force: bool = False,
        progress: ProgressCallback | None = None,
    ) -> Job[RestoreResult]:
        """Begin the export of one disk and return a handle on it.

        Args:
            backup: Id, unique prefix of one, or ``VM@latest``.
            disk: Id of the disk.
            target: Path of an image file to make, or ``-`` for standard output.
            image_format: ``raw`` (sparse) or ``qcow2`` (needs qemu-img and qemu-nbd; not for standard output); None for
                ``qcow2`` where the name of the file ends so, otherwise ``raw``.
            force: Replace a file that exists.
            progress: As of `start_backup`.

        Raises:
            UsageError: At once, for arguments that cannot be used. Everything else comes from the job.
        """
        from .restore import Restore, Target, record_of
        from .targets import check_format, file_target, image_format_of, stream_target

        place = parse_endpoint(target, standard=1)
        if not isinstance(place, Path | Pipe):
            raise UsageError(f"{printable(os.fspath(target))} is neither a file nor '-'; restore writes to disks")
        standard = target == STANDARD
        if image_format is None:
            image_format = image_format_of(place) if isinstance(place, Path) and not standard else "raw"
        check_format(image_format)
        if standard and image_format != "raw":
            raise UsageError(f"standard output takes the format raw only, not {image_format}")
        endpoints, workers = self._resources.endpoints, self._resources.workers

        async def work(reporter: Reporter) -> RestoreResult:
            manifest = await self._store.find(backup)
            size = record_of(manifest, disk).size
            if isinstance(place, Pipe) or standard:
                opened = stream_target(endpoints, place, size)
            else:
                opened = file_target(
                    endpoints, place, size=size, image_format=image_format, force=force, workers=workers
                )
            restore = Restore(self._store, self._resources)
            return await restore.run(manifest, {disk: Target(opening=opened)}, verify_after=False, reporter=reporter)

        return self._start(work, progress)

    async def export(
        self,
        backup: str,
        disk: str,
        target: str | os.PathLike[str],
        *,
        image_format: str | None = None,
        force: bool = False,
        progress: ProgressCallback | None = None,
    ) -> RestoreResult:
        """Write one disk of a backup to an image file or to standard output; arguments as of `start_export`.

        Every block is checked against its digest before it is written. When it returns, a file is complete and durable,
        and only then has its name. What went to standard output before an error is there.

        Raises:
            UsageError: Arguments, an unknown backup or disk, a file that exists; nothing was written.
            IntegrityError: The repository is damaged where this disk needs it; no wrong byte was written.
            StorageError: The target could not be written.
        """
        async with self.start_export(
            backup, disk, target, image_format=image_format, force=force, progress=progress
        ) as job:
            return await job.result()

    # --- verify -------------------------------------------------------------------------------------------------------

    async def verify(
        self,
        *backups: str,
        data: bool = False,
        older_than: float | None = None,
        percent: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> VerifyResult:
        """Check backups, or the whole repository. What was read and what was found bad is recorded there.

        Args:
            backups: Ids, prefixes or ``VM@latest``; none for everything.
            data: Read every byte of every file and recompute all digests; otherwise check that everything is there.
            older_than: Read, as with `data`, only what no verification has read for so many seconds.
            percent: Read, as with `data`, so much of the bytes concerned, what is longest unread first.
            progress: Called on the loop with objects done and objects in all.

        Returns:
            What was found; `VerifyResult.ok` tells whether all is well. Damage is not an exception.

        Raises:
            UsageError: `data` is given together with one that reads less, or a number is out of range.
        """
        manifests = [await self._store.find(backup) for backup in backups]
        return await self._store.verify(
            [manifest.id for manifest in manifests],
            data=data,
            older_than=older_than,
            percent=percent,
            progress=progress,
        )

    # --- copy ---------------------------------------------------------------------------------------------------------

    def start_copy(
        self,
        source: str | os.PathLike[str] | ExportAddress | Source,
        target: str | os.PathLike[str] | ExportAddress | Sink,
        *,
        extents: bool = True,
        flush: bool = True,
        connections: int | None = None,
        requests: int | None = None,
        request_size: int | None = None,
        destination_is_zero: bool = False,
        synchronous: bool = False,
        sparse: int = SPARSE_BLOCK,
        progress: ProgressCallback | None = None,
    ) -> Job[CopyResult]:
        """Begin a copy and return a handle on it.

        Args:
            source: NBD URI or address, file or block device, ``-`` for standard input, or any `Source`.
            target: NBD URI or address, file (created, or overwritten) or block device, ``null:``, ``-`` for standard
                output, or any `Sink`.
            extents, flush, connections, requests, request_size, destination_is_zero, synchronous, sparse: As of
                `CopyOptions`.
            progress: As of `start_backup`.

        Raises:
            UsageError: At once, for arguments that cannot be used. Everything else comes from the job.
        """
        from .copying import CopyOptions, copy

        options = CopyOptions(
            extents=extents,
            flush=flush,
            connections=connections,
            requests=requests,
            request_size=request_size,
            destination_is_zero=destination_is_zero,
            synchronous=synchronous,
            sparse=sparse,
        )
        source_place, target_place = parse_endpoint(source, standard=0), parse_endpoint(target, standard=1)
        if source_place is None:
            raise UsageError("null: can only be the target of a copy")
        if isinstance(source_place, Path) and isinstance(target_place, Path) and _same_file(source_place, target_place):
            raise TargetRefusedError(f"{target_place} is both source and target")
        share = {"connections": connections, "requests": requests}

        async def work(reporter: Reporter) -> CopyResult:
            endpoints = self._resources.endpoints
            if isinstance(source_place, Pipe):
                from .streaming import copy_stream

                async with self._resources.slots, endpoints.growing_target(target_place, **share) as growing:
                    with endpoints.stream(source_place) as stream:
                        return await copy_stream(stream, growing, options, self._resources, reporter)
            async with (
                self._resources.slots,
                endpoints.source(source_place, **share) as opened,
                endpoints.copy_target(target_place, size=opened.size, **share) as sink,
            ):
                return await copy(opened, sink, options, self._resources, reporter)

        return self._start(work, progress)

    async def copy(
        self,
        source: str | os.PathLike[str] | ExportAddress | Source,
        target: str | os.PathLike[str] | ExportAddress | Sink,
        *,
        extents: bool = True,
        flush: bool = True,
        connections: int | None = None,
        requests: int | None = None,
        request_size: int | None = None,
        destination_is_zero: bool = False,
        synchronous: bool = False,
        sparse: int = SPARSE_BLOCK,
        progress: ProgressCallback | None = None,
    ) -> CopyResult:
        """Copy a disk; arguments as of `start_copy`.

        When it returns, the target is durable unless `flush` is False. On error, and when cancelled, the target has
        partial content.

        Raises:
            UsageError: Arguments, a target that is too small or the source itself.
            TlsError, SourceError: The source could not be read.
            StorageError: The target could not be written.
        """
        async with self.start_copy(
            source,
            target,
            extents=extents,
            flush=flush,
            connections=connections,
            requests=requests,
            request_size=request_size,
            destination_is_zero=destination_is_zero,
            synchronous=synchronous,
            sparse=sparse,
            progress=progress,
        ) as job:
            return await job.result()

    # --- jobs ---------------------------------------------------------------------------------------------------------

    @property
    def _store(self) -> BackupStore:
        if self._repository is None:
            raise StateError("this engine has no repository; give Engine one to back up, restore or verify")
        return self._repository

    def _start(self, work: Callable[[Reporter], Coroutine[Any, Any, _T]], progress: ProgressCallback | None) -> Job[_T]:
        if self._closed:
            raise StateError("the engine is closed; open another to start a job")
        job = Job(work, progress)
        self._jobs.add(job)
        job.when_ended(self._ended)
        return job

    def _ended(self, job: Job[Any]) -> None:
        self._jobs.discard(job)
        if self._closed:
            self._give_back()

    def _give_back(self) -> None:
        if not self._jobs:
            self._resources.close()


def _places(
    disks: Mapping[str, Disk] | Sequence[str] | None, platform: Platform | None, snapshot_id: str | None
) -> tuple[Platform, list[str] | None]:
    """The platform that has the disks, and the ids of those that are wanted.

    Raises:
        UsageError: Names or addresses that cannot be used, or lack.
    """
    from .platform.plain import PlainPlatform

    if platform is None:
        if not isinstance(disks, Mapping) or not disks:
            raise UsageError("a backup without a platform needs the address of at least one disk")
        if snapshot_id is not None:
            check_id("snapshot", snapshot_id)
        addresses = {disk: parse_disk(address) for disk, address in disks.items()}
        platform = PlainPlatform(addresses, snapshot_id=snapshot_id)
    elif isinstance(disks, Mapping):
        raise UsageError("with a platform, disks are named by their ids; the platform knows their addresses")
    elif snapshot_id is not None:
        raise UsageError("with a platform, the snapshot is named by the platform")
    ids = None if disks is None else list(disks)
    for disk in ids or ():
        check_id("disk", disk)
    return platform, ids


def _same_file(source: Path, target: Path) -> bool:
    try:
        return source.samefile(target)
    except OSError:
        return False
