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
from typing import Final

from ..errors import ExportError, RemoteProtocolError, RequestError, SfasyncError
from ..extents import align_down, align_up
from ..models import Extent
from ..nbd import const, wire
from ..nbd.session import Command

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
                if pace.pays:
                    start = position
                    for at, count, flags in await self._answer(const.BASE_ALLOCATION, position, end):
                        zero, hole = bool(flags & const.STATE_ZERO), bool(flags & const.STATE_HOLE)
                        yield Extent(at, count, zero=zero, hole=hole)
                        position = at + count
                    pace.answered(position - start)
                else:
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
        pace = _Pace()
        while position < end:
            if not pace.pays:
                raise ExportError(
                    f"{self._peer}: block status of {context} at {position} comes in pieces of less than {_WORTH} "
                    "bytes, one at a time: asking would not end",
                    offset=position,
                )
            start = position
            for at, count, flags in await self._answer(context, position, end):
                yield at, count, flags
                position = at + count
            pace.answered(position - start)

    async def _answer(self, context: str, position: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Ask once; gives what is said from `position` on, up to `end` at most.

        That is nothing where an answer ends within the block that `position` is in.
        """
        start = align_down(position, self._block)
        stop = align_up(min(end, start + const.MAX_BLOCK_STATUS_RANGE), self._block)
        command = Command(const.CMD_BLOCK_STATUS, start, stop - start)
        await self._ask(command)
        assert command.status is not None, "a block status without status"
        return self._understood(command.status[context], start, position, min(stop, end))

    def _understood(self, payload: bytearray, start: int, position: int, end: int) -> Iterator[tuple[int, int, int]]:
        try:
            for at, count, flags in wire.decode_descriptors(payload, start, end):
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
