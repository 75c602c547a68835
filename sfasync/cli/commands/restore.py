"""`sfasync restore`: the disks of a backup into files, onto other disks, or back to a VM of a platform."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from ...models import ExportAddress, RestoreResult, TransportMode
from ...units import format_seconds, format_size
from .. import options
from ..output import Output
from ..platforms import PlatformChoice
from ..records import SHORT, restored_object
from ..runner import perform


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """What the command line asks for.

    Attributes:
        directory: Where image files go; None to restore to `targets` or to the platform.
        disks: The disks wanted; none for all.
        targets: Where each disk is written.
        platform: Whose VM gets its disks back.
        vm: That VM; None for the one that was backed up.
        new_name: The name of a new VM that gets the disks instead.
        differential: Write only what is not as in the backup any more.
    """

    repository: str
    reference: str
    directory: Path | None
    disks: tuple[str, ...]
    targets: Mapping[str, ExportAddress]
    platform: PlatformChoice | None
    transport: TransportMode | None
    vm: str | None
    new_name: str | None
    differential: bool
    format: str
    force: bool
    verify_after: bool
    engine: options.EngineOptions


@click.command("restore")
@click.argument("reference", metavar="ID")
@click.option(
    "--to",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Restore to image files in DIR, which is made if needed.",
)
@click.option(
    "--disk", "disks", metavar="ID", multiple=True, help="With --to or --platform: only this disk; may be repeated."
)
@click.option("--format", type=click.Choice(["raw", "qcow2"]), help="With --to: format of the files; else raw.")
@click.option(
    "--to-disk",
    "targets",
    type=options.assignment,
    metavar="ID=NBD-URI",
    multiple=True,
    help="Restore this disk onto an existing one; may be repeated. Only the disks named are restored.",
)
@options.platform
@click.option(
    "--vm", metavar="VM", help="With --platform: the VM that gets the disks; the one backed up, if not given."
)
@click.option("--new-name", metavar="NAME", help="With --platform: make a new VM of this name.")
@click.option(
    "--differential",
    is_flag=True,
    help="With --platform: write only what has changed on the VM since the backup, where the platform knows that.",
)
@options.transport_mode
@click.option("--force", is_flag=True, help="With --to: replace files that exist.")
@click.option("--verify-after", is_flag=True, help="Read everything back and compare.")
@options.repository
@options.transport
@options.common
def command(
    output: Output,
    reference: str,
    directory: Path | None,
    disks: tuple[str, ...],
    format: str | None,  # noqa: A002 - click names it after the option
    targets: tuple[tuple[str, str], ...],
    platform: PlatformChoice | None,
    vm: str | None,
    new_name: str | None,
    differential: bool,
    transport: TransportMode | None,
    force: bool,
    verify_after: bool,
    repository: str,
    engine_options: options.EngineOptions,
) -> int:
    """Restore the backup ID: its id, a unique prefix of it, or VM@latest.

    Every block is checked against its digest before it is written. A VM of a platform has to be switched off.
    """
    if (directory is not None) + bool(targets) + (platform is not None) != 1:
        raise click.UsageError("give one of --to DIR, --to-disk ID=NBD-URI and --platform P")
    if directory is None and (format or force):
        raise click.UsageError("--format and --force go with --to")
    if targets and disks:
        raise click.UsageError("--to-disk restores the disks that it names; --disk goes with --to or --platform")
    if platform is None and (vm is not None or new_name is not None or differential or transport is not None):
        raise click.UsageError("--vm, --new-name, --differential and --transport need --platform")
    if new_name is not None and (vm is not None or differential):
        raise click.UsageError("--new-name makes a VM; --vm and --differential are for one that is there")
    wish = _Wish(
        repository=repository,
        reference=reference,
        directory=directory,
        disks=disks,
        targets=options.addresses(targets),
        platform=platform,
        transport=transport,
        vm=vm,
        new_name=new_name,
        differential=differential,
        format=format or "raw",
        force=force,
        verify_after=verify_after,
        engine=engine_options,
    )
    return perform(output, lambda: _restore(output, wish))


async def _restore(output: Output, wish: _Wish) -> int:
    async with wish.engine.opened(wish.repository, wish.platform, wish.transport) as (engine, platform):
        result = await engine.restore_vm(
            wish.reference,
            to=wish.directory,
            to_disks=wish.targets or None,
            platform=platform,
            vm=wish.vm,
            new_name=wish.new_name,
            differential=wish.differential,
            disks=wish.disks or None,
            image_format=wish.format,
            force=wish.force,
            verify_after=wish.verify_after,
            progress=output.job_progress(),
        )
    _report(output, result)
    return 0


def _report(output: Output, result: RestoreResult) -> None:
    output.close_progress()
    for warning in result.warnings:
        output.warning(warning)
    for disk in result.disks:
        unchanged = f", unchanged {format_size(disk.bytes_skipped)}" if disk.mode == "differential" else ""
        output.remark(
            f"restored disk {disk.id} to {disk.target}: {format_size(disk.size)}, "
            f"data {format_size(disk.bytes_written)}, zero {format_size(disk.bytes_zero)}{unchanged}"
            + (f", written as a whole ({disk.reason})" if disk.reason else "")
            + (", read back and equal" if disk.verified else "")
        )
    place = "" if result.restored_vm in (None, result.vm) else f" to VM {result.restored_vm}"
    output.remark(f"restored backup {result.id[:SHORT]} of {result.vm}{place} in {format_seconds(result.seconds)}")
    output.result(
        "restore",
        {
            "id": result.id,
            "vm": result.vm,
            "restored_vm": result.restored_vm,
            "disks": [restored_object(disk) for disk in result.disks],
            "seconds": round(result.seconds, 3),
            "warnings": list(result.warnings),
        },
    )
