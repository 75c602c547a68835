"""Sets of bytes, as ranges: which bytes of a reply have come, which bytes of a disk were written."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class Coverage:
    """A set of disjoint ranges; ranges that touch are one.

    ::

        add(0, 4)  add(8, 10)  add(4, 8)       aaaa....bb  ->  aaaaccccbb, one range
        add(3, 5)                              refused: byte 3 came before
    """

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The ranges (start, end), in order."""
        return zip(self._starts, self._ends, strict=True)

    def __len__(self) -> int:
        """How many ranges."""
        return len(self._starts)

    def add(self, start: int, end: int) -> bool:
        """Take in the bytes from `start` to before `end`, more than none; False, and no change, if one was there."""
        starts, ends = self._starts, self._ends
        at = bisect_right(starts, start)  # the first range that begins behind `start`
        if (at and ends[at - 1] > start) or (at < len(starts) and starts[at] < end):
            return False
        touches_before = at > 0 and ends[at - 1] == start
        touches_after = at < len(starts) and starts[at] == end
        if touches_before and touches_after:
            ends[at - 1] = ends.pop(at)
            del starts[at]
        elif touches_before:
            ends[at - 1] = end
        elif touches_after:
            starts[at] = start
        else:
            starts.insert(at, start)
            ends.insert(at, end)
        return True

    def covers(self, start: int, end: int) -> bool:
        """Whether every byte from `start` to before `end` is there."""
        at = bisect_right(self._starts, start)
        return at > 0 and self._ends[at - 1] >= end

    def merge(self, start: int, end: int) -> None:
        """Take in the bytes from `start` to before `end`, more than none, whichever of them are there."""
        self.remove(start, end)
        self.add(start, end)

    def remove(self, start: int, end: int) -> None:
        """Take out the bytes from `start` to before `end`, as far as they are there."""
        starts, ends = self._starts, self._ends
        first = bisect_right(ends, start)  # the first range that ends behind `start`
        last = bisect_left(starts, end)  # behind the last one that begins before `end`
        if first >= last:
            return
        left = [(starts[first], start)] if starts[first] < start else []
        right = [(end, ends[last - 1])] if ends[last - 1] > end else []
        starts[first:last] = [piece[0] for piece in left + right]
        ends[first:last] = [piece[1] for piece in left + right]

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """The ranges (start, end) between `start` and `end` that are not there, in order."""
        found, position = [], start
        for first, last in self:
            if last <= position:
                continue
            if first >= end:
                break
            if first > position:
                found.append((position, first))
            position = last
        if position < end:
            found.append((position, end))
        return found

    def coarsen(self, most: int) -> None:
        """If there are more than `most` ranges, join them in pairs, over what is between them."""
        if len(self._starts) > most:
            last = self._ends[-1]
            self._starts = self._starts[::2]
            self._ends = [*self._ends[1::2], last][: len(self._starts)]
