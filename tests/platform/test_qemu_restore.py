"""Restores by the engine to disks of QEMU: whole, and only what its bitmaps have recorded since the backup."""

from __future__ import annotations

from pathlib import Path

from sfasync import Engine, Repository
from sfasync.platform.qemu.platform import QemuPlatform
from sfasync.transport.export import open_export
from sfasync.units import KiB, MiB
from tests.support.qemu import bitmaps, daemon

SIZES = {"vda": 6 * MiB, "vdb": 2 * MiB}


async def test_disks_get_back_what_has_changed_since_their_backup(tmp_path: Path) -> None:
    with daemon(SIZES, directory=tmp_path) as machine:
        async with (
            await Repository.init(tmp_path / "repository", chunk_size=256 * KiB) as repository,
            Engine(repository) as engine,
            QemuPlatform(machine.platform_settings()) as platform,
        ):
            async with await open_export(machine.address("vda")) as guest:
                await guest.write(MiB - 3, b"at a border")
                await guest.write(4 * MiB, b"x" * MiB)
                await guest.flush()
            backup = await engine.backup_vm("web-01", platform=platform)
            async with await open_export(machine.address("vda")) as guest:
                truth = await guest.read(0, SIZES["vda"])
                await guest.write(MiB, b"spoilt")
                await guest.write(3 * MiB, b"was zero")
                await guest.zero(4 * MiB, 512 * KiB)
                await guest.flush()
            result = await engine.restore_vm(backup.id, platform=platform, differential=True, verify_after=True)
            vda, vdb = result.disks
            assert [(disk.mode, disk.reason) for disk in (vda, vdb)] == [("differential", None)] * 2
            assert vda.bytes_written + vda.bytes_zero <= 4 * 256 * KiB
            assert vdb.bytes_skipped == SIZES["vdb"]
            assert result.restored_vm == "web-01"
            async with await open_export(machine.address("vda")) as guest:
                assert await guest.read(0, SIZES["vda"]) == truth

            after = await engine.backup_vm("web-01", platform=platform, audit="100%")
            assert {disk.mode for disk in after.disks} == {"incremental"}
            assert [disk.tree for disk in after.disks] == [disk.tree for disk in backup.disks]
            whole = await engine.restore_vm(backup.id, platform=platform, disks=["vdb"])
            assert (whole.disks[0].mode, whole.disks[0].reason) == ("full", None)
            assert len(await bitmaps(machine, "vda")) == 2  # and its seal
