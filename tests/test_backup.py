"""Backups with a platform that tracks changes: what is kept, what is read, and both sides of the commit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sfasync import (
    BusyError,
    CbtError,
    Engine,
    LeaseLostError,
    Limits,
    Repository,
    SourceError,
    StorageError,
    UsageError,
    backup,
)
from sfasync.models import DiskRecord, DiskStatistics
from sfasync.store.names import Numbered
from sfasync.store.records import Records
from sfasync.units import KiB, MiB

from .support.memory import MemoryDisk
from .support.tracking import TrackedSnapshot, TrackingPlatform

SIZE = 20 * MiB + 512


@pytest.fixture
async def repository(tmp_path: Path) -> AsyncIterator[Repository]:
    async with await Repository.open(tmp_path / "repository", create=True) as repository:
        yield repository


@pytest.fixture
async def engine(repository: Repository) -> AsyncIterator[Engine]:
    async with Engine(repository) as engine:
        yield engine


def content(size: int = SIZE) -> bytes:
    return bytes(range(256)) * (10 * MiB // 256) + bytes(size - 10 * MiB)


async def restored(engine: Engine, backup_id: str, disk: str, size: int) -> bytes:
    target = MemoryDisk(b"\xff" * size)
    await engine.restore_vm(backup_id, to_disks={disk: target})
    return bytes(target.content)


async def test_incrementals_read_only_what_changed(engine: Engine, repository: Repository) -> None:
    platform = TrackingPlatform({"vda": content()})
    disk = platform.vm_disks["vda"]
    first = await engine.backup_vm("web-01", platform=platform)
    assert (first.disks[0].mode, first.disks[0].reasons) == ("full", ("first-backup", "no-checkpoint"))

    disk.write(3 * MiB + 5, b"changed")
    disk.write(15 * MiB, b"new")
    state_two = bytes(disk.content)
    second = await engine.backup_vm("web-01", platform=platform, audit="off")
    assert (second.disks[0].mode, second.disks[0].reasons) == ("incremental", ())
    assert second.disks[0].statistics.bytes_read <= 2 * MiB
    assert second.disks[0].statistics.bytes_skipped == 9 * MiB

    third = await engine.backup_vm("web-01", platform=platform, audit="off")
    assert third.disks[0].statistics.bytes_read == 0
    assert third.disks[0].tree == second.disks[0].tree

    assert await restored(engine, first.id, "vda", SIZE) == content()
    assert await restored(engine, second.id, "vda", SIZE) == state_two
    assert (await engine.verify(data=True)).ok
    manifest = await repository.find(second.id)
    assert [file.name for file in manifest.files] == ["nvram", "config.json"]
    assert await repository.read_file(manifest, "config.json") == b'{"cpus": 2}'
    assert platform.open_snapshots == 0
    assert list(disk.checkpoints) == ["vda-3"]


async def test_a_vm_is_kept_under_its_id(engine: Engine, repository: Repository) -> None:
    """Whether the caller says its id or its name: both are one chain."""
    platform = TrackingPlatform({"vda": content()})
    first = await engine.backup_vm("Web server", platform=platform)
    second = await engine.backup_vm("vm", platform=platform)
    assert (first.vm, second.vm, second.parent) == ("vm", "vm", first.id)
    assert second.disks[0].mode == "incremental"
    assert (await repository.find("Web server@latest")).id == second.id


@pytest.mark.parametrize("size", [SIZE - 5 * MiB, SIZE + 5 * MiB, SIZE + 100 * KiB])
async def test_a_resized_disk_is_restored_to_the_byte(engine: Engine, size: int) -> None:
    platform = TrackingPlatform({"vda": content()})
    disk = platform.vm_disks["vda"]
    await engine.backup_vm("web-01", platform=platform)
    disk.write(SIZE - 10, b"0123456789")
    disk.resize(size)
    second = await engine.backup_vm("web-01", platform=platform)
    assert second.disks[0].reasons == ("disk-resized",)
    assert await restored(engine, second.id, "vda", size) == bytes(disk.content)


async def test_changed_to_zero_is_zero(engine: Engine) -> None:
    platform = TrackingPlatform({"vda": content()})
    disk = platform.vm_disks["vda"]
    await engine.backup_vm("web-01", platform=platform)
    disk.write(2 * MiB, bytes(3 * MiB))
    second = await engine.backup_vm("web-01", platform=platform, audit="off")
    assert second.disks[0].statistics.bytes_read == 0
    assert await restored(engine, second.id, "vda", SIZE) == bytes(disk.content)


async def test_expired_tracking_makes_a_full_backup_with_the_reason(engine: Engine) -> None:
    platform = TrackingPlatform({"vda": content()})
    await engine.backup_vm("web-01", platform=platform)
    platform.vm_disks["vda"].checkpoints.clear()
    with pytest.raises(CbtError, match="cbt-expired"):
        await engine.backup_vm("web-01", platform=platform, mode="incremental")
    second = await engine.backup_vm("web-01", platform=platform)
    assert (second.disks[0].mode, second.disks[0].reasons) == ("full", ("cbt-expired",))
    assert second.disks[0].statistics.bytes_new == 0
    third = await engine.backup_vm("web-01", platform=platform, mode="incremental")
    assert third.disks[0].mode == "incremental"


async def test_more_disks_than_a_manifest_can_tell_are_refused_before_any_is_read(
    engine: Engine, repository: Repository
) -> None:
    disks = {f"disk-{number:03}": MemoryDisk(bytes(KiB)) for number in range(200)}
    with pytest.raises(UsageError, match=r"a backup of 200 disks at once has a manifest of .* 65536 are the most"):
        await engine.backup_vm("web-01", disks)
    assert not any(disk.reads for disk in disks.values())
    few = dict(list(disks.items())[:70])
    assert len((await engine.backup_vm("web-01", few)).disks) == 70


async def test_a_lost_lease_ends_the_backup(engine: Engine, repository: Repository) -> None:
    platform = TrackingPlatform({"vda": content(), "vdb": content()})
    platform.lose_after = 2 * MiB
    with pytest.raises(LeaseLostError, match="the lease ran out"):
        await engine.backup_vm("web-01", platform=platform)
    assert await repository.backups() == []
    assert platform.open_snapshots == 0
    platform.lose_after = None
    await engine.backup_vm("web-01", platform=platform)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [(StorageError("the platform is busy"), "the platform is busy"), (KeyError(), "KeyError")],
)
async def test_failing_to_drop_checkpoints_is_a_warning(engine: Engine, failure: Exception, reason: str) -> None:
    platform = TrackingPlatform({"vda": content()})
    await engine.backup_vm("web-01", platform=platform)
    platform.fail_committed = failure
    second = await engine.backup_vm("web-01", platform=platform)
    assert second.warnings == (f"older checkpoints were not dropped: {reason}",)
    platform.fail_committed = None
    third = await engine.backup_vm("web-01", platform=platform)
    assert third.disks[0].mode == "incremental"
    assert list(platform.vm_disks["vda"].checkpoints) == ["vda-3"]


async def test_a_failed_backup_does_not_advance_the_chain(engine: Engine) -> None:
    platform = TrackingPlatform({"vda": content()})
    disk = platform.vm_disks["vda"]
    first = await engine.backup_vm("web-01", platform=platform)
    disk.write(MiB, b"between")
    platform.lose_after = 1
    with pytest.raises(LeaseLostError):
        await engine.backup_vm("web-01", platform=platform)
    platform.lose_after = None
    second = await engine.backup_vm("web-01", platform=platform)
    assert second.parent == first.id
    assert second.disks[0].mode == "incremental"
    assert await restored(engine, second.id, "vda", SIZE) == bytes(disk.content)


async def test_a_slow_end_does_not_hide_what_failed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    put_void = Records.put_void

    def slowly(records: Records, place: Numbered, reason: str) -> None:
        time.sleep(0.2)
        put_void(records, place, reason)

    monkeypatch.setattr(Records, "put_void", slowly)
    monkeypatch.setattr(backup, "_ABORT_SECONDS", 0.01)
    disk = MemoryDisk(content())
    disk.bad.add(5 * MiB)
    with pytest.raises(SourceError, match="cannot read"):
        await engine.backup_vm("web-01", {"vda": disk})
    disk.bad.clear()
    await engine.backup_vm("web-01", {"vda": disk}, wait=20)  # the thread of the first may still be at it


async def test_a_platform_that_fails_to_clean_up_does_not_undo_the_backup(
    engine: Engine, repository: Repository
) -> None:
    platform = TrackingPlatform({"vda": content()})
    platform.fail_leaving = True
    first = await engine.backup_vm("web-01", platform=platform)
    assert first.warnings == ("the platform did not clean up: the snapshot is stuck",)
    assert [manifest.id for manifest in await repository.backups()] == [first.id]


class BusyPlatform(TrackingPlatform):
    """A platform that still removes the snapshot of the last backup.

    Attributes:
        busy: How often it says so.
    """

    busy = 2

    @asynccontextmanager
    async def snapshot(self, vm: str, **arguments: Any) -> AsyncIterator[TrackedSnapshot]:
        if self.busy:
            self.busy -= 1
            raise BusyError("the platform is at work on it")
        async with super().snapshot(vm, **arguments) as view:
            yield view


async def test_who_waits_for_a_vm_waits_for_its_platform_too(engine: Engine) -> None:
    platform = BusyPlatform({"vda": content()})
    with pytest.raises(BusyError, match="at work on it"):
        await engine.backup_vm("web-01", platform=platform)
    assert platform.busy == 1, "nobody was to wait"
    await engine.backup_vm("web-01", platform=platform, wait=20)
    assert platform.busy == 0


async def test_a_new_disk_is_full_beside_incremental_ones(engine: Engine) -> None:
    platform = TrackingPlatform({"vda": content()})
    await engine.backup_vm("web-01", platform=platform)
    platform.vm_disks["vdb"] = TrackingPlatform({"vdb": content()}).vm_disks["vdb"]
    second = await engine.backup_vm("web-01", platform=platform)
    assert [(disk.id, disk.mode) for disk in second.disks] == [("vda", "incremental"), ("vdb", "full")]
    only = await engine.backup_vm("web-01", ["vdb"], platform=platform)
    assert [disk.id for disk in only.disks] == ["vdb"]


@pytest.mark.parametrize("bad", ["", "a\nb", "x" * 256])
async def test_bad_ids_are_refused_before_anything_happens(engine: Engine, bad: str) -> None:
    with pytest.raises(UsageError, match="1 to 255 bytes of printable text"):
        await engine.backup_vm(bad, {"vda": MemoryDisk(b"x")})
    with pytest.raises(UsageError, match="1 to 255 bytes of printable text"):
        await engine.backup_vm("web-01", {bad: MemoryDisk(b"x")})
    with pytest.raises(UsageError, match="mode 'half'"):
        await engine.backup_vm("web-01", {"vda": MemoryDisk(b"x")}, mode="half")


class SlowDisk(MemoryDisk):
    """A disk of which each read takes a tenth of a second."""

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        await asyncio.sleep(0.1)
        await super().read_into(offset, buffer)


@pytest.mark.parametrize("disks", [1, 16])
async def test_a_slow_source_limits_a_backup(repository: Repository, disks: int) -> None:
    """Also where most of the reads wait for memory, which other reads hold."""
    sources = {f"disk-{number}": SlowDisk(bytes([number + 1]) * 2 * MiB) for number in range(disks)}
    async with Engine(repository, limits=Limits(memory=16 * MiB)) as engine:
        result = await engine.backup_vm("web-01", sources)
    assert result.limited_by == "source"


@pytest.mark.parametrize(
    ("seconds", "limited_by"),
    [
        ({"memory": 9.0, "read": 2.0, "write": 1.0, "seal": 5.0, "store": 0.0}, "source"),
        ({"memory": 0.0, "read": 1.0, "write": 2.0, "seal": 5.0, "store": 4.0}, "compression"),
        ({"memory": 0.0, "read": 1.0, "write": 2.0, "seal": 4.0, "store": 5.0}, "store"),
    ],
)
def test_what_took_longest_limited_a_backup(seconds: dict[str, float], limited_by: str) -> None:
    record = DiskRecord(
        id="vda", size=1, root="", tree="", mode="full", reasons=(), statistics=DiskStatistics(seconds=seconds)
    )
    assert backup._limited_by([record, record], {"vda": 100}) == limited_by


@pytest.mark.parametrize(("seconds", "limited_by"), [(10.0, "network"), (13.0, "source")])
def test_a_connection_that_has_all_it_may_limits_a_backup(seconds: float, limited_by: str) -> None:
    statistics = DiskStatistics(bytes_read=1000, seconds={"read": 9.0, "write": 1.0, "total": seconds})
    record = DiskRecord(id="vda", size=1000, root="", tree="", mode="full", statistics=statistics)
    assert backup._limited_by([record], {"vda": 100}) == limited_by
    assert backup._limited_by([record], {}) == "source"
