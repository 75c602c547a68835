"""`sfasync info`: what an NBD server says of its exports; in the words of nbdinfo(1), where it has them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ...errors import ExportError, SourceError, UsageError, printable
from ...models import ExportAddress
from ...units import format_size
from .. import options
from ..configuration import trusting
from ..output import Output
from ..runner import perform

if TYPE_CHECKING:
    from ...nbd.handshake import ExportInfo

_FLAGS = {
    "is_rotational": "FLAG_ROTATIONAL",
    "is_read_only": "FLAG_READ_ONLY",
    "can_cache": "FLAG_SEND_CACHE",
    "can_df": "FLAG_SEND_DF",
    "can_fast_zero": "FLAG_SEND_FAST_ZERO",
    "can_flush": "FLAG_SEND_FLUSH",
    "can_fua": "FLAG_SEND_FUA",
    "can_multi_conn": "FLAG_CAN_MULTI_CONN",
    "can_trim": "FLAG_SEND_TRIM",
    "can_zero": "FLAG_SEND_WRITE_ZEROES",
}

_ALLOCATION = "base:allocation"
_KINDS = {
    _ALLOCATION: ("data", "hole", "zero", "hole,zero"),
    "qemu:allocation-depth": ("absent", "local"),
    "qemu:dirty-bitmap:": ("clean", "dirty"),
}
"""What a type means, by context, or by the beginning of its name if that ends with a colon (nbdinfo(1), "Map")."""

_BACKING = "backing depth {}"  # of qemu:allocation-depth, from 2 on

_MOST_KINDS = 1000
"""Types that `--totals` counts, which is more than a chain of images has."""

_Range = tuple[int, int, int]  # offset, length, type


class _Command(click.Command):
    """Lets --map be given with and without a value; with one, only as ``--map=CONTEXT``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        split: list[str] = []
        for number, argument in enumerate(args):
            if argument == "--":
                split += args[number:]
                break
            name, equals, value = argument.partition("=")
            split += [name, f"--context={value}"] if name == "--map" and equals else [argument]
        return super().parse_args(ctx, split)


@click.command("info", cls=_Command)
@click.argument("uri")
@click.option(
    "-L", "--list", "list_all", is_flag=True, help="All exports that the server lists, not only the one of the URI."
)
@click.option(
    "--map",
    "show_map",
    is_flag=True,
    help=f"What each range of the export is, by {_ALLOCATION}; --map=CONTEXT for another metadata context.",
)
@click.option("--context", default=_ALLOCATION, hidden=True)
@click.option("--totals", is_flag=True, help="With --map: how much there is of each kind.")
@click.option("--size", "show_size", is_flag=True, help="The size of the export in bytes, and nothing else.")
@options.common
def command(
    output: Output, uri: str, list_all: bool, show_map: bool, context: str, totals: bool, show_size: bool
) -> int:
    """Show what the server at URI says of an export. Nothing is read from it."""
    if list_all + show_map + show_size > 1:
        raise click.UsageError("--list, --map and --size exclude each other")
    if totals and not show_map:
        raise click.UsageError("--totals needs --map")

    from ...nbd.uri import parse_uri

    address = trusting(parse_uri(uri))

    async def work() -> int:
        if list_all:
            await _list(output, address)
        elif totals:
            await _totals(output, address, context)
        elif show_map:
            await _map(output, address, context)
        elif show_size:
            await _size(output, address)
        else:
            await _show(output, address)
        return 0

    return perform(output, work)


# --- exports ---------------------------------------------------------------------------------------------------------


async def _show(output: Output, address: ExportAddress) -> None:
    fields = _fields(address, await _query(address))
    _print(output, fields)
    output.result("info", fields)


async def _list(output: Output, address: ExportAddress) -> None:
    from ...transport.inquiry import list_exports

    entries = await list_exports(address)
    for entry in entries:
        export = replace(address, export=entry.name)
        fields = _fields(export, await _query(export))
        _print(output, fields)
        output.event("export", fields)
    output.result("info", {"count": len(entries)})


async def _size(output: Output, address: ExportAddress) -> None:
    from ...transport.export import open_export

    async with await open_export(address, empty=True) as export:
        size = export.size
    output.line(str(size))
    output.result("info", {"export-size": size})


async def _query(address: ExportAddress) -> ExportInfo:
    """What the server says of an export that is opened, with all metadata contexts it could be asked for.

    Opened, because nbd-server 3.24 gives every export it is only asked about (NBD_OPT_INFO) a size of 0.
    """
    from ...transport.export import open_export
    from ...transport.inquiry import query_export

    async with await open_export(address, empty=True) as export:
        info = export.info
    with suppress(ExportError):  # an old server does not list contexts, and has none
        info = info._replace(contexts=(await query_export(address)).contexts)
    return info


