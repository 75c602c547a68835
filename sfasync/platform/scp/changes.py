"""Changed blocks of one disk, asked for piece by piece, and believed only if the answers cover the disk exactly once.

One call answers for a region that it names itself: ``{changed_area: [{start, length}], start_offset, length}``. The
next call asks from where that region ends, until the disk does. No document says in which order or units areas come, or
how many one answer may hold, so nothing is relied on that is not checked::

    asked from    0                    262144               524288 = size
    answer        |------ x---xx ------|                                   start_offset 0, length 262144
    answer                             |--------x-----------|              start_offset 262144, length 262144

What can only make a backup larger is taken as it is: areas in any order, that overlap, or that run on into the next
region. What could hide a change is refused: a region that is not the one asked for, or is empty; an area that begins
outside its region (as it would if it were counted in sectors, or from the region's start), or runs past the disk.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Final, Protocol

from ...errors import PlatformError
from ...units import KiB, MiB

_GRAIN: Final = 64 * KiB
"""The platform's own granularity, by the manual of its command line; a last area may be rounded up to it."""

_MAP_BYTES: Final = 8 * MiB
_MOST_CALLS: Final = 100_000


class Area(Protocol):
    """A range that changed, in bytes of the disk."""

    @property
    def start(self) -> int: ...

    @property
    def length(self) -> int: ...


class Region(Protocol):
    """The answer for a part of a disk."""

    @property
    def changed_area(self) -> Iterable[Area]: ...

    @property
    def start_offset(self) -> int: ...

    @property
    def length(self) -> int: ...


class UnprovenError(PlatformError):
    """The answers do not prove that they name every change."""


class ChangedMap:
    """Which parts of a disk changed; at most 8 MiB of memory, whatever the disk's size.

    A bit stands for 64 KiB of the disk, of one beyond 4 TiB for twice that or more: what is marked is rounded outward.

    Args:
        size: Bytes of the disk.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._grain = _GRAIN
        while size > self._grain * 8 * _MAP_BYTES:
            self._grain *= 2
        self._bits = bytearray(-(-size // (8 * self._grain)))

    def mark(self, start: int, end: int) -> None:
        """Take the bytes from `start` to before `end`, which are inside the disk, for changed."""
        first, last = start // self._grain, (end - 1) // self._grain
        low, high = first // 8, last // 8
        head, tail = 0xFF & (0xFF << first % 8), 0xFF >> (7 - last % 8)
        if low == high:
            self._bits[low] |= head & tail
            return
        self._bits[low] |= head
        with memoryview(self._bits) as bits:  # a bytearray would copy what it is given first
            bits[low + 1 : high] = b"\xff" * (high - low - 1)
        self._bits[high] |= tail

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The changed ranges as (start, end), in order, those that touch joined, none beyond the disk."""
        start = end = 0
        for first, last in self._runs():
            if first > end:
                if start < end:
                    yield self._bytes(start, end)
                start = first
            end = last
        if start < end:
            yield self._bytes(start, end)

    def _runs(self) -> Iterator[tuple[int, int]]:
        """The set bits as (first, last + 1), in order."""
        for match in _SET.finditer(self._bits):
            first, last = 8 * match.start(), 8 * match.end()
            byte = self._bits[match.start()]
            if byte == 0xFF:
                yield first, last
            else:
                yield from ((first + start, first + end) for start, end in _RUNS[byte])

    def _bytes(self, start: int, end: int) -> tuple[int, int]:
        return start * self._grain, min(end * self._grain, self.size)


_SET: Final = re.compile(rb"\xff+|[^\x00\xff]", re.DOTALL)


def _runs_of(byte: int) -> tuple[tuple[int, int], ...]:
    runs: list[tuple[int, int]] = []
    for bit in range(8):
        if byte >> bit & 1:
            start = runs.pop()[0] if runs and runs[-1][1] == bit else bit
            runs.append((start, bit + 1))
    return tuple(runs)


_RUNS: Final = tuple(_runs_of(byte) for byte in range(256))


async def collect(ask: Callable[[int], Awaitable[Region]], *, size: int, most_calls: int = _MOST_CALLS) -> ChangedMap:
    """What changed on a disk, when every byte of it has been answered for.

    Args:
        ask: Gives the answer for a region that begins at the offset.
        size: Bytes of the disk.
        most_calls: After how many calls the platform is given up.

    Raises:
        UnprovenError: The answers could hide a change.
        PlatformError: The platform does not answer; whatever else `ask` raises.
    """
    found = ChangedMap(size)
    position = 0
    for _ in range(most_calls):
        if position >= size:
            return found
        region = await ask(position)
        end = _checked_end(region, position, size)
        for area in region.changed_area:
            _check_area(area, position, end, size)
            found.mark(area.start, min(area.start + area.length, size))
        position = end
    if position >= size:
        return found
    raise UnprovenError(f"the platform has told of {position} of {size} bytes in {most_calls} calls")


def _checked_end(region: Region, asked: int, size: int) -> int:
    """Where the next region begins."""
    if region.start_offset != asked:
        raise UnprovenError(f"changes were asked for from byte {asked}, the answer is for {region.start_offset}")
    if region.length <= 0:
        raise UnprovenError(f"the answer for changes from byte {asked} is for {region.length} bytes")
    end = asked + region.length
    if end >= size + _GRAIN:
        raise UnprovenError(f"the answer is for changes up to byte {end} of a disk of {size}")
    return min(end, size)


def _check_area(area: Area, start: int, end: int, size: int) -> None:
    if not start <= area.start < end or area.length <= 0:
        raise UnprovenError(
            f"an area of {area.length} bytes from byte {area.start} is no part of the region from {start} to {end}"
        )
    if area.start + area.length >= size + _GRAIN:
        raise UnprovenError(f"an area ends at byte {area.start + area.length} of a disk of {size}")
