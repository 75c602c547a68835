"""Questions to a server that need no export to be open."""

from __future__ import annotations

from typing import TypeVar

from ..errors import printable
from ..models import ExportAddress, Timeouts
from ..nbd.handshake import ExportEntry, ExportInfo, Handshake, listing, querying
from ..nbd.uri import parse_uri
from ..trust import client_context
from .negotiation import negotiate

_T = TypeVar("_T")


async def list_exports(address: ExportAddress | str, *, timeouts: Timeouts | None = None) -> list[ExportEntry]:
    """The exports that a server lists; the export that the address names plays no part.

    Raises:
        ExportError: The server does not list its exports.
        NbdError, TlsError, UsageError: As `open_export`.
    """
    address = parse_uri(address) if isinstance(address, str) else address
    handshake = listing(printable(address.peer), tls=address.tls_style)
    return await _ask(address, handshake, timeouts or Timeouts())


async def query_export(
    address: ExportAddress | str, name: str | None = None, *, timeouts: Timeouts | None = None
) -> ExportInfo:
    """What a server says of an export and the metadata contexts it has, without opening it.

    Args:
        address: The server, and the export.
        name: Another export of that server.
        timeouts: Budgets in seconds.

    Raises:
        ExportError: The server does not have the export, or is too old to tell.
        NbdError, TlsError, UsageError: As `open_export`.
    """
    address = parse_uri(address) if isinstance(address, str) else address
    handshake = querying(
        printable(address.peer), tls=address.tls_style, export=address.export if name is None else name
    )
    return await _ask(address, handshake, timeouts or Timeouts())


async def _ask(address: ExportAddress, handshake: Handshake[_T], timeouts: Timeouts) -> _T:
    context = None if address.tls is None else client_context(address.tls)
    stream, answer = await negotiate(address, handshake, context=context, timeout=timeouts.connect)
    stream.close()
    return answer
