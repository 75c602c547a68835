"""`sfasync show`"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sfasync import Engine, Manifest, Repository

from ...support.command import sfasync
from ...support.tracking import TrackingPlatform


def test_everything_for_people(backup: str) -> None:
    ended = sfasync("show", "vm@latest")
    assert (ended.status, ended.err) == (0, "")
    for text in (backup, "vm", "vda", "16 MiB", "first-backup", "plain", "tree digest of vda: "):
        assert text in ended.out


def test_everything_for_programs(backup: str) -> None:
    result = sfasync("show", backup[:6], "--json").last
    assert (result["command"], result["id"], result["vm"]) == ("show", backup, "vm")
    assert (result["platform"], result["parent"], result["files"]) == ("plain", None, [])


def test_a_lost_list_of_bad_blocks_does_not_hide_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = tmp_path / "repository"

    async def make() -> None:
        async with await Repository.init(where) as repository:
            session = await repository.begin("vm")
            file = await session.add_file("bad-blocks.json", b"no list")
            manifest = Manifest(
                id="",
                repository="",
                seq=0,
                vm="vm",
                vm_name="vm",
                time=0,
                platform="x",
                version="0",
                disks=(),
                files=(file,),
            )
            await session.commit(manifest)

    asyncio.run(make())
    monkeypatch.setenv("SFASYNC_REPOSITORY", str(where))
    ended = sfasync("show", "vm@latest", "--json")
    assert (ended.status, ended.last["bad_blocks"]) == (0, None)
    assert "the list of them is damaged" in ended.err
    assert "file bad-blocks.json" in sfasync("show", "vm@latest").out


def test_no_such_backup(repository: Path) -> None:
    ended = sfasync("show", "vm@latest", "--json")
    assert (ended.status, ended.last["code"]) == (2, "no-such-backup")
    assert len(ended.err.splitlines()) == 1


def test_a_suspect_backup_is_told_by_show_and_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = tmp_path / "repository"

    async def make() -> list[str]:
        async with await Repository.init(where) as repository, Engine(repository) as engine:
            platform = TrackingPlatform({"vda": b"first"})
            backups = [(await engine.backup_vm("vm", platform=platform)).id for _ in range(2)]
            await repository.distrust(await repository.find(backups[-1]), "vda")
            return backups

    full, incremental = asyncio.run(make())
    monkeypatch.setenv("SFASYNC_REPOSITORY", str(where))
    rows = sfasync("list").out.splitlines()
    assert ["(suspect)" in row for row in rows] == [False, False, True]
    assert [event.get("suspect") for event in sfasync("list", "--json").events] == [[], ["vda"], None]
    assert "suspect:  vda: may lack changes" in sfasync("show", incremental).out
    assert "suspect" not in sfasync("show", full).out
    assert sfasync("show", incremental, "--json").last["suspect"] == ["vda"]
