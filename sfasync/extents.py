"""The algebra of ranges, and the plan of what to do with each.

Pictures below read like a disk: letters for data, ``0`` for zeros, ``-`` for a hole, ``.`` for a range not asked about.

Everything here is pure and works on streams: a plan for a disk of any size needs constant memory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from enum import Enum
from typing import NamedTuple

from .models import Extent


class Action(Enum):
    """What is done with a step of a plan."""

    DATA = "data"
    """Read it, write it."""
    ZERO = "zero"
    """Make it zero, without reading."""
    KEEP = "keep"
    """Take it over from the parent, without reading."""


class Step(NamedTuple):
    """One step of a plan.

    Attributes:
        action: What to do.
        offset: First byte.
        length: Bytes, more than 0.
        zeros: For DATA, ranges (offset, length) inside it that are known to be zero and need not be read.
    """

    action: Action
    offset: int
    length: int
    zeros: tuple[tuple[int, int], ...] = ()

    def reads(self) -> list[tuple[int, int]]:
        """The ranges of a DATA step that have to be read: what `zeros` leaves."""
        ranges = []
        position = self.offset
        for offset, length in self.zeros:
            if offset > position:
                ranges.append((position, offset - position))
            position = offset + length
        end = self.offset + self.length
        if position < end:
            ranges.append((position, end - position))
        return ranges


def clip(extent: Extent, start: int, end: int) -> Extent | None:
    """The part of an extent within [start, end), or None."""
    first, last = max(extent.offset, start), min(extent.end, end)
    return extent._replace(offset=first, length=last - first) if first < last else None


def align_down(value: int, alignment: int) -> int:
    """The largest multiple of `alignment` that is not above `value`."""
    return value - value % alignment


def align_up(value: int, alignment: int) -> int:
    """The smallest multiple of `alignment` that is not below `value`."""
    return -(-value // alignment) * alignment


async def merged(extents: AsyncIterator[Extent]) -> AsyncIterator[Extent]:
    """Join neighbours that say the same."""
    last: Extent | None = None
    async for extent in extents:
        if last is not None and extent.offset == last.end and extent[2:] == last[2:]:
            last = last._replace(length=last.length + extent.length)
            continue
        if last is not None:
            yield last
        last = extent
    if last is not None:
        yield last


async def pieces(extents: AsyncIterator[Extent], *, size: int, piece: int, alignment: int) -> AsyncIterator[Step]:
    """A plan that moves zeros as they are and cuts data into pieces: for copy and restore.

    Zero ranges are rounded inward to `alignment`, so every step begins on it and ends on it or at `size`. Pieces end at
    multiples of `piece`, which is a multiple of `alignment`.

    ::

        extents    aaaaaa0000000bb        alignment 2, piece 4
        plan       DDDDDDZZZZZZDDD        as  DDDD DD ZZZZZZ DDD
    """
    position = 0  # everything before it is planned
    async for extent in merged(extents):
        if not extent.zero:
            continue
        first = align_up(extent.offset, alignment)
        last = extent.end if extent.end >= size else align_down(extent.end, alignment)
        if first >= last:
            continue
        for step in _cut(position, first, piece):
            yield step
        yield Step(Action.ZERO, first, last - first)
        position = last
    for step in _cut(position, size, piece):
        yield step


def _cut(start: int, end: int, piece: int) -> Iterator[Step]:
    """The DATA steps of a range."""
    while start < end:
        stop = min(align_down(start, piece) + piece, end)
        yield Step(Action.DATA, start, stop - start)
        start = stop
