"""Restores through a platform: a VM gets its disks back, or a new one is made of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from . import badblocks
from .backup import CONFIG_FILE
from .errors import PlatformError, TargetError, UsageError, one_line, printable
from .interfaces import BackupStore, Platform, RestoreView
from .leases import Watch, blame_loss
from .models import ExportAddress, Manifest, RestoreResult, check_id
from .progress import Reporter
from .resources import Resources
from .restore import Restore, Target, record_of
from .targets import export_target, sink_target

log = logging.getLogger("sfasync")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryRequest:
    """What is wanted of a restore through a platform.

    Attributes:
        vm: Id or name of the VM that gets its disks back; None for the one of the backup, unless `new_name` is given.
        new_name: Name of a new VM that gets them instead.
        disks: Ids of the disks; None for all.
        differential: Write only what may have changed since the backup, where that is known.
        verify_after: Read every disk back and compare its tree digest.
    """

    vm: str | None = None
    new_name: str | None = None
    disks: Sequence[str] | None = None
    differential: bool = False
    verify_after: bool = False

    def __post_init__(self) -> None:
        if self.vm is not None and self.new_name is not None:
            raise UsageError("a restore goes to a VM that is there or to a new one, not both")
        if self.differential and self.new_name is not None:
            raise UsageError("a new VM has no disks that could be restored by what has changed")
        for what, name in (("VM", self.vm), ("name", self.new_name)):
            if name is not None:
                check_id(what, name)
        if self.disks is not None and not self.disks:
            raise UsageError("a restore needs at least one disk")


class Recovery:
    """Carries out restores through platforms.

    Args:
        store: Where the backups are.
        resources: Shared with the engine's other jobs.
    """

    def __init__(self, store: BackupStore, resources: Resources) -> None:
        self._store = store
        self._resources = resources

    async def run(
        self, manifest: Manifest, platform: Platform, request: RecoveryRequest, reporter: Reporter
    ) -> RestoreResult:
        """Restore a backup.

        Raises:
            UsageError: The backup has no such disk, or the platform cannot restore the VM so.
            LeaseLostError: The platform took the disks back.
            SfasyncError: The first other failure, as of `Restore.run` and the platform. Disks have partial content.
        """
        names = [disk.id for disk in manifest.disks] if request.disks is None else list(dict.fromkeys(request.disks))
        records = [record_of(manifest, disk) for disk in names]
        files = {
            file.name: await self._store.read_file(manifest, file.name)
            for file in manifest.files
            if file.name != badblocks.FILE
        }
        refusals = {record.id: _refusal(manifest, record.id, platform.name) for record in records}
        since = {
            record.id: record.checkpoint
            for record in records
            if request.differential and record.checkpoint is not None and refusals[record.id] is None
        }
        result: RestoreResult | None = None
        try:
            async with platform.restore(
                None if request.new_name is not None else request.vm or manifest.vm,
                new_name=request.new_name,
                config=files.pop(CONFIG_FILE, None),
                files=files,
                disks={record.id: record.size for record in records},
                since=since if request.differential else None,
            ) as view:
                targets = self._targets(view, {record.id: record.size for record in records})
                if request.differential:
                    targets = {
                        disk: replace(target, disk=view.disks[disk] if disk in since else None, reason=refusals[disk])
                        for disk, target in targets.items()
                    }
                result = await self._write(manifest, view, targets, request, reporter)
        except Exception as error:
            if result is None:
                raise
            what = f"the platform did not clean up: {one_line(str(error) or type(error).__name__)}"
            log.warning("%s", what)
            result = replace(result, warnings=(*result.warnings, what))
        except asyncio.CancelledError:
            if result is not None:
                log.warning("VM %s is restored; the interruption came too late", printable(result.restored_vm or ""))
            raise
        assert result is not None, "the platform swallowed a failure"
        return result

    async def _write(
        self,
        manifest: Manifest,
        view: RestoreView,
        targets: Mapping[str, Target],
        request: RecoveryRequest,
        reporter: Reporter,
    ) -> RestoreResult:
        """Write the disks, and let the platform bring the VM into its final state."""
        restore = Restore(self._store, self._resources)
        work = restore.run(manifest, targets, verify_after=request.verify_after, reporter=reporter)
        with Watch(view.lost, "the disks") as watch:
            try:
                result = await watch.guard(work)
            except TargetError as error:
                await blame_loss(view.check, error)
                raise
        warnings = [printable(warning) for warning in await view.finish()]
        return replace(result, restored_vm=view.vm_id, warnings=(*result.warnings, *warnings))

    def _targets(self, view: RestoreView, sizes: Mapping[str, int]) -> dict[str, Target]:
        targets = {}
        for name, size in sizes.items():
            disk = view.disks.get(name)
            if disk is None:
                raise PlatformError(f"the platform gives no disk {name!r} to be written")
            address = disk.address
            opening = (
                export_target(self._resources.endpoints, address, size)
                if isinstance(address, ExportAddress)
                else sink_target(address, size)
            )
            targets[name] = Target(opening=opening, shares=disk.shares)
        return targets


def _refusal(manifest: Manifest, disk: str, platform: str) -> str | None:
    """Why a disk cannot be restored by what has changed since the backup, as a short code."""
    if manifest.platform != platform:
        return "platform-changed"
    return "no-checkpoint" if record_of(manifest, disk).checkpoint is None else None
