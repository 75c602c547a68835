"""`sfasync list`: the backups of the repository, or those that were stopped."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from ...units import format_seconds, format_size
from .. import options
from ..output import Output
from ..records import SHORT, backup_object, local_time, mode_of, size_of, table, utc_time
from ..runner import perform

if TYPE_CHECKING:
    from ...models import Manifest, UnfinishedBackup

_HEADING = ("ID", "VM", "TIME", "DISKS", "SIZE", "MODE", "STORED", "TAGS")
_UNFINISHED_HEADING = ("VM", "STARTED", "DISKS", "FINISHED", "LAST NOTED", "SNAPSHOT", "STATE")


@click.command("list")
@click.option("--vm", metavar="V", help="Only backups of this VM: its id, or its name.")
@click.option(
    "--since",
    type=options.instant,
    metavar="T",
    help="Only backups from this time on: 2026-01-31, 2026-01-31T18:00, or a span back from now: 36h, 7d, 2w.",
)
@click.option("--tag", metavar="T", help="Only backups with this tag.")
@click.option(
    "--unfinished",
    is_flag=True,
    help="Backups that were stopped, or still run, and what the next one of the same snapshot need not read again.",
)
@options.repository
@options.common
def command(
    output: Output, vm: str | None, since: float | None, tag: str | None, unfinished: bool, repository: str
) -> int:
    """List backups, by VM and age."""
    if unfinished and (since is not None or tag is not None):
        raise click.UsageError("--unfinished goes with --vm alone: what is not finished has no time and no tags")
    if unfinished:
        return perform(output, lambda: _list_unfinished(output, repository, vm), moves=False)
    return perform(output, lambda: _list(output, repository, vm, since, tag), moves=False)


async def _list(output: Output, location: str, vm: str | None, since: float | None, tag: str | None) -> int:
    from ...store.repository import Repository

    async with await Repository.open(location) as repository:
        backups = await repository.backups(vm, since=since, tag=tag)
    if output.json:
        for manifest in backups:
            output.event("backup", backup_object(manifest))
    elif backups:
        for line in table([_HEADING, *map(_row, backups)]):
            output.line(line)
    else:
        output.remark("no backups")
    output.result("list", {"count": len(backups)})
    return 0


async def _list_unfinished(output: Output, location: str, vm: str | None) -> int:
    from ...store.repository import Repository

    async with await Repository.open(location) as repository:
        backups = [backup for backup in await repository.unfinished() if vm in (None, backup.vm)]
    now = time.time()
    for backup in backups:
        output.event("unfinished", _unfinished_object(backup, now))
    if backups:
        for line in table([_UNFINISHED_HEADING, *(_unfinished_row(backup, now) for backup in backups)]):
            output.line(line)
    else:
        output.remark("no unfinished backups")
    output.result("list", {"count": len(backups)})
    return 0


def _row(manifest: Manifest) -> tuple[str, ...]:
    return (
        manifest.id[:SHORT],
        manifest.vm_name or manifest.vm,
        local_time(manifest.time),
        str(len(manifest.disks)),
        size_of(manifest.disks),
        mode_of(manifest.disks) + (" (suspect)" if manifest.suspect else ""),
        format_size(sum(disk.statistics.bytes_stored for disk in manifest.disks)),
        ",".join(manifest.tags),
    )


def _unfinished_object(backup: UnfinishedBackup, now: float) -> dict[str, object]:
    return {
        "vm": backup.vm,
        "snapshot": backup.snapshot,
        "disks": list(backup.disks),
        "bytes_journaled": backup.bytes_journaled,
        "started": utc_time(backup.started),
        "updated": utc_time(backup.updated),
        "age": round(max(0.0, now - backup.updated), 3),
        "running": backup.running,
    }


def _unfinished_row(backup: UnfinishedBackup, now: float) -> tuple[str, ...]:
    return (
        backup.vm,
        local_time(backup.started),
        ",".join(backup.disks),
        format_size(backup.bytes_journaled),
        f"{format_seconds(max(0.0, now - backup.updated))} ago",
        backup.snapshot,
        "running" if backup.running else "stopped",
    )
