"""`sfasync backup`: the disks of VMs into the repository."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import click

from ...audit import parse_sample
from ...models import check_id
from ...units import format_seconds, format_size
from .. import options
from ..failures import EXIT_LOSS, describe
from ..output import Output
from ..platforms import PlatformChoice
from ..records import SHORT, disk_object
from ..runner import perform
from ..several import each_vm, matching

if TYPE_CHECKING:
    from ...engine import Engine
    from ...interfaces import Platform
    from ...models import BackupEstimate, BackupResult, ExportAddress, TransportMode, VirtualMachine
    from ...progress import ProgressCallback


class _Wish(NamedTuple):
    """What the command line asks for.

    Attributes:
        vm: The VM; None for those of the platform that match.
        match: Patterns of names; none for all.
        disks: Without a platform, where each disk is read; with one, the ids wanted, none for all.
        platform: Where the VMs are; None where the disks have addresses.
    """

    repository: str
    vm: str | None
    match: tuple[str, ...]
    disks: Mapping[str, ExportAddress] | Sequence[str] | None
    platform: PlatformChoice | None
    transport: TransportMode | None
    mode: str
    tags: tuple[str, ...]
    wait: float
    bad_blocks: str
    snapshot_id: str | None
    resume: bool
    audit: str
    dry_run: bool
    engine: options.EngineOptions


@click.command("backup")
@click.argument("vm", required=False)
@click.option(
    "--disk",
    "disks",
    metavar="ID=NBD-URI",
    multiple=True,
    help="A disk of the VM and where to read it; once for each disk. With --platform, just its ID; none for all.",
)
@options.platform
@click.option("--all", "every", is_flag=True, help="With --platform: all its VMs, several at once.")
@click.option(
    "--match",
    metavar="PATTERN",
    multiple=True,
    help="With --platform: all VMs whose names match, as 'web-*'; may be repeated.",
)
@options.transport_mode
@click.option(
    "--mode",
    type=click.Choice(["auto", "full", "incremental"]),
    default="auto",
    show_default=True,
    help="incremental fails where changes are not known; auto then makes a full backup.",
)
@click.option("--tag", "tags", metavar="T", multiple=True, help="A word to find the backup by; may be repeated.")
@click.option(
    "--wait",
    type=options.seconds,
    metavar="SECONDS",
    default="0",
    help="How long to wait while another backup, or the platform, is busy with the same VM.",
)
@click.option(
    "--bad-blocks",
    type=click.Choice(["fail", "zero"]),
    default="fail",
    show_default=True,
    help="zero backs up blocks that cannot be read as zeros, lists them, and exits with 3.",
)
@click.option(
    "--snapshot-id",
    metavar="TEXT",
    help="A name for the frozen state that the disks are in: a backup of the same state goes on where one was stopped.",
)
@click.option(
    "--no-resume",
    "resume",
    flag_value=False,
    default=True,
    help="Read everything again, and forget what a backup of VM that was stopped had finished.",
)
@click.option(
    "--audit",
    metavar="N|P%|off",
    default="16",
    show_default=True,
    help="How many chunks of a disk to read again although they are called unchanged, or what share of them.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Only tell how much would be read; a platform makes its snapshots for that, and removes them.",
)
@options.repository
@options.transport
@options.common
def command(
    output: Output,
    vm: str | None,
    disks: tuple[str, ...],
    platform: PlatformChoice | None,
    every: bool,
    match: tuple[str, ...],
    transport: TransportMode | None,
    mode: str,
    tags: tuple[str, ...],
    wait: float,
    bad_blocks: str,
    snapshot_id: str | None,
    resume: bool,
    audit: str,
    dry_run: bool,
    repository: str,
    engine_options: options.EngineOptions,
) -> int:
    """Back up VM into the repository: disks that --disk names, or a VM of a platform by its name or id.

    Exit code 0 means that the backup is complete and durable; 3 that it is durable and lacks what could not be read. Of
    several VMs each is backed up whatever becomes of the others; the exit code is that of the first failure.
    """
    if (vm is not None) + every + bool(match) != 1:
        raise click.UsageError("give a VM, or --all or --match")
    if platform is None:
        if vm is None or transport is not None:
            raise click.UsageError("--all, --match and --transport need --platform")
        if not disks:
            raise click.UsageError("give each disk as --disk ID=NBD-URI, or name a --platform that knows them")
    elif snapshot_id is not None:
        raise click.UsageError(
            "--snapshot-id names the state of disks that have addresses; a platform has its own names"
        )
    elif vm is None and disks:
        raise click.UsageError("--disk chooses disks of one VM")
    wish = _Wish(
        repository=repository,
        vm=vm,
        match=match,
        disks=options.addresses(map(options.assignment, disks)) if platform is None else _ids(disks),
        platform=platform,
        transport=transport,
        mode=mode,
        tags=tags,
        wait=wait,
        bad_blocks=bad_blocks,
        snapshot_id=snapshot_id,
        resume=resume,
        audit=audit,
        dry_run=dry_run,
        engine=engine_options,
    )
    for what, texts in (("VM", [vm]), ("tag", tags), ("disk", wish.disks or ()), ("snapshot", [snapshot_id])):
        for text in texts:
            if text is not None:
                check_id(what, text)
    parse_sample(audit)
    return perform(output, lambda: _backup(output, wish))


def _ids(disks: Sequence[str]) -> Sequence[str] | None:
    """The disks of a platform's VM that are wanted; None for all."""
    for disk in disks:
        if "=" in disk:
            raise click.UsageError("with --platform a disk is named by its id alone; the platform knows its address")
    return list(dict.fromkeys(disks)) or None


