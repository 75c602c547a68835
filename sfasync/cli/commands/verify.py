"""`sfasync verify`: is everything there, and is it what was stored?"""

from __future__ import annotations

from collections.abc import Sequence

import click

from ...errors import IntegrityError
from ...models import Problem, VerifyResult
from ...units import format_seconds, format_size
from .. import options
from ..output import Output
from ..records import SHORT, local_time, utc_time
from ..runner import perform


@click.command("verify")
@click.argument("references", metavar="[ID]...", nargs=-1)
@click.option("--data", is_flag=True, help="Read every byte and recompute every digest.")
@click.option(
    "--older-than",
    type=options.age,
    metavar="SPAN",
    help="Read only what no verify has read for so long: 36h, 30d.",
)
@click.option(
    "--percent",
    type=options.percentage,
    metavar="P",
    help="Read this part of the bytes, what is longest unread first.",
)
@options.repository
@options.common
def command(
    output: Output,
    references: tuple[str, ...],
    data: bool,
    older_than: float | None,
    percent: float | None,
    repository: str,
) -> int:
    """Check the backups named by ID, or the whole repository.

    Without --data, --older-than or --percent it checks that everything a backup needs is in its place. What was read is
    remembered in the repository; what is damaged is put in quarantine, and the next backup that reads these bytes
    stores them again. Damage ends in exit code 22.
    """
    if data and (older_than is not None or percent is not None):
        raise click.UsageError("--data reads everything; leave it out to read a part")
    return perform(output, lambda: _verify(output, repository, references, data, older_than, percent))


async def _verify(
    output: Output,
    location: str,
    references: tuple[str, ...],
    data: bool,
    older_than: float | None,
    percent: float | None,
) -> int:
    from ...engine import Engine
    from ...store.repository import Repository
    from ..allocator import keep_freed_memory

    keep_freed_memory()

    async with await Repository.open(location) as repository, Engine(repository) as engine:
        result = await engine.verify(
            *references,
            data=data,
            older_than=older_than,
            percent=percent,
            progress=output.count_progress("verifying", "objects"),
        )
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
    for warning in result.warnings:
        output.warning(warning)
    for known in result.known:
        output.detail(f"in quarantine: {known.object}: {known.problem}")
        output.event("known", {"object": known.object, "problem": known.problem})
    tell_problems(output, result.problems, location)
    objects = f"{len(result.known)} damaged object{'' if len(result.known) == 1 else 's'}"
    output.remark(
        f"no problems in {result.backups} backups: {result.objects} objects, {result.blobs} blobs, "
        f"{format_size(result.bytes_read)} read in {format_seconds(result.seconds)}"
        + (f"; {objects} in quarantine, which nothing needs" if result.known else "")
        + (f"; {len(result.leftovers)} left-overs of interrupted writers do no harm" if result.leftovers else "")
    )
    since = "never" if result.all_read_since is None else local_time(result.all_read_since)
    output.detail(f"what is longest unread was last read: {since}")
    output.result(
        "verify",
        {
            "backups": result.backups,
            "objects": result.objects,
            "blobs": result.blobs,
            "bytes_read": result.bytes_read,
            "data": result.data,
            "leftovers": len(result.leftovers),
            "known": len(result.known),
            "quarantined": result.quarantined,
            "all_read_since": None if result.all_read_since is None else utc_time(result.all_read_since),
            "warnings": list(result.warnings),
            "seconds": round(result.seconds, 3),
        },
    )


def tell_problems(output: Output, problems: Sequence[Problem], location: str) -> None:
    """Tell what is damaged.

    Raises:
        IntegrityError: Something is.
    """
    for problem in problems:
        output.line(f"{problem.object}: {problem.problem}{_touched(problem.backups)}")
        output.event(
            "problem",
            {"object": problem.object, "problem": problem.problem, "backups": list(problem.backups)},
        )
    if problems:
        count = len(problems)
        raise IntegrityError(
            f"{location} is damaged: {count} problem{'s' if count > 1 else ''}, "
            f"first {problems[0].object}: {problems[0].problem}",
            path=problems[0].object,
        )


def _touched(backups: tuple[str, ...]) -> str:
    return f" (touches {', '.join(backup[:SHORT] for backup in backups)})" if backups else ""
