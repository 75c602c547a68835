"""What a server says of an export, however little it says at a time."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing

import pytest

from sfasync.errors import ConnectionLostError, ExportError, RequestError, SfasyncError
from sfasync.models import Extent
from sfasync.nbd import const
from sfasync.nbd.session import Command
from sfasync.transport.block_status import BlockStatus
from sfasync.transport.export import open_export
from sfasync.units import GiB, KiB, TiB

from ..support import peer
from ..support.liar import Client, liar

Pieces = Callable[[int], tuple[int, int]]
"""Where the piece that a byte is in ends, and its flags."""


class Server:
    """Answers each question with one piece.

    Args:
        pieces: What there is.
        later: Asked instead of it, after the first question.

    Attributes:
        asked: How often it was asked.
        failure: What it was left for.
    """

    def __init__(self, pieces: Pieces, later: Callable[[Command], Awaitable[None]] | None = None) -> None:
        self.asked = 0
        self.failure: SfasyncError | None = None
        self._pieces = pieces
        self._later = later

    async def ask(self, command: Command) -> None:
        self.asked += 1
        if self._later is not None and self.asked > 1:
            await self._later(command)
        end, flags = self._pieces(command.offset)
        command.status = {const.BASE_ALLOCATION: bytearray(struct.pack(">III", 0, end - command.offset, flags))}

    def leave(self, error: SfasyncError) -> None:
        self.failure = error

    def status(self, *, block: int = 1) -> BlockStatus:
        return BlockStatus(self.ask, self.leave, peer="server", block=block, contexts=[const.BASE_ALLOCATION])


def pieces_of(length: int, until: int, size: int) -> Pieces:
    """Data and holes in turn, of a length, up to some point; one hole behind it."""

    def pieces(offset: int) -> tuple[int, int]:
        if offset >= until:
            return min(size, offset + GiB), const.STATE_ZERO
        number = offset // length
        return (number + 1) * length, const.STATE_ZERO if number % 2 else 0

    return pieces


def check(extents: list[Extent], size: int) -> None:
    """They cover the disk exactly."""
    position = 0
    for extent in extents:
        assert extent.offset == position
        assert extent.length > 0
        position = extent.end
    assert position == size


async def test_a_disk_in_many_pieces_is_told_to_the_last() -> None:
    """24,000 pieces of data of 64 KiB in 8 TiB, one extent an answer."""
    size, used = 8 * TiB, 24_000 * 128 * KiB
    server = Server(pieces_of(64 * KiB, used, size))
    extents = [extent async for extent in server.status().extents(0, size)]
    check(extents, size)
    assert sum(extent.length for extent in extents if not extent.zero) == 24_000 * 64 * KiB
    assert len([None async for _ in server.status().said(const.BASE_ALLOCATION, 0, size)]) == len(extents)


async def test_small_pieces_cost_a_gigabyte_and_not_the_disk(caplog: pytest.LogCaptureFixture) -> None:
    """8 MiB in pieces of 4 KiB, one an answer: behind the stretch that is read unseen, the server is asked again."""
    size = 100 * GiB
    status = Server(pieces_of(4 * KiB, 8 << 20, size)).status()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            extents = [extent async for extent in status.extents(0, size)]
    check(extents, size)
    data = sum(extent.length for extent in extents if not extent.zero)
    assert GiB <= data < GiB + (8 << 20)
    assert [record.getMessage() for record in caplog.records] == [
        "server: block status comes in such small pieces that reading is quicker than asking"
    ]


@pytest.mark.parametrize("size", [GiB, 8 * TiB, 1 << 62])
async def test_asking_ends(size: int) -> None:
    server = Server(lambda offset: (offset + 512, const.STATE_ZERO))
    extents = [extent async for extent in server.status().extents(0, size)]
    check(extents, size)
    assert server.asked < 1040 * (size // GiB).bit_length()


async def test_extents_that_end_within_a_block_are_not_waited_for() -> None:
    """The rest of a block is asked about from the beginning of the block: the same answer would come for ever."""
    server = Server(lambda offset: (offset + 512, const.STATE_ZERO))
    check([extent async for extent in server.status(block=4096).extents(0, 8 * TiB)], 8 * TiB)
    assert server.failure is None
    with pytest.raises(ExportError, match="asking would not end"):
        [None async for _ in server.status(block=4096).said(const.BASE_ALLOCATION, 0, 8 * TiB)]


async def test_the_next_question_is_asked_while_an_answer_is_looked_at() -> None:
    server = Server(lambda offset: (offset + 2 * GiB, const.STATE_ZERO))
    questions = -(-8 * TiB // const.MAX_BLOCK_STATUS_RANGE)
    seen = 0
    async for _ in server.status().extents(0, 8 * TiB):
        await asyncio.sleep(0)
        seen += 1
        assert server.asked == min(seen + 1, questions)
    assert seen == questions


async def test_what_was_asked_for_too_early_is_forgotten() -> None:
    """Whoever stops listening leaves no question behind, whether it goes on or has failed."""
    under_way: list[asyncio.Task[None] | None] = []

    async def hang(command: Command) -> None:
        under_way.append(asyncio.current_task())
        await asyncio.Event().wait()

    async def fail(command: Command) -> None:
        raise ConnectionLostError("it is gone")

    for following in (hang, fail):
        server = Server(lambda offset: (offset + 2 * GiB, const.STATE_ZERO), later=following)
        async with aclosing(server.status().extents(0, 8 * TiB)) as extents:
            assert (await anext(extents)).zero
            await asyncio.sleep(0)
    (task,) = under_way
    assert task is not None
    assert task.cancelled()


async def test_a_refusal_of_the_next_question_is_met_in_its_turn() -> None:
    async def refuse(command: Command) -> None:
        raise RequestError("not now", errno=const.EIO)

    server = Server(lambda offset: (offset + 2 * GiB, const.STATE_ZERO), later=refuse)
    extents = [extent async for extent in server.status().extents(0, 8 * TiB)]
    check(extents, 8 * TiB)
    assert [extent.zero for extent in extents] == [True, False]


async def test_a_server_that_tells_of_one_sector_at_a_time() -> None:
    """T5: block status without progress ends, and nothing is taken for zero that was not called so."""
    flags: Iterator[int] = iter(range(1 << 62))  # of each bit pattern, sometimes zero and sometimes not

    async def script(client: Client) -> None:
        await client.open(8 * GiB)
        while (request := await client.request()).kind == peer.BLOCK_STATUS:
            await client.say(peer.status(request.cookie, [(512, next(flags) % 4)]))

    async with liar(script) as address, await open_export(address) as export:
        extents = [extent async for extent in export.extents()]
        check(extents, 8 * GiB)
        assert export.connections == 1
    assert all(extent.length == 512 for extent in extents if extent.zero)
    assert len(extents) < 5000
