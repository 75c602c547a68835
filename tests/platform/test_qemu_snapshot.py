"""Snapshots of QEMU disks: several disks of one moment, no harm to the guest, lineages kept apart."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sfasync import BusyError, Checkpoint, Engine, LeaseLostError, PlatformError, Repository, UsageError
from sfasync.nbd.uri import parse_uri
from sfasync.platform.qemu.monitor import CommandError, Monitor, open_monitor
from sfasync.platform.qemu.names import BitmapName, Kind
from sfasync.platform.qemu.platform import QemuPlatform
from sfasync.platform.qemu.settings import QemuNbd, QemuSettings, QemuVm
from sfasync.platform.qemu.snapshot import QemuSnapshot
from sfasync.tasks import cancelled
from sfasync.transport.export import Export, open_export
from sfasync.units import GiB, KiB, MiB
from tests.support.memory import MemoryDisk
from tests.support.power import tmpfs
from tests.support.qemu import TIMEOUTS, Machine, bitmaps, create_image, daemon, made_by_us, system
from tests.support.servers import Server, free_port, system_emulator

SIZES = {"vda": 4 * MiB, "vdb": 2 * MiB}


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with daemon(SIZES) as machine:
        yield machine


@pytest.fixture
async def platform(machine: Machine) -> AsyncIterator[QemuPlatform]:
    async with QemuPlatform(machine.platform_settings()) as platform:
        yield platform


@pytest.fixture
async def repository(tmp_path: Path) -> AsyncIterator[Repository]:
    async with await Repository.open(tmp_path / "repository", create=True) as repository:
        yield repository


async def read(view: QemuSnapshot, disk: str, offset: int, length: int) -> bytes:
    address = next(found.address for found in view.disks if found.id == disk)
    async with await open_export(address) as export:
        return await export.read(offset, length)


# --- one moment ------------------------------------------------------------------------------------------------------


async def test_all_disks_are_of_one_moment(machine: Machine, platform: QemuPlatform) -> None:
    """A guest counts on one disk and, when that is written, on the other: no snapshot has the second one ahead."""

    async def count(first: Export, second: Export) -> None:
        number = 0
        while True:
            number += 1
            await first.write(MiB, number.to_bytes(8, "big"))
            await second.write(MiB, number.to_bytes(8, "big"))

    async with await open_export(machine.address("vda")) as first, await open_export(machine.address("vdb")) as second:
        guest = asyncio.ensure_future(count(first, second))
        seen = []
        try:
            for _ in range(5):
                async with platform.snapshot("web-01") as view:
                    now = [int.from_bytes(await read(view, disk, MiB, 8), "big") for disk in SIZES]
                    assert now[0] - now[1] in (0, 1)
                    again = [int.from_bytes(await read(view, disk, MiB, 8), "big") for disk in SIZES]
                    assert now == again
                    seen.append(now[0])
        finally:
            await cancelled(guest)
        assert seen == sorted(set(seen)), "the guest counted on between the snapshots"


async def test_what_is_read_is_what_was_there(machine: Machine, platform: QemuPlatform) -> None:
    """Also where a request, or a question for the map, goes over the border of what the guest has overwritten since."""
    cluster = 64 * KiB
    async with await open_export(machine.address("vda")) as guest:
        await guest.write(0, b"old!" * MiB)
        async with (
            platform.snapshot("web-01", disks=["vda"]) as view,
            await open_export(view.disks[0].address) as frozen,
        ):
            await guest.zero(10 * cluster, 3 * cluster)
            await guest.write(20 * cluster + 1, b"new!" * cluster)
            await guest.trim(40 * cluster, 3 * cluster)
            for first, count in ((9, 5), (10, 3), (10, 4), (11, 9), (0, 64), (19, 2), (39, 6)):
                assert await frozen.read(first * cluster, count * cluster) == b"old!" * (count * cluster // 4)
                told = [extent async for extent in frozen.extents(first * cluster, count * cluster)]
                assert not any(extent.zero for extent in told)


# --- the guest comes first -------------------------------------------------------------------------------------------


class Overwritten(QemuPlatform):
    """While a snapshot of it stands, a guest overwrites a disk."""

    machine: Machine

    @asynccontextmanager
    async def snapshot(self, vm: str, **arguments: Any) -> AsyncIterator[QemuSnapshot]:
        async with super().snapshot(vm, **arguments) as view:
            async with await open_export(self.machine.address("vda")) as guest:
                await guest.write(0, b"new!" * (2 * MiB))
            yield view


async def test_a_guest_that_overwrites_more_than_there_is_room_for(tmp_path: Path, repository: Repository) -> None:
    """Its writes all succeed, and the backup ends: what it would read from now on is not the snapshot."""
    with daemon({"vda": 8 * MiB}) as machine, tmpfs(tmp_path / "small", "size=3m") as small:
        async with await open_export(machine.address("vda")) as guest:
            await guest.write(0, b"old!" * (2 * MiB))
        platform = Overwritten(machine.platform_settings(directory=small))
        platform.machine = machine
        async with platform, Engine(repository) as engine:
            async with platform.snapshot("web-01") as view:
                assert "No space left on device" in await view.lost
                with pytest.raises(LeaseLostError, match="could not be kept: No space left on device"):
                    await view.check()
            with pytest.raises(LeaseLostError, match=r"disk 'vda'.*could not be kept"):
                await engine.backup_vm("web-01", platform=platform)
            assert await repository.backups() == []
        async with await open_export(machine.address("vda")) as guest:
            assert await guest.read(0, 8 * MiB) == b"new!" * (2 * MiB)
        assert await made_by_us(machine) == []
        assert list(small.iterdir()) == []


async def test_no_room_at_all_is_told_before_anything_begins(tmp_path: Path) -> None:
    with daemon({"vda": 8 * MiB}) as machine, tmpfs(tmp_path / "small", "size=3m") as small:
        async with QemuPlatform(machine.platform_settings(directory=small, reserve=True)) as platform:
            with pytest.raises(PlatformError, match=r"no place for what the guest overwrites.*set 'directory'"):
                async with platform.snapshot("web-01"):
                    pytest.fail("8 MiB do not go into 3")
        assert await made_by_us(machine) == []
        assert list(small.iterdir()) == []


async def test_a_qemu_without_quorums(tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the guest is safe because all space is taken at the start; or else nothing begins."""
    execute = Monitor._execute
    said = "Parameter 'driver' does not accept value 'quorum'"

    async def refuse(monitor: Monitor, command: str, arguments: Mapping[str, object] | None) -> object:
        if arguments is not None and arguments.get("driver") == "quorum":
            raise CommandError(f"{command}: {said}", said)
        return await execute(monitor, command, arguments)

    monkeypatch.setattr(Monitor, "_execute", refuse)
    with daemon({"vda": 8 * MiB}) as machine:
        async with await open_export(machine.address("vda")) as guest:
            await guest.write(0, b"old!" * (2 * MiB))
        platform = Overwritten(machine.platform_settings())
        platform.machine = machine
        async with platform, Engine(repository) as engine:
            for content in (b"old!", b"new!"):
                result = await engine.backup_vm("web-01", platform=platform)
                target = MemoryDisk(bytes(8 * MiB))
                await engine.restore_vm(result.id, to_disks={"vda": target})
                assert target.content == content * (2 * MiB)
        with tmpfs(tmp_path / "small", "size=3m") as small:
            async with QemuPlatform(machine.platform_settings(directory=small)) as cramped:
                with pytest.raises(PlatformError, match="no place for what the guest overwrites"):
                    async with cramped.snapshot("web-01"):
                        pytest.fail("8 MiB do not go into 3")
        assert await made_by_us(machine) == []


