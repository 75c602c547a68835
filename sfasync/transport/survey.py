"""Narrows a range that cannot be read down to the blocks at fault, and reads the rest.

::

    range      ................x.......        x: cannot be read
    probes     ________________x_______
               ------------                    reads
                           ____x_______
                           ____x_
                           ----                reads
                               x_              and so on, down to one block
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ..errors import BadBlockError, RequestError, SfasyncError
from ..extents import align_down
from ..models import Extent, Retry
from ..nbd import const
from ..nbd.session import Command
from .call import Call, Failure
from .connections import Connections

_PROBES: Final = 2
"""How often each part is asked for: once is too few where errors come and go."""


class Survey:
    """Reads around what cannot be read.

    Args:
        connections: Of the export.
        retry: How often a request is sent; here at most twice.
        peer: Names the server in messages.
        block: Bytes of the smallest part that is looked at.
    """

    def __init__(self, connections: Connections, retry: Retry, *, peer: str, block: int) -> None:
        self._connections = connections
        self._retry = replace(retry, attempts=min(_PROBES, retry.attempts))
        self._peer = peer
        self._block = block

    async def read(self, offset: int, view: memoryview, failure: Failure, *, most: int) -> list[Extent]:
        """Read a range, with zeros for the blocks that cannot be read.

        Args:
            offset: First byte.
            view: Filled; no longer than one request may be.
            failure: Why it is not simply read.
            most: Bytes that may be lost.

        Returns:
            What was lost, in order; neighbours are one.

        Raises:
            BadBlockError: More than `most` bytes; names the block that was one too many.
            SfasyncError: Something happened that has nothing to do with the range.
        """
        # Where connections are dropped over it, whatever is sent beside it would suffer.
        alone = not isinstance(failure.error, RequestError)
        bad: list[Extent] = []
        parts = [(offset, offset + len(view))]
        while parts:
            start, end = parts.pop()
            with view[start - offset : end - offset] as part:
                error = await self._probe(start, part, alone)
                if error is None:
                    continue
                middle = max(align_down((start + end) // 2, self._block), align_down(start, self._block) + self._block)
                if middle < end:
                    parts += [(middle, end), (start, middle)]
                    continue
                most -= end - start
                if most < 0:
                    raise BadBlockError(
                        f"{self._peer}: cannot read {end - start} bytes at {start}: {error}",
                        offset=start,
                        length=end - start,
                    ) from error
                part[:] = bytes(end - start)
                _append(bad, start, end)
        return bad

    async def _probe(self, offset: int, view: memoryview, alone: bool) -> SfasyncError | None:
        """Why a range cannot be read; None when it has been."""
        command = Command(const.CMD_READ, offset, len(view), buffer=view)
        call = Call(self._connections, (command for _ in range(1)), 1, self._retry, alone=alone)
        failure = await call.attempt()
        return None if failure is None else failure.error


def _append(extents: list[Extent], start: int, end: int) -> None:
    if extents and extents[-1].end == start:
        start = extents.pop().offset
    extents.append(Extent(start, end - start))
