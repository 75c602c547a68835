"""`sfasync backup`: the disks of a VM into the repository."""

from __future__ import annotations

from dataclasses import dataclass

import click

from ...models import BackupResult, ExportAddress, check_id
from ...units import format_seconds, format_size
from .. import options
from ..failures import EXIT_LOSS
from ..output import Output
from ..records import SHORT, disk_object
from ..runner import perform


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """What the command line asks for."""

    repository: str
    vm: str
    disks: dict[str, str]
    mode: str
    tags: tuple[str, ...]
    wait: float
    bad_blocks: str
    snapshot_id: str | None
    resume: bool
    engine: options.EngineOptions


@click.command("backup")
@click.argument("vm")
@click.option(
    "--disk",
    "disks",
    type=options.assignment,
    metavar="ID=NBD-URI",
    multiple=True,
    required=True,
    help="A disk of the VM and where to read it; once for each disk.",
)
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
    help="How long to wait for another backup of the same VM to end.",
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
@options.repository
@options.transport
@options.common
def command(
    output: Output,
    vm: str,
    disks: tuple[tuple[str, str], ...],
    mode: str,
    tags: tuple[str, ...],
    wait: float,
    bad_blocks: str,
    snapshot_id: str | None,
    resume: bool,
    repository: str,
    engine_options: options.EngineOptions,
) -> int:
    """Back up disks of VM into the repository.

    Exit code 0 means that the backup is complete and durable; 3 that it is durable and lacks what could not be read.
    """
    wish = _Wish(
        repository=repository,
        vm=vm,
        disks=options.distinct(disks),
        mode=mode,
        tags=tags,
        wait=wait,
        bad_blocks=bad_blocks,
        snapshot_id=snapshot_id,
        resume=resume,
        engine=engine_options,
    )
    return perform(output, lambda: _backup(output, wish))


async def _backup(output: Output, wish: _Wish) -> int:
    from ...store.repository import Repository
    from ..allocator import keep_freed_memory

    keep_freed_memory()

    disks = _addresses(wish)  # usage errors come before the repository's
    async with (
        await Repository.open(wish.repository) as repository,
        wish.engine.engine(repository) as engine,
    ):
        result = await engine.backup_vm(
            wish.vm,
            disks,
            mode=wish.mode,
            tags=wish.tags,
            wait=wish.wait,
            bad_blocks=wish.bad_blocks,
            snapshot_id=wish.snapshot_id,
            resume=wish.resume,
            progress=output.job_progress(),
        )
    _report(output, result)
    return EXIT_LOSS if result.bad_blocks else 0


def _addresses(wish: _Wish) -> dict[str, ExportAddress]:
    """Where each disk is read.

    Raises:
        UsageError: Names that no backup can have, or URIs that are none.
    """
    from ...nbd.uri import parse_uri

    check_id("VM", wish.vm)
    for tag in wish.tags:
        check_id("tag", tag)
    for disk in wish.disks:
        check_id("disk", disk)
    if wish.snapshot_id is not None:
        check_id("snapshot", wish.snapshot_id)
    return {disk: parse_uri(uri) for disk, uri in wish.disks.items()}


def _report(output: Output, result: BackupResult) -> None:
    from ...badblocks import as_lists

    output.close_progress()
    for warning in result.warnings:
        output.warning(warning)
    resumed = f"resumed {format_size(result.bytes_resumed)}, " if result.bytes_resumed else ""
    output.remark(
        f"backup {result.id[:SHORT]} of {result.vm}: read {format_size(result.bytes_read)}, {resumed}"
        f"new {format_size(result.bytes_new)}, stored {format_size(result.bytes_stored)} "
        f"in {format_seconds(result.seconds)}"
    )
    output.result(
        "backup",
        {
            "id": result.id,
            "vm": result.vm,
            "parent": result.parent,
            "disks": [disk_object(disk) | {"bytes_resumed": result.resumed.get(disk.id, 0)} for disk in result.disks],
            "limited_by": result.limited_by,
            "bad_blocks": as_lists(result.bad_blocks),
            "seconds": round(result.seconds, 3),
            "warnings": list(result.warnings),
        },
    )
