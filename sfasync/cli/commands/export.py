"""`sfasync export`: one disk of a backup into an image file or a pipe."""

from __future__ import annotations

import click

from ...models import RestoreResult
from ...units import format_seconds, format_size
from .. import options
from ..output import Output
from ..records import SHORT, restored_object
from ..runner import perform

STANDARD = "-"


@click.command("export")
@click.argument("reference", metavar="ID")
@click.argument("target", metavar="DST")
@click.option("--disk", metavar="D", required=True, help="Id of the disk.")
@click.option(
    "--format", type=click.Choice(["raw", "qcow2"]), help="Format of the file; else as its name says, .qcow2 or raw."
)
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@options.repository
@options.limits
@options.common
def command(
    output: Output,
    reference: str,
    target: str,
    disk: str,
    format: str | None,  # noqa: A002 - click names it after the option
    force: bool,
    repository: str,
    engine_options: options.EngineOptions,
) -> int:
    """Write the disk D of the backup ID to the file DST, or to standard output if DST is -.

    Every block is checked against its digest before it is written. A file gets its name when it is complete and
    durable. ID is the id of a backup, a unique prefix of it, or VM@latest.
    """
    if target == STANDARD and output.json:
        raise click.UsageError("with DST '-' the disk goes to standard output, and --json wants to write there too")

    async def work() -> int:
        async with engine_options.opened(repository) as (engine, _):
            result = await engine.export(
                reference, disk, target, image_format=format, force=force, progress=output.job_progress()
            )
        output.close_progress()
        for warning in result.warnings:
            output.warning(warning)
        if target != STANDARD:  # where the disk went
            _report(output, result)
        return 0

    return perform(output, work)


def _report(output: Output, result: RestoreResult) -> None:
    (disk,) = result.disks
    output.remark(
        f"exported disk {disk.id} of backup {result.id[:SHORT]} to {disk.target}: {format_size(disk.size)}, data "
        f"{format_size(disk.bytes_written)}, zero {format_size(disk.bytes_zero)} in {format_seconds(result.seconds)}"
    )
    output.result(
        "export",
        {
            "id": result.id,
            "vm": result.vm,
            "disk": restored_object(disk),
            "seconds": round(result.seconds, 3),
            "warnings": list(result.warnings),
        },
    )
