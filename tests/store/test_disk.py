"""Disks of backups as sources."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sfasync.blocking import BlockingSource, Reader
from sfasync.errors import BackupNotFoundError, IntegrityError, UsageError
from sfasync.models import Extent, Manifest
from sfasync.store.blobs import BlobReader
from sfasync.store.repository import Repository
from sfasync.store.seal import BlobKind

from ..contracts.source import SourceCase, SourceContract
from .support import CHUNK, back_up, files, flip, noise, read_disk, text


def picture(cells: str) -> bytes:
    """A disk, a chunk for each letter: ``0`` for zeros, others for data."""
    return b"".join(bytes(CHUNK) if cell == "0" else text(CHUNK, ord(cell)) for cell in cells)


class TestStoredDisk(SourceContract):
    @pytest.fixture
    async def source_case(self, repository: Repository) -> AsyncIterator[SourceCase]:
        content = picture("a0b00ccc0") + noise(1000)
        manifest = await back_up(repository, "web-01", {"vda": content})
        yield SourceCase(repository.open_disk(manifest, "vda"), content)


@pytest.fixture
async def manifest(repository: Repository) -> Manifest:
    return await back_up(repository, "web-01", {"vda": picture("a0b00cde0") + noise(1000)})


async def test_extents_are_runs_of_chunks(repository: Repository, manifest: Manifest) -> None:
    disk = repository.open_disk(manifest, "vda")
    assert disk.block_size == 1
    found = [extent async for extent in disk.extents()]
    assert found == [
        Extent(0, CHUNK),
        Extent(CHUNK, CHUNK, zero=True, hole=True),
        Extent(2 * CHUNK, CHUNK),
        Extent(3 * CHUNK, 2 * CHUNK, zero=True, hole=True),
        Extent(5 * CHUNK, 3 * CHUNK),
        Extent(8 * CHUNK, CHUNK, zero=True, hole=True),
        Extent(9 * CHUNK, 1000),
    ]
    assert [extent async for extent in disk.extents(100, CHUNK)] == [
        Extent(100, CHUNK - 100),
        Extent(CHUNK, 100, zero=True, hole=True),
    ]


async def test_any_range_is_read(repository: Repository, manifest: Manifest) -> None:
    content = picture("a0b00cde0") + noise(1000)
    disk = repository.open_disk(manifest, "vda")
    rng = random.Random(1)
    for _ in range(100):
        start = rng.randrange(len(content))
        end = min(len(content), start + rng.choice([1, 100, CHUNK, 3 * CHUNK]))
        buffer = bytearray(b"?" * (end - start))
        await disk.read_into(start, memoryview(buffer))
        assert buffer == content[start:end]


async def test_threads_read_any_range(repository: Repository, manifest: Manifest) -> None:
    content = picture("a0b00cde0") + noise(1000)
    disk = repository.open_disk(manifest, "vda")
    assert isinstance(disk, BlockingSource)

    def read(reader: Reader, seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(30):
            start = rng.randrange(len(content))
            end = min(len(content), start + rng.choice([1, 100, CHUNK, 3 * CHUNK]))
            buffer = bytearray(b"?" * (end - start))
            reader.read_into(start, memoryview(buffer))
            assert buffer == content[start:end]

    async with disk.readers(3) as readers:
        await asyncio.gather(*(asyncio.to_thread(read, reader, seed) for seed, reader in enumerate(readers)))
        with pytest.raises(UsageError, match="not within"):
            readers[0].read_into(disk.size, memoryview(bytearray(1)))


async def test_parts_of_a_chunk_are_unsealed_once(
    repository: Repository, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[bytes] = []
    original = BlobReader.read

    def count(reader: BlobReader, kind: BlobKind, name: bytes, length: int) -> bytes:
        if kind == BlobKind.CHUNK:
            reads.append(name)
        return original(reader, kind, name, length)

    monkeypatch.setattr(BlobReader, "read", count)
    disk = repository.open_disk(manifest, "vda")
    for offset in range(0, CHUNK, CHUNK // 16):
        await disk.read_into(offset, memoryview(bytearray(CHUNK // 16)))
    assert len(reads) == 1


async def test_damage_is_told_with_disk_and_offset(repository: Repository, place: Path, manifest: Manifest) -> None:
    pack = max(files(place, "packs"), key=lambda path: path.stat().st_size)
    flip(pack, 300)
    disk = repository.open_disk(manifest, "vda")
    damaged = []
    for index in range(10):
        length = min(CHUNK, disk.size - index * CHUNK)
        for part in (length, length // 2):
            try:
                await disk.read_into(index * CHUNK, memoryview(bytearray(part)))
            except IntegrityError as error:
                assert (error.disk, error.offset, error.length) == ("vda", index * CHUNK, length)
                assert pack.name in str(error)
                damaged.append(index)
    assert len(damaged) == 2
    assert damaged[0] == damaged[1]


async def test_a_disk_that_is_not_there(repository: Repository, manifest: Manifest) -> None:
    with pytest.raises(BackupNotFoundError, match="no disk 'vdb'"):
        repository.open_disk(manifest, "vdb")
    disk = repository.open_disk(manifest, "vda")
    for offset, length in ((-1, 1), (disk.size, 1), (0, disk.size + 1)):
        with pytest.raises(UsageError, match="not within"):
            await disk.read_into(offset, memoryview(bytearray(length)))


async def test_many_readers_at_once(repository: Repository, manifest: Manifest) -> None:
    content = picture("a0b00cde0") + noise(1000)
    found = await asyncio.gather(*(read_disk(repository, manifest, "vda") for _ in range(8)))
    assert all(one == content for one in found)
