"""`sfasync show`: one backup in full."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from ...errors import IntegrityError, printable
from ...models import DiskRecord, Manifest
from ...units import format_seconds, format_size
from .. import options
from ..output import Output
from ..records import backup_object, local_time, table
from ..runner import perform

if TYPE_CHECKING:
    from ...badblocks import BadBlocks
    from ...store.repository import Repository

_DISKS = ("DISK", "SIZE", "MODE", "READ", "SKIPPED", "ZERO", "NEW", "DUPLICATE", "STORED", "WHY")


@click.command("show")
@click.argument("reference", metavar="ID")
@options.repository
@options.common
def command(output: Output, reference: str, repository: str) -> int:
    """Show the backup ID: its id, a unique prefix of it, or VM@latest."""
    return perform(output, lambda: _show(output, repository, reference), moves=False)


async def _show(output: Output, location: str, reference: str) -> int:
    from ...badblocks import as_lists, describe
    from ...store.repository import Repository

    async with await Repository.open(location) as repository:
        manifest = await repository.find(reference)
        bad_blocks = await _bad_blocks(output, repository, manifest)
    for line in _lines(manifest):
        output.line(line)
    for disk_id, extents in (bad_blocks or {}).items():
        output.line(describe(disk_id, extents))
    output.result(
        "show",
        {
            **backup_object(manifest),
            "repository": manifest.repository,
            "platform": manifest.platform,
            "snapshot": manifest.snapshot,
            "version": manifest.version,
            "files": [{"name": file.name, "size": file.size, "digest": file.digest} for file in manifest.files],
            "bad_blocks": None if bad_blocks is None else as_lists(bad_blocks),
            "seconds": round(manifest.seconds, 3),
        },
    )
    return 0


async def _bad_blocks(output: Output, repository: Repository, manifest: Manifest) -> BadBlocks | None:
    """What the backup is missing; None, with a warning, if the list of it is damaged."""
    from ...badblocks import of_backup

    try:
        return await of_backup(repository, manifest)
    except IntegrityError as error:
        output.warning(f"the backup has bad blocks, and the list of them is damaged: {error}")
        return None


def _lines(manifest: Manifest) -> Iterator[str]:
    facts = {
        "backup": manifest.id,
        "vm": manifest.vm if manifest.vm_name in ("", manifest.vm) else f"{manifest.vm} ({manifest.vm_name})",
        "number": str(manifest.seq),
        "time": local_time(manifest.time),
        "took": format_seconds(manifest.seconds),
        "parent": manifest.parent or "none",
        "tags": ", ".join(manifest.tags) or "none",
        "note": manifest.note or "none",
        "platform": manifest.platform,
        "made by": f"sfasync {manifest.version}",
    }
    if manifest.suspect:
        disks = ", ".join(manifest.suspect)
        facts["suspect"] = f"{disks}: may lack changes that the platform did not tell of, as a later audit found"
    for name, value in facts.items():
        yield f"{name + ':':<10}{printable(value)}"
    yield ""
    yield from table([_DISKS, *map(_row, manifest.disks)])
    yield ""
    for disk in manifest.disks:
        yield f"tree digest of {printable(disk.id)}: {disk.tree}"
    for file in manifest.files:
        yield f"file {printable(file.name)}: {format_size(file.size)}"


def _row(disk: DiskRecord) -> tuple[str, ...]:
    statistics = disk.statistics
    sizes = (
        statistics.bytes_read,
        statistics.bytes_skipped,
        statistics.bytes_zero,
        statistics.bytes_new,
        statistics.bytes_duplicate,
        statistics.bytes_stored,
    )
    return disk.id, format_size(disk.size), disk.mode, *map(format_size, sizes), ", ".join(disk.reasons)
