"""`sfasync cleanup`: what killed runs have left on platforms is removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ...errors import PlatformError
from ...models import Leftover
from .. import options
from ..output import Output
from ..platforms import PlatformChoice
from ..runner import perform

if TYPE_CHECKING:
    from ...interfaces import Platform


@click.command("cleanup")
@options.platforms
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@options.common
def command(output: Output, platforms: PlatformChoice, dry_run: bool) -> int:
    """Remove what killed runs left on the platform P, or on all platforms of the configuration file.

    Removes snapshots, leases, exports and the like that runs of this user made and could not remove, and nothing else;
    what runs that are alive have made stays. Ends with 20 if something could not be removed.
    """
    return perform(output, lambda: _clean(output, platforms, dry_run), moves=False)


async def _clean(output: Output, platforms: PlatformChoice, dry_run: bool) -> int:
    found: list[Leftover] = []

    async def clean(name: str, platform: Platform) -> None:
        for leftover in await platform.cleanup(dry_run=dry_run):
            found.append(leftover)
            _report(output, name, leftover, dry_run)

    await platforms.each(output, clean)
    left = [leftover for leftover in found if not leftover.removed]
    if left and not dry_run:
        what = f"first {left[0].kind} {left[0].id}: {left[0].problem}"
        raise PlatformError(f"{len(left)} of {len(found)} left-overs could not be removed, {what}")
    if not found:
        output.remark("nothing is left over")
    output.result("cleanup", {"count": len(found), "dry_run": dry_run})
    return 0


def _report(output: Output, platform: str, leftover: Leftover, dry_run: bool) -> None:
    what = f"{leftover.kind} {leftover.id}" + (f" of {leftover.vm}" if leftover.vm else "")
    if leftover.removed:
        output.line(f"removed {what}")
    elif dry_run:
        output.line(f"would remove {what}")
    else:
        output.line(f"could not remove {what}: {leftover.problem}")
    output.event(
        "leftover",
        {
            "platform": platform,
            "kind": leftover.kind,
            "id": leftover.id,
            "vm": leftover.vm,
            "removed": leftover.removed,
            "problem": leftover.problem,
        },
    )