async def test_the_map_has_room_for_a_disk_that_is_overwritten_everywhere(tmp_path: Path) -> None:
    """One write in each of its tables; where these are not, there is no room for another."""
    size = 64 * GiB
    with daemon({"vda": size}) as machine, tmpfs(tmp_path / "small", "size=32m") as small:
        settings = machine.platform_settings(directory=small)
        async with QemuPlatform(settings) as platform, platform.snapshot("web-01") as view:
            taken = os.statvfs(small)
            (small / "ballast").write_bytes(bytes(taken.f_bavail * taken.f_frsize))
            async with await open_export(machine.address("vda")) as guest:
                for offset in range(0, size, 512 * MiB):
                    await guest.zero(offset, 64 * KiB)
            await view.check()


# --- bitmaps ---------------------------------------------------------------------------------------------------------


async def test_chains_do_not_touch_each_other(machine: Machine, platform: QemuPlatform) -> None:
    bases: dict[str, dict[str, Checkpoint]] = {"one": {}, "two": {}}
    for _ in range(3):
        for chain, base in bases.items():
            async with platform.snapshot("web-01", base=base, chain=chain) as view:
                assert [disk.reason for disk in view.disks] == ([None, None] if base else ["first-backup"] * 2)
                if base:
                    assert {disk.id: disk.checkpoint.disk_identity for disk in view.disks} == {
                        disk: point.disk_identity for disk, point in base.items()
                    }
                bases[chain] = {disk.id: disk.checkpoint for disk in view.disks}
                await view.committed(list(SIZES))
    for disk in SIZES:
        kept = [bitmap for bitmap in await bitmaps(machine, disk) if bitmap in {b[disk].id for b in bases.values()}]
        assert len(kept) == 2
    async with platform.snapshot("web-01", base=bases["one"], chain="two") as view:
        assert [disk.reason for disk in view.disks] == ["bitmap-missing"] * 2
        assert all(disk.changed() is None for disk in view.disks)


