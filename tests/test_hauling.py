"""Backups that threads carry: every byte, what is the pipeline's, and how they end."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfasync import Engine, Limits, Repository, Retry, SourceError, StorageError, sharing
from sfasync.blocking import Reader
from sfasync.extents import Action, Step
from sfasync.hauling import _each, _stretches
from sfasync.nbd.uri import parse_uri
from sfasync.store.intake import Intake
from sfasync.store.writer import ChunkWriter
from sfasync.units import KiB, MiB

from .support.images import same_content
from .support.resetting import resetting
from .support.servers import nbdkit
from .support.tracking import TrackedSnapshot, TrackingPlatform

SIZE = 52 * MiB + 12 * KiB


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two long stretches of data, between them a hole, a chunk with a hole inside, a single one and one of zeros."""
    path = tmp_path_factory.mktemp("images") / "source.raw"
    source = random.Random(9)
    with path.open("wb") as file:
        file.write(source.randbytes(20 * MiB + 100 * KiB))
        file.seek(21 * MiB - 100 * KiB)
        file.write(source.randbytes(MiB))
        file.seek(25 * MiB)
        file.write(source.randbytes(3 * MiB) + bytes(MiB) + source.randbytes(18 * MiB))
        file.truncate(SIZE)
        file.seek(SIZE - 5)
        file.write(b"ended")
    return path


