"""Backups of VMs of the lab: what is read, why, and that each is what the disks were; nothing is left behind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from sfasync import Engine, Repository
from sfasync.errors import (
    BusyError,
    CbtError,
    SfasyncError,
    UsageError,
)
from sfasync.models import BackupResult, Retry
from sfasync.platform.scp.platform import ScpPlatform
from sfasync.units import GiB, KiB, MiB

from ...support.laboratory import Laboratory, laboratory
from ...support.memory import MemoryDisk

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])  # the contract runs on both


@pytest.fixture(scope="module")
def lab() -> Iterator[Laboratory]:
    with laboratory(lease_speed=20.0) as running:
        yield running


@pytest.fixture
def journal(lab: Laboratory) -> Path:
    return lab.directory / "journal"


@pytest.fixture
async def platform(lab: Laboratory, journal: Path) -> AsyncIterator[ScpPlatform]:
    async with ScpPlatform(lab.settings(), directory=journal) as platform:
        yield platform
    lab.behave()
    assert lab.left() == {}
    assert not journal.exists() or list(journal.iterdir()) == []


@pytest.fixture
async def engine(lab: Laboratory, tmp_path: Path) -> AsyncIterator[Engine]:
    async with (
        await Repository.init(lab.directory / "repositories" / tmp_path.name) as repository,
        Engine(repository, retry=Retry(attempts=1, outage=0)) as engine,
    ):
        yield engine


@pytest.fixture
def vm(lab: Laboratory, request: pytest.FixtureRequest) -> str:
    """A VM of the test's own, with two disks."""
    name = str(request.node.name).partition("[")[0].removeprefix("test_").replace("_", "-")[:40]
    lab.add(name, [4 * MiB, 3 * MiB])
    lab.write(name, "ide0", MiB, b"first" * 1000)
    lab.write(name, "ide1", 2 * MiB, b"other" * 1000)
    return name


async def restored(engine: Engine, backup: BackupResult, disk: str, size: int) -> bytes:
    target = MemoryDisk(bytes(size))
    await engine.restore_vm(backup.id, to_disks={disk: target})
    return bytes(target.content)


def modes(backup: BackupResult) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {disk.id: (disk.mode, disk.reasons) for disk in backup.disks}


def bytes_read(backup: BackupResult) -> int:
    return sum(disk.statistics.bytes_read for disk in backup.disks)


# --- what is read, and why -------------------------------------------------------------------------------------------


async def test_a_vm_gets_back_what_has_changed_since_its_backup(
    lab: Laboratory, platform: ScpPlatform, engine: Engine, vm: str
) -> None:
    backup = await engine.backup_vm(vm, platform=platform)
    truth = {disk: lab.content(vm, disk) for disk in ("ide0", "ide1")}
    lab.write(vm, "ide0", 3 * MiB + 5, b"spoilt")
    with pytest.raises(SfasyncError, match=r"runs|running|power|off"):
        await engine.restore_vm(backup.id, platform=platform, differential=True)
    lab.switch(vm, running=False)
    result = await engine.restore_vm(backup.id, platform=platform, differential=True, verify_after=True)
    assert {(disk.mode, disk.reason) for disk in result.disks} == {("differential", None)}
    assert sum(disk.bytes_written + disk.bytes_zero for disk in result.disks) == MiB
    assert {disk: lab.content(vm, disk) for disk in truth} == truth
    copy = await engine.restore_vm(backup.id, platform=platform, new_name=f"{vm[:30]}-copy")
    assert copy.restored_vm not in (None, result.restored_vm)
    assert {disk: lab.content(f"{vm[:30]}-copy", disk) for disk in truth} == truth