# --- doing it --------------------------------------------------------------------------------------------------------


async def _backup(output: Output, wish: _Wish) -> int:
    async with wish.engine.opened(wish.repository, wish.platform, wish.transport) as (engine, platform):
        if wish.vm is None:
            assert platform is not None, "VMs are chosen from those of a platform"
            vms = matching(await platform.vms(), wish.match)
            if not vms:
                raise click.UsageError("no VM of the platform matches" if wish.match else "the platform has no VMs")
            several = _estimate_several if wish.dry_run else _back_up_several
            return await several(output, wish, engine, platform, vms)
        if wish.dry_run:
            estimate = await _estimate(wish, engine, platform, wish.vm)
            _report_estimate(output, wish.vm, estimate)
            output.result("backup", {"dry_run": True, **_estimate_object(estimate)})
            return 0
        result = await _back_up(wish, engine, platform, wish.vm, output.job_progress())
    output.close_progress()
    _report(output, wish.vm, result)
    output.result("backup", _object(result))
    return EXIT_LOSS if result.bad_blocks else 0


async def _back_up(
    wish: _Wish, engine: Engine, platform: Platform | None, vm: str, progress: ProgressCallback | None
) -> BackupResult:
    return await engine.backup_vm(
        vm,
        wish.disks,
        platform=platform,
        mode=wish.mode,
        tags=wish.tags,
        wait=wish.wait,
        bad_blocks=wish.bad_blocks,
        snapshot_id=wish.snapshot_id,
        resume=wish.resume,
        audit=wish.audit,
        progress=progress,
    )


async def _back_up_several(
    output: Output, wish: _Wish, engine: Engine, platform: Platform, vms: Sequence[VirtualMachine]
) -> int:
    lossy: list[VirtualMachine] = []

    def done(vm: VirtualMachine, result: BackupResult) -> None:
        _report(output, vm.name, result)
        output.event("vm-backup", {"ok": True, "vm_name": vm.name, **_object(result)})
        if result.bad_blocks:
            lossy.append(vm)

    await each_vm(
        output,
        vms,
        lambda vm, progress: _back_up(wish, engine, platform, vm.id, progress),
        done=done,
        failed=partial(_failed, output, "vm-backup"),
        disks=wish.engine.limits.disks,
    )
    output.close_progress()
    output.remark(f"backed up {len(vms)} VM{'s' if len(vms) > 1 else ''}")
    output.result("backup", {"count": len(vms)})
    return EXIT_LOSS if lossy else 0


