"""`sfasync diff`: where two backups differ."""

from __future__ import annotations

from collections import defaultdict

import click

from ...errors import printable
from ...units import format_size
from .. import options
from ..output import Output
from ..runner import perform

_KINDS = ("changed", "added", "removed")


@click.command("diff")
@click.argument("first", metavar="ID1")
@click.argument("second", metavar="ID2")
@click.option("--disk", metavar="D", help="Only this disk.")
@options.repository
@options.common
def command(output: Output, first: str, second: str, disk: str | None, repository: str) -> int:
    """Show which ranges of which disks the backups ID1 and ID2 have differently.

    Nothing but digests is read, so ranges are whole chunks (1 MiB unless the repository was made otherwise). A range is
    'changed', or 'added' or 'removed' where only ID2 or only ID1 has it. Each ID is the id of a backup, a unique prefix
    of it, or VM@latest. The exit code is 0 whether they differ or not.
    """
    return perform(output, lambda: _diff(output, repository, first, second, disk), moves=False)


async def _diff(output: Output, location: str, first: str, second: str, disk: str | None) -> int:
    from ...store.repository import Repository

    counts: defaultdict[str, int] = defaultdict(int)
    totals: defaultdict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(_KINDS, 0))
    async with await Repository.open(location) as repository:
        old, new = await repository.find(first), await repository.find(second)
        async for difference in repository.diff(old, new, disk):
            output.event("difference", difference._asdict())
            output.line(
                f"{printable(difference.disk)}  {difference.kind:<7}  {difference.offset:>16}  {difference.length:>16}"
            )
            counts[difference.disk] += 1
            totals[difference.disk][difference.kind] += difference.length
    for name, total in totals.items():
        sizes = ", ".join(f"{format_size(size)} {kind}" for kind, size in total.items() if size)
        output.remark(f"disk {name}: {sizes} in {counts[name]} range{'s' if counts[name] > 1 else ''}")
    if not totals:
        output.remark("no differences")
    output.result(
        "diff",
        {
            "first": old.id,
            "second": new.id,
            "equal": not totals,
            "disks": [{"id": name, "ranges": counts[name], **total} for name, total in totals.items()],
        },
    )
    return 0
