"""An estimate says what the backup then reads, and leaves everything as it was."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest

from sfasync.engine import Engine
from sfasync.errors import CbtError, UsageError
from sfasync.models import BackupEstimate, BackupResult, Extent
from sfasync.store.repository import Repository

from .store.support import files
from .support.memory import MemoryDisk
from .support.tracking import TrackingPlatform
from .test_incremental import LyingPlatform

MiB = 1 << 20
CONTENT = bytes(range(256)) * (6 * MiB // 256) + bytes(10 * MiB)


@pytest.fixture
async def repository(tmp_path: Path) -> AsyncIterator[Repository]:
    async with await Repository.init(tmp_path / "repository") as repository:
        yield repository


@pytest.fixture
async def engine(repository: Repository) -> AsyncIterator[Engine]:
    async with Engine(repository) as engine:
        yield engine


def told(estimate: BackupEstimate) -> list[tuple[object, ...]]:
    return [(disk.id, disk.size, disk.mode, disk.reasons, disk.bytes_to_read) for disk in estimate.disks]


def done(result: BackupResult) -> list[tuple[object, ...]]:
    return [(disk.id, disk.size, disk.mode, disk.reasons, disk.statistics.bytes_read) for disk in result.disks]


@pytest.mark.parametrize("audit", ["off", 2, "100%"])
async def test_what_is_told_is_what_is_read(engine: Engine, tmp_path: Path, audit: int | str) -> None:
    platform = TrackingPlatform({"vda": CONTENT, "vdb": bytes(3 * MiB)})
    disk = platform.vm_disks["vda"]
    parent = None
    for step in range(4):
        before = files(tmp_path / "repository")
        estimate = await engine.estimate_backup("Web server", platform=platform, audit=audit)
        assert files(tmp_path / "repository") == before, "nothing is written"
        assert (estimate.vm, estimate.vm_name, estimate.parent) == ("vm", "Web server", parent)
        for each in estimate.disks:
            assert each.bytes_to_read + each.bytes_zero + each.bytes_unchanged == each.size
        result = await engine.backup_vm("vm", platform=platform, audit=audit)
        assert told(estimate) == done(result)
        parent = result.id
        disk.write(step * 2 * MiB + 5, b"changed")
        if step == 1:
            disk.resize(20 * MiB)
        if step == 2:
            disk.checkpoints.clear()
    assert result.disks[0].reasons == ("cbt-expired",)
    assert platform.open_snapshots == 0


async def test_nobody_is_kept_from_a_backup(engine: Engine, repository: Repository) -> None:
    platform = TrackingPlatform({"vda": CONTENT})
    session = await repository.begin("vm")
    estimate = await engine.estimate_backup("vm", platform=platform)
    await session.abort()
    assert estimate.bytes_to_read == 6 * MiB


async def twice(_: list[tuple[int, int]]) -> AsyncGenerator[Extent, None]:
    for _again in range(2):
        yield Extent(0, 1)


async def test_modes(engine: Engine) -> None:
    platform = LyingPlatform({"vda": CONTENT})
    with pytest.raises(CbtError, match="no usable changed blocks"):
        await engine.estimate_backup("vm", platform=platform, mode="incremental")
    await engine.backup_vm("vm", platform=platform)
    assert (await engine.estimate_backup("vm", platform=platform, mode="incremental", audit="off")).bytes_to_read == 0
    (disk,) = (await engine.estimate_backup("vm", platform=platform, mode="full")).disks
    assert (disk.mode, disk.reasons, disk.bytes_to_read) == ("full", ("forced",), 6 * MiB)
    platform.lie = twice
    (disk,) = (await engine.estimate_backup("vm", platform=platform)).disks
    assert (disk.mode, disk.reasons, disk.bytes_to_read) == ("full", ("cbt-invalid",), 6 * MiB)


async def test_disks_without_a_platform(engine: Engine) -> None:
    estimate = await engine.estimate_backup("vm", {"vda": MemoryDisk(CONTENT)})
    assert (estimate.bytes_to_read, estimate.parent) == (6 * MiB, None)
    with pytest.raises(UsageError, match="at least one disk"):
        await engine.estimate_backup("vm")