async def _estimate(wish: _Wish, engine: Engine, platform: Platform | None, vm: str) -> BackupEstimate:
    return await engine.estimate_backup(vm, wish.disks, platform=platform, mode=wish.mode, audit=wish.audit)


async def _estimate_several(
    output: Output, wish: _Wish, engine: Engine, platform: Platform, vms: Sequence[VirtualMachine]
) -> int:
    def done(vm: VirtualMachine, estimate: BackupEstimate) -> None:
        _report_estimate(output, vm.name, estimate)
        output.event("vm-estimate", {"ok": True, **_estimate_object(estimate)})

    await each_vm(
        output,
        vms,
        lambda vm, _: _estimate(wish, engine, platform, vm.id),
        done=done,
        failed=partial(_failed, output, "vm-estimate"),
        disks=wish.engine.limits.disks,
    )
    output.close_progress()
    output.result("backup", {"dry_run": True, "count": len(vms)})
    return 0


# --- telling of it ---------------------------------------------------------------------------------------------------


def _failed(output: Output, event: str, vm: VirtualMachine, error: Exception) -> None:
    """Tell what befell one of several VMs."""
    failure = describe(error)
    output.note(f"{vm.name}: {failure.message}")
    fields = {"code": failure.code, "exit": failure.exit, "message": failure.message}
    output.event(event, {"ok": False, "vm": vm.id, "vm_name": vm.name, **fields})


def _report_estimate(output: Output, name: str, estimate: BackupEstimate) -> None:
    size = sum(disk.size for disk in estimate.disks)
    output.line(f"a backup of {name} would read {format_size(estimate.bytes_to_read)} of {format_size(size)}")
    for disk in estimate.disks:
        why = f" ({', '.join(disk.reasons)})" if disk.reasons else ""
        output.line(
            f"  disk {disk.id}: {disk.mode}{why}, read {format_size(disk.bytes_to_read)}, "
            f"zero {format_size(disk.bytes_zero)}, unchanged {format_size(disk.bytes_unchanged)}"
        )


def _estimate_object(estimate: BackupEstimate) -> dict[str, object]:
    return {
        "vm": estimate.vm,
        "vm_name": estimate.vm_name,
        "parent": estimate.parent,
        "disks": [
            {
                "id": disk.id,
                "size": disk.size,
                "mode": disk.mode,
                "reasons": list(disk.reasons),
                "bytes_to_read": disk.bytes_to_read,
                "bytes_zero": disk.bytes_zero,
                "bytes_unchanged": disk.bytes_unchanged,
            }
            for disk in estimate.disks
        ],
        "seconds": round(estimate.seconds, 3),
    }


def _report(output: Output, name: str, result: BackupResult) -> None:
    """What people get to see of a backup."""
    for warning in result.warnings:
        output.warning(warning)
    resumed = f"resumed {format_size(result.bytes_resumed)}, " if result.bytes_resumed else ""
    output.remark(
        f"backup {result.id[:SHORT]} of {name}: read {format_size(result.bytes_read)}, {resumed}"
        f"new {format_size(result.bytes_new)}, stored {format_size(result.bytes_stored)} "
        f"in {format_seconds(result.seconds)}"
    )


def _object(result: BackupResult) -> dict[str, object]:
    from ...badblocks import as_lists

    return {
        "id": result.id,
        "vm": result.vm,
        "parent": result.parent,
        "disks": [disk_object(disk) | {"bytes_resumed": result.resumed.get(disk.id, 0)} for disk in result.disks],
        "limited_by": result.limited_by,
        "bad_blocks": as_lists(result.bad_blocks),
        "untold": as_lists({disk: (extent,) for disk, extent in result.untold.items()}),
        "seconds": round(result.seconds, 3),
        "warnings": list(result.warnings),
    }
