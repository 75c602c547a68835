"""`sfasync verify`: is everything there, and is it what was stored?"""

from __future__ import annotations

import click

from ...errors import IntegrityError
from ...models import VerifyResult
from ...units import format_seconds, format_size
from .. import options
from ..output import Output
from ..records import SHORT
from ..runner import perform


@click.command("verify")
@click.argument("references", metavar="[ID]...", nargs=-1)
@click.option("--data", is_flag=True, help="Read every byte and recompute every digest.")
@options.repository
@options.common
def command(output: Output, references: tuple[str, ...], data: bool, repository: str) -> int:
    """Check the backups named by ID, or the whole repository. Nothing is changed.

    Without --data it checks that everything a backup needs is in its place. Damage ends in exit code 22.
    """
    return perform(output, lambda: _verify(output, repository, references, data))


async def _verify(output: Output, location: str, references: tuple[str, ...], data: bool) -> int:
    from ...engine import Engine
    from ...store.repository import Repository
    from ..allocator import keep_freed_memory

    keep_freed_memory()

    async with await Repository.open(location) as repository, Engine(repository) as engine:
        result = await engine.verify(*references, data=data, progress=output.count_progress("verifying", "objects"))
    _report(output, result, location)
    return 0


def _report(output: Output, result: VerifyResult, location: str) -> None:
    """Tell what was found.

    Raises:
        IntegrityError: There is damage.
    """
    output.close_progress()
    for name in result.leftovers:
        output.detail(f"left over: {name}")
    for problem in result.problems:
        output.line(f"{problem.object}: {problem.problem}{_touched(problem.backups)}")
        output.event(
            "problem",
            {"object": problem.object, "problem": problem.problem, "backups": list(problem.backups)},
        )
    if result.problems:
        count = len(result.problems)
        raise IntegrityError(
            f"{location} is damaged: {count} problem{'s' if count > 1 else ''}, "
            f"first {result.problems[0].object}: {result.problems[0].problem}",
            path=result.problems[0].object,
        )
    output.remark(
        f"no problems in {result.backups} backups: {result.objects} objects, {result.blobs} blobs, "
        f"{format_size(result.bytes_read)} read in {format_seconds(result.seconds)}"
        + (f"; {len(result.leftovers)} left-overs of interrupted writers do no harm" if result.leftovers else "")
    )
    output.result(
        "verify",
        {
            "backups": result.backups,
            "objects": result.objects,
            "blobs": result.blobs,
            "bytes_read": result.bytes_read,
            "data": result.data,
            "leftovers": len(result.leftovers),
            "seconds": round(result.seconds, 3),
        },
    )


def _touched(backups: tuple[str, ...]) -> str:
    return f" (touches {', '.join(backup[:SHORT] for backup in backups)})" if backups else ""
