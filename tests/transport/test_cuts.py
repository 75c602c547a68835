"""T11: a conversation that ends at any byte, by a reset, a goodbye or silence, on either side of it.

The conversation opens an export and asks for a piece of the disk and for its block status. It is first held once
without a cut, to know how long it is; then it is cut at every byte. Over TLS, and where time is waited for, `make test`
takes a sample, and `make faults` all bytes.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pytest

from sfasync.errors import NbdError, SfasyncError, TlsError
from sfasync.models import Timeouts, TlsPolicy
from sfasync.transport.export import open_export

from ..support.honest import SIZE, Cut, content, honest

TIMEOUTS = Timeouts(connect=5.0, stall=5.0, request=5.0, close=0.2)
HURRIED = Timeouts(connect=0.6, stall=0.4, request=0.8, close=0.2)
TOGETHER = 16
"""Conversations at a time; those that are cut by silence only wait."""

SLACK = 32
"""Bytes by which a conversation over TLS may be longer or shorter than another: signatures are numbers."""

Direction = Literal["said", "heard"]
How = Literal["reset", "close", "stall"]
WAYS: list[tuple[Direction, How]] = [
    ("said", "reset"),
    ("said", "close"),
    ("said", "stall"),
    ("heard", "reset"),
    ("heard", "close"),
    ("heard", "stall"),
]


async def converse(cut: Cut | None, certificates: Path | None) -> tuple[int, int]:
    """Hold the conversation; gives how many bytes the server said, and heard before the client's goodbye."""
    context = policy = None
    if certificates is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / "server-cert.pem", certificates / "server-key.pem")
        policy = TlsPolicy(ca_file=certificates / "ca-cert.pem")
    timeouts = HURRIED if cut is not None and cut.how == "stall" else TIMEOUTS
    async with (
        honest(context=context, cut=cut) as server,
        await open_export(server.address(policy), timeouts=timeouts) as export,
    ):
        assert await export.read(100, 16) == content(100, 16)
        assert [extent.length async for extent in export.extents()] == [SIZE]
        return server.said, len(server.wire)


async def cut_at(cut: Cut, length: int, certificates: Path | None) -> None:
    """The conversation ends in a typed error, in time, or comes to its own end before it is cut."""
    try:
        async with asyncio.timeout(10):
            await converse(cut, certificates)
    except (NbdError, TlsError) as error:
        assert type(error) is not NbdError
        assert str(error).isprintable()
        return
    except (SfasyncError, TimeoutError) as error:
        raise AssertionError(f"{cut}: {error!r}") from error
    assert cut.after >= length - (SLACK if certificates else 0), f"{cut}: nothing was amiss"


async def cut_everywhere(
    direction: Direction, how: How, certificates: Path | None, *, step: int = 1, start: int = 0
) -> int:
    """Cut at every `step`-th byte; gives the number of cuts."""
    said, heard = await converse(None, certificates)
    length = said if direction == "said" else heard
    cuts = iter([Cut(direction, after, how) for after in range(start, length, step)])

    async def some(cuts: Iterable[Cut]) -> int:
        count = 0
        for cut in cuts:
            await cut_at(cut, length, certificates)
            count += 1
        return count

    return sum(await asyncio.gather(*(some(cuts) for _ in range(TOGETHER))))


@pytest.mark.parametrize(("direction", "how"), [way for way in WAYS if way[1] != "stall"])
async def test_plain_cut_at_every_byte(direction: Direction, how: How) -> None:
    assert await cut_everywhere(direction, how, None) > 150


@pytest.mark.parametrize(("direction", "how"), [way for way in WAYS if way[1] == "stall"])
async def test_plain_stalled_at_some_bytes(direction: Direction, how: How) -> None:
    assert await cut_everywhere(direction, how, None, step=7) > 20


@pytest.mark.parametrize(("direction", "how"), WAYS)
async def test_tls_cut_at_some_bytes(direction: Direction, how: How, certificates: Path) -> None:
    assert await cut_everywhere(direction, how, certificates, step=101) > 5


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("direction", "how"), WAYS)
@pytest.mark.parametrize("tls", [False, True])
async def test_cut_at_every_byte(direction: Direction, how: How, tls: bool, certificates: Path) -> None:
    count = await cut_everywhere(direction, how, certificates if tls else None)
    print(f"cut at {count} bytes: {'TLS' if tls else 'plain'}, {direction}, {how}")
    assert count > 150
