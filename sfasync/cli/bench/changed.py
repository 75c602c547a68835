"""Row S15's program: backs up a huge sparse disk whose platform tells what has changed.

python -m sfasync.cli.bench.changed REPOSITORY SEED-FILE COUNT LENGTH          what has changed since the last backup
python -m sfasync.cli.bench.changed REPOSITORY SEED-FILE COUNT LENGTH alone    a disk of that data and nothing else
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ...buffers import fill_with_zeros
from ...engine import Engine
from ...errors import UsageError
from ...interfaces import RestoreView
from ...models import BackupResult, Checkpoint, Extent, Leftover, VirtualMachine
from ...store.repository import Repository
from ...units import MiB, TiB
from ..allocator import keep_freed_memory

SIZE = 10 * TiB


class SparseDisk:
    """A `Source`: zeros, but for pieces of random bytes at even distances, each at the beginning of a chunk."""

    block_size = 1

    def __init__(self, size: int, count: int, length: int, seed: int) -> None:
        self.size = size
        self._every = size // count // MiB * MiB
        self._count = count
        self._length = length
        self._seed = seed

    def pieces(self) -> list[Extent]:
        return [Extent(number * self._every, self._length) for number in range(self._count)]

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        fill_with_zeros(buffer)
        end = offset + len(buffer)
        for number in range(offset // self._every, min(self._count, -(-end // self._every))):
            start = number * self._every
            first, last = max(offset, start), min(end, start + self._length)
            if first < last:
                content = random.Random(self._seed * self._count + number).randbytes(self._length)
                buffer[first - offset : last - offset] = content[first - start : last - start]

    async def extents(self, offset: int = 0, length: int | None = None) -> AsyncIterator[Extent]:
        end = self.size if length is None else min(self.size, offset + length)
        position = offset
        for piece in self.pieces():
            if piece.offset >= end or piece.offset + piece.length <= offset:
                continue
            if piece.offset > position:
                yield Extent(position, piece.offset - position, zero=True, hole=True)
            first, position = max(offset, piece.offset), min(end, piece.offset + piece.length)
            yield Extent(first, position - first)
        if position < end:
            yield Extent(position, end - position, zero=True, hole=True)


@dataclass(frozen=True, slots=True)
class _FrozenDisk:
    """The disk in a snapshot."""

    id: str
    size: int
    address: SparseDisk
    checkpoint: Checkpoint | None
    reason: str | None
    shares: Mapping[str, int] = field(default_factory=dict)

    def changed(self) -> AsyncIterator[Extent] | None:
        return None if self.reason is not None else self._pieces()

    async def _pieces(self) -> AsyncIterator[Extent]:
        for piece in self.address.pieces():
            yield piece


@dataclass(frozen=True, slots=True)
class _View:
    """A snapshot that is never lost."""

    disks: Sequence[_FrozenDisk]
    lost: asyncio.Future[str]
    vm_id: str = "vm"
    vm_name: str = "vm"
    snapshot_id: str | None = None
    config: bytes | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)

    async def check(self) -> None:
        """It stands."""

    async def committed(self, disk_ids: Sequence[str]) -> None:
        """There is nothing to drop."""


class Tracking:
    """A `Platform` with one disk, which changes in the same places before each backup."""

    name = "bench"

    def __init__(self, disk: SparseDisk, seed: int) -> None:
        self._disk = disk
        self._seed = seed

    @asynccontextmanager
    async def snapshot(
        self,
        vm: str,
        *,
        disks: Sequence[str] | None = None,
        base: Mapping[str, Checkpoint] | None = None,
        chain: str = "",
        reuse: str | None = None,
    ) -> AsyncIterator[_View]:
        known = base is not None and "disk" in base
        checkpoint = Checkpoint(id=str(self._seed), disk_identity="disk", size=self._disk.size)
        frozen = _FrozenDisk("disk", self._disk.size, self._disk, checkpoint, None if known else "first-backup")
        yield _View([frozen], asyncio.get_running_loop().create_future())

    def restore(
        self,
        vm: str | None,
        *,
        new_name: str | None = None,
        config: bytes | None,
        files: Mapping[str, bytes],
        disks: Mapping[str, int],
        since: Mapping[str, Checkpoint] | None = None,
    ) -> AbstractAsyncContextManager[RestoreView]:
        raise UsageError("the disk of a benchmark is only read")

    async def vms(self) -> Sequence[VirtualMachine]:
        """There is one VM, and nobody has to find it."""
        return ()

    async def identify(self, vm: str) -> str:
        """There is one VM."""
        return vm

    async def cleanup(self, *, dry_run: bool = False) -> Sequence[Leftover]:
        """Nothing is left behind in memory."""
        return ()


async def back_up(location: str, seed: int, count: int, length: int, *, alone: bool) -> BackupResult:
    """One backup of the disk, or of a small one that holds nothing but the data."""
    async with await Repository.open(location) as repository, Engine(repository) as engine:
        if alone:
            return await engine.backup_vm("vm", {"disk": SparseDisk(count * MiB, count, length, seed)})
        return await engine.backup_vm("vm", platform=Tracking(SparseDisk(SIZE, count, length, seed), seed))


def main() -> None:
    """Make the backup, and print what it took."""
    location, seed = sys.argv[1], int(Path(sys.argv[2]).read_text())
    count, length = map(int, sys.argv[3:5])
    keep_freed_memory()
    result = asyncio.run(back_up(location, seed, count, length, alone=sys.argv[5:] == ["alone"]))
    print(json.dumps({"mode": result.disks[0].mode, "stored": result.bytes_stored, "limited_by": result.limited_by}))


if __name__ == "__main__":
    main()
