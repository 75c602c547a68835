from __future__ import annotations

import asyncio
import itertools
import tracemalloc
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfasync.platform.scp.answers import Area, ChangedAreas
from sfasync.platform.scp.changes import ChangedMap, UnprovenError, collect
from sfasync.units import GiB, KiB, MiB, TiB

GRAIN = 64 * KiB


def answers(*regions: ChangedAreas) -> Callable[[int], asyncio.Future[ChangedAreas]]:
    """Gives these answers, one after the other, whatever is asked."""
    left = list(regions)

    def ask(_: int) -> asyncio.Future[ChangedAreas]:
        future: asyncio.Future[ChangedAreas] = asyncio.get_running_loop().create_future()
        future.set_result(left.pop(0))
        return future

    return ask


def region(start: int, length: int, *areas: tuple[int, int]) -> ChangedAreas:
    found = tuple(Area(start=first, length=count) for first, count in areas)
    return ChangedAreas(start_offset=start, length=length, changed_area=found)


async def collected(size: int, *regions: ChangedAreas) -> list[tuple[int, int]]:
    return list(await collect(answers(*regions), size=size, most_calls=100))


async def test_areas_of_all_regions_together() -> None:
    found = await collected(
        MiB, region(0, 512 * KiB, (64 * KiB, 64 * KiB)), region(512 * KiB, 512 * KiB, (512 * KiB, 1), (MiB - 1, 1))
    )
    assert found == [(GRAIN, 2 * GRAIN), (8 * GRAIN, 9 * GRAIN), (15 * GRAIN, MiB)]


async def test_nothing_changed() -> None:
    assert await collected(MiB, region(0, MiB)) == []


async def test_more_than_changed_is_taken_as_it_is() -> None:
    unordered = region(0, 512 * KiB, (256 * KiB, 100), (0, 200), (0, 70 * KiB))
    runs_on = region(512 * KiB, 256 * KiB, (700 * KiB, 150 * KiB))
    found = await collected(MiB, unordered, runs_on, region(768 * KiB, 256 * KiB))
    assert found == [(0, 2 * GRAIN), (4 * GRAIN, 5 * GRAIN), (10 * GRAIN, 14 * GRAIN)]


async def test_the_end_may_be_rounded_up() -> None:
    size = MiB + 512
    assert await collected(size, region(0, MiB + GRAIN, (MiB, GRAIN))) == [(MiB, size)]


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([region(GRAIN, MiB)], "asked for from byte 0, the answer is for 65536"),
        ([region(0, 512 * KiB), region(0, 512 * KiB)], "asked for from byte 524288, the answer is for 0"),
        ([region(0, 256 * KiB), region(512 * KiB, 512 * KiB)], "asked for from byte 262144, the answer is for 524288"),
        ([region(0, 0)], "is for 0 bytes"),
        ([region(0, -1)], "is for -1 bytes"),
        ([region(0, MiB + GRAIN)], "up to byte 1114112 of a disk of 1048576"),
        ([region(0, MiB, (0, 0))], "an area of 0 bytes"),
        ([region(0, MiB, (-1, 5))], "from byte -1 is no part"),
        ([region(0, MiB, (MiB - 1, GRAIN + 1))], "an area ends at byte"),
        ([region(0, 512 * KiB, (512 * KiB, 1))], "from byte 524288 is no part of the region from 0 to 524288"),
        # counted from the region's own start
        ([region(0, 512 * KiB), region(512 * KiB, 512 * KiB, (0, GRAIN))], "from byte 0 is no part"),
        ([region(offset, 1) for offset in range(100)], "100 of 1048576 bytes in 100 calls"),
    ],
)
async def test_what_could_hide_a_change_is_refused(regions: Sequence[ChangedAreas], message: str) -> None:
    with pytest.raises(UnprovenError, match=message):
        await collected(MiB, *regions)


@given(st.lists(st.tuples(st.integers(0, 4 * MiB - 1), st.integers(1, MiB))), st.integers(1, 4 * MiB))
def test_a_map_is_what_was_marked_rounded_outward(ranges: list[tuple[int, int]], size: int) -> None:
    ranges = [(start % size, min(start % size + length, size)) for start, length in ranges]
    changed = ChangedMap(size)
    for start, end in ranges:
        changed.mark(start, end)
    found = list(changed)
    grains = {grain for start, end in ranges for grain in range(start // GRAIN, (end - 1) // GRAIN + 1)}
    assert {grain for start, end in found for grain in range(start // GRAIN, -(-end // GRAIN))} == grains
    assert all(before[1] < after[0] for before, after in itertools.pairwise(found))
    assert all(0 <= start < end <= size for start, end in found)


def test_a_map_of_a_huge_disk_is_small() -> None:
    tracemalloc.start()
    try:
        changed = ChangedMap(63 * TiB)
        changed.mark(GiB + 1, GiB + 2)
        changed.mark(TiB, 62 * TiB)
        changed.mark(63 * TiB - 1, 63 * TiB)
        assert list(changed) == [(GiB, GiB + MiB), (TiB, 62 * TiB), (63 * TiB - MiB, 63 * TiB)]
        assert tracemalloc.get_traced_memory()[1] < 20 * MiB
    finally:
        tracemalloc.stop()
