"""A repository that was made when this format version was new restores to the byte, with both readers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sfasync import Engine, Repository

from .. import golden
from ..support.memory import MemoryDisk
from .support import read_disk
from .test_format import Reader

pytestmark = pytest.mark.one_loop  # what is looked at is files


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A copy: tests do not write to the golden one."""
    return Path(shutil.copytree(golden.PLACE, tmp_path / "golden"))


async def test_it_verifies_and_restores(place: Path) -> None:
    async with await Repository.open(place) as repository:
        result = await repository.verify(data=True)
        assert (result.problems, result.leftovers, result.backups) == ((), (), len(golden.expected()))
        found = {(backup.vm, backup.seq): backup for backup in await repository.backups()}
        for vm, seq, disks in golden.expected():
            manifest = found.pop((vm, seq))
            assert {disk.id: await read_disk(repository, manifest, disk.id) for disk in manifest.disks} == disks
            for name, content in golden.FILES.items() if vm == golden.PLATFORM_VM else ():
                assert await repository.read_file(manifest, name) == content
        assert found == {}


def test_the_second_reader_restores_it() -> None:
    reader = Reader(golden.PLACE)
    for vm, seq, disks in golden.expected():
        manifest = reader.manifest(vm, seq)
        assert {disk["id"]: b"".join(reader.disk(disk)) for disk in manifest["disks"]} == disks
        files = {
            file["name"]: reader.blob(3, bytes.fromhex(file["digest"]), file["size"]) for file in manifest["files"]
        }
        assert files == (golden.FILES if vm == golden.PLATFORM_VM else {})


async def test_backups_go_on_in_it(place: Path) -> None:
    disks = golden.first()
    async with await Repository.open(place) as repository, Engine(repository) as engine:
        backup = await engine.backup_vm(golden.PLATFORM_VM, {name: MemoryDisk(disks[name]) for name in disks})
        assert backup.bytes_new == 0, "all of it is there"
        manifest = await repository.find(backup.id)
        assert manifest.seq == 5
        assert {name: await read_disk(repository, manifest, name) for name in disks} == disks
        assert (await repository.verify(data=True)).ok


async def test_the_same_backups_have_the_same_tree_digests(place: Path, tmp_path: Path) -> None:
    """Digests do not depend on who makes them, when, or where."""
    await golden.make(tmp_path / "again")
    trees = []
    for where in (place, tmp_path / "again"):
        async with await Repository.open(where) as repository:
            trees.append([[disk.tree for disk in backup.disks] for backup in await repository.backups()])
    assert trees[0] == trees[1]
