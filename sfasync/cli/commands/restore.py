"""`sfasync restore`: the disks of a backup into files or onto other disks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from ...models import RestoreResult
from ...units import format_seconds, format_size
from .. import options
from ..output import Output
from ..records import SHORT, restored_object
from ..runner import perform


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """What the command line asks for."""

    repository: str
    reference: str
    directory: Path | None
    disks: tuple[str, ...]
    targets: dict[str, str]
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
@click.option("--disk", "disks", metavar="ID", multiple=True, help="With --to: only this disk; may be repeated.")
@click.option("--format", type=click.Choice(["raw", "qcow2"]), help="With --to: format of the files; else raw.")
@click.option(
    "--to-disk",
    "targets",
    type=options.assignment,
    metavar="ID=NBD-URI",
    multiple=True,
    help="Restore this disk onto an existing one; may be repeated. Only the disks named are restored.",
)
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
    force: bool,
    verify_after: bool,
    repository: str,
    engine_options: options.EngineOptions,
) -> int:
    """Restore the backup ID: its id, a unique prefix of it, or VM@latest.

    Every block is checked against its digest before it is written.
    """
    if (directory is None) == (not targets):
        raise click.UsageError("give either --to DIR or --to-disk ID=NBD-URI")
    if targets and (disks or format or force):
        raise click.UsageError("--disk, --format and --force go with --to, not with --to-disk")
    wish = _Wish(
        repository=repository,
        reference=reference,
        directory=directory,
        disks=disks,
        targets=options.distinct(targets),
        format=format or "raw",
        force=force,
        verify_after=verify_after,
        engine=engine_options,
    )
    return perform(output, lambda: _restore(output, wish))


async def _restore(output: Output, wish: _Wish) -> int:
    from ...nbd.uri import parse_uri
    from ...store.repository import Repository
    from ..allocator import keep_freed_memory

    keep_freed_memory()

    targets = {disk: parse_uri(uri) for disk, uri in wish.targets.items()}  # usage errors come before the repository's
    async with (
        await Repository.open(wish.repository) as repository,
        wish.engine.engine(repository) as engine,
    ):
        result = await engine.restore_vm(
            wish.reference,
            to=wish.directory,
            to_disks=targets or None,
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
        output.remark(
            f"restored disk {disk.id} to {disk.target}: {format_size(disk.size)}, "
            f"data {format_size(disk.bytes_written)}, zero {format_size(disk.bytes_zero)}"
            + (", read back and equal" if disk.verified else "")
        )
    output.remark(f"restored backup {result.id[:SHORT]} of {result.vm} in {format_seconds(result.seconds)}")
    output.result(
        "restore",
        {
            "id": result.id,
            "vm": result.vm,
            "disks": [restored_object(disk) for disk in result.disks],
            "seconds": round(result.seconds, 3),
            "warnings": list(result.warnings),
        },
    )
