"""`sfasync tag`: tags and a note for a backup that is there."""

from __future__ import annotations

import click

from .. import options
from ..output import Output
from ..records import SHORT
from ..runner import perform


@click.command("tag")
@click.argument("reference", metavar="ID")
@click.option("--add", metavar="T", multiple=True, help="A tag to give it; may be repeated.")
@click.option("--remove", metavar="T", multiple=True, help="A tag to take away; may be repeated.")
@click.option("--note", metavar="TEXT", help="What to say of it, in one line; empty for nothing.")
@options.repository
@options.common
def command(
    output: Output, reference: str, add: tuple[str, ...], remove: tuple[str, ...], note: str | None, repository: str
) -> int:
    """Change the tags and the note of the backup ID: its id, a unique prefix of it, or VM@latest."""
    if not (add or remove) and note is None:
        raise click.UsageError("nothing to change: give --add T, --remove T or --note TEXT")
    return perform(output, lambda: _tag(output, repository, reference, add, remove, note), moves=False)


async def _tag(
    output: Output, location: str, reference: str, add: tuple[str, ...], remove: tuple[str, ...], note: str | None
) -> int:
    from ...store.repository import Repository

    async with await Repository.open(location) as repository:
        backup = await repository.annotate(reference, add=add, remove=remove, note=note)
    output.remark(
        f"backup {backup.id[:SHORT]} of {backup.vm}: tags {', '.join(backup.tags) or 'none'}"
        + (f"; note: {backup.note}" if backup.note else "")
    )
    output.result("tag", {"id": backup.id, "vm": backup.vm, "tags": list(backup.tags), "note": backup.note})
    return 0
