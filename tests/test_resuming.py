"""Backups that go on: what is asked of the source, and what is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from sfasync import Engine, LeaseLostError, Repository, SourceError, UsageError
from sfasync.extents import Action, Step
from sfasync.interfaces import BackupSession, DiskWriter
from sfasync.models import Checkpoint, Extent, Progress
from sfasync.platform.plain import PlainPlatform
from sfasync.progress import Meter
from sfasync.resuming import remaining, with_checkpoints
from sfasync.units import KiB, MiB

from .store.support import noise
from .support.memory import MemoryDisk
from .support.tracking import TrackedDisk, TrackedSnapshotDisk, TrackingPlatform
from .test_badblocks import SECTOR, ScratchedDisk

HALF = 4 * MiB
CONTENT = noise(6 * MiB) + bytes(2 * MiB) + noise(MiB // 2, 1)


@pytest.fixture
async def repository(tmp_path: Path) -> AsyncIterator[Repository]:
    async with await Repository.init(tmp_path / "repository") as repository:
        yield repository


@pytest.fixture
async def engine(repository: Repository) -> AsyncIterator[Engine]:
    async with Engine(repository) as engine:
        yield engine


class HaltingDisk(MemoryDisk):
    """A disk whose second half waits at the gate, and then fails while there is anything bad."""

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        if offset >= HALF:
            await self.gate.wait()
            if self.bad:
                raise SourceError("gone")
        self.reads.append((offset, len(buffer)))
        buffer[:] = self.content[offset : offset + len(buffer)]


class HaltingPlatform(TrackingPlatform):
    """A platform whose disks halt at one gate."""

    def __init__(self, disks: dict[str, bytes]) -> None:
        super().__init__(disks)
        self.gate = asyncio.Event()
        self.gate.set()

    def _freeze(self, disk: TrackedDisk, base: Checkpoint | None, lost: asyncio.Future[str]) -> TrackedSnapshotDisk:
        frozen = super()._freeze(disk, base, lost)
        frozen.address = HaltingDisk(bytes(disk.content))
        frozen.address.gate = self.gate
        return frozen


async def fail_half_way(engine: Engine, disk: HaltingDisk, *others: MemoryDisk, bad_blocks: str = "fail") -> None:
    """Back up, and fail when half of a disk, and all of the others, are taken in."""
    disk.bad = {HALF}
    disk.gate.clear()
    disks = {"vda": disk, **{f"vdb{number}": other for number, other in enumerate(others)}}
    with pytest.raises(SourceError):
        async with engine.start_backup("web-01", disks, snapshot_id="s1", bad_blocks=bad_blocks) as job:
            while job.progress().done < HALF + sum(other.size for other in others):
                await asyncio.sleep(0.01)
            disk.gate.set()
    disk.bad.clear()
    disk.reads.clear()


# --- the plan --------------------------------------------------------------------------------------------------------


class Adopting:
    """A writer that adopts the chunks with an ``x``, and notes what it was offered."""

    def __init__(self, finished: str) -> None:
        self.finished = finished
        self.offered: list[tuple[int, int]] = []

    async def adopt(self, offset: int, length: int) -> list[Extent]:
        self.offered.append((offset, length))
        return [Extent(at, 1) for at in range(offset, offset + length) if self.finished[at] == "x"]


async def plan(picture: str) -> AsyncGenerator[Step, None]:
    actions = {"D": Action.DATA, "Z": Action.ZERO, "K": Action.KEEP}
    for offset, letter in enumerate(picture):
        yield Step(actions[letter], offset, 1)


@pytest.mark.parametrize(
    ("planned", "finished", "left"),
    [
        ("DDDDDDZZDDKK", "xxx..xxx....", "...DD.ZZDDKK"),
        ("DDD", "xxx", "..."),
        ("DDD", "...", "DDD"),
        ("ZKD", "xx.", "ZKD"),
        ("", "", ""),
    ],
)
async def test_what_is_finished_leaves_the_plan(planned: str, finished: str, left: str) -> None:
    meter = Meter("vda", len(planned))
    writer = cast(DiskWriter, Adopting(finished))
    steps = [step async for step in remaining(plan(planned), writer, meter)]
    picture = ["."] * len(planned)
    for step in steps:
        picture[step.offset] = step.action.name[0]
    assert "".join(picture) == left
    assert [step.offset for step in steps] == sorted(step.offset for step in steps)
    assert meter.resumed == planned.count("D") - left.count("D")


async def test_a_long_plan_is_offered_in_batches() -> None:
    writer = Adopting("x" * 300)
    assert [step async for step in remaining(plan("D" * 300), cast(DiskWriter, writer), Meter("vda", 300))] == []
    assert writer.offered == [(0, 128), (128, 128), (256, 44)]


# --- checkpoints -----------------------------------------------------------------------------------------------------


class Noting:
    """A session that counts its checkpoints, and may fail at one."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.count = 0
        self.twice = asyncio.Event()
        self._failure = failure

    async def checkpoint(self) -> float:
        self.count += 1
        if self.count == 2:
            self.twice.set()
        if self._failure is not None:
            raise self._failure
        return 0.0


async def test_it_is_noted_as_long_as_the_work_goes_on() -> None:
    session = Noting()
    assert await with_checkpoints(cast(BackupSession, session), session.twice.wait())
    noted = session.count
    await asyncio.sleep(0)
    assert session.count == noted >= 2


