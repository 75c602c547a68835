"""The algebra of ranges, and the plan of what to do with each.

Everything here works on streams, in order of offset: a plan for a disk of any size needs constant memory.

Pictures read like a disk: letters for data, ``0`` for zeros.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
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
    AUDIT = "audit"
    """Read it, although it is said to be unchanged, and take it over from the parent if it is."""
    AUDIT_ZERO = "audit-zero"
    """Make it zero, without reading, if the parent has zeros, as it must: it is said to be unchanged."""


class Step(NamedTuple):
    """One step of a plan.

    Attributes:
        action: What to do.
        offset: First byte.
        length: Bytes, more than 0.
        zeros: For DATA that is one chunk, ranges (start, end) inside it that are known to be zero and need not be read.
    """

    action: Action
    offset: int
    length: int
    zeros: tuple[tuple[int, int], ...] = ()

    def reads(self) -> Iterator[tuple[int, int]]:
        """The ranges (start, end) of a DATA step that have to be read: what `zeros` leaves."""
        position = self.offset
        for start, end in self.zeros:
            if start > position:
                yield position, start
            position = end
        if position < self.offset + self.length:
            yield position, self.offset + self.length


PieceLength = int | Callable[[int], int]
"""Bytes of a piece; as a function, it is asked before each, with its offset."""


def align_down(value: int, alignment: int) -> int:
    """The largest multiple of `alignment` that is not above `value`."""
    return value - value % alignment


def align_up(value: int, alignment: int) -> int:
    """The smallest multiple of `alignment` that is not below `value`."""
    return -(-value // alignment) * alignment


async def pieces(
    extents: AsyncIterator[Extent], *, size: int, piece: PieceLength, alignment: int, start: int = 0
) -> AsyncGenerator[Step, None]:
    """The plan of a copy or a restore from `start` to `size`: zeros move as they are, data is cut into pieces.

    Zero ranges are rounded inward to `alignment`, so every step begins on it and ends on it or at `size`. Pieces end at
    multiples of `piece`, which is a multiple of `alignment`.

    ::

        extents    aaaaaa0000000bb        alignment 2, piece 4
        plan       DDDDDDZZZZZZDDD        as  DDDD DD ZZZZZZ DD D
    """
    planned = start
    async with aclosing(_zero_ranges(extents, size, alignment)) as zeros:
        async for first, last in zeros:
            for step in _cut(planned, first, piece):
                yield step
            yield Step(Action.ZERO, first, last - first)
            planned = last
    for step in _cut(planned, size, piece):
        yield step


async def loads(plan: AsyncIterator[Step], *, most: int) -> AsyncGenerator[list[Step], None]:
    """The steps of a plan as they are carried out together: one by one, but for chunks with zeros inside.

    Of those as many go together as have no more data than the first of them is long, `most` steps with the zeros
    between them.

    ::

        plan       DDDD D000 ZZZZ 0D0D ZZZZ DDDD       letters: read, 0: filled
        loads      DDDD|D000 ZZZZ 0D0D ZZZZ|DDDD
    """
    together: list[Step] = []
    room = 0
    async for step in plan:
        needed = sum(end - start for start, end in step.reads()) if step.action is Action.DATA else 0
        joins = bool(step.zeros or (together and step.action is Action.ZERO))
        if together and (not joins or needed > room or len(together) == most):
            yield together
            together = []
            joins = bool(step.zeros)
        if not joins:
            yield [step]
            continue
        if not together:
            room = step.length
        together.append(step)
        room -= needed
    if together:
        yield together


async def again(
    left: Sequence[Step], plan: AsyncIterator[Step], *, piece: PieceLength, enough: Callable[[Step], bool]
) -> AsyncGenerator[Step, None]:
    """Steps of a plan that were not done, and then what is left of the plan; cut into pieces where they are all data.

    Args:
        left: What was not done.
        plan: What was not begun.
        piece: How long pieces are.
        enough: Told of each step of the plan; the last one given is the one that is enough.
    """
    for step in left:
        for part in _parts(step, piece):
            yield part
    async for step in plan:
        for part in _parts(step, piece):
            yield part
        if enough(step):
            return


def _parts(step: Step, piece: PieceLength) -> Iterator[Step]:
    if step.action is Action.DATA and not step.zeros:
        yield from _cut(step.offset, step.offset + step.length, piece)
    else:
        yield step


def _cut(start: int, end: int, piece: PieceLength) -> Iterator[Step]:
    while start < end:
        length = piece if isinstance(piece, int) else piece(start)
        stop = min(align_down(start, length) + length, end)
        yield Step(Action.DATA, start, stop - start)
        start = stop


async def chunks(
    extents: AsyncIterator[Extent],
    *,
    size: int,
    chunk: int,
    alignment: int,
    gap: int = 1,
    changed: AsyncIterator[Extent] | None = None,
    parent_size: int | None = None,
    audited: Callable[[int], int | None] | None = None,
) -> AsyncGenerator[Step, None]:
    """The plan of a backup: every step of DATA and AUDIT is one chunk, every other one is whole chunks.

    A chunk is ZERO only if all of it reads as zero by this snapshot's own map. It is KEEP only if no changed byte
    touches it and it has the same length in the parent. Anything else is DATA and read whole; zeros inside it, rounded
    inward to `alignment`, are filled and not read. ZERO wins over KEEP: the snapshot's map is the better witness. With
    an audit, some chunks that would be KEEP are AUDIT, and what is ZERO although it would be KEEP is AUDIT_ZERO.

    ::

        parent     aaaabbbbccccdddd        chunk 4
        changed    .....x..........
        extents    aaaabXbb0000dd00
        plan       KKKKDDDDZZZZKKKK

    Args:
        extents: What the snapshot's map says, covering the disk.
        size: Bytes of the disk.
        chunk: Bytes of a chunk.
        alignment: Alignment of reads; divides `chunk`.
        gap: Zeros inside a chunk are filled only where there are so many bytes of them; fewer are cheaper to read than
            to read around.
        changed: Every range that may have changed since the parent, or None if that is not known: nothing is kept.
        parent_size: Bytes of the disk in the parent; needed with `changed`.
        audited: Gives the first chunk to audit from a chunk on, by their numbers, or None if no more is to be audited;
            None for no audit.
    """
    keep_end = 0
    if changed is not None and parent_size is not None:
        keep_end = size if parent_size == size else align_down(min(size, parent_size), chunk)
    async with (
        aclosing(_zero_ranges(extents, size, alignment)) as zero_ranges,
        aclosing(touched(changed, chunk)) as touched_ranges,
    ):
        zeros, dirty = _Cursor(zero_ranges), _Cursor(touched_ranges)
        position = 0
        while position < size:
            await zeros.skip_to(position)
            await dirty.skip_to(position)
            keep_stop = min(dirty.start, keep_end)
            while zeros.end <= keep_stop and _whole_chunks(zeros, position, chunk, size) is None:
                await zeros.advance()  # inside chunks that are kept: nobody will ask for it
            whole = _whole_chunks(zeros, position, chunk, size)
            if whole is not None and whole[0] == position and audited is None:
                step = Step(Action.ZERO, position, whole[1] - position)
            elif whole is not None and whole[0] == position:
                action = Action.AUDIT_ZERO if position < keep_stop else Action.ZERO
                same_until = keep_stop if position < keep_stop else dirty.end if position < keep_end else size
                step = Step(action, position, min(whole[1], same_until) - position)
            elif position < keep_stop:
                stop = keep_stop if whole is None else min(keep_stop, whole[0])
                step = _unchanged(position, stop, chunk, audited)
            else:
                end = min(position + chunk, size)
                step = Step(Action.DATA, position, end - position, await _zeros_within(zeros, position, end, gap))
            yield step
            position += step.length


def _unchanged(position: int, stop: int, chunk: int, audited: Callable[[int], int | None] | None) -> Step:
    """The first step of a range that is not changed: a chunk to audit, or all before the first one."""
    next_audited = None if audited is None else audited(position // chunk)
    start = stop if next_audited is None else min(next_audited * chunk, stop)
    if start > position:
        return Step(Action.KEEP, position, start - position)
    return Step(Action.AUDIT, position, min(chunk, stop - position))


async def with_also(changed: AsyncIterator[Extent], also: Sequence[Extent]) -> AsyncGenerator[Extent, None]:
    """Ranges in order, together with others that are in order."""
    waiting = deque(also)
    async for extent in changed:
        while waiting and waiting[0].offset <= extent.offset:
            yield waiting.popleft()
        yield extent
    for extent in waiting:
        yield extent


async def zero_outside(
    extents: AsyncIterator[Extent], allocated: AsyncIterator[Extent]
) -> AsyncGenerator[Extent, None]:
    """Extents of which everything outside of what is allocated reads as zeros.

    ::

        extents    aaaabbbb0000cccc
        allocated  ..xxxx......xx..
        gives      00aabb000000cc00
    """
    async with aclosing(_bounds(allocated)) as bounds:
        cursor = _Cursor(bounds)
        async for extent in extents:
            position = extent.offset
            while position < extent.end:
                await cursor.skip_to(position)
                if cursor.start > position:
                    end = min(cursor.start, extent.end)
                    yield Extent(position, end - position, zero=True, hole=extent.hole)
                else:
                    end = min(cursor.end, extent.end)
                    yield extent._replace(offset=position, length=end - position)
                position = end


async def _bounds(extents: AsyncIterator[Extent]) -> AsyncGenerator[tuple[int, int], None]:
    async for extent in extents:
        yield extent.offset, extent.end


_NOWHERE = 1 << 64  # beyond every disk: NBD sizes end at 2^63 - 1


class _Cursor:
    """Ordered ranges, looked at one at a time; after the last one it stands beyond every disk."""

    def __init__(self, ranges: AsyncIterator[tuple[int, int]]) -> None:
        self._ranges = ranges
        self.start, self.end = 0, 0

    async def advance(self) -> None:
        following = await anext(self._ranges, None)  # 3.11's anext fails with a tuple as its default
        self.start, self.end = following or (_NOWHERE, _NOWHERE)

    async def skip_to(self, position: int) -> None:
        while self.end <= position:
            await self.advance()


def _whole_chunks(zeros: _Cursor, position: int, chunk: int, size: int) -> tuple[int, int] | None:
    """The whole chunks from `position` on in the zero range the cursor stands on, as (start, end), or None."""
    start = max(align_up(zeros.start, chunk), position)
    end = size if zeros.end >= size else align_down(zeros.end, chunk)
    return (start, end) if start < end else None


async def _zeros_within(zeros: _Cursor, start: int, end: int, gap: int) -> tuple[tuple[int, int], ...]:
    found = []
    await zeros.skip_to(start)
    while zeros.start < end:
        first, last = max(zeros.start, start), min(zeros.end, end)
        if last - first >= gap:
            found.append((first, last))
        if zeros.end > end:
            break
        await zeros.advance()
    return tuple(found)


async def _zero_ranges(
    extents: AsyncIterator[Extent], size: int, alignment: int
) -> AsyncGenerator[tuple[int, int], None]:
    """The zero ranges as (start, end): neighbours joined, clipped to the disk, rounded inward, none empty."""

    def rounded(start: int, end: int) -> tuple[int, int]:
        return align_up(start, alignment), size if end >= size else align_down(end, alignment)

    start = end = 0
    async for extent in extents:
        if not extent.zero:
            continue
        if extent.offset != end:
            first, last = rounded(start, end)
            if first < last:
                yield first, last
            start = extent.offset
        end = extent.offset + extent.length
    first, last = rounded(start, end)
    if first < last:
        yield first, last


async def touched(changed: AsyncIterator[Extent] | None, chunk: int) -> AsyncGenerator[tuple[int, int], None]:
    """Ranges that are in order as (start, end), rounded outward to chunks, those that touch or overlap joined."""
    if changed is None:
        return
    start = end = 0
    async for extent in changed:
        first, last = align_down(extent.offset, chunk), align_up(extent.offset + extent.length, chunk)
        if first > end:
            if start < end:
                yield start, end
            start = first
        end = max(end, last)
    if start < end:
        yield start, end
