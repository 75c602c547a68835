"""Incremental for ever: byte for byte what each snapshot had, however the platform lies, and what audits find."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sfasync import BackupResult, CbtError, Engine, Extent, LeaseLostError, Repository, SourceError
from sfasync.units import KiB

from .support.memory import MemoryDisk
from .support.tracking import TrackedSnapshot, TrackedSnapshotDisk, TrackingPlatform

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])  # what is under it is tested on both

CHUNK = 256 * KiB
VM = "web-01"
_FAST = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: S108  # what is durable is not looked at here

Lie = Callable[[list[tuple[int, int]]], AsyncGenerator[Extent, None]]


class LyingPlatform(TrackingPlatform):
    """Tells what it likes.

    Attributes:
        lie: Makes what is told of what is true.
        twist: Changes other things that a disk says.
    """

    lie: Lie | None = None
    twist: Callable[[TrackedSnapshotDisk], TrackedSnapshotDisk] = staticmethod(lambda disk: disk)

    @asynccontextmanager
    async def snapshot(self, vm: str, **wanted: Any) -> AsyncIterator[TrackedSnapshot]:
        async with super().snapshot(vm, **wanted) as view:
            view.disks = [self.twist(self._lying(disk)) for disk in view.disks]
            yield view

    def _lying(self, disk: TrackedSnapshotDisk) -> TrackedSnapshotDisk:
        fields = {name: getattr(disk, name) for name in disk.__dataclass_fields__}
        return LyingDisk(**fields, lie=self.lie)


@dataclass
class LyingDisk(TrackedSnapshotDisk):
    lie: Lie | None = field(default=None, kw_only=True)

    def changed(self) -> AsyncIterator[Extent] | None:
        if self.ranges is None or self.lie is None:
            return super().changed()
        return self.lie(sorted(self.ranges))


@pytest.fixture
def place() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="sfasync-incremental-", dir=_FAST))
    yield place
    shutil.rmtree(place)


@pytest.fixture
async def repository(place: Path) -> AsyncIterator[Repository]:
    async with await Repository.init(place / "repository", chunk_size=CHUNK) as repository:
        yield repository


@pytest.fixture
async def engine(repository: Repository) -> AsyncIterator[Engine]:
    async with Engine(repository) as engine:
        yield engine


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


async def exact(repository: Repository, backup: str, disk: str, truth: bytes) -> None:
    source = repository.open_disk(await repository.find(backup), disk)
    content = bytearray(source.size)
    await source.read_into(0, memoryview(content))
    assert content == truth


async def modes(repository: Repository) -> list[tuple[str, bool]]:
    """Of each backup: how its first disk was made, and whether that is suspect."""
    return [(backup.disks[0].mode, bool(backup.suspect)) for backup in await repository.backups()]


# --- histories --------------------------------------------------------------------------------------------------------

OFFSETS = st.one_of(st.integers(0, 6).map(lambda number: number * CHUNK), st.integers(0, 6 * CHUNK))
LENGTHS = st.sampled_from([1, 512, 4096, CHUNK - 1, CHUNK, 2 * CHUNK])
STEPS = st.one_of(
    st.tuples(st.just("write"), OFFSETS, LENGTHS),
    st.tuples(st.just("zero"), OFFSETS, LENGTHS),
    st.tuples(st.just("resize"), OFFSETS, st.just(0)),
    st.tuples(st.just("swap"), st.just(0), st.just(0)),
)
HISTORIES = st.lists(
    st.tuples(st.lists(STEPS, max_size=4), st.sampled_from(["off", 1, "50%", 16])), min_size=2, max_size=5
)


async def play(history: list[tuple[list[tuple[str, int, int]], int | str]]) -> None:
    """Carry out what happens between backups, and compare each of them with the truth, at once and in the end."""
    place = Path(tempfile.mkdtemp(prefix="sfasync-incremental-", dir=_FAST))
    try:
        async with await Repository.init(place / "r", chunk_size=CHUNK) as repository, Engine(repository) as engine:
            platform = LyingPlatform({"vda": noise(4 * CHUNK + 100) + bytes(CHUNK)})
            truths: dict[str, dict[str, bytes]] = {}
            for number, (steps, audit) in enumerate(history):
                for step in steps:
                    change(platform, step, number)
                result = await engine.backup_vm(VM, platform=platform, audit=audit)
                truths[result.id] = {name: bytes(disk.content) for name, disk in platform.vm_disks.items()}
                assert not result.untold
            for backup, disks in truths.items():
                for name, truth in disks.items():
                    await exact(repository, backup, name, truth)
            assert (await repository.verify(data=True)).ok
    finally:
        shutil.rmtree(place)


def change(platform: TrackingPlatform, step: tuple[str, int, int], seed: int) -> None:
    kind, offset, length = step
    disk = platform.vm_disks["vda"]
    offset = min(offset, len(disk.content))
    length = min(length, len(disk.content) - offset)
    match kind:
        case "write" if length:
            disk.write(offset, noise(length, seed))
        case "zero" if length:
            disk.write(offset, bytes(length))
        case "resize":
            disk.resize(offset)
        case "swap":  # a disk comes, or goes
            other = TrackingPlatform({"vdb": noise(1000, seed)}).vm_disks["vdb"]
            if platform.vm_disks.pop("vdb", None) is None:
                platform.vm_disks["vdb"] = other


_AS_LONG_AS_IT_TAKES = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


@settings(max_examples=4, deadline=None, suppress_health_check=_AS_LONG_AS_IT_TAKES, derandomize=True)
@given(HISTORIES)
async def test_every_backup_of_a_history_is_exact(
    history: list[tuple[list[tuple[str, int, int]], int | str]],
) -> None:
    await play(history)


@pytest.mark.faults
@pytest.mark.timeout(1800)
@settings(max_examples=500, deadline=None, suppress_health_check=_AS_LONG_AS_IT_TAKES)
@given(HISTORIES)
async def test_every_backup_of_many_histories_is_exact(
    history: list[tuple[list[tuple[str, int, int]], int | str]],
) -> None:
    await play(history)


async def test_a_disk_that_the_last_backup_does_not_have(engine: Engine, repository: Repository) -> None:
    """It may have been elsewhere, and written there: nothing of an older backup is kept."""
    platform = TrackingPlatform({"vda": noise(CHUNK), "vdb": noise(2 * CHUNK, 2)})
    await engine.backup_vm(VM, platform=platform)
    some = await engine.backup_vm(VM, ["vda"], platform=platform)
    assert [(disk.id, disk.mode) for disk in some.disks] == [("vda", "incremental")]
    platform.vm_disks["vdb"].content[:9] = b"elsewhere"
    result = await engine.backup_vm(VM, platform=platform)
    assert [(disk.mode, disk.reasons[:1]) for disk in result.disks] == [
        ("incremental", ()),
        ("full", ("not-in-parent",)),
    ]
    await exact(repository, result.id, "vdb", bytes(platform.vm_disks["vdb"].content))


# --- lies that show ---------------------------------------------------------------------------------------------------


async def told(ranges: Sequence[tuple[int, int]]) -> AsyncGenerator[Extent, None]:
    for offset, length in ranges:
        yield Extent(offset, length)


async def expires(ranges: Sequence[tuple[int, int]]) -> AsyncGenerator[Extent, None]:
    for offset, length in ranges:
        yield Extent(offset, length)
    raise CbtError("the platform has reset its tracking", reason="cbt-expired")


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (lambda true: told([*true, *true]), "cbt-invalid"),
        (lambda true: told([(true[0][0], CHUNK), *true]), "cbt-invalid"),
        (lambda true: told(true[::-1]), "cbt-invalid"),
        (lambda true: told([*true, (9 * CHUNK, 2 * CHUNK)]), "cbt-invalid"),
        (lambda true: told([(0, 0), *true]), "cbt-invalid"),
        (expires, "cbt-expired"),
    ],
    ids=["repeated", "overlapping", "backwards", "beyond the end", "empty", "expired half-way"],
)
async def test_an_answer_that_cannot_be_right_makes_the_disk_full(
    engine: Engine, repository: Repository, lie: Lie, reason: str
) -> None:
    platform = LyingPlatform({"vda": noise(10 * CHUNK), "vdb": noise(100)})
    await engine.backup_vm(VM, platform=platform)
    for number in (1, 7):
        platform.vm_disks["vda"].write(number * CHUNK + 5, noise(10, number))
    platform.vm_disks["vda"].resize(10 * CHUNK)
    platform.lie = lie
    with pytest.raises(CbtError):
        await engine.backup_vm(VM, ["vda"], platform=platform, mode="incremental")
    assert len(await repository.backups()) == 1
    platform.kept.clear()
    second = await engine.backup_vm(VM, ["vda"], platform=platform)
    disk = second.disks[0]
    assert (disk.mode, disk.reasons[0]) == ("full", reason)
    await exact(repository, second.id, "vda", bytes(platform.vm_disks["vda"].content))
    assert not any(backup.suspect for backup in await repository.backups()), "nothing was kept on that word before"
    platform.lie = None
    third = await engine.backup_vm(VM, ["vda"], platform=platform, mode="incremental")
    assert third.disks[0].mode == "incremental"


def other_checkpoint(**changes: Any) -> Callable[[TrackedSnapshotDisk], TrackedSnapshotDisk]:
    return lambda disk: replace(disk, checkpoint=replace(disk.checkpoint, **changes))


@pytest.mark.parametrize(
    ("twist", "reason"),
    [
        (other_checkpoint(disk_identity="another"), "disk-replaced"),
        (other_checkpoint(size=CHUNK), "checkpoint-mismatch"),
        (other_checkpoint(id="vda-1"), "checkpoint-mismatch"),
        (lambda disk: replace(disk, checkpoint=None), "no-checkpoint"),
        (lambda disk: replace(disk, ranges=None), "no-cbt"),
        (lambda disk: replace(disk, ranges=None, reason="bitmap-inconsistent"), "bitmap-inconsistent"),
    ],
)
async def test_changes_of_something_else_make_the_disk_full(
    engine: Engine,
    repository: Repository,
    twist: Callable[[TrackedSnapshotDisk], TrackedSnapshotDisk],
    reason: str,
) -> None:
    platform = LyingPlatform({"vda": noise(3 * CHUNK)})
    await engine.backup_vm(VM, platform=platform)
    platform.vm_disks["vda"].content[CHUNK:] = noise(2 * CHUNK, 2)
    platform.twist = twist
    second = await engine.backup_vm(VM, platform=platform)
    assert (second.disks[0].mode, second.disks[0].reasons) == ("full", (reason,))
    await exact(repository, second.id, "vda", bytes(platform.vm_disks["vda"].content))


async def test_checkpoints_of_another_platform_are_not_gone_on_from(engine: Engine, repository: Repository) -> None:
    platform = LyingPlatform({"vda": noise(CHUNK)})
    await engine.backup_vm(VM, platform=platform)
    platform.name = "other"
    second = await engine.backup_vm(VM, platform=platform)
    assert platform.last_view is not None
    assert platform.last_view.base == {}
    assert second.disks[0].reasons == ("platform-changed",)


async def test_a_disk_that_was_resized_since_its_snapshot_is_not_backed_up(engine: Engine) -> None:
    platform = LyingPlatform({"vda": noise(CHUNK), "vdb": noise(CHUNK)})
    platform.twist = lambda disk: replace(disk, size=disk.size + 1) if disk.id == "vdb" else disk
    with pytest.raises(SourceError, match="disk 'vdb' has 262144 bytes, and 262145 in the snapshot") as failure:
        await engine.backup_vm(VM, platform=platform)
    assert (failure.value.disk, failure.value.exit_code) == ("vdb", 20)


# --- lies that do not show --------------------------------------------------------------------------------------------


async def test_an_audit_finds_what_was_not_told_before_the_walk_has_come_round(
    engine: Engine, repository: Repository
) -> None:
    """A range in fifty is dropped (F31): no single backup can tell, all of them together must."""
    chunks, audit = 24, 4
    choice, dropped = random.Random(7), list[int]()
    platform = LyingPlatform({"vda": noise(chunks * CHUNK)})
    disk = platform.vm_disks["vda"]

    def drop_some(true: list[tuple[int, int]]) -> AsyncGenerator[Extent, None]:
        lost = [extent for extent in true if choice.random() < 0.02]
        dropped.extend(offset // CHUNK for offset, _ in lost)
        return told([extent for extent in true if extent not in lost])

    platform.lie = drop_some
    await engine.backup_vm(VM, platform=platform)
    runs = 0
    while True:
        runs += bool(dropped)
        for chunk in choice.sample(range(chunks), 8):
            disk.write(chunk * CHUNK + 100, noise(100, choice.randrange(1 << 30)))
        result = await engine.backup_vm(VM, platform=platform, audit=audit)
        if result.untold:
            break
        assert runs <= -(-chunks // audit), "the walk has come to each chunk since the first lie"
        assert result.disks[0].mode == "incremental"
    untold = result.untold["vda"]
    assert untold.offset // CHUNK in dropped
    assert untold.length == CHUNK
    assert (result.disks[0].mode, result.disks[0].reasons) == ("full", ("audit-failed",))
    assert f"{CHUNK} bytes from {untold.offset}" in result.warnings[0]
    await exact(repository, result.id, "vda", bytes(disk.content))
    assert (await modes(repository))[0] == ("full", False)
    assert set((await modes(repository))[1:-1]) == {("incremental", True)}
    assert (await modes(repository))[-1] == ("full", False)
    platform.lie = None
    disk.write(5, b"goes on")
    after = await engine.backup_vm(VM, platform=platform, audit=audit)
    assert after.disks[0].mode == "incremental"
    assert (await modes(repository))[-1] == ("incremental", False)
    await exact(repository, after.id, "vda", bytes(disk.content))
    restored = MemoryDisk(bytes(chunks * CHUNK))
    suspect = (await repository.backups())[1]
    warned = await engine.restore_vm(suspect.id, to_disks={"vda": restored})
    assert warned.warnings == (
        "disk 'vda' is suspect in this backup: it may lack changes that the platform did not tell of",
    )


@pytest.mark.parametrize("audit", ["off", 1])
async def test_zeros_that_were_not_told_are_zeros_and_no_secret(
    engine: Engine, repository: Repository, audit: int | str
) -> None:
    """The snapshot's own map is the better witness; with an audit its word is held against the platform's."""
    platform = LyingPlatform({"vda": noise(20 * CHUNK)})
    await engine.backup_vm(VM, platform=platform)
    platform.lie = lambda true: told([])
    platform.vm_disks["vda"].write(11 * CHUNK - 9, bytes(2 * CHUNK))
    second = await engine.backup_vm(VM, platform=platform, audit=audit)
    if audit == "off":
        assert second.untold == {}
        truth = noise(20 * CHUNK)
        await exact(repository, second.id, "vda", truth[: 11 * CHUNK] + bytes(CHUNK) + truth[12 * CHUNK :])
    else:
        assert second.untold in ({"vda": Extent(11 * CHUNK, CHUNK)}, {"vda": Extent(10 * CHUNK, CHUNK)})
        await exact(repository, second.id, "vda", bytes(platform.vm_disks["vda"].content))


async def test_the_mark_stays_where_the_disk_could_not_be_read_in_full(engine: Engine, repository: Repository) -> None:
    """Whoever comes next reads it in full, and asks the platform for nothing."""
    platform = LyingPlatform({"vda": noise(8 * CHUNK), "vdb": noise(CHUNK)})
    await engine.backup_vm(VM, platform=platform)
    await engine.backup_vm(VM, platform=platform)
    platform.vm_disks["vda"].write(5 * CHUNK, b"untold")
    platform.lie = lambda true: told([])
    with pytest.raises(CbtError, match="called 262144 bytes from 1310720 unchanged, and an audit found") as failure:
        await engine.backup_vm(VM, platform=platform, mode="incremental", audit="100%")
    assert (failure.value.reason, failure.value.exit_code) == ("audit-failed", 23)
    assert [backup.suspect for backup in await repository.backups()] == [(), ("vda",)]
    third = await engine.backup_vm(VM, platform=platform, audit="off")
    assert platform.last_view is not None
    assert list(platform.last_view.base) == ["vdb"]
    assert [(disk.mode, disk.reasons) for disk in third.disks] == [("full", ("audit-failed",)), ("incremental", ())]
    await exact(repository, third.id, "vda", bytes(platform.vm_disks["vda"].content))


async def test_each_audit_goes_on_where_the_last_one_stopped(engine: Engine, repository: Repository) -> None:
    platform = LyingPlatform({"vda": noise(24 * CHUNK) + bytes(24 * CHUNK)})
    await engine.backup_vm(VM, platform=platform)
    seen, audit = list[tuple[int, int]](), None
    for _ in range(3):
        result = await engine.backup_vm(VM, platform=platform, audit=8)
        assert platform.last_view is not None
        seen += platform.last_view.disks[0].address.reads
        audit = result.disks[0].audit
        assert audit is not None
        assert audit.chunks == result.disks[0].statistics.bytes_read // CHUNK
        assert (audit.position % 16, 4 <= audit.chunks <= 12) == (0, True), "half of the disk is zero"
    assert sorted(seen) == [(number * CHUNK, CHUNK) for number in range(24)]
    assert audit is not None
    off = await engine.backup_vm(VM, platform=platform, audit="off")
    assert off.disks[0].audit == replace(audit, chunks=0), "kept for the next one"
    full = await engine.backup_vm(VM, platform=platform, mode="full")
    assert full.disks[0].audit is None


class FailsTheSecondTime(MemoryDisk):
    """A disk of which each chunk but the first ones can be read once."""

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        if offset >= 20 * CHUNK and any(before == offset for before, _ in self.reads):
            raise SourceError("the disk is worn out")
        await super().read_into(offset, buffer)


async def test_a_backup_that_began_anew_is_resumed_like_any_other(engine: Engine, repository: Repository) -> None:
    """What was noted twice, before and after the audit failed, counts once."""
    platform = LyingPlatform({"vda": noise(30 * CHUNK)})
    await engine.backup_vm(VM, platform=platform)
    disk = platform.vm_disks["vda"]
    for number in (0, 1, 2, 29):
        disk.write(number * CHUNK, noise(50, number))
    platform.lie = lambda true: told([true[0], true[-1]])
    platform.twist = lambda frozen: replace(frozen, address=FailsTheSecondTime(frozen.address.content))
    with pytest.raises(SourceError, match="worn out"):
        await engine.backup_vm(VM, platform=platform, audit="100%")
    platform.twist = lambda frozen: frozen
    second = await engine.backup_vm(VM, platform=platform, mode="full")
    assert second.bytes_resumed > 0
    await exact(repository, second.id, "vda", bytes(disk.content))


# --- losses -----------------------------------------------------------------------------------------------------------


async def test_a_loss_after_everything_was_read_is_a_warning(
    engine: Engine, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = LyingPlatform({"vda": noise(CHUNK)})
    check = TrackedSnapshot.check

    async def lose_it(view: TrackedSnapshot) -> None:
        await check(view)
        asyncio.get_running_loop().call_soon(view.lost.set_result, "the lease\nran out")

    monkeypatch.setattr(TrackedSnapshot, "check", lose_it)
    result = await engine.backup_vm(VM, platform=platform)
    assert result.warnings == ("after everything was read, the platform took the snapshot back: the lease\\nran out",)
    assert len(await repository.backups()) == 1


async def test_a_source_that_fails_because_the_snapshot_is_gone_says_so(engine: Engine, repository: Repository) -> None:
    platform = LyingPlatform({"vda": noise(4 * CHUNK)})

    class Gone(MemoryDisk):
        async def read_into(self, offset: int, buffer: memoryview) -> None:
            assert platform.last_view is not None
            platform.last_view.lost.set_result("reverted")
            raise SourceError("the connection is gone")

    platform.twist = lambda disk: replace(disk, address=Gone(disk.address.content))
    with pytest.raises(LeaseLostError, match="reverted"):
        await engine.backup_vm(VM, platform=platform)
    assert await repository.backups() == []


# --- shares -----------------------------------------------------------------------------------------------------------


class CountedDisk(MemoryDisk):
    """Counts how many disks of a group are read at once."""

    def __init__(self, content: bytes, group: dict[str, int]) -> None:
        super().__init__(content)
        self.group = group

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        self.group["now"] += 1
        self.group["most"] = max(self.group["now"], self.group["most"])
        await asyncio.sleep(0.002)
        await super().read_into(offset, buffer)
        self.group["now"] -= 1


@pytest.mark.parametrize(("shares", "most"), [({"host-1": 1}, 1), ({"host-1": 3, "datastore-1": 2}, 2)])
async def test_no_more_disks_are_open_than_host_and_datastore_bear(
    engine: Engine, shares: Mapping[str, int], most: int
) -> None:
    """Over all jobs of the engine."""
    group = {"now": 0, "most": 0}

    def one(vm: str) -> LyingPlatform:
        platform = LyingPlatform({"vda": noise(CHUNK, 1), "vdb": noise(CHUNK, 2)})
        platform.twist = lambda disk: replace(
            disk, shares=shares, address=CountedDisk(bytes(disk.address.content), group)
        )
        return platform

    results: list[BackupResult] = await asyncio.gather(
        *(engine.backup_vm(vm, platform=one(vm)) for vm in ("web-01", "web-02"))
    )
    assert [len(result.disks) for result in results] == [2, 2]
    assert 1 <= group["most"] <= most