@pytest.fixture
def carried(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of the chunks that threads have carried, on two processors, with no end far away."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr("sfasync.transport.export._SOON", 5.0)
    monkeypatch.setattr("sfasync.carrying._PATIENCE", float("inf"))
    lengths: list[int] = []
    write = ChunkWriter._write_now

    def noting(self: ChunkWriter, offset: int, data: memoryview) -> None:
        write(self, offset, data)
        lengths.append(len(data))

    monkeypatch.setattr(ChunkWriter, "_write_now", noting)
    return lengths


@pytest.fixture
async def repository(tmp_path: Path) -> AsyncIterator[Repository]:
    async with await Repository.open(tmp_path / "repository", create=True) as repository:
        yield repository


async def check(engine: Engine, backup: str, image: Path, directory: Path) -> None:
    await engine.restore_vm(backup, to=directory)
    restored = list(directory.iterdir())
    assert restored
    assert all(same_content(image, path) for path in restored)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_every_byte_is_in_the_backup(
    image: Path, repository: Repository, tmp_path: Path, carried: list[int], secure: bool, certificates: Path
) -> None:
    with nbdkit("file", image, tls=certificates if secure else None) as server:
        async with Engine(repository) as engine:
            backup = await engine.backup_vm("vm", disks={"vda": server.uri})
            again = await engine.backup_vm("vm", disks={"vda": server.uri})
            await check(engine, backup.id, image, tmp_path / "restored")
    (disk,) = backup.disks
    assert 30 * MiB < sum(carried) // 2 < SIZE - 8 * MiB, "long stretches, and only those"
    statistics = disk.statistics
    assert statistics.bytes_new + statistics.bytes_zero == SIZE
    assert again.disks[0].tree == disk.tree
    assert again.disks[0].statistics.bytes_duplicate == statistics.bytes_new


async def test_several_disks_and_backups_share_the_threads(
    image: Path, repository: Repository, tmp_path: Path, carried: list[int]
) -> None:
    disks = [f"vd{number}" for number in range(4)]
    with nbdkit("file", image) as server:
        async with Engine(repository) as engine:
            jobs = (engine.backup_vm(vm, disks=dict.fromkeys(disks, server.uri)) for vm in ("a", "b"))
            backups = await asyncio.gather(*jobs)
            await check(engine, backups[1].id, image, tmp_path / "restored")
    assert sum(carried) > 8 * 30 * MiB, "all of them"
    assert len({disk.tree for backup in backups for disk in backup.disks}) == 1


async def test_a_server_that_hangs_holds_up_nobody_else(
    image: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch, carried: list[int]
) -> None:
    """Its threads wait, as many as there are; those of another disk take their places."""
    monkeypatch.setattr("sfasync.crew._LATE", 0.05)
    with nbdkit("pattern", "100G") as hanging, nbdkit("file", image) as server:
        async with Engine(repository) as engine, asyncio.timeout(50):
            job = engine.start_backup("hanging", disks={"vda": hanging.uri})
            while not carried:
                await asyncio.sleep(0.005)
            os.kill(hanging.pid, signal.SIGSTOP)
            try:
                before = sum(carried)
                await engine.backup_vm("vm", disks={"vda": server.uri})
                assert sum(carried) - before > 30 * MiB
                job.cancel()
                await job.ended()
            finally:
                os.kill(hanging.pid, signal.SIGCONT)


@pytest.mark.usefixtures("carried")
async def test_what_a_server_refuses_now_and_then_is_asked_for_again(
    image: Path, repository: Repository, tmp_path: Path
) -> None:
    with nbdkit("file", image, "error-pread=EIO", "error-pread-rate=20%", filters=("error",)) as server:
        async with Engine(repository, retry=Retry(attempts=12)) as engine:
            backup = await engine.backup_vm("vm", disks={"vda": server.uri})
            await check(engine, backup.id, image, tmp_path / "restored")


async def test_lost_connections_are_replaced(
    image: Path, repository: Repository, tmp_path: Path, carried: list[int]
) -> None:
    with nbdkit("file", image, tcp=True) as server, resetting(server, every=9 * MiB, most=3) as proxy:
        async with Engine(repository, retry=Retry(delay=0.01)) as engine:
            backup = await engine.backup_vm("vm", disks={"vda": proxy.uri})
            await check(engine, backup.id, image, tmp_path / "restored")
    assert carried


@pytest.mark.usefixtures("carried")
async def test_a_disk_that_cannot_be_read_ends_it(image: Path, repository: Repository) -> None:
    with nbdkit("file", image, "error-pread=EIO", "error-pread-rate=100%", filters=("error",)) as server:
        async with Engine(repository, retry=Retry(attempts=2)) as engine:
            with pytest.raises(SourceError) as failure:
                await engine.backup_vm("vm", disks={"vda": server.uri})
    assert failure.value.disk == "vda"
    assert await repository.backups() == []


async def test_a_repository_that_cannot_be_written_ends_it(
    image: Path, repository: Repository, carried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session has failed in a thread; what the pipeline is left with fails with the same cause."""
    put = Intake.put
    calls = 0

    def failing(self: Intake, *args: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 9:
            error = StorageError("the disk is full")
            self.fail(error)
            raise error
        return put(self, *args, **options)  # type: ignore[arg-type] # as they came

    monkeypatch.setattr(Intake, "put", failing)
    with nbdkit("file", image) as server:
        async with Engine(repository) as engine:
            with pytest.raises(StorageError, match="the disk is full"):
                await engine.backup_vm("vm", disks={"vda": server.uri})
    assert carried
    assert await repository.backups() == []


async def test_cancelling_is_prompt(repository: Repository, carried: list[int]) -> None:
    with nbdkit("pattern", "100G") as server:
        async with Engine(repository) as engine:
            job = engine.start_backup("vm", disks={"vda": server.uri})
            while len(carried) < 6:
                await asyncio.sleep(0.005)
            began = time.monotonic()
            job.cancel()
            await job.ended()
            assert time.monotonic() - began < 5
    assert await repository.backups() == []


async def test_one_connection_is_the_pipelines(image: Path, repository: Repository, carried: list[int]) -> None:
    with nbdkit("file", image) as server:
        async with Engine(repository, limits=Limits(connections=1)) as engine:
            await engine.backup_vm("vm", disks={"vda": server.uri})
    assert carried == []


async def test_a_thread_more_than_connections_seals(
    image: Path, repository: Repository, carried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[tuple[int, int]] = []
    share = sharing.shared

    def counting(readers: Sequence[Reader], count: int) -> list[sharing.SharedReader]:
        counts.append((len(readers), count))
        return share(readers, count)

    monkeypatch.setattr("sfasync.carrying.shared", counting)
    with nbdkit("file", image) as server:
        async with Engine(repository) as engine:
            backup = await engine.backup_vm("vm", disks={"vda": server.uri})
            assert (await engine.verify(backup.id, data=True)).ok
    assert counts == [(3, 4)]
    assert carried


@pytest.mark.parametrize(("processors", "by_threads"), [(1, True), (3, True), (4, False), (64, False)])
async def test_where_the_pipeline_seals_more_at_a_time_it_has_the_disk(
    processors: int,
    by_threads: bool,
    image: Path,
    repository: Repository,
    carried: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four connections are for three threads."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)))
    with nbdkit("file", image) as server:
        async with Engine(repository) as engine:
            await engine.backup_vm("vm", disks={"vda": server.uri})
    assert bool(carried) == by_threads


async def test_a_disk_that_turns_dense_gets_its_threads_back(
    repository: Repository, tmp_path: Path, carried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfasync.hauling._GATHERED", 6)
    monkeypatch.setattr("sfasync.hauling._DENSE", 4)
    image, source = tmp_path / "image.raw", random.Random(11)
    with image.open("wb") as file:
        for start in (0, 32 * MiB):
            for scattered in range(start, start + 12 * MiB, 2 * MiB):
                file.seek(scattered)
                file.write(source.randbytes(MiB))
            file.seek(start + 16 * MiB)
            file.write(source.randbytes(16 * MiB))
    with nbdkit("file", image) as server:
        async with Engine(repository) as engine:
            backup = await engine.backup_vm("vm", disks={"vda": server.uri})
            await check(engine, backup.id, image, tmp_path / "restored")
    assert sum(carried) > 16 * MiB, "more than once"


async def test_threads_are_tried_again(
    image: Path, repository: Repository, tmp_path: Path, carried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One loses its connection early on."""
    monkeypatch.setattr("sfasync.recess._FIRST", 0.0)
    monkeypatch.setattr("sfasync.hauling._STRETCH", 4 * MiB)
    with nbdkit("file", image, tcp=True) as server, resetting(server, every=4 * MiB, most=1) as proxy:
        async with Engine(repository, retry=Retry(delay=0.01)) as engine:
            backup = await engine.backup_vm("vm", disks={"vda": proxy.uri})
            await check(engine, backup.id, image, tmp_path / "restored")
    assert proxy.resets == 1
    assert sum(carried) > 16 * MiB, "more than the four of 4 MiB that began"


class Served(TrackingPlatform):
    """Its disk is read from a server, of a file."""

    def __init__(self, content: bytes, path: Path, uri: str) -> None:
        super().__init__({"vda": content})
        self._path = path
        self._address = parse_uri(uri)

    @asynccontextmanager
    async def snapshot(self, vm: str, **wanted: Any) -> AsyncIterator[TrackedSnapshot]:
        async with super().snapshot(vm, **wanted) as view:
            (disk,) = view.disks
            self._path.write_bytes(disk.address.content)
            view.disks = [replace(disk, address=self._address)]  # type: ignore[arg-type]  # in place of memory
            yield view


async def test_a_long_change_is_for_threads(
    repository: Repository, tmp_path: Path, carried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfasync.hauling._DENSE", 4)
    path, chance = tmp_path / "disk.raw", random.Random(12)
    path.write_bytes(bytes(48 * MiB))
    with nbdkit("file", path) as server:
        async with Engine(repository) as engine:
            platform = Served(chance.randbytes(48 * MiB), path, server.uri)
            await engine.backup_vm("vm", platform=platform)
            carried.clear()
            for offset, length in ((MiB, 4096), (10 * MiB + 512, 24 * MiB), (40 * MiB, MiB)):
                platform.vm_disks["vda"].write(offset, chance.randbytes(length))
            backup = await engine.backup_vm("vm", platform=platform, audit="10%")
            await check(engine, backup.id, path, tmp_path / "restored")
    assert backup.disks[0].mode == "incremental"
    assert 12 * MiB < sum(carried) <= 24 * MiB, "the long one, when it was seen to be long"
    assert not backup.untold


@given(picture=st.text("Dz0", max_size=60), taken=st.integers(0, 5))
async def test_each_step_goes_one_way(picture: str, taken: int) -> None:
    """Letters are chunks: data, data with zeros inside, zeros; whoever takes stretches may stop after some of them."""
    steps = [
        Step(Action.ZERO, index, 1) if kind == "0" else Step(Action.DATA, index, 1, ((index, index),) * (kind == "z"))
        for index, kind in enumerate(picture)
    ]

    async def planned() -> AsyncIterator[Step]:
        for step in steps:
            yield step

    async def pipeline(batch: AsyncIterator[Step]) -> None:
        batched.extend([step async for step in batch])

    batched: list[Step] = []
    kept: list[Step] = []
    carried: list[Step] = []
    plan = planned()
    async with aclosing(_stretches(plan, kept, pipeline, lambda _: 8)) as stretches:
        async for stretch in stretches:
            carried.append(stretch)
            if len(carried) == taken:
                break
    rest = [step async for step in plan]
    assert all(4 <= stretch.length <= 8 and not stretch.zeros for stretch in carried)
    seen = [
        index for step in [*carried, *kept, *batched, *rest] for index in range(step.offset, step.offset + step.length)
    ]
    assert sorted(seen) == list(range(len(picture)))
    assert all(
        picture[index] == "D" for stretch in carried for index in range(stretch.offset, stretch.offset + stretch.length)
    )


@pytest.mark.parametrize("dense", [0, 100])
async def test_scattered_data_is_left_to_the_pipeline_for_good(dense: int) -> None:
    """It must go on with the map while chunks are on their way."""
    scattered = [
        Step(Action.ZERO, index, 1) if index % 2 else Step(Action.DATA, index, 1, ((index, index),))
        for index in range(dense, dense + 5000)
    ]
    plan = _each([*(Step(Action.DATA, index, 1) for index in range(dense)), *scattered])
    kept: list[Step] = []

    async def pipeline(batch: AsyncIterator[Step]) -> None:
        raise AssertionError("nothing is carried out while the plan waits")

    carried = [stretch async for stretch in _stretches(plan, kept, pipeline, lambda _: 8)]
    assert sum(stretch.length for stretch in carried) == dense
    assert kept == scattered[:1024]
    assert [step async for step in plan] == scattered[1024:]