async def test_only_the_disks_committed_lose_their_older_bitmaps(machine: Machine, platform: QemuPlatform) -> None:
    async with platform.snapshot("web-01", chain="committed") as first:
        pass
    async with platform.snapshot("web-01", chain="committed") as second:
        await second.committed(["vdb"])
    points = {view: {disk.id: disk.checkpoint.id for disk in view.disks} for view in (first, second)}
    assert {points[first]["vda"], points[second]["vda"]} <= set(await bitmaps(machine, "vda"))
    assert points[first]["vdb"] not in await bitmaps(machine, "vdb")
    assert points[second]["vdb"] in await bitmaps(machine, "vdb")


async def test_backups_that_fail_for_ever_do_not_fill_the_disk_with_bitmaps(
    machine: Machine, platform: QemuPlatform
) -> None:
    async with platform.snapshot("web-01", disks=["vda"], chain="failing") as view:
        base = {"vda": view.disks[0].checkpoint}
    for _ in range(11):
        async with platform.snapshot("web-01", disks=["vda"], base=base, chain="failing") as view:
            assert view.disks[0].reason is None, "the base is not one of those that go"
    chain = BitmapName.parse(base["vda"].id)
    assert chain is not None
    assert len([name for name in await bitmaps(machine, "vda") if f"-{chain.chain}-" in name]) == 11


@pytest.mark.parametrize(
    ("image_format", "endings", "modes"),
    [
        ("qcow2", [signal.SIGTERM, signal.SIGTERM], ["incremental", "incremental"]),
        ("qcow2", [signal.SIGKILL, signal.SIGTERM], ["bitmap-missing", "incremental"]),  # it was never written
        ("qcow2", [signal.SIGTERM, signal.SIGKILL], ["", "bitmap-inconsistent"]),  # it is marked in use
        ("raw", [signal.SIGTERM], ["bitmap-missing"]),
    ],
)
async def test_qemu_ends(
    tmp_path: Path, repository: Repository, image_format: str, endings: list[signal.Signals], modes: list[str]
) -> None:
    async with Engine(repository) as engine:
        for number, mode in enumerate(["first-backup", *modes]):
            images = daemon({"vda": 2 * MiB}, formats={"vda": image_format}, directory=tmp_path)
            with images as machine, ExitStack() as at_the_end:
                if number < len(endings):
                    at_the_end.callback(os.kill, machine.server.pid, endings[number])
                if not mode:
                    continue
                async with QemuPlatform(machine.platform_settings()) as platform:
                    first = await engine.backup_vm("web-01", platform=platform)
                    second = await engine.backup_vm("web-01", platform=platform)
                assert first.disks[0].mode == ("incremental" if mode == "incremental" else "full")
                assert first.disks[0].reasons == (() if mode == "incremental" else (mode,))
                assert second.disks[0].mode == "incremental"
                assert len(await bitmaps(machine, "vda")) == 2, "but for one and its seal, what is of no use is removed"
                async with await open_export(machine.address("vda")) as guest:
                    target = MemoryDisk(bytes(2 * MiB))
                    await engine.restore_vm(first.id, to_disks={"vda": target})
                    assert bytes(target.content) == await guest.read(0, 2 * MiB)
                    await guest.write(MiB + number, b"between")