async def test_noting_that_fails_does_not_fail_the_work(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> int:
        for _ in range(5):
            await asyncio.sleep(0)
        return 7

    assert await with_checkpoints(cast(BackupSession, Noting(OSError("no"))), work()) == 7
    assert "was not noted to the end: no" in caplog.text


async def test_the_failure_of_the_work_is_the_one_that_counts() -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        raise SourceError("gone")

    with pytest.raises(SourceError):
        await with_checkpoints(cast(BackupSession, Noting()), work())


# --- backups ---------------------------------------------------------------------------------------------------------


async def test_a_failed_backup_is_gone_on_with(engine: Engine, repository: Repository) -> None:
    whole = await engine.backup_vm("web-02", {"vda": MemoryDisk(CONTENT)})
    disk = HaltingDisk(CONTENT)
    await fail_half_way(engine, disk)
    (unfinished,) = await repository.unfinished()
    seen: list[Progress] = []
    result = await engine.backup_vm("web-01", {"vda": disk}, snapshot_id="s1", progress=seen.append)
    assert result.bytes_resumed == unfinished.bytes_journaled == HALF
    assert result.resumed == {"vda": result.bytes_resumed}
    assert sum(length for _, length in disk.reads) == result.bytes_read == len(CONTENT) - 2 * MiB - result.bytes_resumed
    assert result.disks[0].reasons[-1] == "resumed"
    assert result.disks[0].tree == whole.disks[0].tree
    statistics = result.disks[0].statistics
    assert statistics.bytes_new + statistics.bytes_duplicate + statistics.bytes_zero == len(CONTENT)
    assert seen[-1].done == len(CONTENT)
    assert seen[-1].disks[0].resumed == result.bytes_resumed
    manifest = await repository.find(result.id)
    assert manifest.snapshot == "s1"
    assert abs(manifest.time - unfinished.started) < 0.01
    assert (await engine.verify(data=True)).problems == ()


async def test_a_cancelled_backup_is_gone_on_with(engine: Engine, repository: Repository) -> None:
    disk = HaltingDisk(CONTENT)
    disk.gate.clear()
    job = engine.start_backup("web-01", {"vda": disk}, snapshot_id="s1")
    while job.progress().done < HALF:
        await asyncio.sleep(0.01)
    job.cancel()
    await job.ended()
    (unfinished,) = await repository.unfinished()
    assert not unfinished.running
    disk.gate.set()
    result = await engine.backup_vm("web-01", {"vda": disk}, snapshot_id="s1")
    assert result.bytes_resumed == unfinished.bytes_journaled == HALF


async def test_what_could_not_be_read_is_read_again(engine: Engine) -> None:
    spot = MiB + 512
    scratched = ScratchedDisk(CONTENT, [spot])
    disk = HaltingDisk(CONTENT)
    await fail_half_way(engine, disk, scratched, bad_blocks="zero")
    scratched.bad.clear()
    result = await engine.backup_vm("web-01", {"vda": disk, "vdb0": scratched}, snapshot_id="s1")
    assert result.resumed == {"vda": HALF, "vdb0": len(CONTENT) - 3 * MiB}, (
        "all but a chunk, and what the map calls zero"
    )
    assert result.bad_blocks == {}
    target = MemoryDisk(b"\xff" * len(CONTENT))
    await engine.restore_vm(result.id, to_disks={"vdb0": target})
    assert target.content[spot : spot + SECTOR] == CONTENT[spot : spot + SECTOR]


async def test_an_incremental_goes_on_in_the_snapshot_that_still_stands(engine: Engine, repository: Repository) -> None:
    platform = HaltingPlatform({"vda": CONTENT})
    disk = platform.vm_disks["vda"]
    await engine.backup_vm("web-01", platform=platform, audit="off")
    for chunk in range(5):
        disk.write(chunk * MiB + 5, b"changed")
    frozen = bytes(disk.content)
    platform.gate.clear()
    job = engine.start_backup("web-01", platform=platform, audit="off")
    while job.progress().done < len(CONTENT) - MiB:
        await asyncio.sleep(0.01)
    job.cancel()
    await job.ended()
    platform.gate.set()
    (unfinished,) = await repository.unfinished()
    disk.write(0, b"later")
    result = await engine.backup_vm("web-01", platform=platform, audit="off")
    assert result.disks[0].mode == "incremental"
    assert result.disks[0].reasons == ("resumed",)
    assert result.bytes_resumed == unfinished.bytes_journaled == HALF
    assert result.bytes_read == MiB
    assert result.disks[0].statistics.bytes_skipped == 2 * MiB - 512 * KiB
    target = MemoryDisk(b"\xff" * len(frozen))
    await engine.restore_vm(result.id, to_disks={"vda": target})
    assert target.content == frozen
    after = await engine.backup_vm("web-01", platform=platform, audit="off")
    assert after.disks[0].statistics.bytes_read == MiB, "the write that came later"


async def test_what_was_read_of_a_snapshot_that_was_lost_is_forgotten(engine: Engine, repository: Repository) -> None:
    """Nobody knows since when it was not frozen any more."""
    platform = TrackingPlatform({"vda": CONTENT})
    platform.lose_after = 3 * MiB
    with pytest.raises(LeaseLostError):
        await engine.backup_vm("web-01", platform=platform)
    assert await repository.unfinished() == []


async def test_the_options_are_checked(engine: Engine) -> None:
    with pytest.raises(UsageError, match="named by the platform"):
        engine.start_backup("web-01", platform=PlainPlatform(), snapshot_id="s1")
    for wrong in ("", "a\nb", "x" * 256):
        with pytest.raises(UsageError, match="snapshot"):
            engine.start_backup("web-01", {"vda": MemoryDisk(b"x")}, snapshot_id=wrong)