async def test_incrementals_follow_the_guest(lab: Laboratory, platform: ScpPlatform, engine: Engine, vm: str) -> None:
    first = await engine.backup_vm(vm, platform=platform)
    assert {mode for mode, _ in modes(first).values()} == {"full"}
    backups = [(first, lab.content(vm, "ide0"))]
    for number in range(2):
        lab.write(vm, "ide0", 3 * MiB + number * 777, b"x" * (number + 1))
        backup = await engine.backup_vm(vm, platform=platform, audit="off")
        assert modes(backup) == {"ide0": ("incremental", ()), "ide1": ("incremental", ())}
        assert bytes_read(backup) <= MiB
        backups.append((backup, lab.content(vm, "ide0")))
    for backup, content in backups:
        assert await restored(engine, backup, "ide0", 4 * MiB) == content
    assert await restored(engine, first, "ide1", 3 * MiB) == lab.content(vm, "ide1")


async def test_what_is_saved_besides_disks(lab: Laboratory, platform: ScpPlatform, engine: Engine) -> None:
    settings = {"advanced_option": {"tpm_enabled": True}, "unknown_member": {"kept": ["as", "it", "is"]}}
    lab.add("files", [MiB], settings=settings, files={"BIOS": b"bios".hex(), "TPM": b"PK zip".hex()})
    backup = await engine.backup_vm("files", platform=platform)
    repository = engine._repository
    assert repository is not None
    manifest = await repository.find(backup.id)
    assert await repository.read_file(manifest, "bios.bin") == b"bios"
    assert await repository.read_file(manifest, "tpm.zip") == b"PK zip"
    assert b'"unknown_member":{"kept":["as","it","is"]}' in await repository.read_file(manifest, "config.json")
    assert b'"platform":"SCP' in await repository.read_file(manifest, "sangfor.json")


async def test_tracking_that_expired_begins_anew(
    lab: Laboratory, platform: ScpPlatform, engine: Engine, vm: str
) -> None:
    await engine.backup_vm(vm, platform=platform)
    lab.misbehave("cbt-expired")
    lab.write(vm, "ide0", 0, b"unseen")
    expired = await engine.backup_vm(vm, platform=platform)
    assert modes(expired) == {"ide0": ("full", ("cbt-expired",)), "ide1": ("full", ("cbt-expired",))}
    assert await restored(engine, expired, "ide0", 4 * MiB) == lab.content(vm, "ide0")
    following = await engine.backup_vm(vm, platform=platform)
    assert modes(following)["ide0"] == ("incremental", ())


async def test_a_reset_that_somebody_else_made_is_noticed(
    lab: Laboratory, platform: ScpPlatform, engine: Engine, vm: str
) -> None:
    """The upper half of the checkpoint is another one."""
    await engine.backup_vm(vm, platform=platform)
    api = platform._site.api
    [server] = await api.servers(name=vm)
    await api.wait(await api.set_cbt(server.id, "reset"))
    assert modes(await engine.backup_vm(vm, platform=platform))["ide0"] == ("full", ("cbt-expired",))


@pytest.mark.parametrize("fault", ["cbt-missing-page", "cbt-repeated-page"])
async def test_changes_that_are_not_proven_are_not_believed(
    lab: Laboratory, platform: ScpPlatform, engine: Engine, fault: str
) -> None:
    lab.add(fault, [2 * GiB + 64 * KiB])
    await engine.backup_vm(fault, platform=platform)
    lab.write(fault, "ide0", GiB + MiB, b"late")
    lab.misbehave(fault)
    backup = await engine.backup_vm(fault, platform=platform)
    assert modes(backup) == {"ide0": ("full", ("cbt-invalid",))}


async def test_disks_that_are_not_what_they_were(
    lab: Laboratory, platform: ScpPlatform, engine: Engine, vm: str
) -> None:
    await engine.backup_vm(vm, platform=platform)
    lab.ask("grow", vm=vm, disk="ide0", size=6 * MiB)
    lab.write(vm, "ide0", 5 * MiB, b"grown")
    lab.ask("swap", vm=vm, disk="ide1")
    backup = await engine.backup_vm(vm, platform=platform)
    assert modes(backup)["ide0"][0] == modes(backup)["ide1"][0] == "full"
    assert "disk-resized" in modes(backup)["ide0"][1]
    assert await restored(engine, backup, "ide0", 6 * MiB) == lab.content(vm, "ide0")
    assert await restored(engine, backup, "ide1", 3 * MiB) == bytes(3 * MiB)


