"""Restores that threads carry: every byte, what is the pipeline's, and how they end."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sfasync import Engine, IntegrityError, Limits, NoSpaceError, Repository, TargetError
from sfasync.interfaces import Buffer
from sfasync.store.disk import StoredDisk, _DiskReader
from sfasync.store.names import pack_key
from sfasync.store.seal import BlobKind
from sfasync.transport.file import FileSink
from sfasync.units import KiB, MiB

from .store.support import flip
from .support.images import same_content
from .support.memory import MemoryDisk
from .support.servers import nbdkit, qemu_nbd

CHUNK = 256 * KiB
SIZE = 10 * MiB + 12 * KiB
LAST = SIZE // CHUNK


@dataclass(frozen=True)
class Saved:
    """A backup of an image, in a repository that nobody changes."""

    image: Path
    place: Path
    id: str


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Long stretches of data, a chunk alone, zeros between them, data twice."""
    directory = tmp_path_factory.mktemp("saved")
    source = random.Random(19)
    content = bytearray(source.randbytes(MiB) * 4 + bytes(100) + source.randbytes(MiB))
    content += bytes(6 * MiB - len(content)) + source.randbytes(CHUNK) + bytes(MiB)
    content += source.randbytes(2 * MiB)
    content += bytes(SIZE - 5 - len(content)) + b"ended"
    (directory / "image").write_bytes(content)

    async def back_up() -> str:
        repository = await Repository.init(directory / "repository", chunk_size=CHUNK)
        async with repository, Engine(repository) as engine:
            return (await engine.backup_vm("vm", {"vda": MemoryDisk(content)})).id

    return Saved(directory / "image", directory / "repository", asyncio.run(back_up()))


@pytest.fixture
async def repository(saved: Saved) -> AsyncIterator[Repository]:
    async with await Repository.open(saved.place) as repository:
        yield repository


class Counts:
    """Bytes of a repository's disks that were read by threads that carry, and by the pipeline."""

    def __init__(self) -> None:
        self.carried = 0
        self.piped = 0


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    """What reads; no end is far away, however busy the machine is."""
    monkeypatch.setattr("sfasync.carrying._PATIENCE", float("inf"))
    monkeypatch.setattr("sfasync.restore.STRETCH", MiB)
    counts = Counts()
    carried, piped = _DiskReader.read_into, StoredDisk.read_into

    def carry(self: _DiskReader, offset: int, buffer: memoryview) -> None:
        carried(self, offset, buffer)
        counts.carried += len(buffer)

    async def pipe(self: StoredDisk, offset: int, buffer: memoryview) -> None:
        await piped(self, offset, buffer)
        counts.piped += len(buffer)

    monkeypatch.setattr(_DiskReader, "read_into", carry)
    monkeypatch.setattr(StoredDisk, "read_into", pipe)
    return counts


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
async def test_every_byte_is_in_the_file(
    saved: Saved, repository: Repository, tmp_path: Path, counts: Counts, image_format: str
) -> None:
    async with Engine(repository) as engine:
        result = await engine.restore_vm(
            saved.id, to=tmp_path / "restored", image_format=image_format, verify_after=True
        )
    target = tmp_path / "restored" / f"vda.{image_format}"
    if image_format == "qcow2":
        with qemu_nbd(target, fmt="qcow2") as server:
            async with Engine() as engine:
                await engine.copy(server.uri, tmp_path / "copy.raw")
        target = tmp_path / "copy.raw"
    assert same_content(saved.image, target)
    (disk,) = result.disks
    assert (disk.bytes_written, disk.bytes_zero) == (counts.carried, SIZE - counts.carried)
    assert 7 * MiB < counts.carried < SIZE - 2 * MiB
    assert not counts.piped


async def test_every_byte_is_in_the_export(
    saved: Saved, repository: Repository, tmp_path: Path, counts: Counts
) -> None:
    target = tmp_path / "target.raw"
    target.write_bytes(b"\xff" * (SIZE + KiB))
    with nbdkit("file", target) as server:
        async with Engine(repository) as engine:
            result = await engine.restore_vm(saved.id, to_disks={"vda": server.uri}, verify_after=True)
    with target.open("rb") as file:
        assert file.read(SIZE) == saved.image.read_bytes()
        assert file.read() == b"\xff" * KiB, "what is behind the disk"
    assert result.disks[0].verified
    assert counts.carried
    assert not counts.piped


async def test_several_disks_share_the_threads(saved: Saved, tmp_path: Path, counts: Counts) -> None:
    content = saved.image.read_bytes()
    disks = {f"vd{number}": MemoryDisk(content[number * CHUNK :]) for number in range(4)}
    repository = await Repository.init(tmp_path / "repository", chunk_size=CHUNK)
    async with repository, Engine(repository) as engine:
        backup = await engine.backup_vm("vm", disks)
        await engine.restore_vm(backup.id, to=tmp_path / "restored")
    for disk, source in disks.items():
        assert (tmp_path / "restored" / f"{disk}.raw").read_bytes() == source.content
    assert counts.carried
    assert not counts.piped


async def test_a_limit_on_the_rate_is_the_pipelines(
    saved: Saved, repository: Repository, tmp_path: Path, counts: Counts
) -> None:
    async with Engine(repository, limits=Limits(rate=1 << 40)) as engine:
        await engine.restore_vm(saved.id, to=tmp_path / "restored")
    assert same_content(saved.image, tmp_path / "restored" / "vda.raw")
    assert counts.piped
    assert not counts.carried


