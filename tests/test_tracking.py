"""What a platform says of changed blocks, and what of it is not believed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfasync.errors import CbtError
from sfasync.interfaces import Source
from sfasync.models import Checkpoint, DiskRecord, ExportAddress, Extent
from sfasync.tracking import proven, refusal

from .support.memory import MemoryDisk

SIZE = 100


async def told(ranges: Sequence[tuple[int, int]]) -> AsyncGenerator[Extent, None]:
    for offset, length in ranges:
        yield Extent(offset, length)


@pytest.mark.parametrize(
    "ranges",
    [[], [(0, 100)], [(0, 1), (1, 1), (50, 10), (99, 1)]],
)
async def test_what_can_be_right_passes_as_it_is(ranges: list[tuple[int, int]]) -> None:
    assert [extent[:2] async for extent in proven(told(ranges), size=SIZE, disk="vda")] == ranges


@pytest.mark.parametrize(
    ("ranges", "why"),
    [
        ([(10, 10), (10, 10)], "10 bytes from 10 comes after one that ended at 20"),
        ([(10, 10), (5, 20)], "20 bytes from 5 comes after one that ended at 20"),
        ([(10, 10), (19, 1)], "1 bytes from 19 comes after"),
        ([(50, 10), (0, 10)], "10 bytes from 0 comes after"),
        ([(-5, 10)], "10 bytes from -5 comes after"),
        ([(90, 11)], "11 bytes from 90 ends beyond the disk, which has 100 bytes"),
        ([(1 << 70, 1)], "ends beyond the disk"),
        ([(10, 0)], "0 bytes from 10 is empty"),
        ([(10, -5)], "-5 bytes from 10 is empty"),
    ],
)
async def test_what_cannot_be_right_is_refused_where_it_comes(ranges: list[tuple[int, int]], why: str) -> None:
    source = told(ranges)
    seen: list[tuple[int, int]] = []
    with pytest.raises(CbtError, match=why) as failure:
        async for extent in proven(source, size=SIZE, disk="vda"):
            seen.append(extent[:2])  # noqa: PERF401  # those before the failure count
    assert seen == ranges[: len(seen)] == ranges[:-1]
    assert (failure.value.reason, failure.value.disk, failure.value.exit_code) == ("cbt-invalid", "vda", 23)
    assert await anext(source, None) is None, "it is closed"


@given(st.lists(st.tuples(st.integers(-3, SIZE + 3), st.integers(-2, SIZE + 3)), max_size=6))
async def test_what_passes_covers_no_byte_twice(ranges: list[tuple[int, int]]) -> None:
    bytes_seen: list[int] = []
    try:
        async for extent in proven(told(ranges), size=SIZE, disk="vda"):
            bytes_seen += range(extent.offset, extent.end)
    except CbtError:
        pass
    assert bytes_seen == sorted(set(bytes_seen))
    assert set(bytes_seen) <= set(range(SIZE))


@dataclass(frozen=True)
class Frozen:
    checkpoint: Checkpoint | None
    reason: str | None = None
    id: str = "vda"
    size: int | None = SIZE
    address: ExportAddress | Source = field(default_factory=lambda: MemoryDisk(b""))
    shares: Mapping[str, int] = field(default_factory=dict)

    def changed(self) -> AsyncIterator[Extent] | None:
        return None


BASE = Checkpoint(id="one", disk_identity="disk-7", size=90)
NEW = Checkpoint(id="two", disk_identity="disk-7", size=SIZE)
RECORD = DiskRecord(id="vda", size=90, root="", tree="", mode="full", checkpoint=BASE)


@pytest.mark.parametrize(
    ("record", "disk", "reason"),
    [
        (RECORD, Frozen(NEW), None),
        (RECORD, Frozen(NEW, reason="bitmap-missing"), "bitmap-missing"),
        (replace(RECORD, checkpoint=None), Frozen(NEW), "no-checkpoint"),
        (RECORD, Frozen(None), "no-checkpoint"),
        (RECORD, Frozen(replace(NEW, disk_identity="disk-8")), "disk-replaced"),
        (RECORD, Frozen(replace(NEW, size=90)), "checkpoint-mismatch"),
        (replace(RECORD, size=80), Frozen(NEW), "checkpoint-mismatch"),
        (RECORD, Frozen(replace(NEW, id="one")), "checkpoint-mismatch"),
        (RECORD, Frozen(NEW, reason="bad\nreason"), "bad\\nreason"),
    ],
)
def test_changes_are_bound_to_disk_size_and_checkpoints(record: DiskRecord, disk: Frozen, reason: str | None) -> None:
    assert refusal(record, disk, SIZE) == reason
