"""`sfasync list`: the backups of the repository."""

from __future__ import annotations

import click

from ...models import Manifest
from ...units import format_size
from .. import options
from ..output import Output
from ..records import SHORT, backup_object, local_time, mode_of, size_of, table
from ..runner import perform

_HEADING = ("ID", "VM", "TIME", "DISKS", "SIZE", "MODE", "STORED", "TAGS")


@click.command("list")
@click.option("--vm", metavar="V", help="Only backups of this VM.")
@click.option(
    "--since",
    type=options.instant,
    metavar="T",
    help="Only backups from this time on: 2026-01-31, 2026-01-31T18:00, or a span back from now: 36h, 7d, 2w.",
)
@click.option("--tag", metavar="T", help="Only backups with this tag.")
@options.repository
@options.common
def command(output: Output, vm: str | None, since: float | None, tag: str | None, repository: str) -> int:
    """List backups, by VM and age."""
    return perform(output, lambda: _list(output, repository, vm, since, tag))


async def _list(output: Output, location: str, vm: str | None, since: float | None, tag: str | None) -> int:
    from ...store.repository import Repository

    async with await Repository.open(location) as repository:
        backups = await repository.backups(vm, since=since, tag=tag)
    for manifest in backups:
        output.event("backup", backup_object(manifest))
    if backups:
        for line in table([_HEADING, *map(_row, backups)]):
            output.line(line)
    else:
        output.remark("no backups")
    output.result("list", {"count": len(backups)})
    return 0


def _row(manifest: Manifest) -> tuple[str, ...]:
    return (
        manifest.id[:SHORT],
        manifest.vm,
        local_time(manifest.time),
        str(len(manifest.disks)),
        size_of(manifest.disks),
        mode_of(manifest.disks),
        format_size(sum(disk.statistics.bytes_stored for disk in manifest.disks)),
        ",".join(manifest.tags),
    )
