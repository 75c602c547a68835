"""What a server says of an export without reading it (proto.md, "Metadata querying").

An answer may cover as little as the server likes. One small extent each, over a large disk, would keep us asking for
ever; to read such a range takes no longer than to ask about it. So answers have to pay on average. Where they do not,
a stretch counts as not told, twice as long each time::

    disk      |..|..|..|   1,024 answers that are too small
    extents   ||||||||||--------- 1 GiB of data ---------||||||||||------------------- 2 GiB of data ---...

A server with many extents in one answer, as nbdkit and qemu-nbd are, never comes near that, nor does one that tells
extents of 64 KiB one by one.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator
from contextlib import aclosing
from typing import Final, NamedTuple

from ..errors import ExportError, RemoteProtocolError, RequestError, SfasyncError
from ..extents import align_down, align_up
from ..models import Extent
from ..nbd import const, wire
from ..nbd.session import Command
from ..tasks import meanwhile

_logger = logging.getLogger(__name__)

_WORTH: Final = 64 << 10
"""Bytes that an answer has to cover on average: they are read in the time that a question over a Unix socket takes."""

_PATIENCE: Final = 1024 * _WORTH
"""Bytes by which answers may fall behind: 1,024 of them that cover next to nothing."""

_LEAP: Final = 1 << 30
"""Bytes that are called data the first time that asking does not pay."""

Ask = Callable[[Command], Awaitable[None]]
Abort = Callable[[SfasyncError], None]


class _Pace:
    """Whether asking pays: what was covered is set against what the answers should have covered."""

    def __init__(self) -> None:
        self._credit = _PATIENCE
        self._leap = _LEAP

    @property
    def pays(self) -> bool:
        return self._credit > 0

    def answered(self, covered: int) -> None:
        self._credit = min(_PATIENCE, self._credit + covered - _WORTH)

    def leap(self) -> int:
        """Bytes to go on without asking; asking is given another chance after that."""
        length = self._leap
        self._credit = _PATIENCE
        self._leap *= 2
        return length


class _Answer(NamedTuple):
    """What a server said of a range.

    Attributes:
        payload: Descriptors.
        start: Where the first one begins.
        position: From where on they were wanted.
        end: Up to where they were asked for.
        reach: Up to where they come; `position` where they do not come so far.
    """

    payload: bytearray
    start: int
    position: int
    end: int
    reach: int


class BlockStatus:
    """Asks one export. The ranges it is asked about are inside of it, the contexts were selected.

    Args:
        ask: Carries out a command.
        abort: Ends all connections, for the reason given.
        peer: Names the server in messages.
        block: The minimum block size in bytes.
        contexts: Names of the metadata contexts that were selected.
    """

    def __init__(self, ask: Ask, abort: Abort, *, peer: str, block: int, contexts: Collection[str]) -> None:
        self._ask = ask
        self._abort = abort
        self._peer = peer
        self._block = block
        self._contexts = contexts
        self._warned = False

    async def extents(self, offset: int, length: int) -> AsyncGenerator[Extent, None]:
        """As `Export.extents`."""
        position, end = offset, offset + length
        pace = _Pace()
        try:
            while position < end and const.BASE_ALLOCATION in self._contexts:
                async with aclosing(self._answers(const.BASE_ALLOCATION, position, end, pace)) as answers:
                    async for answer in answers:
                        for at, count, flags in self._understood(answer):
                            zero, hole = bool(flags & const.STATE_ZERO), bool(flags & const.STATE_HOLE)
                            yield Extent(at, count, zero=zero, hole=hole)
                            position = at + count
                if position < end:
                    count = min(pace.leap(), end - position)
                    self._warn("block status comes in such small pieces that reading is quicker than asking")
                    yield Extent(position, count)
                    position += count
        except RequestError as error:
            self._warn(f"no block status, so everything is read: {error}")
        if position < end:
            yield Extent(position, end - position)

    async def said(self, context: str, offset: int, length: int) -> AsyncGenerator[tuple[int, int, int], None]:
        """As `Export.block_status`."""
        position, end = offset, offset + length
        async with aclosing(self._answers(context, position, end, _Pace())) as answers:
            async for answer in answers:
                for at, count, flags in self._understood(answer):
                    yield at, count, flags
                    position = at + count
        if position < end:
            raise ExportError(
                f"{self._peer}: block status of {context} at {position} comes in pieces of less than {_WORTH} "
                "bytes, one at a time: asking would not end",
                offset=position,
            )

    async def _answers(self, context: str, position: int, end: int, pace: _Pace) -> AsyncGenerator[_Answer, None]:
        """One answer after the other, until they have come to the end, or asking no longer pays.

        While one to the whole question is looked at, the next question is under way: a server that takes its time for
        it, as qemu-nbd does for an image with many tables, and whoever waits for the answers work at the same time.
        """
        while position < end and pace.pays:
            answer = await self._answer(context, position, end)
            while answer.reach == answer.end < end:
                pace.answered(answer.reach - position)
                position = answer.reach
                async with meanwhile(self._answer(context, position, end)) as following:
                    yield answer
                    answer = await following
            pace.answered(answer.reach - position)
            position = answer.reach
            yield answer

    async def _answer(self, context: str, position: int, end: int) -> _Answer:
        """Ask once about what is from `position` on, up to `end` at most."""
        start = align_down(position, self._block)
        stop = align_up(min(end, start + const.MAX_BLOCK_STATUS_RANGE), self._block)
        command = Command(const.CMD_BLOCK_STATUS, start, stop - start)
        await self._ask(command)
        assert command.status is not None, "a block status without status"
        payload = command.status[context]
        end = min(stop, end)
        return _Answer(payload, start, position, end, reach=max(position, min(start + wire.described(payload), end)))

    def _understood(self, answer: _Answer) -> Iterator[tuple[int, int, int]]:
        """What is said; nothing where an answer ends within the block that its position is in."""
        position = answer.position
        try:
            for at, count, flags in wire.decode_descriptors(answer.payload, answer.start, answer.end):
                first = max(at, position)
                if first < at + count:
                    yield first, at + count - first, flags
                    position = at + count
        except RemoteProtocolError as error:
            failure = RemoteProtocolError(f"{self._peer}: {error}", offset=position)
            self._abort(failure)
            raise failure from error

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            _logger.warning("%s: %s", self._peer, what)
