"""VMs get their disks back through a platform: whole, or only what has changed since the backup."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sfasync import (
    Checkpoint,
    Engine,
    Extent,
    IntegrityError,
    LeaseLostError,
    PlatformError,
    Repository,
    StorageError,
    TargetError,
    UsageError,
)
from sfasync.interfaces import Buffer
from sfasync.units import KiB

from .support.memory import MemoryDisk
from .support.tracking import TrackingPlatform

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])  # what is under it is tested on both

CHUNK = 256 * KiB
SIZE = 9 * CHUNK + 512
CONTENT = bytes(range(256)) * (6 * CHUNK // 256) + bytes(SIZE - 6 * CHUNK)


@dataclass
class WritableDisk:
    address: MemoryDisk
    ranges: Sequence[tuple[int, int]] | None
    reason: str | None
    shares: Mapping[str, int] = field(default_factory=dict)

    def changed(self) -> AsyncIterator[Extent] | None:
        return None if self.ranges is None else self._extents(self.ranges)

    async def _extents(self, ranges: Sequence[tuple[int, int]]) -> AsyncIterator[Extent]:
        for offset, length in ranges:
            yield Extent(offset, length)


@dataclass
class Writable:
    vm_id: str
    disks: Mapping[str, WritableDisk]
    lost: asyncio.Future[str]
    platform: RestoringPlatform
    vm_name: str = "a VM"

    async def check(self) -> None:
        if self.platform.gone:
            raise LeaseLostError("the VM was started")

    async def finish(self) -> Sequence[str]:
        self.platform.finished.append(self.vm_id)
        return ["the VM has another MAC\naddress"]


class CountedDisk(MemoryDisk):
    """Notes what is written, and of how many disks at once."""

    def __init__(self, content: bytes | bytearray, platform: RestoringPlatform) -> None:
        super().__init__(content)
        self.platform = platform
        self.writes: list[tuple[int, int]] = []

    async def write(self, offset: int, data: Buffer) -> None:
        self.platform.writing.add(id(self))
        self.platform.most = max(self.platform.most, len(self.platform.writing))
        await asyncio.sleep(0)
        if self.platform.gone is not None:
            raise TargetError("writing failed: the connection was lost")
        await super().write(offset, data)
        self.writes.append((offset, len(data)))

    async def zero(self, offset: int, length: int) -> None:
        await super().zero(offset, length)
        self.writes.append((offset, length))

    async def flush(self) -> bool:
        self.platform.writing.discard(id(self))
        return await super().flush()


class RestoringPlatform(TrackingPlatform):
    """Gives disks to write.

    Attributes:
        asked: What the last restore asked for.
        targets: The disks that it got.
        lie: Ranges to tell instead of those that have changed.
        missing: Disks that are not given.
        gone: Whether what is written fails because the platform took it back; None where nothing fails.
        finished: VMs that were brought into their final state.
        writing, most: Disks that are written now, and most at once.
    """

    def __init__(self, disks: Mapping[str, bytes]) -> None:
        super().__init__(disks)
        self.asked: dict[str, object] = {}
        self.targets: dict[str, CountedDisk] = {}
        self.lie: Sequence[tuple[int, int]] | None = None
        self.missing: set[str] = set()
        self.gone: bool | None = None
        self.shares: Mapping[str, int] = {}
        self.fail_restore: Exception | None = None
        self.lose_disks = False
        self.finished: list[str] = []
        self.writing: set[int] = set()
        self.most = 0

    @asynccontextmanager
    async def restore(  # type: ignore[override]  # gives more than its base
        self,
        vm: str | None,
        *,
        new_name: str | None = None,
        config: bytes | None,
        files: Mapping[str, bytes],
        disks: Mapping[str, int],
        since: Mapping[str, Checkpoint] | None = None,
    ) -> AsyncIterator[Writable]:
        self.asked = {"vm": vm, "new_name": new_name, "config": config, "files": dict(files), "since": since}
        if self.fail_restore is not None:
            raise self.fail_restore
        lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        if self.lose_disks:
            lost.set_result("the VM was started")
        given = {name: self._disk(name, size, new_name, since) for name, size in disks.items()}
        self.targets = {name: disk.address for name, disk in given.items() if isinstance(disk.address, CountedDisk)}
        kept = {name: disk for name, disk in given.items() if name not in self.missing}
        yield Writable(vm or f"new {new_name}", kept, lost, self)
        if self.fail_leaving:
            raise StorageError("the disks are stuck")

    def _disk(self, name: str, size: int, new_name: str | None, since: Mapping[str, Checkpoint] | None) -> WritableDisk:
        if new_name is not None:
            return WritableDisk(CountedDisk(bytes(size), self), None, "new", self.shares)
        disk = self.vm_disks[name]
        address = CountedDisk(disk.content, self)
        base = (since or {}).get(name)
        if base is None or base.id not in disk.checkpoints:
            return WritableDisk(address, None, "cbt-expired", self.shares)
        ranges = sorted(disk.checkpoints[base.id]) if self.lie is None else self.lie
        return WritableDisk(address, ranges, None, self.shares)


@pytest.fixture
async def repository(tmp_path: Path) -> AsyncIterator[Repository]:
    async with await Repository.init(tmp_path / "repository", chunk_size=CHUNK) as repository:
        yield repository


@pytest.fixture
async def engine(repository: Repository) -> AsyncIterator[Engine]:
    async with Engine(repository) as engine:
        yield engine


@pytest.fixture
def platform() -> RestoringPlatform:
    return RestoringPlatform({"vda": CONTENT, "vdb": b"small" * 1000})


async def backed_up(engine: Engine, platform: RestoringPlatform) -> str:
    return (await engine.backup_vm("web-01", platform=platform)).id


async def test_a_vm_gets_all_its_disks_back(engine: Engine, platform: RestoringPlatform) -> None:
    backup = await backed_up(engine, platform)
    platform.vm_disks["vda"].write(0, b"spoilt" * 100_000)
    result = await engine.restore_vm(backup, platform=platform, verify_after=True)
    assert {name: bytes(disk.content) for name, disk in platform.targets.items()} == {
        "vda": CONTENT,
        "vdb": b"small" * 1000,
    }
    assert platform.asked == {
        "vm": "web-01",
        "new_name": None,
        "config": b'{"cpus": 2}',
        "files": {"nvram": b"\x01\x02"},
        "since": None,
    }
    assert [(disk.id, disk.mode, disk.reason, disk.verified) for disk in result.disks] == [
        ("vda", "full", None, True),
        ("vdb", "full", None, True),
    ]
    assert (result.restored_vm, result.warnings) == ("web-01", ("the VM has another MAC\\naddress",))
    assert platform.finished == ["web-01"]


async def test_a_new_vm_is_made_of_some_disks(engine: Engine, platform: RestoringPlatform) -> None:
    backup = await backed_up(engine, platform)
    result = await engine.restore_vm(backup, platform=platform, new_name="web-02", disks=["vdb"])
    assert (platform.asked["vm"], platform.asked["new_name"], list(platform.targets)) == (None, "web-02", ["vdb"])
    assert bytes(platform.targets["vdb"].content) == b"small" * 1000
    assert result.restored_vm == "new web-02"


async def test_only_what_has_changed_since_is_written(engine: Engine, platform: RestoringPlatform) -> None:
    backup = await backed_up(engine, platform)
    disk = platform.vm_disks["vda"]
    disk.write(2 * CHUNK + 5, b"spoilt")
    disk.write(8 * CHUNK, b"no zeros any more")
    disk.write(SIZE - 3, b"end")
    result = await engine.restore_vm(backup, platform=platform, differential=True, verify_after=True)
    target = platform.targets["vda"]
    assert bytes(target.content) == CONTENT
    assert sorted(target.writes) == [(2 * CHUNK, CHUNK), (8 * CHUNK, CHUNK + 512)]
    vda, vdb = result.disks
    assert (vda.mode, vda.reason, vda.bytes_written, vda.bytes_zero) == ("differential", None, CHUNK, CHUNK + 512)
    assert vda.bytes_skipped == SIZE - 2 * CHUNK - 512
    assert (vdb.mode, vdb.bytes_skipped, vdb.bytes_written) == ("differential", 5000, 0)


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ([(0, 10), (5, 10)], "cbt-invalid"),
        ([(0, SIZE + 1)], "cbt-invalid"),
        (None, "cbt-expired"),
    ],
)
async def test_what_is_not_known_to_have_changed_is_written_as_a_whole(
    engine: Engine, platform: RestoringPlatform, lie: Sequence[tuple[int, int]] | None, reason: str
) -> None:
    backup = await backed_up(engine, platform)
    platform.vm_disks["vda"].write(7 * CHUNK, b"spoilt")
    platform.lie = lie
    if lie is None:
        platform.vm_disks["vda"].checkpoints.clear()
    result = await engine.restore_vm(backup, disks=["vda"], platform=platform, differential=True)
    assert bytes(platform.targets["vda"].content) == CONTENT
    assert (result.disks[0].mode, result.disks[0].reason, result.disks[0].bytes_skipped) == ("full", reason, 0)


async def test_checkpoints_of_another_platform_tell_nothing(engine: Engine, platform: RestoringPlatform) -> None:
    backup = await backed_up(engine, platform)
    platform.name = "other"
    result = await engine.restore_vm(backup, platform=platform, differential=True)
    assert platform.asked["since"] == {}
    assert {(disk.mode, disk.reason) for disk in result.disks} == {("full", "platform-changed")}


async def test_a_lie_that_does_not_show_is_found_by_reading_back(engine: Engine, platform: RestoringPlatform) -> None:
    backup = await backed_up(engine, platform)
    platform.vm_disks["vda"].write(7 * CHUNK, b"spoilt")
    platform.lie = []
    with pytest.raises(IntegrityError, match="reads back other bytes"):
        await engine.restore_vm(backup, platform=platform, differential=True, verify_after=True)
    assert platform.finished == []


async def test_a_disk_that_grew_since_keeps_its_tail(engine: Engine, platform: RestoringPlatform) -> None:
    backup = await backed_up(engine, platform)
    disk = platform.vm_disks["vda"]
    disk.content += b"tail" * CHUNK
    for ranges in disk.checkpoints.values():
        ranges |= {(CHUNK, 10), (SIZE + 5 * CHUNK // 2, CHUNK)}
    disk.content[CHUNK : CHUNK + 10] = b"spoilt!!!!"
    result = await engine.restore_vm(backup, platform=platform, differential=True)
    assert bytes(platform.targets["vda"].content) == CONTENT + b"tail" * CHUNK
    assert platform.targets["vda"].writes == [(CHUNK, CHUNK)]
    assert result.disks[0].bytes_skipped == SIZE - CHUNK


async def test_no_more_disks_are_written_than_a_datastore_bears(engine: Engine) -> None:
    platform = RestoringPlatform({f"vd{letter}": CONTENT for letter in "abcd"})
    platform.shares = {"datastore": 2}
    backup = await backed_up(engine, platform)
    await engine.restore_vm(backup, platform=platform)
    assert platform.most == 2


async def test_what_fails_keeps_its_type(engine: Engine, platform: RestoringPlatform) -> None:
    backup = await backed_up(engine, platform)
    platform.lose_disks = True
    with pytest.raises(LeaseLostError, match="took the disks back: the VM was started"):
        await engine.restore_vm(backup, platform=platform)
    platform.lose_disks = False
    platform.gone = True
    with pytest.raises(LeaseLostError, match="the VM was started"):
        await engine.restore_vm(backup, platform=platform)
    platform.gone = False
    with pytest.raises(TargetError, match="the connection was lost"):
        await engine.restore_vm(backup, platform=platform)
    platform.gone = None
    platform.missing = {"vdb"}
    with pytest.raises(PlatformError, match="gives no disk 'vdb'"):
        await engine.restore_vm(backup, platform=platform)
    platform.fail_restore = UsageError("the VM runs; stop it")
    with pytest.raises(UsageError, match="the VM runs"):
        await engine.restore_vm(backup, platform=platform)
    assert platform.finished == []


async def test_failing_to_clean_up_does_not_undo_the_restore(engine: Engine, platform: RestoringPlatform) -> None:
    backup = await backed_up(engine, platform)
    platform.fail_leaving = False
    await engine.restore_vm(backup, platform=platform)
    platform.fail_leaving = True
    result = await engine.restore_vm(backup, platform=platform)
    assert result.warnings[-1] == "the platform did not clean up: the disks are stuck"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"to": "d"}, "restore either to a directory, or to disks, or to a VM"),
        ({"vm": "web-01", "new_name": "web-02"}, "not both"),
        ({"new_name": "web-02", "differential": True}, "a new VM has no disks"),
        ({"vm": "bad\nname"}, "printable text"),
        ({"disks": []}, "at least one disk"),
    ],
)
async def test_what_cannot_be_wanted_is_refused_at_once(
    engine: Engine, platform: RestoringPlatform, options: dict[str, object], why: str
) -> None:
    with pytest.raises(UsageError, match=why):
        engine.start_restore("web-01@latest", platform=platform, **options)  # type: ignore[arg-type] # of any kind
    for wanted in ({"vm": "web-01"}, {"new_name": "x"}, {"differential": True}):
        with pytest.raises(UsageError, match="only a platform"):
            engine.start_restore("web-01@latest", to="d", **wanted)
    assert platform.asked == {}
