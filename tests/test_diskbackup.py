from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from sfasync.diskbackup import map_of
from sfasync.models import Checkpoint, Extent
from sfasync.platform.plain import PlainDisk

from .support.memory import MemoryDisk


@dataclass(frozen=True)
class TrustedDisk:
    """A frozen disk whose platform tells what was ever written."""

    id: str
    address: MemoryDisk
    written: list[Extent] | None
    size: int | None = None
    checkpoint: Checkpoint | None = None
    reason: str | None = "no-cbt"
    shares: Mapping[str, int] = field(default_factory=dict)

    def changed(self) -> AsyncIterator[Extent] | None:
        return None

    def allocated(self) -> AsyncIterator[Extent] | None:
        return None if self.written is None else self._extents(self.written)

    async def _extents(self, extents: list[Extent]) -> AsyncIterator[Extent]:
        for extent in extents:
            yield extent


async def test_a_platform_that_is_trusted_adds_to_the_map() -> None:
    source = MemoryDisk(b"x" * 8192)

    async def zeros(disk: PlainDisk | TrustedDisk) -> list[tuple[int, int]]:
        return [(extent.offset, extent.end) async for extent in map_of(disk, source) if extent.zero]

    assert await zeros(TrustedDisk("vda", source, [Extent(4096, 512)])) == [(0, 4096), (4608, 8192)]
    assert await zeros(TrustedDisk("vda", source, None)) == []
    assert await zeros(PlainDisk("vda", source)) == []