def _fields(address: ExportAddress, info: ExportInfo) -> dict[str, object]:
    from ...nbd import const
    from ...nbd.uri import format_uri

    sizes = info.block_sizes
    return {
        "export-name": info.name,
        "description": info.description,
        "export-size": info.size,
        "export-size-str": format_size(info.size),
        "uri": format_uri(address),
        "TLS": address.tls is not None,
        "structured": info.structured,
        "contexts": sorted(info.contexts),
        **{name: bool(info.flags & getattr(const, flag)) for name, flag in _FLAGS.items()},
        "block_size_minimum": sizes and sizes.minimum,
        "block_size_preferred": sizes and sizes.preferred,
        "block_size_maximum": sizes and sizes.maximum,
    }


def _print(output: Output, fields: dict[str, object]) -> None:
    for line in _lines(dict(fields)):
        output.line(line)


def _lines(fields: dict[str, object]) -> Iterator[str]:
    """The fields as nbdinfo has them: a line for the export, and one for each fact below it."""
    yield f'export="{printable(str(fields.pop("export-name")))}":'
    yield f"    export-size: {fields.pop('export-size')} ({fields.pop('export-size-str')})"
    for name, value in fields.items():
        if isinstance(value, list):
            yield f"    {name}:"
            yield from (f"        {printable(item)}" for item in value)
        elif isinstance(value, bool):
            yield f"    {name}: {'true' if value else 'false'}"
        elif value not in (None, ""):
            yield f"    {name}: {printable(str(value))}"


# --- maps ------------------------------------------------------------------------------------------------------------


async def _map(output: Output, address: ExportAddress, context: str) -> None:
    count = 0
    async with aclosing(_ranges(address, context)) as ranges:
        async for offset, length, kind in ranges:
            count += 1
            output.line(f"{offset:>14}  {length:>14}  {kind:>3}  {_meaning(context, kind)}".rstrip())
            fields: dict[str, object] = {"offset": offset, "length": length, **_kind_fields(context, kind)}
            if context == _ALLOCATION:
                fields |= {"hole": bool(kind & 1), "zero": bool(kind & 2)}
            output.event("extent", fields)
    output.result("info", {"count": count})


async def _totals(output: Output, address: ExportAddress, context: str) -> None:
    sums: dict[int, int] = {}
    async with aclosing(_ranges(address, context)) as ranges:
        async for _, length, kind in ranges:
            if kind not in sums and len(sums) == _MOST_KINDS:
                raise SourceError(f"metadata context {printable(context)} has more than {_MOST_KINDS} types to add up")
            sums[kind] = sums.get(kind, 0) + length
    whole = sum(sums.values())
    for kind, size in sorted(sums.items()):
        percent = 100 * size / whole
        output.line(f"{size:>14}  {percent:5.1f}%  {kind:>3}  {_meaning(context, kind)}".rstrip())
        output.event("total", {"size": size, "percent": round(percent, 4), **_kind_fields(context, kind)})
    output.result("info", {"count": len(sums)})


async def _ranges(address: ExportAddress, context: str) -> AsyncGenerator[_Range, None]:
    """What the server says of the export, neighbours of one type as one range.

    Raises:
        UsageError: It does not have the metadata context.
    """
    from ...transport.export import open_export

    async with await open_export(address, contexts=(context,), empty=True) as export:
        if context in export.contexts:
            async with aclosing(_joined(export.block_status(context, 0, export.size))) as joined:
                async for found in joined:
                    yield found
        elif context == _ALLOCATION:  # nothing known is data (proto.md, "Metadata querying")
            if export.size:
                yield 0, export.size, 0
        else:
            known = ", ".join(map(printable, sorted((await _query(address)).contexts))) or "none"
            raise UsageError(f"the server does not have the metadata context {printable(context)}; it has {known}")


async def _joined(ranges: AsyncGenerator[_Range, None]) -> AsyncGenerator[_Range, None]:
    """Neighbours that say the same as one range: servers cut their answers where they like."""
    last: _Range | None = None
    async for offset, length, kind in ranges:
        if last is not None and kind == last[2]:
            last = last[0], last[1] + length, kind
            continue
        if last is not None:
            yield last
        last = offset, length, kind
    if last is not None:
        yield last


def _kind_fields(context: str, kind: int) -> dict[str, object]:
    meaning = _meaning(context, kind)
    return {"type": kind, "description": meaning} if meaning else {"type": kind}


def _meaning(context: str, kind: int) -> str:
    """A type in words, as nbdinfo has them; empty where none are known."""
    words = next((words for name, words in _KINDS.items() if context == name or _begins(context, name)), ())
    if kind < len(words):
        return words[kind]
    return _BACKING.format(kind) if context == "qemu:allocation-depth" else ""


def _begins(context: str, name: str) -> bool:
    return name.endswith(":") and context.startswith(name)