async def test_a_disk_in_anothers_place_is_read_as_a_whole(tmp_path: Path) -> None:
    sizes = {"vda": MiB, "vdb": MiB}
    with daemon(sizes, directory=tmp_path) as machine:
        async with QemuPlatform(machine.platform_settings()) as platform, platform.snapshot("web-01") as view:
            base = {disk.id: disk.checkpoint for disk in view.disks}
    for old, new in (("vda", "swap"), ("vdb", "vda"), ("swap", "vdb")):
        (tmp_path / f"{old}.qcow2").rename(tmp_path / f"{new}.qcow2")
    with daemon(sizes, directory=tmp_path) as machine:
        async with (
            QemuPlatform(machine.platform_settings()) as platform,
            platform.snapshot("web-01", base=base) as view,
        ):
            assert [disk.reason for disk in view.disks] == ["disk-replaced"] * 2


@pytest.mark.parametrize("size", [3 * MiB, MiB + 512])
async def test_a_resized_disk(repository: Repository, tmp_path: Path, size: int) -> None:
    async with Engine(repository) as engine:
        with daemon({"vda": 2 * MiB}, directory=tmp_path) as machine:
            async with QemuPlatform(machine.platform_settings()) as platform:
                await engine.backup_vm("web-01", platform=platform)
            async with await open_export(machine.address("vda")) as guest:
                await guest.write(MiB - 4, b"at a border")
        resize(tmp_path / "vda.qcow2", size)
        with daemon({"vda": size}, directory=tmp_path) as machine:
            async with QemuPlatform(machine.platform_settings()) as platform:
                result = await engine.backup_vm("web-01", platform=platform)
            assert (result.disks[0].mode, result.disks[0].size) == ("incremental", size)
            target = MemoryDisk(b"\xff" * size)
            await engine.restore_vm(result.id, to_disks={"vda": target})
            async with await open_export(machine.address("vda")) as guest:
                assert bytes(target.content) == await guest.read(0, size)


