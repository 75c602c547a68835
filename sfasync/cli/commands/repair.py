"""`sfasync repair`: give a damaged repository back what can be had from what is in it."""

from __future__ import annotations

import click

from ...errors import IntegrityError
from ...models import RepairResult
from ...units import format_seconds
from .. import options
from ..output import Output
from ..runner import perform
from .verify import tell_problems


@click.command("repair")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@options.repository
@options.common
def command(output: Output, dry_run: bool, repository: str) -> int:
    """Repair the repository as far as that can be done from what is in it.

    Indexes packs again that are in no index, replaces damaged index objects, puts what is bad in quarantine, and
    removes what killed backups left. What cannot be read is never removed. What is lost then is listed with the backups
    that it touches, and ends in exit code 22; the next backup stores again what it reads of it.
    """
    return perform(output, lambda: _repair(output, repository, dry_run))


async def _repair(output: Output, location: str, dry_run: bool) -> int:
    from ...store.repository import Repository

    async with await Repository.open(location) as repository:
        result = await repository.repair(dry_run=dry_run, progress=output.count_progress("verifying", "objects"))
    _report(output, result, location)
    return 0


def _report(output: Output, result: RepairResult, location: str) -> None:
    """Tell what was done, and what is damaged still.

    Raises:
        IntegrityError: Something is, after a repair.
    """
    output.close_progress()
    for action in result.actions:
        output.line(f"{action.action} {action.object}: {action.reason}")
        output.event("action", {"action": action.action, "object": action.object, "reason": action.reason})
    try:
        tell_problems(output, result.problems, location)
    except IntegrityError:
        if not result.dry_run:
            raise
    count = len(result.actions)
    steps = f"{count or 'no'} step{'' if count == 1 else 's'}"
    taken = "would be taken" if result.dry_run else "taken"
    output.remark(f"{steps} {taken}, in {format_seconds(result.seconds)}")
    output.result(
        "repair",
        {
            "dry_run": result.dry_run,
            "actions": count,
            "problems": len(result.problems),
            "seconds": round(result.seconds, 3),
        },
    )
