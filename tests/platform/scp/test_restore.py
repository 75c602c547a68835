"""VMs of the lab get their disks back, or new ones are made of them; what fails is not left behind."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import msgspec
import pytest

from sfasync import Engine, Repository
from sfasync.errors import PlatformError, SfasyncError, UsageError
from sfasync.interfaces import RestoreView
from sfasync.models import Checkpoint, ExportAddress, Retry
from sfasync.platform.scp.api import ScpApi
from sfasync.platform.scp.lease import Lease
from sfasync.platform.scp.platform import ScpPlatform
from sfasync.platform.scp.snapshot import RECORD
from sfasync.transport.export import open_export
from sfasync.units import KiB, MiB

from ...support.laboratory import Laboratory, laboratory

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])  # the contract runs on both

SIZES = {"ide0": 4 * MiB, "ide1": 3 * MiB}
ALWAYS = -1


@pytest.fixture(scope="module")
def lab() -> Iterator[Laboratory]:
    with laboratory() as running:
        yield running


@pytest.fixture
async def platform(lab: Laboratory) -> AsyncIterator[ScpPlatform]:
    journal = lab.directory / "journal"
    async with ScpPlatform(lab.settings(), directory=journal) as platform:
        yield platform
        lab.behave()
        left = await platform.cleanup()
        assert all(one.removed for one in left), left
    assert lab.left() == {}
    assert list(journal.iterdir()) == []


class Backup(msgspec.Struct):
    """What a backup has of a VM."""

    config: bytes
    files: dict[str, bytes]
    checkpoints: dict[str, Checkpoint]
    contents: dict[str, bytes]


@pytest.fixture
def vm(lab: Laboratory, request: pytest.FixtureRequest) -> str:
    name = re.sub("[^a-z0-9]+", "-", str(request.node.name).removeprefix("test_")).strip("-")
    lab.add(name, list(SIZES.values()), files={"BIOS": b"bios".hex(), "TPM": b"PK".hex()})
    lab.write(name, "ide0", MiB, b"first" * 1000)
    return name


@pytest.fixture
async def backup(lab: Laboratory, platform: ScpPlatform, vm: str) -> Backup:
    async with platform.snapshot(vm) as view:
        assert view.config is not None
        return Backup(
            config=view.config,
            files=dict(view.files),
            checkpoints={disk.id: disk.checkpoint for disk in view.disks if disk.checkpoint is not None},
            contents={disk: lab.content(vm, disk) for disk in SIZES},
        )


async def put_back(view: RestoreView, contents: Mapping[str, bytes]) -> int:
    """Write what may differ, as the engine does; gives the number of bytes."""
    written = 0
    for name, disk in view.disks.items():
        assert isinstance(disk.address, ExportAddress)
        async with await open_export(disk.address) as export:
            changed = disk.changed()
            ranges = [(0, len(contents[name]))]
            if changed is not None:
                assert not hasattr(changed, "name")
                ranges = [(extent.offset, extent.end) async for extent in changed]
            for start, end in ranges:
                await export.write(start, contents[name][start:end])
                written += end - start
            await export.flush()
    return written


async def test_to_the_same_vm(lab: Laboratory, platform: ScpPlatform, vm: str, backup: Backup) -> None:
    lab.write(vm, "ide0", 0, b"later" * 1000)
    lab.write(vm, "ide1", 0, b"later" * 1000)
    lab.switch(vm, running=False)
    async with platform.restore(vm, config=backup.config, files=backup.files, disks=SIZES) as view:
        assert {disk.reason for disk in view.disks.values()} == {"not-differential"}
        assert await put_back(view, backup.contents) == sum(SIZES.values())
        assert any("tracked anew" in warning for warning in await view.finish())
    assert {disk: lab.content(vm, disk) for disk in SIZES} == backup.contents
    async with platform.snapshot(vm, base=backup.checkpoints) as after:
        assert {disk.reason for disk in after.disks} == {"cbt-expired"}
        base = {disk.id: disk.checkpoint for disk in after.disks if disk.checkpoint is not None}
    async with platform.snapshot(vm, base=base) as following:
        assert {disk.reason for disk in following.disks} == {None}


async def test_only_what_differs(lab: Laboratory, platform: ScpPlatform, vm: str, backup: Backup) -> None:
    lab.write(vm, "ide0", 2 * MiB, b"later")
    lab.switch(vm, running=False)
    restore = platform.restore(vm, config=backup.config, files=backup.files, disks=SIZES, since=backup.checkpoints)
    async with restore as view:
        assert {disk.reason for disk in view.disks.values()} == {None}
        assert await put_back(view, backup.contents) == 64 * KiB
        await view.finish()
    assert {disk: lab.content(vm, disk) for disk in SIZES} == backup.contents


async def test_everything_where_tracking_has_expired(
    lab: Laboratory, platform: ScpPlatform, vm: str, backup: Backup
) -> None:
    lab.switch(vm, running=False)
    lab.misbehave("cbt-expired", ALWAYS)
    restore = platform.restore(vm, config=backup.config, files=backup.files, disks=SIZES, since=backup.checkpoints)
    async with restore as view:
        assert {disk.reason for disk in view.disks.values()} == {"cbt-expired"}
        assert {disk.changed() for disk in view.disks.values()} == {None}
        await view.finish()


async def test_to_a_new_vm(lab: Laboratory, platform: ScpPlatform, vm: str, backup: Backup) -> None:
    name = f"{vm}-copy"
    async with platform.restore(None, new_name=name, config=backup.config, files=backup.files, disks=SIZES) as view:
        assert view.vm_name == name
        assert {disk.reason for disk in view.disks.values()} == {"new-vm"}
        await put_back(view, backup.contents)
        assert await view.finish() == []
    assert {disk: lab.content(name, disk) for disk in SIZES} == backup.contents
    assert lab.ask("state", vm=name) == {"running": False, "tracked": False, "files": ["BIOS", "TPM"]}
    with pytest.raises(UsageError, match=r"is a VM .* already"):
        async with platform.restore(None, new_name=name, config=backup.config, files=backup.files, disks=SIZES):
            pytest.fail("it was made twice")


async def test_a_new_vm_that_is_not_finished_is_removed(
    lab: Laboratory, platform: ScpPlatform, vm: str, backup: Backup
) -> None:
    before = lab.ask("vms")
    with pytest.raises(ZeroDivisionError):
        async with platform.restore(None, new_name="unfinished", config=backup.config, files=backup.files, disks=SIZES):
            assert "unfinished" in lab.ask("vms")
            raise ZeroDivisionError
    assert lab.ask("vms") == before


@pytest.mark.parametrize("late", [False, True])
async def test_an_interruption_at_the_end_removes_a_new_vm_or_says_that_it_stays(
    lab: Laboratory,
    platform: ScpPlatform,
    vm: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    late: bool,
) -> None:
    reached = asyncio.Event()

    async def hangs(*_: object) -> None:
        reached.set()
        await asyncio.Event().wait()

    name = f"interrupted-{late}"
    async with (
        await Repository.init(lab.directory / "repositories" / tmp_path.name) as repository,
        Engine(repository) as engine,
        ScpPlatform(lab.settings(power_on=True), directory=lab.directory / "journal") as starting,
    ):
        saved = await engine.backup_vm(vm, platform=platform)
        monkeypatch.setattr(ScpApi if late else Lease, "power" if late else "release", hangs)
        async with engine.start_restore(saved.id, platform=starting, new_name=name) as job:
            await reached.wait()
            assert name in lab.ask("vms")
            job.cancel()
            await job.ended()
            with pytest.raises(asyncio.CancelledError):
                await job.result()
    assert (name in lab.ask("vms")) == late
    assert ("is restored and stays" in caplog.text) == late


async def test_a_vm_is_started_where_that_is_wanted(lab: Laboratory, vm: str, backup: Backup) -> None:
    lab.switch(vm, running=False)
    settings = lab.settings(power_on=True)
    async with (
        ScpPlatform(settings, directory=lab.directory / "journal") as platform,
        platform.restore(vm, config=backup.config, files=backup.files, disks=SIZES) as view,
    ):
        await view.finish()
    assert lab.ask("state", vm=vm)["running"]


async def test_a_disk_that_is_gone_comes_back(lab: Laboratory, platform: ScpPlatform, vm: str, backup: Backup) -> None:
    lab.ask("remove", vm=vm, disk="ide1")
    lab.switch(vm, running=False)
    async with platform.restore(vm, config=backup.config, files=backup.files, disks=SIZES) as view:
        await put_back(view, backup.contents)
        await view.finish()
    assert {disk: lab.content(vm, disk) for disk in SIZES} == backup.contents


async def test_what_is_refused_before_anything_is_touched(
    lab: Laboratory, platform: ScpPlatform, vm: str, backup: Backup
) -> None:
    async def restore(disks: Mapping[str, int], **changes: object) -> None:
        files = {**backup.files, RECORD: msgspec.json.encode({**msgspec.json.decode(backup.files[RECORD]), **changes})}
        async with platform.restore(vm, config=None, files=files, disks=disks):
            pytest.fail("it was prepared")

    with pytest.raises(UsageError, match="is not off"):
        await restore(SIZES)
    lab.switch(vm, running=False)
    with pytest.raises(UsageError, match="has no disk 'ide7'"):
        await restore({"ide7": MiB})
    with pytest.raises(UsageError, match="has 4194304 bytes, that of the backup has 5242880"):
        await restore({"ide0": 5 * MiB})
    with pytest.raises(UsageError, match="is not encrypted, and the VM of the backup was"):
        await restore(SIZES, encrypted=True)
    with pytest.raises(UsageError, match="needs a VM, or a name"):
        async with platform.restore(None, config=backup.config, files=backup.files, disks=SIZES):
            pytest.fail("it was prepared")
    with pytest.raises(UsageError, match="has no configuration"):
        async with platform.restore(None, new_name="x", config=None, files=backup.files, disks=SIZES):
            pytest.fail("it was prepared")


@pytest.mark.parametrize(("member", "what"), [("az_id", "resource pool"), ("storage_id", "datastore")])
async def test_a_place_that_is_not_there_any_more_is_named(
    platform: ScpPlatform, backup: Backup, member: str, what: str
) -> None:
    config = {name: value for name, value in msgspec.json.decode(backup.config).items() if name != "datastore_id"}
    origin = {**msgspec.json.decode(backup.files[RECORD]), member: "gone"}
    files = {RECORD: msgspec.json.encode(origin)}
    restore = platform.restore(None, new_name="lost", config=msgspec.json.encode(config), files=files, disks=SIZES)
    with pytest.raises(UsageError, match=f"no {what} 'gone' any more.*it has lab.*restore to a VM that is there"):
        async with restore:
            pytest.fail("it was made")


@pytest.mark.parametrize("fault", ["failed-task", "traversal-id"])
async def test_a_new_vm_that_the_platform_fails_to_make(
    lab: Laboratory, platform: ScpPlatform, vm: str, backup: Backup, fault: str
) -> None:
    lab.misbehave(fault)
    with pytest.raises(PlatformError):
        async with platform.restore(None, new_name=fault, config=backup.config, files=backup.files, disks=SIZES):
            pytest.fail("it was made")
    lab.behave()
    for left in await platform.cleanup():
        assert left.removed


async def test_by_the_engine(lab: Laboratory, platform: ScpPlatform, vm: str, tmp_path: Path) -> None:
    async with (
        await Repository.init(lab.directory / "repositories" / tmp_path.name) as repository,
        Engine(repository, retry=Retry(attempts=1, outage=0)) as engine,
    ):
        saved = await engine.backup_vm(vm, platform=platform)
        contents = {disk: lab.content(vm, disk) for disk in SIZES}
        lab.write(vm, "ide1", 2 * MiB, b"later")
        lab.switch(vm, running=False)
        back = await engine.restore_vm(saved.id, platform=platform, differential=True, verify_after=True)
        assert sum(disk.bytes_written + disk.bytes_zero for disk in back.disks) <= 2 * MiB
        assert any("tracked anew" in warning for warning in back.warnings)
        assert {disk: lab.content(vm, disk) for disk in SIZES} == contents
        await engine.restore_vm(saved.id, platform=platform, new_name=f"{vm}-copy")
        assert {disk: lab.content(f"{vm}-copy", disk) for disk in SIZES} == contents
        lab.misbehave("nbd-killed")
        with pytest.raises(SfasyncError) as caught:
            await engine.restore_vm(saved.id, platform=platform, new_name="dead")
        assert caught.value.exit_code == 21
        assert "dead" not in lab.ask("vms")