@pytest.mark.parametrize("before", [[], [4 * MiB]], ids=["as-made", "grown-before"])
async def test_a_disk_that_was_smaller_in_between(repository: Repository, tmp_path: Path, before: list[int]) -> None:
    """What was cut off is in no bitmap: at the old size again, it has zeros that nobody is said to have written."""
    size = 4 * MiB if before else 3 * MiB
    async with Engine(repository) as engine:
        with daemon({"vda": 3 * MiB}, directory=tmp_path) as machine:
            async with QemuPlatform(machine.platform_settings()) as platform:
                await engine.backup_vm("web-01", platform=platform)
        resize(tmp_path / "vda.qcow2", *before)
        with daemon({"vda": size}, directory=tmp_path) as machine:
            async with QemuPlatform(machine.platform_settings()) as platform:
                async with await open_export(machine.address("vda")) as guest:
                    await guest.write(size - MiB, b"data" * (MiB // 4))
                first = await engine.backup_vm("web-01", platform=platform)
                assert first.disks[0].mode == "incremental"
        resize(tmp_path / "vda.qcow2", size - MiB // 2, size)
        with daemon({"vda": size}, directory=tmp_path) as machine:
            async with QemuPlatform(machine.platform_settings()) as platform:
                base = {disk.id: disk.checkpoint for disk in first.disks if disk.checkpoint}
                async with platform.restore("web-01", config=None, files={}, disks={"vda": size}, since=base) as target:
                    assert target.disks["vda"].reason == "disk-resized"
                    assert target.disks["vda"].changed() is None
                second = await engine.backup_vm("web-01", platform=platform)
                third = await engine.backup_vm("web-01", platform=platform)
            assert (second.disks[0].mode, second.disks[0].reasons) == ("full", ("disk-resized",))
            assert third.disks[0].mode == "incremental"
            async with await open_export(machine.address("vda")) as guest:
                for result in (second, third):
                    restored = MemoryDisk(b"\xff" * size)
                    await engine.restore_vm(result.id, to_disks={"vda": restored})
                    assert bytes(restored.content) == await guest.read(0, size)


def fill(path: Path | None, queue: ExitStack) -> None:
    """Let others wait at a socket until there is no room for more."""
    with suppress(BlockingIOError):
        while True:
            waiting = queue.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            waiting.connect(str(path))


def resize(path: Path, *sizes: int) -> None:
    for size in sizes:
        subprocess.run(["qemu-img", "resize", "-q", "--shrink", path, str(size)], check=True)


# --- who is there ----------------------------------------------------------------------------------------------------


async def test_two_at_once_do_not_meet(machine: Machine, platform: QemuPlatform) -> None:
    impatient = QemuSettings(vms={"web-01": machine.settings}, timeouts=replace(TIMEOUTS, connect=0.2))
    async with platform.snapshot("web-01") as view, QemuPlatform(impatient) as other:
        with pytest.raises(BusyError, match="somebody else is connected to it"):
            async with other.snapshot("web-01"):
                pytest.fail("the monitor is taken")
        listed = await other.vms()
        assert "somebody else" in (listed[0].refusal or "")
        with ExitStack() as queue, pytest.raises(BusyError, match="somebody else is connected to it"):
            fill(machine.settings.socket, queue)
            async with other.snapshot("web-01"):
                pytest.fail("the monitor is taken, and many wait for it")
        assert await other.cleanup() == []
        await view.check()


async def test_another_monitor_of_the_same_qemu_is_respected() -> None:
    with system({"vda": MiB}) as machine:
        assert machine.server.qmp is not None
        through_another = replace(machine.settings, socket=machine.server.qmp.with_name("control"))
        others = QemuSettings(vms={"web-01": through_another}, timeouts=TIMEOUTS)
        async with (
            QemuPlatform(machine.platform_settings()) as platform,
            QemuPlatform(others) as other,
            platform.snapshot("web-01") as view,
        ):
            with pytest.raises(BusyError, match="through another monitor"):
                async with other.snapshot("web-01"):
                    pytest.fail("the disk is being backed up")
            assert await other.cleanup() == []
            await view.check()


async def test_a_server_that_is_running_has_to_be_told(machine: Machine) -> None:
    async with QemuPlatform(machine.platform_settings(nbd=QemuNbd())) as platform:
        with pytest.raises(PlatformError, match=r"an NBD server is running in this QEMU.*nbd\.socket"):
            async with platform.snapshot("web-01"):
                pytest.fail("nobody knows where it is")
    assert await made_by_us(machine) == []


@pytest.mark.parametrize("kind", ["unix", "tls"])
async def test_a_server_of_our_own(kind: str, certificates: Path, repository: Repository) -> None:
    with system({"vda": 2 * MiB}, exported=False) as machine:
        nbd = QemuNbd()
        if kind == "tls":
            tls = parse_uri(f"nbds://localhost/?tls-certificates={certificates}").tls
            nbd = QemuNbd(host="localhost", port=free_port(), credentials=certificates, tls=tls)
        async with Engine(repository) as engine, QemuPlatform(machine.platform_settings(nbd=nbd)) as platform:
            for mode in ("full", "incremental"):
                result = await engine.backup_vm("web-01", platform=platform)
                assert [disk.mode for disk in result.disks] == [mode]
        async with open_monitor("web-01", machine.settings, TIMEOUTS) as monitor:
            with pytest.raises(PlatformError, match="NBD server not running"):
                await monitor.run("nbd-server-stop")
        assert await made_by_us(machine) == []


@asynccontextmanager
async def tunnel(socket: Path) -> AsyncIterator[int]:
    """A TCP port that leads to a Unix socket."""
    pumps: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.transport.abort()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(socket)
        for pair in ((reader, far_writer), (far_reader, writer)):
            pumps.add(asyncio.create_task(pump(*pair)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        if pumps:
            await asyncio.wait(pumps)


async def test_a_qemu_on_another_host(certificates: Path, repository: Repository) -> None:
    """Its files cannot be removed from here: they are left empty."""
    with system({"vda": 2 * MiB}, exported=False) as machine:
        assert machine.server.qmp is not None
        tls = parse_uri(f"nbds://localhost/?tls-certificates={certificates}").tls
        nbd = QemuNbd(host="localhost", port=free_port(), credentials=certificates, tls=tls)
        async with tunnel(machine.server.qmp) as port:
            far = machine.platform_settings(socket=None, address=f"127.0.0.1:{port}", nbd=nbd)
            async with Engine(repository) as engine, QemuPlatform(far) as platform:
                for mode in ("full", "incremental"):
                    result = await engine.backup_vm("web-01", platform=platform)
                    assert [disk.mode for disk in result.disks] == [mode]
                assert await platform.cleanup() == []
        left = {path.name: path.stat().st_size for path in machine.server.qmp.parent.glob("sfasync-*")}
        assert list(left.values()) == [0, 0]


async def test_a_guest_that_is_lost_during_a_backup(repository: Repository) -> None:
    class Killing(QemuPlatform):
        server: Server

        @asynccontextmanager
        async def snapshot(self, vm: str, **arguments: Any) -> AsyncIterator[QemuSnapshot]:
            async with super().snapshot(vm, **arguments) as view:
                os.kill(self.server.pid, signal.SIGKILL)  # the loss is seen by the monitor or by the disks first
                yield view

    with daemon(SIZES) as machine:
        async with Engine(repository) as engine, Killing(machine.platform_settings()) as platform:
            platform.server = machine.server
            with pytest.raises(LeaseLostError, match=r"QEMU has ended|nobody tells whether"):
                await engine.backup_vm("web-01", platform=platform)
    assert await repository.backups() == []


@pytest.mark.parametrize("command", ["job-cancel", "block-export-del"])
async def test_a_snapshot_that_is_taken_away(machine: Machine, platform: QemuPlatform, command: str) -> None:
    async with platform.snapshot("web-01") as view:
        monitor: Monitor = view._monitor
        name = view._places.name(1, Kind.BACKUP_JOB if command == "job-cancel" else Kind.EXPORT)
        await monitor.run(command, {"id": name})
        assert "disk 'vdb'" in await view.lost
        with pytest.raises(LeaseLostError, match="disk 'vdb'"):
            await view.check()
    assert await made_by_us(machine) == []


# --- disks -----------------------------------------------------------------------------------------------------------


async def test_disks_are_listed(machine: Machine, platform: QemuPlatform) -> None:
    async with platform.snapshot("web-01"):
        pass
    listed = await platform.vms()
    assert [(vm.id, vm.name, vm.state, vm.refusal, vm.warnings) for vm in listed] == [
        ("web-01", "web-01", "served", None, ())
    ]
    assert [(disk.id, disk.size, disk.tracked) for disk in listed[0].disks] == [
        (disk, size, True) for disk, size in SIZES.items()
    ]


async def test_a_format_without_bitmaps_is_warned_of() -> None:
    with system({"vda": MiB, "vdb": MiB}, formats={"vdb": "raw"}) as machine:
        async with QemuPlatform(machine.platform_settings()) as platform:
            vm = (await platform.vms())[0]
            assert vm.state == "prelaunch"
            assert [disk.tracked for disk in vm.disks] == [False, False]
            assert vm.warnings == (
                "changes of disk 'vdb' are forgotten when QEMU ends: its format (raw) keeps no bitmaps",
            )


async def test_disks_that_are_named_in_the_settings(machine: Machine) -> None:
    async with (
        QemuPlatform(machine.platform_settings(disks={"system": "vdb"})) as platform,
        platform.snapshot("web-01") as view,
    ):
        assert [(disk.id, disk.size) for disk in view.disks] == [("system", SIZES["vdb"])]
    async with QemuPlatform(machine.platform_settings(disks={"system": "none"})) as platform:
        with pytest.raises(UsageError, match="disk 'system': there is no device or node 'none'"):
            async with platform.snapshot("web-01"):
                pytest.fail("there is no such node")
    async with QemuPlatform(machine.platform_settings(disks={"system": "vdb", "data": "vdb"})) as platform:
        with pytest.raises(UsageError, match="2 disks in the configuration that are 'vdb'"):
            async with platform.snapshot("web-01"):
                pytest.fail("they are one")
    async with QemuPlatform(machine.platform_settings()) as platform:
        with pytest.raises(UsageError, match="no VM 'web-02' in the configuration; there are 'web-01'"):
            async with platform.snapshot("web-02"):
                pytest.fail("there is no such VM")


async def test_disks_of_a_guest_are_called_after_its_devices(tmp_path: Path) -> None:
    arguments: list[str | Path] = ["-device", "virtio-scsi-pci"]
    for name in ("one", "two", "three", "four"):
        create_image(tmp_path / f"{name}.raw", MiB)
        arguments += ["-drive", f"if=none,id={name},format=raw,file={tmp_path / name}.raw"]
    create_image(tmp_path / "five.qcow2", MiB)
    arguments += ["-blockdev", f"driver=qcow2,node-name=five,file.driver=file,file.filename={tmp_path}/five.qcow2"]
    for device in ("scsi-hd,drive=one,id=sda", "virtio-blk-pci,drive=two", "virtio-blk-pci,drive=five"):
        arguments += ["-device", device]
    arguments += ["-device", "scsi-cd,drive=three,id=cd"]
    with system_emulator(*arguments) as server:
        assert server.qmp is not None
        settings = QemuVm(socket=server.qmp, directory=server.qmp.parent)
        async with QemuPlatform(QemuSettings(vms={"web-01": settings}, timeouts=TIMEOUTS)) as platform:
            listed = (await platform.vms())[0]
            assert [disk.id for disk in listed.disks] == ["one", "two", "five"], (
                "no medium that can be changed, no drive that nobody has"
            )
        renamed = replace(settings, disks={"a": "sda", "b": "two", "c": "five"})
        async with (
            QemuPlatform(QemuSettings(vms={"web-01": renamed}, timeouts=TIMEOUTS)) as platform,
            platform.snapshot("web-01") as view,
        ):
            assert [disk.id for disk in view.disks] == ["a", "b", "c"]


async def test_files_are_kept_with_the_disks(machine: Machine, repository: Repository, tmp_path: Path) -> None:
    variables = tmp_path / "variables.fd"
    variables.write_bytes(b"boot order")
    settings = machine.platform_settings(files={"OVMF_VARS.fd": variables})
    async with Engine(repository) as engine, QemuPlatform(settings) as platform:
        result = await engine.backup_vm("web-01", platform=platform)
        assert await repository.read_file(await repository.find(result.id), "OVMF_VARS.fd") == b"boot order"
        variables.unlink()
        with pytest.raises(PlatformError, match=r"cannot read .*variables\.fd: No such file"):
            await engine.backup_vm("web-01", platform=platform)


# --- restore ---------------------------------------------------------------------------------------------------------


async def test_a_disk_goes_back_and_the_next_backup_knows(machine: Machine, repository: Repository) -> None:
    async with Engine(repository) as engine, QemuPlatform(machine.platform_settings()) as platform:
        async with await open_export(machine.address("vda")) as guest:
            await guest.zero(0, 4 * MiB)
            await guest.write(0, b"first" * 1000)
            first = await engine.backup_vm("web-01", platform=platform)
            await guest.write(2 * MiB + 1, b"second")
            base = {disk.id: disk.checkpoint for disk in first.disks if disk.checkpoint}
            async with platform.restore("web-01", config=None, files={}, disks=SIZES, since=base) as target:
                assert [disk.reason for disk in target.disks.values()] == [None, None]
                address = target.disks["vda"].address
                changed = target.disks["vda"].changed()
                assert changed is not None
                async with await open_export(address, contexts=(changed.name,)) as disk:
                    dirty = [part async for part in disk.block_status(changed.name, 0, disk.size) if part[2]]
                    assert dirty == [(2 * MiB, 64 * KiB, 1)]
                    await disk.zero(2 * MiB, 64 * KiB)
                    assert [part async for part in disk.block_status(changed.name, 0, disk.size) if part[2]] == dirty
                assert await target.finish() == ()
            assert await guest.read(2 * MiB, 64 * KiB) == bytes(64 * KiB)
            assert await made_by_us(machine) == []
            second = await engine.backup_vm("web-01", platform=platform)
        assert [disk.mode for disk in second.disks] == ["incremental"] * 2
        assert [disk.tree for disk in second.disks] == [disk.tree for disk in first.disks]


async def test_a_vm_goes_back_to_what_it_was(machine: Machine, repository: Repository) -> None:
    async with (
        Engine(repository) as engine,
        QemuPlatform(machine.platform_settings()) as platform,
        await open_export(machine.address("vda")) as guest,
    ):
        await guest.write(0, b"older" * 100_000)
        older = await engine.backup_vm("web-01", platform=platform)
        states = {older.id: await guest.read(0, 4 * MiB)}
        await guest.zero(100_000, 1_000_000)
        newer = await engine.backup_vm("web-01", platform=platform)
        states[newer.id] = await guest.read(0, 4 * MiB)
        await guest.write(3 * MiB - 7, b"what nobody wants")
        for backup, mode, reason in ((newer, "differential", None), (older, "full", "bitmap-missing")):
            result = await engine.restore_vm(backup.id, platform=platform, differential=True, verify_after=True)
            assert [(disk.mode, disk.reason) for disk in result.disks] == [(mode, reason)] * 2
            assert await guest.read(0, 4 * MiB) == states[backup.id]
            assert mode == "full" or result.disks[0].bytes_written + result.disks[0].bytes_zero <= 2 * MiB
        again = await engine.backup_vm("web-01", platform=platform)
        assert [disk.mode for disk in again.disks] == ["incremental"] * 2
        assert [disk.tree for disk in again.disks] == [disk.tree for disk in older.disks]
        assert await made_by_us(machine) == []


async def test_a_restore_that_cannot_be(machine: Machine, platform: QemuPlatform) -> None:
    with pytest.raises(UsageError, match="disk 'vda' has 4194304 bytes, the backup needs 4194305"):
        async with platform.restore("web-01", config=None, files={}, disks={"vda": 4 * MiB + 1}):
            pytest.fail("it is too small")
    with pytest.raises(UsageError, match="makes no new VM 'web-02'"):
        async with platform.restore(None, new_name="web-02", config=None, files={}, disks={}):
            pytest.fail("QEMU makes no VMs")
    with system({"vda": MiB}, exported=False, shared=False) as other:
        async with QemuPlatform(other.platform_settings(nbd=QemuNbd())) as theirs:
            with pytest.raises(PlatformError, match=r"belongs to the guest's device .*/vda/.* alone"):
                async with theirs.restore("web-01", config=None, files={}, disks={"vda": MiB}):
                    pytest.fail("the device does not share it")
    with system({"vda": MiB}) as other:
        async with QemuPlatform(other.platform_settings()) as theirs:
            async with open_monitor("web-01", other.settings, TIMEOUTS) as monitor:
                await monitor.run("cont")
            with pytest.raises(UsageError, match="runs; power it off to restore its disk 'vda'"):
                async with theirs.restore("web-01", config=None, files={}, disks={"vda": MiB}):
                    pytest.fail("the guest would see it")
