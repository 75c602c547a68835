"""`sfasync backup`: the disks of a VM into the repository."""

from __future__ import annotations

from dataclasses import dataclass

import click

from ...models import BackupResult, ExportAddress, Limits
from ...units import format_seconds, format_size
from .. import options
from ..output import Output
from ..records import SHORT, disk_object
from ..runner import perform


@dataclass(frozen=True, slots=True)
class _Wish:
    """What the command line asks for."""

    repository: str
    vm: str
    disks: dict[str, str]
    mode: str
    tags: tuple[str, ...]
    wait: float
    limits: Limits


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
@options.repository
@options.limit_rate
@options.memory
@options.common
def command(
    output: Output,
    vm: str,
    disks: tuple[tuple[str, str], ...],
    mode: str,
    tags: tuple[str, ...],
    wait: float,
    repository: str,
    rate: int | None,
    memory: int,
) -> int:
    """Back up disks of VM into the repository.

    Exit code 0 means that the backup is complete and durable.
    """
    wish = _Wish(repository, vm, options.distinct(disks), mode, tags, wait, Limits(memory=memory, rate=rate))
    return perform(output, lambda: _backup(output, wish))


async def _backup(output: Output, wish: _Wish) -> int:
    from ...engine import Engine
    from ...store.repository import Repository
    from ..allocator import keep_freed_memory

    keep_freed_memory()

    disks = _addresses(wish)  # usage errors come before the repository's
    async with (
        await Repository.open(wish.repository) as repository,
        Engine(repository, limits=wish.limits) as engine,
    ):
        result = await engine.backup_vm(
            wish.vm,
            disks,
            mode=wish.mode,
            tags=wish.tags,
            wait=wish.wait,
            progress=output.job_progress(),
        )
    _report(output, result)
    return 0


def _addresses(wish: _Wish) -> dict[str, ExportAddress]:
    """Where each disk is read.

    Raises:
        UsageError: Names that no backup can have, or URIs that are none.
    """
    from ...backup import check_id
    from ...nbd.uri import parse_uri

    check_id("VM", wish.vm)
    for tag in wish.tags:
        check_id("tag", tag)
    for disk in wish.disks:
        check_id("disk", disk)
    return {disk: parse_uri(uri) for disk, uri in wish.disks.items()}


def _report(output: Output, result: BackupResult) -> None:
    output.close_progress()
    for warning in result.warnings:
        output.warning(warning)
    output.remark(
        f"backup {result.id[:SHORT]} of {result.vm}: read {format_size(result.bytes_read)}, "
        f"new {format_size(result.bytes_new)}, stored {format_size(result.bytes_stored)} "
        f"in {format_seconds(result.seconds)}"
    )
    output.result(
        "backup",
        {
            "id": result.id,
            "vm": result.vm,
            "parent": result.parent,
            "disks": [disk_object(disk) for disk in result.disks],
            "limited_by": result.limited_by,
            "seconds": round(result.seconds, 3),
            "warnings": list(result.warnings),
        },
    )
