"""`sfasync info`: what an NBD server says of its exports."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ...errors import ExportError, printable
from ...models import ExportAddress, Extent
from ...units import format_size
from .. import options
from ..output import Output
from ..runner import perform

if TYPE_CHECKING:
    from ...nbd.handshake import ExportInfo

_FLAGS = {
    "read_only": "FLAG_READ_ONLY",
    "can_flush": "FLAG_SEND_FLUSH",
    "can_fua": "FLAG_SEND_FUA",
    "can_trim": "FLAG_SEND_TRIM",
    "can_zero": "FLAG_SEND_WRITE_ZEROES",
    "can_fast_zero": "FLAG_SEND_FAST_ZERO",
    "can_cache": "FLAG_SEND_CACHE",
    "can_multi_conn": "FLAG_CAN_MULTI_CONN",
}


@click.command("info")
@click.argument("uri")
@click.option(
    "--list", "list_all", is_flag=True, help="All exports that the server lists, not only the one of the URI."
)
@click.option("--map", "show_map", is_flag=True, help="Which ranges of the export are data, holes or zeros.")
@options.common
def command(output: Output, uri: str, list_all: bool, show_map: bool) -> int:
    """Show what the server at URI says of an export. Nothing is read from it."""
    if list_all and show_map:
        raise click.UsageError("--list and --map exclude each other")
    ask = _list if list_all else _map if show_map else _show

    async def work() -> int:
        from ...nbd.uri import parse_uri

        await ask(output, parse_uri(uri))
        return 0

    return perform(output, work)


async def _show(output: Output, address: ExportAddress) -> None:
    info = await _query(address)
    _print(output, address, info)
    output.result("info", _fields(address, info))


async def _list(output: Output, address: ExportAddress) -> None:
    from ...transport.export import list_exports

    entries = await list_exports(address)
    for entry in entries:
        export = replace(address, export=entry.name)
        info = await _query(export)
        _print(output, export, info)
        output.event("export", _fields(export, info))
    output.result("info", {"count": len(entries)})


async def _map(output: Output, address: ExportAddress) -> None:
    from ...transport.export import open_export

    count = 0
    async with await open_export(address) as export:
        async for extent in _joined(export.extents()):
            count += 1
            output.line(f"{extent.offset:>14}  {extent.length:>14}  {_kind(extent)}")
            output.event(
                "extent",
                {"offset": extent.offset, "length": extent.length, "hole": extent.hole, "zero": extent.zero},
            )
    output.result("info", {"count": count})


async def _joined(extents: AsyncIterator[Extent]) -> AsyncIterator[Extent]:
    """Neighbours that say the same as one extent: servers cut their answers where they like."""
    last: Extent | None = None
    async for extent in extents:
        if last is not None and (extent.zero, extent.hole) == (last.zero, last.hole):
            last = last._replace(length=last.length + extent.length)
            continue
        if last is not None:
            yield last
        last = extent
    if last is not None:
        yield last


async def _query(address: ExportAddress) -> ExportInfo:
    """What the server says of an export that is opened, with all metadata contexts it could be asked for.

    Opened, because nbd-server 3.24 gives every export it is only asked about (NBD_OPT_INFO) a size of 0.
    """
    from ...transport.export import open_export, query_export

    async with await open_export(address) as export:
        info = export.info
    with suppress(ExportError):  # an old server does not list contexts, and has none
        info = replace(info, contexts=(await query_export(address)).contexts)
    return info


def _fields(address: ExportAddress, info: ExportInfo) -> dict[str, object]:
    from ...nbd import const
    from ...nbd.uri import format_uri

    sizes = info.block_sizes
    return {
        "export": info.name,
        "uri": format_uri(address),
        "description": info.description,
        "size": info.size,
        "tls": address.tls is not None,
        "structured_replies": info.structured,
        **{name: bool(info.flags & getattr(const, flag)) for name, flag in _FLAGS.items()},
        "minimum_block": sizes and sizes.minimum,
        "preferred_block": sizes and sizes.preferred,
        "maximum_block": sizes and sizes.maximum,
        "contexts": sorted(info.contexts),
    }


def _print(output: Output, address: ExportAddress, info: ExportInfo) -> None:
    for line in _lines(_fields(address, info)):
        output.line(line)


def _lines(fields: dict[str, object]) -> Iterator[str]:
    """The fields as nbdinfo has them: a line for the export, and one for each fact below it."""
    yield f'export="{printable(str(fields.pop("export")))}":'
    for name, value in fields.items():
        if isinstance(value, list):
            yield f"    {name}:"
            yield from (f"        {printable(item)}" for item in value)
        elif isinstance(value, bool):
            yield f"    {name}: {'yes' if value else 'no'}"
        elif name == "size":
            assert isinstance(value, int)
            yield f"    size: {value} ({format_size(value)})"
        elif value not in (None, ""):
            yield f"    {name}: {printable(str(value))}"


def _kind(extent: Extent) -> str:
    return (
        "data"
        if not extent.hole and not extent.zero
        else ",".join(word for word, applies in (("hole", extent.hole), ("zero", extent.zero)) if applies)
    )
