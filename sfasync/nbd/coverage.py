"""Which bytes of a range have come, each of them once."""

from __future__ import annotations

from bisect import bisect_right


class Coverage:
    """A set of disjoint ranges that only grows; ranges that touch are one.

    ::

        add(0, 4)  add(8, 10)  add(4, 8)       aaaa....bb  ->  aaaaccccbb, one range
        add(3, 5)                              refused: byte 3 came before
    """

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

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