async def test_without_tracking_there_are_only_full_backups(lab: Laboratory, journal: Path, engine: Engine) -> None:
    lab.add("untracked", [MiB])
    async with ScpPlatform(lab.settings(enable_cbt=False), directory=journal) as platform:
        for _ in range(2):
            backup = await engine.backup_vm("untracked", platform=platform)
        assert modes(backup) == {"ide0": ("full", ("no-cbt",))}
        with pytest.raises(CbtError, match="no-cbt"):
            await engine.backup_vm("untracked", platform=platform, mode="incremental")
    assert lab.left() == {}


async def test_what_was_never_written_need_not_be_read(lab: Laboratory, journal: Path, vm: str) -> None:
    async with ScpPlatform(lab.settings(trust_allocation=True), directory=journal) as platform:
        async with platform.snapshot(vm) as view:
            found = {disk.id: disk.allocated() for disk in view.disks}
            base = {disk.id: disk.checkpoint for disk in view.disks if disk.checkpoint is not None}
            ranges = {name: [(e.offset, e.end) async for e in told] for name, told in found.items() if told is not None}
        assert ranges == {"ide0": [(MiB, MiB + 64 * KiB)], "ide1": [(2 * MiB, 2 * MiB + 64 * KiB)]}
        async with platform.snapshot(vm, base=base) as view:
            assert {disk.allocated() for disk in view.disks} == {None}  # what changed says more
    async with ScpPlatform(lab.settings(), directory=journal) as platform, platform.snapshot(vm) as view:
        assert {disk.allocated() for disk in view.disks} == {None}
    assert lab.left() == {}


async def test_the_last_snapshot_may_be_kept(lab: Laboratory, journal: Path, engine: Engine, vm: str) -> None:
    async with ScpPlatform(lab.settings(keep_last_snapshot=True), directory=journal) as platform:
        kept = []
        for _ in range(2):
            await engine.backup_vm(vm, platform=platform)
            [snapshot] = lab.left()["snapshots"]
            kept.append(snapshot)
        assert kept[0] != kept[1]
        assert await platform.cleanup() == []
    async with ScpPlatform(lab.settings(), directory=journal) as platform:
        await engine.backup_vm(vm, platform=platform)
    assert lab.left() == {}


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "error", "message"),
    [
        ({"encrypted": 1}, UsageError, "encrypted_allowed"),
        ({"advance_param": {"turbo_mode_enabled": True}}, UsageError, "turbo"),
        ({"status": "migrating"}, BusyError, "migrating"),
        ({"instant_vm": 1}, BusyError, "quick recovery"),
    ],
)
async def test_vms_that_cannot_be_backed_up(
    lab: Laboratory,
    platform: ScpPlatform,
    engine: Engine,
    facts: dict[str, object],
    error: type[SfasyncError],
    message: str,
) -> None:
    name = "-".join(facts)
    lab.add(name, [MiB], facts=facts)
    with pytest.raises(error, match=message):
        await engine.backup_vm(name, platform=platform)
    [listed] = [vm for vm in await platform.vms() if vm.name == name]
    assert message in str(listed.refusal)


async def test_a_vm_that_is_not_there(platform: ScpPlatform, engine: Engine) -> None:
    with pytest.raises(UsageError, match="no VM 'nobody'"):
        await engine.backup_vm("nobody", platform=platform)


async def test_names_that_are_not_unique(lab: Laboratory, platform: ScpPlatform, engine: Engine) -> None:
    one, other = lab.add("twin", [MiB]), lab.add("twin", [MiB])
    with pytest.raises(UsageError, match=f"2 VMs .* by its id: .*{other}"):
        await engine.backup_vm("twin", platform=platform)
    assert (await engine.backup_vm(one, platform=platform)).disks
