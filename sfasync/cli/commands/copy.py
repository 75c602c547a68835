"""`sfasync copy`: one disk to another place, without a repository."""

from __future__ import annotations

import click

from ...models import CopyResult
from ...units import format_rate, format_seconds, format_size
from .. import options
from ..output import Output
from ..runner import perform

STANDARD = "-"


@click.command("copy")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.option("--no-extents", is_flag=True, help="Do not ask the source what is zero; read everything.")
@click.option(
    "--flush/--no-flush",
    default=True,
    show_default=True,
    help="Make the target durable before the copy counts as done.",
)
@click.option("-C", "--connections", type=click.IntRange(1, 16), metavar="N", help="Connections to each side, 1 to 16.")
@click.option(
    "-R",
    "--requests",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Requests in flight on each, 1 to 256; without it, as many as pay.",
)
@click.option(
    "--request-size",
    type=options.size,
    metavar="SIZE",
    help="Bytes of a request, a power of two; without it, what pays.",
)
@click.option(
    "-S",
    "--sparse",
    type=options.size_or_zero,
    metavar="SIZE",
    default="64K",
    show_default=True,
    help="Make holes of blocks of zeros of this size, a power of two; 0 to write them.",
)
@click.option(
    "--destination-is-zero",
    "--target-is-zero",
    "destination_is_zero",
    is_flag=True,
    help="DST reads as zeros already: write no zeros.",
)
@click.option("--synchronous", is_flag=True, help="One request at a time.")
@options.transport
@options.common
def command(
    output: Output,
    source: str,
    target: str,
    no_extents: bool,
    flush: bool,
    connections: int | None,
    requests: int | None,
    request_size: int | None,
    sparse: int,
    destination_is_zero: bool,
    synchronous: bool,
    engine_options: options.EngineOptions,
) -> int:
    """Copy the disk SRC to DST: each an NBD URI, a file, a block device, or - for standard input or output.

    DST may also be null:, which only reads. A file is created or overwritten. Exit code 0 means that the copy is
    durable, unless --no-flush was given or DST is a pipe.
    """
    if target == STANDARD and output.json:
        raise click.UsageError("with DST '-' the disk goes to standard output, and --json wants to write there too")

    async def work() -> int:
        async with engine_options.engine() as engine:
            result = await engine.copy(
                source,
                target,
                extents=not no_extents,
                flush=flush,
                connections=connections,
                requests=requests,
                request_size=request_size,
                sparse=sparse,
                destination_is_zero=destination_is_zero,
                synchronous=synchronous,
                progress=output.job_progress(),
            )
        output.close_progress()
        if target != STANDARD:  # where the disk went
            _report(output, result, flush)
        return 0

    return perform(output, work)


def _report(output: Output, result: CopyResult, flush: bool) -> None:
    if flush and not result.durable:
        output.warning("the target does not offer to make bytes durable; its server decides when they are")
    output.remark(
        f"copied {format_size(result.size)}: read {format_size(result.bytes_read)}, "
        f"zero {format_size(result.bytes_zero)} in {format_seconds(result.seconds)} "
        f"({format_rate(result.size / result.seconds) if result.seconds else 'at once'})"
    )
    output.result(
        "copy",
        {
            "size": result.size,
            "bytes_read": result.bytes_read,
            "bytes_zero": result.bytes_zero,
            "durable": result.durable,
            "requests": result.requests,
            "request_size": result.request_size,
            "limited_by": result.limited_by,
            "seconds": round(result.seconds, 3),
        },
    )