async def test_with_little_memory(saved: Saved, repository: Repository, tmp_path: Path) -> None:
    async with Engine(repository, limits=Limits(memory=16 * MiB)) as engine:
        await engine.restore_vm(saved.id, to=tmp_path / "restored", verify_after=True)
        assert engine._resources.pool.peak <= 12 * MiB
    assert same_content(saved.image, tmp_path / "restored" / "vda.raw")


async def test_damage_is_told_as_by_the_pipeline(saved: Saved, tmp_path: Path, counts: Counts) -> None:
    """Before a wrong byte is written; what is told is the same, whoever meets it."""
    shutil.copytree(saved.place, tmp_path / "repository")
    pack = max((tmp_path / "repository").rglob("packs/*/*"), key=lambda path: path.stat().st_size)
    flip(pack, pack.stat().st_size * 7 // 8)  # of what is restored late
    told = []
    for rate in (None, 1 << 40):
        repository = await Repository.open(tmp_path / "repository")
        async with repository, Engine(repository, limits=Limits(rate=rate)) as engine:
            with pytest.raises(IntegrityError) as failure:
                await engine.restore_vm(saved.id, to=tmp_path / "restored")
            assert engine._resources.pool.in_use == 0
        told.append((str(failure.value), failure.value.disk, failure.value.offset, failure.value.length))
    assert told[0] == told[1]
    assert told[0][1] == "vda"
    assert counts.carried
    assert not list((tmp_path / "restored").iterdir())


@pytest.mark.parametrize("index", [0, 3, 16, 24, LAST])
async def test_damage_is_told_wherever_it_is_and_nothing_wrong_is_written(
    saved: Saved, tmp_path: Path, counts: Counts, index: int
) -> None:
    """What is read first, the end of a stretch, one after the beginning of another, one alone, and the disk's end."""
    shutil.copytree(saved.place, tmp_path / "repository")
    target = tmp_path / "target.raw"
    target.write_bytes(b"\xff" * SIZE)
    repository = await Repository.open(tmp_path / "repository")
    async with repository, Engine(repository) as engine:
        tree = repository.open_disk(await repository.find(saved.id), "vda")._tree
        digests = [tree.digest(0, number) for number in range(LAST + 1)]
        length = min(CHUNK, SIZE - index * CHUNK)
        (copy,) = repository._locator.locations(BlobKind.CHUNK, digests[index], length)
        flip(tmp_path / "repository" / pack_key(copy.pack), copy.offset + copy.length // 2)
        with nbdkit("file", target) as server, pytest.raises(IntegrityError, match="is damaged") as failure:
            await engine.restore_vm(saved.id, to_disks={"vda": server.uri})
        assert engine._resources.pool.in_use == 0
    damaged = {number * CHUNK for number, digest in enumerate(digests) if digest == digests[index]}
    assert failure.value.disk == "vda"
    assert failure.value.offset in damaged
    assert failure.value.length == length
    image, written = saved.image.read_bytes(), target.read_bytes()
    for offset in range(0, SIZE, 4 * KiB):
        right, there = image[offset:][: 4 * KiB], written[offset:][: 4 * KiB]
        is_damaged = offset - offset % CHUNK in damaged
        assert there == b"\xff" * len(there) or (there == right and not is_damaged), f"at {offset}"


async def test_a_full_target_ends_it(
    saved: Saved, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileSink, "_write", _full)
    async with Engine(repository) as engine:
        with pytest.raises(NoSpaceError, match=r"cannot write .* No space left on device"):
            await engine.restore_vm(saved.id, to=tmp_path / "restored")
    assert not list((tmp_path / "restored").iterdir())


def _full(self: FileSink, offset: int, data: Buffer) -> None:
    if offset >= 2 * MiB:
        with self._errors(TargetError, "write", offset, len(data)):
            raise OSError(28, "No space left on device")


async def test_what_a_server_refuses_now_and_then_is_written_again(
    saved: Saved, repository: Repository, tmp_path: Path
) -> None:
    target = tmp_path / "target.raw"
    target.write_bytes(b"\xff" * SIZE)
    with nbdkit("file", target, "error-pwrite=EIO", "error-pwrite-rate=20%", filters=("error",)) as server:
        async with Engine(repository) as engine:
            await engine.restore_vm(saved.id, to_disks={"vda": server.uri}, verify_after=True)
    assert same_content(saved.image, target)


@pytest.mark.parametrize("turns", [0, 1, 3, 8, 20, 60, 150])
async def test_cancelling_at_any_moment(saved: Saved, repository: Repository, tmp_path: Path, turns: int) -> None:
    """Twice; no read is left behind, no file, and another restore succeeds."""
    async with Engine(repository) as engine:
        job = asyncio.ensure_future(engine.restore_vm(saved.id, to=tmp_path / "restored"))
        for _ in range(turns):
            await asyncio.sleep(0)
        job.cancel()
        await asyncio.sleep(0)
        job.cancel()
        await asyncio.wait([job])
        assert engine._resources.pool.in_use == 0
        await engine.restore_vm(saved.id, to=tmp_path / "restored", force=True)
    assert same_content(saved.image, tmp_path / "restored" / "vda.raw")
    assert len(list((tmp_path / "restored").iterdir())) == 1
