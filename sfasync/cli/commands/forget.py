"""`sfasync forget`: backups that are not wanted any more."""

from __future__ import annotations

import click

from .. import options
from ..output import Output
from ..records import SHORT, backup_object, local_time
from ..runner import perform


@click.command("forget")
@click.argument("references", metavar="ID...", nargs=-1, required=True)
@click.option("--reason", metavar="TEXT", default="", help="Why, in one line; kept on record.")
@click.option("--dry-run", is_flag=True, help="Only say which backups would be forgotten.")
@options.repository
@options.common
def command(output: Output, references: tuple[str, ...], reason: str, dry_run: bool, repository: str) -> int:
    """Forget the backups ID: their ids, unique prefixes of them, or VM@latest. They cannot be restored any more.

    All are looked up before the first is forgotten. The space that they alone used is not given back yet; that takes
    a prune, which this version does not have.
    """
    return perform(output, lambda: _forget(output, repository, references, reason, dry_run), moves=False)


async def _forget(output: Output, location: str, references: tuple[str, ...], reason: str, dry_run: bool) -> int:
    from ...store.repository import Repository

    async with await Repository.open(location) as repository:
        backups = await repository.forget(*references, reason=reason, dry_run=dry_run)
    for backup in backups:
        output.event("backup", backup_object(backup))
        output.line(
            f"{'would forget' if dry_run else 'forgot'} backup {backup.id[:SHORT]} of {backup.vm}"
            f" from {local_time(backup.time)}"
        )
    if not dry_run:
        output.remark("their space comes back with the next prune")
    output.result("forget", {"count": len(backups), "dry_run": dry_run})
    return 0
