"""The example of a platform keeps the contract, and the engine works with it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import sfasync
from examples.directory_platform import FROZEN, DirectoryPlatform

from ..contracts.platform import PlatformCase, PlatformContract
from ..support.servers import require

MiB = 1 << 20
SIZES = {"vda": 4 * MiB, "vdb": 2 * MiB}


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """VMs, one of them with two images."""
    require("nbdkit")
    (tmp_path / "vms" / "web-01").mkdir(parents=True)
    for disk, size in SIZES.items():
        (tmp_path / "vms" / "web-01" / f"{disk}.raw").write_bytes(os.urandom(MiB) + bytes(size - MiB))
    yield tmp_path / "vms"
    assert not list((tmp_path / "vms" / FROZEN).glob("*")), "everything was given back"


class TestContract(PlatformContract):
    @pytest.fixture
    async def platform_case(self, root: Path) -> PlatformCase:
        return PlatformCase(DirectoryPlatform(root), "web-01", SIZES, tracks=False)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[sfasync.Engine]:
    async with (
        await sfasync.Repository.open(tmp_path / "repository", create=True) as repository,
        sfasync.Engine(repository) as engine,
    ):
        yield engine


async def test_a_backup(engine: sfasync.Engine, root: Path, tmp_path: Path) -> None:
    result = await engine.backup_vm("web-01", platform=DirectoryPlatform(root))
    assert [(disk.mode, disk.size) for disk in result.disks] == [("full", size) for size in SIZES.values()]
    await engine.restore_vm(result.id, to=tmp_path / "restored")
    for disk in SIZES:
        restored, image = tmp_path / "restored" / f"{disk}.raw", root / "web-01" / f"{disk}.raw"
        assert restored.read_bytes() == image.read_bytes()


async def test_what_cannot_be_backed_up_says_why(engine: sfasync.Engine, root: Path) -> None:
    platform = DirectoryPlatform(root)
    (root / "web-01" / "running").touch()
    (vm,) = await platform.vms()
    assert vm.refusal is not None
    with pytest.raises(sfasync.UsageError, match=vm.refusal):
        await engine.backup_vm("web-01", platform=platform)
    with pytest.raises(sfasync.UsageError, match="no VM 'web-02'"):
        await engine.backup_vm("web-02", platform=platform)


async def test_what_a_killed_run_left_is_removed(root: Path) -> None:
    platform = DirectoryPlatform(root)
    (root / FROZEN / "web-01.0.copy").mkdir(parents=True)
    (root / FROZEN / "web-01.0.copy.lock").touch()
    async with platform.snapshot("web-01"):
        for dry_run in (True, False):
            assert [(left.id, left.removed) for left in await platform.cleanup(dry_run=dry_run)] == [
                ("web-01.0.copy", not dry_run)
            ]
        assert await platform.cleanup() == []
